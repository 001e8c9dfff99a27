//! Collectors: *what to ask*, and how to read the answer. They do no I/O: whoever visits the target owns
//! the session. A new collector is one file here and one line in the list (see `host_collectors` and
//! `vcenter_collectors`).

pub mod command;
pub mod critical_service;
pub mod overall_state;
mod vcenter;

pub use vcenter::{Detail, Lookup, VcenterAnswer, VcenterCollector, VcenterReader, Want};

use crate::config::Config;
use crate::inventory::Host;
use crate::metric::MetricDef;
use crate::outcome::FailureReason;
use crate::readings::Reading;
use std::sync::Arc;
use std::time::Duration;

/// A question to a host: a shell snippet whose output, standard error included, is the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Names it within the collector: the service, say. `[A-Za-z0-9._-]+`.
    pub id: Arc<str>,
    /// For busybox ash. Made by us alone; holds nothing from a peer or unchecked from a file. One that is a
    /// single command begins with `exec`, so that the command itself is killed at the time limit.
    pub script: String,
}

/// The answer to one question, whole or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The question's `id`.
    pub question: Arc<str>,
    /// Lines and exit status, or [`FailureReason::CommandTimeout`], [`FailureReason::AnswerTooLarge`],
    /// [`FailureReason::AnswerUnreadable`].
    pub result: Result<Reply, FailureReason>,
    /// When it was complete, counted from the start of the command.
    pub elapsed: Duration,
}

/// What a script said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its output, invalid UTF-8 replaced, lines as they came.
    pub lines: Vec<String>,
    /// Its exit status.
    pub exit: i32,
}

/// What an answer means.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What is now known. A part that is left out keeps its last reading until that is stale.
    pub readings: Vec<Reading>,
    /// Why the answer is no plain good one: recorded in the question's span.
    pub problem: Option<FailureReason>,
}

/// A collector that asks hosts by SSH.
pub trait HostCollector: Send + Sync {
    /// Its name in configuration, logs and the readings.
    fn name(&self) -> &'static str;
    /// Pause between two visits.
    fn interval(&self) -> Duration;
    /// Age at which its readings are no longer reported.
    fn stale_after(&self) -> Duration;
    /// What a question is about, in one word: the span of a question is named `<subject> <id>` and has
    /// the attribute `esxi.<subject>`.
    fn subject(&self) -> &'static str {
        "question"
    }
    /// What to ask. All due collectors' questions go to the host in one command.
    fn questions(&self) -> &[Question];
    /// Reads the answer to one of its questions. The parts of its readings are named after the question: by its
    /// id, or by its id and more behind a blank.
    fn read(&self, host: &Host, answer: &Answer) -> Verdict;
    /// Whether a part of its readings comes from a question that it has.
    fn asks_for(&self, part: &str) -> bool {
        let id = part.split(' ').next().unwrap_or_default();
        self.questions().iter().any(|question| *question.id == *id)
    }
}

/// The metrics of a collector, for the catalogue.
pub type Metrics = &'static [&'static MetricDef];

/// The collectors that ask hosts, as far as they are switched on. A new collector is one line here.
pub fn host_collectors(config: &Config) -> Vec<Arc<dyn HostCollector>> {
    let critical_service = config.critical_service.as_ref().map(critical_service::CriticalService::new);
    critical_service.into_iter().map(|collector| Arc::new(collector) as _).collect()
}

/// The collectors that read from vCenters, as far as they are switched on. A new one is one line here.
pub fn vcenter_collectors(config: &Config) -> Vec<Arc<dyn VcenterCollector>> {
    let overall_state = config.overall_state.as_ref().map(overall_state::OverallState::new);
    overall_state.into_iter().map(|collector| Arc::new(collector) as _).collect()
}
