//! The tries: the agent first, the fetch service where no agent listens, again until the deadline.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use walkeep_protocol::{CallError, Request, Response, call};

use crate::service::{Service, State};
use crate::verdict::{Trouble, Verdict};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a fetch service that has just been started is asked.
const START_PAUSE: Duration = Duration::from_millis(20);

/// One file to fetch.
pub struct Fetch {
    pub socket: PathBuf,
    pub service: Service,
    pub request: Request,
    pub deadline: Instant,
}

impl Fetch {
    /// Tries until the file is there, is proven absent, or time is up. Every new trouble is told at once.
    pub fn run(mut self, mut tell: impl FnMut(&Trouble)) -> Verdict {
        let mut pause = FIRST_PAUSE;
        let mut last: Option<Trouble> = None;
        loop {
            let trouble = match self.ask() {
                Ok(verdict) => return verdict,
                Err(trouble) => trouble,
            };
            let starting = trouble.is_none();
            if let Some(trouble) = trouble.filter(|trouble| last.as_ref() != Some(trouble)) {
                tell(&trouble);
                last = Some(trouble);
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            thread::sleep(left.min(if starting { START_PAUSE } else { pause }));
            // A try without time could only say that it had none, and not what is wrong.
            if Instant::now() >= self.deadline {
                return Verdict::Trouble(last.unwrap_or_else(|| Trouble::Nobody { message: self.service.silence() }));
            }
            if !starting {
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    /// One try. Trouble that is only a service still starting is none.
    fn ask(&mut self) -> Result<Verdict, Option<Trouble>> {
        let agent = match call(&self.socket, &self.request, self.deadline) {
            Err(CallError::NobodyListens(cause)) => cause,
            answer => return settle(answer, &self.socket),
        };
        match call(self.service.socket(), &self.request, self.deadline) {
            Err(CallError::NobodyListens(_)) => {}
            answer => return settle(answer, self.service.socket()),
        }
        match self.service.start() {
            State::Starting => Err(None),
            State::Failed(why) => {
                let message = format!("no agent listens on {} ({agent}), and {why}", self.socket.display());
                Err(Some(Trouble::Nobody { message }))
            }
        }
    }
}

/// What an answer means: the one place that decides what is settled and what is tried again.
fn settle(answer: Result<Response, CallError>, socket: &std::path::Path) -> Result<Verdict, Option<Trouble>> {
    let (message, hint) = match answer {
        Ok(Response::Done) => return Ok(Verdict::Done),
        Ok(Response::Absent { message }) => return Ok(Verdict::Absent(message)),
        Ok(Response::TryLater { message }) => (message, None),
        Ok(Response::Failed { message, hint }) => (message, hint),
        Err(error) => (format!("{error} (socket {})", socket.display()), None),
    };
    Err(Some(Trouble::NoAnswer { message, hint }))
}
