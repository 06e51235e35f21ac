//! What is counted of calls to the repository: how long they took, how many bytes went or came.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec};
use walkeep_store::Operation;

use super::Maker;

/// Seconds. From a directory on this host to a bucket behind a slow line; deadlines are at 60 and more.
const BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// The metrics of calls.
#[derive(Debug)]
pub struct RequestMetrics {
    seconds: HistogramVec,
    bytes: IntCounterVec,
}

impl RequestMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let opts =
            HistogramOpts::new("walkeep_request_duration_seconds", "How long calls to the repository took, with what was tried again.");
        let metrics = Self {
            seconds: maker.registered(HistogramVec::new(opts.buckets(BUCKETS.to_vec()), &["operation"])?)?,
            bytes: maker.counter_vec("walkeep_request_bytes_total", "Bytes that these calls sent or received.", "operation")?,
        };
        for operation in Operation::ALL {
            metrics.seconds.with_label_values(&[operation.as_str()]);
            metrics.bytes.with_label_values(&[operation.as_str()]).reset();
        }
        Ok(metrics)
    }

    /// One ended, failed or not.
    pub fn ended(&self, operation: Operation, elapsed: Duration, bytes: u64) {
        self.seconds.with_label_values(&[operation.as_str()]).observe(elapsed.as_secs_f64());
        self.bytes.with_label_values(&[operation.as_str()]).inc_by(bytes);
    }
}
