//! A report for a browser: one page that asks for nothing else, readable in the dark, on a telephone and on paper.

use std::fmt::Write;

use super::text::{answers, facts, seconds, signature};
use super::{DrillReport, Outcome, Verdict};
use crate::identifier::printable;

const STYLE: &str = ":root{color-scheme:light dark}\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%;margin:1rem 0}\
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;border-bottom:1px solid #8884;overflow-wrap:anywhere}\
th{white-space:nowrap;font-weight:600}\
.verdict,.outcome{font-weight:700;white-space:nowrap}\
.good{color:light-dark(#0a6b2d,#6fd88f)}.bad{color:light-dark(#b00020,#ff8a8a)}.none{color:light-dark(#555,#aaa)}\
pre{margin:.2rem 0;white-space:pre-wrap;font-size:.9em}";

/// The report as a page.
pub fn of(report: &DrillReport) -> String {
    let told = &report.facts;
    let title = escaped(&format!("Drill {} of cluster {}", told.id, told.cluster));
    let class = if told.verdict == Verdict::Passed { "good" } else { "bad" };
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}: {verdict}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p class=\"verdict {class}\">{verdict}</p>\n<table>\n",
        verdict = told.verdict,
    );
    let mut add = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = page.write_fmt(text);
    };
    for (name, value) in facts(told) {
        add(format_args!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>\n", escaped(&value)));
    }
    add(format_args!("</table>\n<h2>Checks</h2>\n<table>\n"));
    for checked in &report.results {
        let class = match checked.outcome {
            Outcome::Passed => "good",
            Outcome::Failed => "bad",
            Outcome::NotDone => "none",
        };
        let name = escaped(&checked.name);
        let (outcome, says, took) = (checked.outcome, escaped(&checked.says), seconds(checked.seconds));
        add(format_args!("<tr><td class=\"outcome {class}\">{outcome}</td><th scope=\"row\">{name}</th><td>{says}"));
        for (name, value) in answers(checked) {
            let lines = value.lines().map(escaped).collect::<Vec<_>>().join("\n");
            add(format_args!("<pre>{name}: {lines}</pre>"));
        }
        add(format_args!("</td><td>{took}</td></tr>\n"));
    }
    add(format_args!("</table>\n<h2>Steps</h2>\n<table>\n"));
    for step in &report.steps {
        add(format_args!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escaped(&step.step), seconds(step.seconds)));
    }
    add(format_args!("</table>\n"));
    for note in &report.notes {
        add(format_args!("<p>Note: {}</p>\n", escaped(note)));
    }
    add(format_args!("<p>Signed off by {}</p>\n</body>\n</html>\n", escaped(&signature(told))));
    page
}

/// For between two tags, and for an attribute.
fn escaped(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::tests::report;

    #[test]
    fn what_a_database_says_is_no_markup() {
        let page = of(&report());
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        assert!(page.contains("&lt;b&gt;2&lt;/b&gt;") && page.contains("a &amp; b") && page.contains("postgres@db&lt;1&gt;"), "{page}");
        assert!(!page.contains("<b>") && !page.contains("<script") && !page.contains("http"), "{page}");
        for told in ["class=\"verdict bad\">FAILED<", "RTO", "RPO", "class=\"outcome none\">not done<", "Signed off by"] {
            assert!(page.contains(told), "{told} in\n{page}");
        }
    }
}
