//! One visit of one host: a session, one command, and the answers read by the collectors that are due.
//!
//! A visit *succeeds* when the host answered: when the answer to at least one question came in its frame,
//! be it that its script hung and was killed. So a hung service is that service's problem and no failure of
//! SSH. Without any answer the visit failed, and its one reason stands for all services; their last
//! readings stand until they are stale.

use super::pool::Pool;
use crate::accounts::Accounts;
use crate::collectors::command::{self, Ending, Reader};
use crate::collectors::{Answer, HostCollector, Question};
use crate::inventory::Host;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::outcome::{Failure, FailureReason};
use crate::readings::{Reading, Report};
use crate::span::{self, PastSpans};
use crate::ssh::{Connector, End, Limits, Session, Transcript};
use crate::stats::Stats;
use crate::target::TargetId;
use opentelemetry::KeyValue;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, Span, debug, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// What is left of a visit's time after the command, to read and report what came.
const MARGIN: Duration = Duration::from_millis(200);

static REPLACED: MetricDef = MetricDef {
    name: "esxi.agent.ssh.sessions.replaced",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Kept SSH sessions that turned out dead at the next visit and were replaced within it.",
    attributes: &[],
};

/// The metrics of visits.
pub static METRICS: &[&MetricDef] = &[&REPLACED];

/// What a visit brought.
#[derive(Debug)]
pub struct Visited {
    /// One for each collector that got answers.
    pub reports: Vec<Report>,
    /// How the visit as a whole ended.
    pub outcome: Result<(), Failure>,
    /// How long it took.
    pub duration: Duration,
}

/// Visits hosts, and keeps their sessions in between.
pub struct Visitor {
    connector: Connector,
    accounts: Arc<Accounts>,
    pool: Pool,
    stats: Arc<Stats>,
    spans: PastSpans,
}

/// The command's questions, and whose they are.
struct Asked<'a> {
    due: &'a [Arc<dyn HostCollector>],
    /// With identifiers that are unique among all collectors; a collector's place in `due` comes along.
    questions: Vec<(usize, Question)>,
}

/// What came back.
struct Answers {
    /// In the order of the questions.
    answers: Vec<Answer>,
    /// How many came in their frames.
    came: usize,
    /// When the command was started, by the wall clock.
    started: SystemTime,
    transcript: Transcript,
}

impl Visitor {
    /// Visits over `connector`, as whom `accounts` says. `spans` is for the spans of single questions.
    pub fn new(connector: Connector, accounts: Arc<Accounts>, stats: Arc<Stats>, spans: PastSpans) -> Self {
        Self { connector, accounts, pool: Pool::default(), stats, spans }
    }

    /// Asks `host` all that the collectors `due` want to know. Takes `limit` at most. Dropping the future
    /// ends the session that it uses.
    pub async fn visit(&self, host: &Arc<Host>, due: &[Arc<dyn HostCollector>], limit: Duration) -> Visited {
        let start = Instant::now();
        let span = info_span!(
            "visit", otel.kind = "internal", "server.address" = %host.endpoint.host,
            "esxi.hostsystem" = %host.address, "esxi.site" = %host.site
        );
        let asked = Asked::new(due);
        let visit = self.ask_and_read(host, &asked, start + limit).instrument(span.clone());
        let (reports, outcome) = timeout_at(start + limit, visit).await.unwrap_or_else(|_| {
            let message = format!("visit of {}: no end within {limit:?}", host.id());
            (Vec::new(), Err(Failure::new(FailureReason::CommandTimeout, message)))
        });
        if let Err(failure) = &outcome {
            span::fail(&span, failure);
        }
        Visited { reports, outcome, duration: start.elapsed() }
    }

    /// Ends the session of a host that has left the inventory.
    pub fn forget(&self, host: &TargetId) {
        self.pool.forget(host);
    }

    /// Ends all kept sessions. Takes 3 s at most.
    pub async fn close_all(&self) {
        self.pool.close_all().await;
    }

    async fn ask_and_read(
        &self,
        host: &Arc<Host>,
        asked: &Asked<'_>,
        deadline: Instant,
    ) -> (Vec<Report>, Result<(), Failure>) {
        match self.ask(host, asked, deadline).await {
            Ok(answers) => {
                let outcome = answers.outcome().map_err(|f| f.during(format_args!("visit of {}", host.id())));
                (self.read(host, asked, answers), outcome)
            }
            Err(failure) => (Vec::new(), Err(failure)),
        }
    }

    /// Asks over the kept session, or over a new one. A kept one that turns out dead is replaced once.
    async fn ask(&self, host: &Host, asked: &Asked<'_>, deadline: Instant) -> Result<Answers, Failure> {
        let kept = self.pool.take(&host.id());
        Span::current().set_attribute("esxi.session.kept", kept.is_some());
        if let Some(session) = kept {
            match self.ask_over(session, host, asked, deadline).await {
                Ok(answers) if answers.came > 0 || answers.transcript.end != End::Lost => return Ok(answers),
                Err(failure) if !says_dead(&failure) => return Err(failure),
                Ok(_) | Err(_) => {
                    debug!(host = %host.address, "the kept session is dead, connecting anew");
                    self.stats.add(&REPLACED, Attributes::new::<&str, &str>([]), 1.0);
                }
            }
        }
        let login = self.accounts.for_host(host).await?;
        let session = self.connector.connect(host, &login).await?;
        self.ask_over(session, host, asked, deadline).await
    }

