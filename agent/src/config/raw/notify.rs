//! `[notify]` as it is written.

use serde::Deserialize;

use super::OneOrMore;

/// Who is told what is wrong.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNotify {
    pub webhook: Option<String>,
    pub webhook_file: Option<String>,
    pub command: Option<OneOrMore>,
    pub heartbeat: Option<String>,
    pub heartbeat_file: Option<String>,
    pub heartbeat_interval: Option<String>,
    pub wait: Option<String>,
    pub remind: Option<String>,
    pub most_an_hour: Option<usize>,
    pub possible_loss: Option<String>,
    pub email: Option<RawEmail>,
}

/// Mail.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEmail {
    pub server: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub password_file: Option<String>,
    pub from: Option<String>,
    pub to: Option<OneOrMore>,
}

impl std::fmt::Debug for RawNotify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawNotify (not shown)")
    }
}

impl std::fmt::Debug for RawEmail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawEmail (not shown)")
    }
}
