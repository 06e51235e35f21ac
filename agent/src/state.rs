//! How an agent is, as it says it on its socket and on the page of all clusters: without asking anybody.

use std::sync::Arc;

use walkeep_core::alarm::Said;
use walkeep_core::safety::{Heard, Wrong};

use crate::notify::Standing;
use crate::progress::Progress;

/// So much that is wrong is told, the most urgent first, ...
const TOLD: usize = 12;
/// ... and so many characters of each: an answer on the socket is short.
const LONGEST: usize = 400;

/// Where it is known.
#[derive(Debug, Clone)]
pub struct State {
    /// Whether it streams.
    pub streams: bool,
    /// How far the stream is.
    pub progress: Arc<Progress>,
    /// What is wrong.
    pub standing: Option<Standing>,
}

impl State {
    /// How it is now.
    pub fn heard(&self) -> Heard {
        let judged = self.standing.as_ref().and_then(|standing| standing.borrow().clone());
        let wrong = |said: &Said| Wrong { severity: said.severity, text: said.alarm.text.chars().take(LONGEST).collect() };
        Heard {
            stands_by: self.progress.stands_by(),
            streams: self.streams,
            possible_loss_seconds: self.progress.snapshot().possible_loss().map(|loss| loss.as_secs_f64()),
            alarms: judged.map(|judged| judged.standing.iter().take(TOLD).map(wrong).collect()),
        }
    }
}
