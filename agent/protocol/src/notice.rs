//! What a shim tells PostgreSQL's log: a line that says what happened, and a hint. Writing it never fails and never panics.

use std::io::Write;

/// Writes one line, and one more for the hint, to standard error.
pub fn report(program: &str, message: &str, hint: Option<&str>) {
    let mut text = format!("{program}: {}\n", one_line(message));
    if let Some(hint) = hint {
        text.push_str(&format!("HINT:  {}\n", one_line(hint)));
    }
    // One write, so that lines of several processes do not mix. Nobody is left to tell if the log is gone.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes `text` to standard output.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Control characters would break the log's lines, or a terminal.
fn one_line(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line() {
        assert_eq!(one_line("two\nlines\x1b[31m\n"), "two lines [31m");
    }
}
