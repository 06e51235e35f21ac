//! `[cluster.NAME.drill]` as it is written.

use serde::Deserialize;

/// Drills.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDrill {
    pub schedule: Option<String>,
    pub timezone: Option<String>,
    pub jitter: Option<String>,
    pub catch_up: Option<bool>,
    pub target: Option<String>,
    pub deadline: Option<String>,
    pub scratch: Option<String>,
    pub bin_dir: Option<String>,
    pub amcheck: Option<String>,
    pub checksums: Option<String>,
    pub sample: Option<String>,
    pub sample_limit: Option<String>,
    #[serde(default)]
    pub check: Vec<RawDrillCheck>,
}

/// A query, and what it has to answer.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDrillCheck {
    pub name: Option<String>,
    pub database: Option<String>,
    pub query: Option<String>,
    pub expect: Option<RawExpected>,
    pub at_least: Option<f64>,
    pub at_most: Option<f64>,
    pub timeout: Option<String>,
}

/// An answer: whoever expects a number or true need not write it as text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum RawExpected {
    Text(String),
    Integer(i64),
    Boolean(bool),
}
