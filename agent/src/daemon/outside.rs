//! What the agent looks at of its repositories' servers, beside its work: whether their clocks agree with this host's, how long its credentials hold, and their
//! certificates. Of PostgreSQL's server the watcher knows the same ([`super::watch`]).
//!
//! Clocks are read from answers that came anyhow, so an agent that asks for nothing learns nothing new. Credentials are renewed here too, shortly before they end: that
//! nobody needed them meanwhile is not to look as if they could not be renewed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use walkeep_store::Noticed;

use crate::certificate;
use crate::metrics::{Metrics, Other};
use crate::repository::ClusterRepository;
use crate::verify::numbered;

/// Between two looks at clocks and credentials.
const PERIOD: Duration = Duration::from_secs(60);
/// The first ones come sooner: something was asked then.
const FIRST: Duration = Duration::from_secs(2);
/// Between two looks at a certificate.
const CERTIFICATE: Duration = Duration::from_secs(3600);
/// One that could not be looked at is looked at again after this.
const AGAIN: Duration = Duration::from_secs(300);

/// Looks until `stop`.
pub async fn run(repository: Arc<ClusterRepository>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let (began, mut outside) = (Instant::now(), Outside { metrics, next: HashMap::new() });
    let looking = async {
        loop {
            tokio::time::sleep(if began.elapsed() < PERIOD { FIRST } else { PERIOD }).await;
            // Which they are is known only once they could be opened.
            for (_, place) in numbered(&repository) {
                let noticed = place.repository().store().noticed().await;
                outside.look(&place.repository().url(), noticed).await;
            }
        }
    };
    tokio::select! {
        () = looking => {}
        () = stop.cancelled() => {}
    }
}

struct Outside {
    metrics: Arc<Metrics>,
    /// When the certificate of a repository is looked at next.
    next: HashMap<String, Instant>,
}

impl Outside {
    async fn look(&mut self, url: &str, noticed: Noticed) {
        let (shown, other) = (&self.metrics.outside, Other::Repository(url));
        if let Some(ahead) = noticed.ahead {
            shown.clock(other, ahead);
        }
        if let Some(end) = noticed.credentials_end {
            shown.credentials(url, end.map(Into::into));
        }
        let Some(server) = noticed.tls else { return };
        let Some(server) = server else { return shown.certificate(other, None) };
        if self.next.get(url).is_some_and(|next| *next > Instant::now()) {
            return;
        }
        let asked = certificate::end_of(&server).await;
        let pause = if asked.is_ok() { CERTIFICATE } else { AGAIN };
        self.next.insert(url.to_owned(), Instant::now() + pause);
        match asked {
            Ok(end) => shown.certificate(other, Some(end)),
            // That it does not answer is told by whoever needs it.
            Err(error) => tracing::debug!(repository = url, error = format!("{error:#}"), "its certificate could not be looked at"),
        }
    }
}
