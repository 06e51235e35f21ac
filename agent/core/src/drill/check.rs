//! What a drill looks at, and what came of it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most characters of an answer that a report shows.
const SHOWN: usize = 1000;

/// What is looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Every stored extent of the backup's files, by its hash.
    Files,
    /// That a server starts on them, and replays up to where the plan says.
    Recovery,
    /// That there are tables of users' at all.
    Content,
    /// The operator's own query.
    Query,
    /// Rows of tables, against a sample of the running server.
    Rows,
    /// Tables and indexes, by pg_amcheck.
    Amcheck,
    /// Pages' checksums, by pg_checksums.
    Checksums,
}

impl Kind {
    /// Whether passing it says something of data that users have.
    pub const fn shows_data(self) -> bool {
        !matches!(self, Self::Files | Self::Recovery)
    }
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is as it should be.
    Passed,
    /// It is not, or it could not be seen though it was asked for.
    Failed,
    /// It does not apply, or nobody asked for it.
    NotDone,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::NotDone => "not done",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// What kind of thing.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// In words.
    pub says: String,
    /// What was expected, where that is an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Checked {
    /// As it should be.
    pub fn passed(kind: Kind, name: &str, says: impl Into<String>) -> Self {
        Self::of(kind, name, Outcome::Passed, says)
    }

    /// Not as it should be.
    pub fn failed(kind: Kind, name: &str, says: impl Into<String>) -> Self {
        Self::of(kind, name, Outcome::Failed, says)
    }

    /// Not looked at.
    pub fn not_done(kind: Kind, name: &str, why: impl Into<String>) -> Self {
        Self::of(kind, name, Outcome::NotDone, why)
    }

    fn of(kind: Kind, name: &str, outcome: Outcome, says: impl Into<String>) -> Self {
        Self { kind, name: name.to_owned(), outcome, says: says.into(), expected: None, found: None, seconds: 0.0 }
    }
}

/// How many checks came out how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// As it should be.
    pub passed: u64,
    /// Not so.
    pub failed: u64,
    /// Not looked at.
    pub not_done: u64,
}

impl Counts {
    /// Of these.
    pub fn of(results: &[Checked]) -> Self {
        let count = |outcome| results.iter().filter(|checked| checked.outcome == outcome).count() as u64;
        Self { passed: count(Outcome::Passed), failed: count(Outcome::Failed), not_done: count(Outcome::NotDone) }
    }
}

/// What a query has to answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Expected {
    /// One row or more, of one column that is true in each.
    True,
    /// Just this, as `psql -At` prints it.
    Text(String),
    /// One number, not below the first and not above the second.
    Number(Option<f64>, Option<f64>),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::True => f.write_str("t"),
            Self::Text(text) => f.write_str(text),
            Self::Number(least, most) => match (least, most) {
                (Some(least), Some(most)) => write!(f, "{least} to {most}"),
                (Some(least), None) => write!(f, "at least {least}"),
                (None, Some(most)) => write!(f, "at most {most}"),
                (None, None) => f.write_str("a number"),
            },
        }
    }
}

impl Expected {
    /// Judges an answer, as `psql -At` prints it; `cut` if there was more of it than is here.
    pub fn judge(&self, name: &str, answer: &str, cut: bool) -> Checked {
        let answer = answer.trim_end_matches('\n');
        let is_it = match self {
            Self::True => !answer.is_empty() && answer.lines().all(|line| line == "t"),
            Self::Text(text) => text.trim_end_matches('\n') == answer,
            Self::Number(least, most) => answer.trim().parse::<f64>().is_ok_and(|number| {
                !number.is_nan() && least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most)
            }),
        };
        let judged = match (is_it && !cut, answer.is_empty()) {
            (true, _) => Checked::passed(Kind::Query, name, "answers as expected"),
            (false, true) => Checked::failed(Kind::Query, name, "answers nothing"),
            (false, false) => Checked::failed(Kind::Query, name, "answers something else"),
        };
        Checked { expected: Some(shown(&self.to_string(), false)), found: Some(shown(answer, cut)), ..judged }
    }
}

fn shown(text: &str, cut: bool) -> String {
    let short: String = text.chars().take(SHOWN).collect();
    if cut || short.len() < text.len() { format!("{short} …") } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_what_was_expected() {
        let number = |least, most| Expected::Number(least, most);
        for (expected, answer, passes) in [
            (Expected::True, "t\n", true),
            (Expected::True, "t\nt\n", true),
            (Expected::True, "t\nf\n", false),
            (Expected::True, "", false),
            (Expected::True, "1\n", false),
            (Expected::Text("a|b\nc|".into()), "a|b\nc|\n", true),
            (Expected::Text("a\n".into()), "a\n", true),
            (Expected::Text("a".into()), "b\n", false),
            (Expected::Text(String::new()), "", true),
            (number(Some(10.0), None), "10\n", true),
            (number(Some(10.0), None), "9.5\n", false),
            (number(None, Some(1e3)), "-1\n", true),
            (number(Some(1.0), Some(2.0)), "2.5\n", false),
            (number(Some(1.0), None), "NaN\n", false),
            (number(Some(1.0), None), "1\n2\n", false),
            (number(Some(1.0), None), "", false),
        ] {
            let judged = expected.judge("q", answer, false);
            assert_eq!(judged.outcome == Outcome::Passed, passes, "{expected:?} {answer:?}");
        }
        // What was not read to its end is not what was expected.
        assert_eq!(Expected::True.judge("q", "t\n", true).outcome, Outcome::Failed);
        let long = Expected::True.judge("q", &"x".repeat(5000), false).found.expect("an answer");
        assert!(long.ends_with('…') && long.chars().count() < 1100);
    }
}
