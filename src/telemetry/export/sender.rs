//! Empties the queue into the Collector: in order, one request under way, by the rules of the OTLP
//! specification for what may be tried again.

use super::encode::Batch;
use super::pauses::Pauses;
use super::peer::{Complaints, Presence, Signal, with_hint};
use super::queue::{Queue, Ticket};
use super::split::{describe, halve};
use super::transport::{CallError, LARGEST_ANSWER, Transport};
use super::{Outcome, count};
use crate::config::Compression;
use crate::outcome::chain;
use crate::stats::Stats;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsPartialSuccess;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Longest pause that a Collector may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(300);
/// Pause while the agent ends: there is no time left for more.
const CLOSING_PAUSE: Duration = Duration::from_millis(200);
/// Characters of a Collector's message that are logged.
const MESSAGE: usize = 200;
/// A refused request that is smaller than this can only be too large if the Collector says so. Without the
/// bound a Collector that is out of quota would get the fleet point by point.
const NEVER_TOO_LARGE: usize = 64 << 10;
/// What servers say of a message that is too large: those made with grpc-go and the C core, with grpc-java,
/// with tonic.
const TOO_LARGE: [&str; 3] = ["larger than max", "exceeds maximum size", "length too large"];

/// The sender. One for each queue.
#[derive(Debug)]
pub struct Sender<T> {
    transport: T,
    queue: Arc<Queue>,
    presence: Arc<Presence>,
    stats: Arc<Stats>,
    configured: Compression,
    compression: Compression,
    pauses: Pauses,
    complaints: Complaints,
    told_of_compression: bool,
}

/// Whether the agent ends, and what that means for what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It does not.
    No,
    /// What is not sent soon is lost.
    Volatile,
    /// What is not sent now is there at the next start.
    Kept,
}

/// What a failed call means.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// Try the same again, not before this pause if the Collector asked for one.
    Again(Option<Duration>),
    /// It is too large: try its halves.
    Halve,
    /// The compression is not known there.
    Compression,
    /// It will never be taken.
    Refused,
}

impl<T: Transport> Sender<T> {
    /// With `compression` until the Collector turns out not to know it.
    pub fn new(
        transport: T,
        queue: Arc<Queue>,
        presence: Arc<Presence>,
        stats: Arc<Stats>,
        compression: Compression,
    ) -> Self {
        Self {
            transport,
            queue,
            presence,
            stats,
            configured: compression,
            compression,
            pauses: Pauses::new(),
            complaints: Complaints::default(),
            told_of_compression: false,
        }
    }

    /// Sends for ever. To be dropped when there is nothing left, or no time; once `closing` says so,
    /// pauses are short, or a failure is the end.
    pub async fn run(mut self, mut closing: watch::Receiver<Closing>) {
        loop {
            let (ticket, batch) = self.queue.wait_front().await;
            if let Some(compression) = self.transport.renew() {
                (self.configured, self.compression, self.told_of_compression) =
                    (compression, compression, false);
            }
            let Some(pause) = self.deliver(ticket, batch).await else { continue };
            let ends = *closing.borrow_and_update();
            let pause = match ends {
                Closing::No => pause,
                Closing::Volatile => pause.min(CLOSING_PAUSE),
                Closing::Kept => return,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The sender of the channel goes with the exporter, which aborts this task as well.
                _ = closing.changed(), if ends == Closing::No => {}
                // Somewhere else it may be taken at once.
                () = self.transport.changed() => self.pauses.restart(),
            }
            self.queue.drops.note(&self.stats, self.queue.expire(self.queue.now()));
        }
    }

    /// Tries the oldest entry once. Returns the pause before the next try.
    async fn deliver(&mut self, ticket: Ticket, batch: Batch) -> Option<Duration> {
        let error = match self.transport.send(batch.bytes.clone(), self.compression).await {
            Ok(partial) => {
                self.delivered(ticket, &batch, partial);
                return None;
            }
            Err(error) => error,
        };
        let verdict = judge(&error, batch.bytes.len());
        if let Verdict::Again(asked) = verdict {
            self.presence.is_lost(Signal::Metrics, self.transport.peer(), &explain(&error));
            return Some(self.next_pause(asked));
        }
        match verdict {
            Verdict::Halve => {
                self.answered();
                self.halve(ticket, &batch, &error);
                return None;
            }
            Verdict::Compression if self.compression != Compression::None => {
                self.compression = simpler(self.compression);
                return None;
            }
            _ => {}
        }
        // With none left to try, it was not the compression that is not known there.
        self.compression = self.configured;
        self.settle(ticket, 0, batch.points);
        self.complain(format!("requests are refused, and their points are lost: {}", explain(&error)));
        if is_about_everything(&error) {
            // This request must not be sent again, says the specification. What waits behind it is not to follow it
            // at once: somebody may mend that, or another Collector take it.
            self.presence.is_lost(Signal::Metrics, self.transport.peer(), &explain(&error));
            return Some(self.next_pause(None));
        }
        self.answered();
        None
    }

    /// There is a Collector, whatever it says.
    fn answered(&mut self) {
        self.presence.is_there(Signal::Metrics, self.transport.peer());
        self.pauses.restart();
    }