    async fn ask_over(
        &self,
        mut session: Session,
        host: &Host,
        asked: &Asked<'_>,
        deadline: Instant,
    ) -> Result<Answers, Failure> {
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(MARGIN);
        let timeout = self.connector.config().command_timeout.min(left);
        let limits = Limits { timeout, max_bytes: command::max_output(asked.questions.len()) };
        let marker = command::new_marker();
        let questions = || asked.questions.iter().map(|(_, question)| question);
        let text = command::compose(questions(), &marker, on_the_host(timeout));
        let mut reader = Reader::new(questions(), &marker);

        let started = SystemTime::now();
        let transcript = session.exec(&text, limits, |elapsed, line| reader.line(elapsed, line)).await;
        let transcript = transcript.map_err(|f| f.during(format_args!("visit of {}", host.id())))?;
        if self.connector.config().reuse_sessions {
            if let Some(session) = self.pool.keep(host.id(), session) {
                session.close().await;
            }
        } else {
            session.close().await;
        }
        let ending = match transcript.end {
            End::Complete => Ending::Complete,
            End::TimedOut => Ending::TimedOut,
            End::TooLarge => Ending::TooLarge,
            End::Lost => Ending::Lost,
        };
        let came = reader.answered();
        Ok(Answers { answers: reader.finish(ending, transcript.elapsed), came, started, transcript })
    }

    fn read(&self, host: &Host, asked: &Asked<'_>, answers: Answers) -> Vec<Report> {
        if answers.came == 0 {
            return Vec::new();
        }
        let mut readings: Vec<Vec<Reading>> = asked.due.iter().map(|_| Vec::new()).collect();
        for ((place, _), mut answer) in asked.questions.iter().zip(answers.answers) {
            let lost = answers.transcript.end == End::Lost && answer.result.is_err();
            let (Some(collector), false) = (asked.due.get(*place), lost) else { continue };
            answer.question = asked.original(&answer.question);
            let verdict = collector.read(host, &answer);
            self.add_span(collector.as_ref(), &answer, verdict.problem, answers.started);
            if let Some(readings) = readings.get_mut(*place) {
                readings.extend(verdict.readings);
            }
        }
        let report = |(collector, readings): (&Arc<dyn HostCollector>, Vec<Reading>)| Report {
            target: host.id(),
            collector: collector.name(),
            readings,
            stale_after: Some(collector.stale_after()),
        };
        asked.due.iter().zip(readings).map(report).collect()
    }

    /// The question's span: from the start of the command, as all questions are asked at once, to its answer.
    fn add_span(
        &self,
        collector: &dyn HostCollector,
        answer: &Answer,
        problem: Option<FailureReason>,
        started: SystemTime,
    ) {
        let (subject, id) = (collector.subject(), &answer.question);
        let mut attributes = vec![KeyValue::new(format!("esxi.{subject}"), id.to_string())];
        if let Some(reason) = problem {
            attributes.push(KeyValue::new("esxi.problem", reason.word()));
        }
        // That something is not installed was found out, and is no error: on a fleet where it is the rule,
        // every trace would be kept for it.
        let failure = problem
            .filter(|reason| *reason != FailureReason::NotInstalled)
            .map(|reason| Failure::new(reason, format!("{subject} {id}: {}", reason.meaning().trim())));
        let times = (started, started + answer.elapsed);
        self.spans.add(&Span::current(), format!("{subject} {id}"), times, attributes, failure.as_ref());
    }
}

impl<'a> Asked<'a> {
    fn new(due: &'a [Arc<dyn HostCollector>]) -> Self {
        let of_one = |(place, collector): (usize, &'a Arc<dyn HostCollector>)| {
            let unique = move |question: &Question| {
                let id = format!("{place}.{}", question.id).into();
                (place, Question { id, script: question.script.clone() })
            };
            collector.questions().iter().map(unique)
        };
        Self { due, questions: due.iter().enumerate().flat_map(of_one).collect() }
    }

    /// The identifier that the collector gave.
    fn original(&self, unique: &str) -> Arc<str> {
        unique.split_once('.').map_or(unique, |(_, id)| id).into()
    }
}

impl Answers {
    fn outcome(&self) -> Result<(), Failure> {
        match (self.transcript.failure(), self.transcript.exit) {
            (Some(failure), _) if self.came == 0 || self.transcript.end == End::Lost => Err(failure),
            _ if self.came > 0 || self.answers.is_empty() => Ok(()),
            (_, Some(exit)) if exit != 0 => {
                let message = format!("command: ended with exit status {exit} and without answers");
                Err(Failure::new(FailureReason::CommandFailed, message))
            }
            _ => Err(Failure::new(
                FailureReason::AnswerUnreadable,
                "command: there are no answers in its output",
            )),
        }
    }
}

/// Whether a kept session that fails so may be replaced. Nothing has been authenticated anew then.
fn says_dead(failure: &Failure) -> bool {
    // A channel that the host did not free counts against its MaxSessions until the session ends.
    matches!(failure.reason, FailureReason::ConnectionLost | FailureReason::SessionLimit)
}

/// The time limit of scripts on the host. Shorter than that of the command, so that the host itself can
/// still say which script hangs; a few seconds are enough for the busiest host.
fn on_the_host(command: Duration) -> Duration {
    let reserve = (command / 4).min(Duration::from_secs(3));
    Duration::from_secs((command - reserve).as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_stopped_before_the_command_is_given_up() {
        for (command, host) in [(20, 17), (10, 7), (4, 3), (2, 1), (1, 1)] {
            assert_eq!(on_the_host(Duration::from_secs(command)), Duration::from_secs(host));
        }
    }
}
