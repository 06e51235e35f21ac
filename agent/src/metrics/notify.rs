//! What is counted of messages to people, and of heartbeats.

use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use super::Maker;

/// The metrics of messages.
#[derive(Debug)]
pub struct NotifyMetrics {
    sent: IntCounterVec,
    last: IntGaugeVec,
}

impl NotifyMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            sent: maker.registered(IntCounterVec::new(
                Opts::new("walkeep_notifications_total", "Messages to people, and heartbeats, by the way they went and how that ended."),
                &["channel", "result"],
            )?)?,
            last: maker.int_gauge_vec(
                "walkeep_notification_last_success_timestamp_seconds",
                "When one went that way last, as a Unix time; 0 if none did since the agent's start.",
                "channel",
            )?,
        })
    }

    /// Every sample of this way exists from now on.
    pub fn begin(&self, channel: &str) {
        for result in ["sent", "failed"] {
            self.sent.with_label_values(&[channel, result]).reset();
        }
        self.last.with_label_values(&[channel]).set(0);
    }

    /// One went, or did not.
    pub fn ended(&self, channel: &str, sent: bool) {
        self.sent.with_label_values(&[channel, if sent { "sent" } else { "failed" }]).inc();
        if sent {
            self.last.with_label_values(&[channel]).set(chrono::Utc::now().timestamp());
        }
    }
}