    fn delivered(&mut self, ticket: Ticket, batch: &Batch, partial: Option<ExportMetricsPartialSuccess>) {
        self.answered();
        if self.compression != self.configured && !self.told_of_compression {
            self.told_of_compression = true;
            let (old, new) = (self.configured, self.compression);
            let instead = if new == Compression::None {
                "without compression".to_owned()
            } else {
                format!("with {new}")
            };
            tracing::warn!("OTLP: the Collector does not know {old}, messages are sent {instead}");
        }
        let rejected = partial.as_ref().map_or(0, |partial| partial.rejected_data_points);
        let rejected = usize::try_from(rejected).unwrap_or(0).min(batch.points);
        self.settle(ticket, batch.points - rejected, rejected);
        if rejected == 0 {
            self.complaints.is_over();
        }
        // The specification allows a message without a rejection: a warning.
        if let Some(partial) = partial.filter(|partial| rejected > 0 || !partial.error_message.is_empty()) {
            self.complain(format!("points are rejected: {}", one_line(&partial.error_message)));
        }
    }

    fn halve(&mut self, ticket: Ticket, batch: &Batch, error: &CallError) {
        match halve(&batch.bytes) {
            Ok([first, second]) if second.points > 0 => {
                self.queue.replace(ticket, [first, second]);
            }
            _ => {
                self.settle(ticket, 0, batch.points);
                let (point, why) = (describe(&batch.bytes), explain(error));
                self.complain(format!("the point {point} is refused by itself and given up: {why}"));
            }
        }
    }

    fn settle(&self, ticket: Ticket, exported: usize, rejected: usize) {
        // What the cap took while it was under way is counted as dropped already.
        if self.queue.acknowledge(ticket) {
            count(&self.stats, Outcome::Exported, exported);
            count(&self.stats, Outcome::Rejected, rejected);
        }
    }

    fn next_pause(&mut self, asked: Option<Duration>) -> Duration {
        let own = self.pauses.next();
        asked.map_or(own, |asked| asked.min(LONGEST_ASKED).max(own))
    }

    fn complain(&mut self, complaint: String) {
        if self.complaints.is_news(&complaint) {
            tracing::warn!("OTLP: {complaint}");
        }
    }
}

fn simpler(compression: Compression) -> Compression {
    match compression {
        Compression::Zstd => Compression::Gzip,
        Compression::Gzip | Compression::None => Compression::None,
    }
}

/// The retryable codes are those of the OTLP specification ("OTLP/gRPC Response"): RESOURCE_EXHAUSTED is
/// one only if the server says when to come back.
fn judge(error: &CallError, size: usize) -> Verdict {
    let status = match error {
        CallError::TimedOut(_) => return Verdict::Again(None),
        CallError::Status(status) => status,
    };
    // Not the server's word: the connection broke, and gRPC has a code for that (which may be that of a quota); or
    // something else than a Collector has answered: a proxy whose Collector is away, say.
    if std::error::Error::source(&**status).is_some() || is_of_http(status) {
        return Verdict::Again(None);
    }
    let asked = retry_delay(status);
    let is_too_large = TOO_LARGE.iter().any(|words| status.message().contains(words));
    match status.code() {
        // A server made with tonic says OUT_OF_RANGE where others say RESOURCE_EXHAUSTED.
        Code::ResourceExhausted | Code::OutOfRange if is_too_large => Verdict::Halve,
        Code::ResourceExhausted if asked.is_none() && size > NEVER_TOO_LARGE => Verdict::Halve,
        Code::ResourceExhausted if asked.is_none() => Verdict::Refused,
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Verdict::Again(asked),
        Code::Unimplemented => Verdict::Compression,
        _ => Verdict::Refused,
    }
}

/// Whether it is said of the sender or the service, and not of what was sent: a token that has expired, a Collector
/// without a pipeline for metrics.
fn is_about_everything(error: &CallError) -> bool {
    let CallError::Status(status) = error else { return false };
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented)
}

/// tonic's own words for an answer that is none of gRPC, or is cut off: they have no source, as the Collector's have none.
fn is_of_http(status: &Status) -> bool {
    const WORDS: [&str; 5] = [
        "grpc-status header missing",
        "missing grpc-status trailer",
        "protocol error: received message with",
        "Unexpected EOF decoding stream",
        "while receiving response with status",
    ];
    let message = status.message();
    WORDS.iter().any(|words| message.contains(words))
        || message.contains(&format!("the limit is: {LARGEST_ANSWER} bytes"))
}

fn retry_delay(status: &Status) -> Option<Duration> {
    let info = status.get_details_retry_info()?;
    Some(info.retry_delay.unwrap_or_default())
}

fn explain(error: &CallError) -> String {
    match error {
        CallError::TimedOut(limit) => format!("no answer within {limit:?}"),
        CallError::Status(status) => {
            let why = match std::error::Error::source(&**status) {
                Some(source) => chain(source),
                None => status.message().to_owned(),
            };
            with_hint(format!("{:?}: {}", status.code(), one_line(&why)))
        }
    }
}

/// A peer's text, for the log.
fn one_line(text: &str) -> String {
    text.chars().take(MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
