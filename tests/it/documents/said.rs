//! What a command said, compared with what its document promises.

use walkeep_tests::Output;

pub struct Said {
    /// File and line, and the command as it stands there.
    pub place: String,
    /// The prose of its section.
    pub prose: String,
    pub output: Output,
}

impl Said {
    fn all(&self) -> String {
        format!("{}{}", self.output.stdout, self.output.stderr)
    }

    /// Whether it said this.
    pub fn has(&self, text: &str) -> bool {
        self.all().contains(text)
    }

    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.has(text), "{} does not say {text:?}:\n{}", self.place, self.all());
        self
    }

    #[track_caller]
    pub fn never_says(&self, text: &str) -> &Self {
        assert!(!self.has(text), "{} says {text:?}:\n{}", self.place, self.all());
        self
    }

    /// It said what the prose beside it quotes. Numbers may be others; `...` stands for anything.
    #[track_caller]
    pub fn as_told(&self, quote: &str) -> &Self {
        self.quoted(quote);
        assert!(matches(&self.all(), quote), "{} does not say {quote:?}, as the document has it:\n{}", self.place, self.all());
        self
    }

    /// The prose beside it quotes this; whether it is so is asserted otherwise.
    #[track_caller]
    pub fn quoted(&self, quote: &str) -> &Self {
        assert!(self.prose.contains(quote), "{}: the section does not have {quote:?} any more", self.place);
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        self.output.json()
    }
}

/// Whether `quote` is said in `text`, whatever the numbers.
pub fn matches(text: &str, quote: &str) -> bool {
    let (text, quote) = (without_numbers(text), without_numbers(quote));
    let mut rest = text.as_str();
    quote.split("...").map(str::trim).filter(|part| !part.is_empty()).all(|part| match rest.split_once(part) {
        Some((_, behind)) => {
            rest = behind;
            true
        }
        None => false,
    })
}

/// Each run of hexadecimal digits with a number in it becomes `0`, and space is space.
fn without_numbers(text: &str) -> String {
    let mut result = String::new();
    let is_digit = |character: &char| character.is_ascii_digit() || ('A'..='F').contains(character);
    let mut characters = text.chars().peekable();
    while let Some(first) = characters.next() {
        let mut run = String::from(first);
        if is_digit(&first) {
            while let Some(next) = characters.next_if(is_digit) {
                run.push(next);
            }
            let is_number = run.chars().any(|character| character.is_ascii_digit());
            result.push_str(if is_number { "0" } else { &run });
        } else if !first.is_whitespace() || !result.ends_with(' ') {
            result.push(if first.is_whitespace() { ' ' } else { first });
        }
    }
    result.replace("0.0", "0")
}

#[test]
fn quotes_are_found_whatever_the_numbers() {
    assert!(matches("x\nGAP in it from=0/28000060 to=0/34000000 y\n", "GAP ... from=0/1 to=0/2A"));
    assert!(matches("(12 s)", "(0.4 s)") && matches("a  b", "a b"));
    assert!(!matches("DROPPED table a", "DROPPED index a") && !matches("b a", "a ... b"));
}
