//! The tries: the agent first, the fetch service where no agent listens, again until the deadline.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use walkeep_protocol::{CallError, Request, Response, call};

use crate::service::{Service, State};
use crate::verdict::{Trouble, Verdict};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a fetch service that has just been started is asked.
const START_PAUSE: Duration = Duration::from_millis(20);
/// How long a fetch service that refuses its configuration is tried again: an agent that has another one may be starting on this host.
const MISCONFIGURED_PATIENCE: Duration = Duration::from_secs(10);

/// After so long without an answer it is told that one is being waited for: a store that hangs keeps the agent silent for a minute.
const SILENCE: Duration = Duration::from_secs(5);

/// One file to fetch.
pub struct Fetch {
    /// Tells, once, that the answer of whoever listens on this socket is being waited for.
    pub tell_silence: fn(&Request, &Path),
    pub socket: PathBuf,
    pub service: Service,
    pub request: Request,
    pub deadline: Instant,
}

impl Fetch {
    /// Tries until the file is there, is proven absent, is refused for good, or time is up. Every new trouble is told at once.
    pub fn run(mut self, mut tell: impl FnMut(&Trouble)) -> Verdict {
        let misconfigured_until = Instant::now() + MISCONFIGURED_PATIENCE;
        let mut pause = FIRST_PAUSE;
        let mut last: Option<Trouble> = None;
        loop {
            let trouble = match self.ask() {
                Ok(verdict) => return verdict,
                Err(trouble) => trouble,
            };
            let starting = trouble.is_none();
            if let Some(trouble) = &trouble
                && trouble.is_misconfigured()
            {
                self.deadline = self.deadline.min(misconfigured_until);
            }
            if let Some(trouble) = trouble.filter(|trouble| last.as_ref() != Some(trouble)) {
                tell(&trouble);
                last = Some(trouble);
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            thread::sleep(left.min(if starting { START_PAUSE } else { pause }));
            // A try without time could only say that it had none, and not what is wrong.
            if Instant::now() >= self.deadline {
                return Verdict::Trouble(last.unwrap_or_else(|| Trouble::Nobody { message: self.service.silence(), misconfigured: false }));
            }
            if !starting {
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    /// One try. Trouble that is only a service still starting is none.
    fn ask(&mut self) -> Result<Verdict, Option<Trouble>> {
        let agent = match self.call(&self.socket) {
            Err(CallError::NobodyListens(cause)) => format!("no agent listens on {} ({cause})", self.socket.display()),
            // The service has our environment, which may have what the agent must not.
            Ok(Response::Elsewhere { message }) => message,
            answer => return settle(answer, &self.socket),
        };
        match self.call(self.service.socket()) {
            Err(CallError::NobodyListens(_)) => {}
            answer => return settle(answer, self.service.socket()),
        }
        match self.service.start() {
            State::Starting => Err(None),
            State::Failed(why) => Err(Some(Trouble::Nobody { message: format!("{agent}, and {why}"), misconfigured: false })),
            State::Misconfigured(why) => Err(Some(Trouble::Nobody { message: format!("{agent}, and {why}"), misconfigured: true })),
        }
    }

    fn call(&self, socket: &Path) -> Result<Response, CallError> {
        let (answered, silence) = mpsc::channel::<()>();
        let (tell, request, place) = (self.tell_silence, self.request.clone(), socket.to_owned());
        let watch = move || {
            if silence.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
                tell(&request, &place);
            }
        };
        // Without the thread there is only a line less.
        let _ = thread::Builder::new().stack_size(64 * 1024).spawn(watch);
        let answer = call(socket, &self.request, self.deadline);
        drop(answered);
        answer
    }
}

/// What an answer means: the one place that decides what is settled and what is tried again.
fn settle(answer: Result<Response, CallError>, socket: &Path) -> Result<Verdict, Option<Trouble>> {
    let (message, hint) = match answer {
        Ok(Response::Done) => return Ok(Verdict::Done),
        Ok(Response::Absent { message }) => return Ok(Verdict::Absent(message)),
        Ok(Response::TryLater { message }) => (message, None),
        Ok(Response::Elsewhere { message } | Response::Told { text: message }) => {
            return Ok(Verdict::Refused(Trouble::NoAnswer { message, hint: None }));
        }
        Ok(Response::Failed { message, hint, permanent: true }) => return Ok(Verdict::Refused(Trouble::NoAnswer { message, hint })),
        Ok(Response::Failed { message, hint, permanent: false }) => (message, hint),
        Err(error) => (format!("{error} (socket {})", socket.display()), error.hint().map(str::to_owned)),
    };
    Err(Some(Trouble::NoAnswer { message, hint }))
}
