//! One visit of one host: a session, one command, and the answers read by the collectors that are due.
//!
//! A visit *succeeds* when the host answered: when the answer to at least one question came in its frame,
//! be it that its script hung and was killed. So a hung service is that service's problem and no failure of
//! SSH. Without any answer the visit failed, and its one reason stands for all services; their last
//! readings stand until they are stale.

use super::hung::{Hung, Key};
use super::pool::Pool;
use super::schedule::{next_on_grid, phase};
use crate::accounts::Accounts;
use crate::collectors::command::{self, Ending, Former, Reader};
use crate::collectors::{Answer, HostCollector, Question};
use crate::inventory::Host;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::outcome::{Failure, FailureReason};
use crate::readings::{Reading, Report};
use crate::span::{self, PastSpan, PastSpans};
use crate::ssh::{Connector, End, Limits, Session, Transcript};
use crate::stats::Stats;
use crate::target::TargetId;
use opentelemetry::KeyValue;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
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

static USED: MetricDef = MetricDef {
    name: "esxi.agent.ssh.sessions.used",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Sessions that visits asked over, by kind: kept from an earlier visit (though it may turn out dead and be \
           replaced), or new, with a login.",
    attributes: &["kind"],
};

/// The metrics of visits.
pub static METRICS: &[&MetricDef] = &[&REPLACED, &USED];

/// What a visit brought.
#[derive(Debug)]
pub struct Visited {
    /// One for each collector that got answers.
    pub reports: Vec<Report>,
    /// How the visit as a whole ended.
    pub outcome: Result<(), Failure>,
    /// Whether there was a session. One that fails without it failed on the way to the host.
    pub reached: bool,
    /// How long it took.
    pub duration: Duration,
    /// Its span, still open: for what comes of the answers.
    pub span: Span,
}

/// How to get at hosts. May be replaced while visits are under way.
#[derive(Clone)]
pub struct Means {
    /// Opens sessions.
    pub connector: Arc<Connector>,
    /// As whom.
    pub accounts: Arc<Accounts>,
    /// From when on these hold: sessions that are older were opened by others.
    pub since: Instant,
}

impl Means {
    /// They hold from now on.
    pub fn new(connector: Connector, accounts: Arc<Accounts>) -> Self {
        Self { connector: Arc::new(connector), accounts, since: Instant::now() }
    }

    /// Whether a kept session may be used on.
    fn would_open(&self, session: &Session, host: &Host) -> bool {
        session.opened() >= self.since
            || self.connector.would_open(session, host, self.accounts.user_of_host(host))
    }
}

/// Visits hosts, and keeps their sessions in between.
pub struct Visitor {
    means: watch::Receiver<Means>,
    pool: Pool,
    hung: Hung,
    /// From when on the ages of sessions are counted.
    epoch: Instant,
    stats: Arc<Stats>,
    spans: PastSpans,
}

/// The command's questions, and whose they are.
struct Asked<'a> {
    due: &'a [Arc<dyn HostCollector>],
    /// With identifiers that are unique among all collectors; a collector's place in `due` comes along, and
    /// whom the host killed for it.
    questions: Vec<(usize, Question, Option<Former>)>,
    /// Those that are left out, since they hung: with the collector's place and their own identifiers.
    left_out: Vec<(usize, Arc<str>)>,
}

/// What came back.
struct Answers {
    /// In the order of the questions.
    answers: Vec<Answer>,
    /// Whom the host killed for each.
    killed: Vec<Option<Former>>,
    /// How many came in their frames.
    came: usize,
    /// When the command was started, by the wall clock.
    started: SystemTime,
    transcript: Transcript,
}

impl Visitor {
    /// Visits over `connector`, as whom `accounts` says. `spans` is for the spans of single questions.
    pub fn new(connector: Connector, accounts: Arc<Accounts>, stats: Arc<Stats>, spans: PastSpans) -> Self {
        // What nobody sends to keeps its value.
        let (_, means) = watch::channel(Means::new(connector, accounts));
        Self::following(means, stats, spans)
    }

    /// The same by `means` that may change: each visit goes by those of its time. A kept session lives on
    /// unless it is one that they would not open.
    pub fn following(means: watch::Receiver<Means>, stats: Arc<Stats>, spans: PastSpans) -> Self {
        let (pool, hung, epoch) = (Pool::default(), Hung::default(), Instant::now());
        Self { means, pool, hung, epoch, stats, spans }
    }

    fn means(&self) -> Means {
        self.means.borrow().clone()
    }

    /// Asks `host` all that the collectors `due` want to know. Takes `limit` at most. Dropping the future
    /// ends the session that it uses.
    pub async fn visit(&self, host: &Arc<Host>, due: &[Arc<dyn HostCollector>], limit: Duration) -> Visited {
        let start = Instant::now();
        let span = info_span!(
            "visit", otel.kind = "internal", "server.address" = %host.endpoint.host,
            "esxi.hostsystem" = %host.address, "esxi.site" = %host.site
        );
        let id = host.id();
        let asked = Asked::new(due, |key| self.hung.rests(&id, key), |key| self.hung.former(&id, key));
        let mut reached = false;
        let visit = self.ask_and_read(host, &asked, start + limit, &mut reached).instrument(span.clone());
        let (reports, outcome) = timeout_at(start + limit, visit).await.unwrap_or_else(|_| {
            let message = format!("visit of {id}: no end within {limit:?}");
            (Vec::new(), Err(Failure::new(FailureReason::CommandTimeout, message)))
        });
        if let Err(failure) = &outcome {
            span::fail(&span, failure);
        }
        Visited { reports, outcome, reached, duration: start.elapsed(), span }
    }

    /// Ends the session of a host that has left the inventory.
    pub fn forget(&self, host: &TargetId) {
        self.pool.forget(host);
        self.hung.forget(host);
    }

    /// The next visit of each host asks everything, whatever hung.
    pub fn ask_all(&self) {
        self.hung.ask_all();
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
        reached: &mut bool,
    ) -> (Vec<Report>, Result<(), Failure>) {
        match self.ask(host, asked, deadline, reached).await {
            Ok(answers) => {
                let outcome = answers.outcome().map_err(|f| f.during(format_args!("visit of {}", host.id())));
                (self.read(host, asked, answers), outcome)
            }
            Err(failure) => (Vec::new(), Err(failure)),
        }
    }

    /// Asks over the kept session, or over a new one. A kept one that turns out dead is replaced once.
    async fn ask(
        &self,
        host: &Host,
        asked: &Asked<'_>,
        deadline: Instant,
        reached: &mut bool,
    ) -> Result<Answers, Failure> {
        if let Some(session) = self.kept_or_refreshed(host).await? {
            *reached = true;
            match self.ask_over(session, host, asked, deadline).await {
                Ok(answers) if answers.came > 0 || answers.transcript.end != End::Lost => return Ok(answers),
                Err(failure) if !says_dead(&failure) => return Err(failure),
                Ok(_) | Err(_) => {
                    debug!(host = %host.address, "the kept session is dead, connecting anew");
                    self.stats.add(&REPLACED, Attributes::new::<&str, &str>([]), 1.0);
                    *reached = false;
                }
            }
        }
        // Boxed: it is rarely needed, and would make each visit of a kept session many times as large.
        let session = Box::pin(self.log_in(host)).await?;
        *reached = true;
        self.ask_over(session, host, asked, deadline).await
    }

    /// The kept session, if there is one; in place of one that is due to be refreshed a new one.
    async fn kept_or_refreshed(&self, host: &Host) -> Result<Option<Session>, Failure> {
        let Some(kept) = self.pool.take(&host.id()) else { return Ok(None) };
        let means = self.means();
        if !means.would_open(&kept, host) {
            kept.close().await;
            return Ok(None);
        }
        let every = means.connector.config().refresh_sessions;
        let is_old = |every| is_due_for_refresh(&host.address, every, self.epoch, kept.opened());
        if every.is_some_and(is_old) {
            match Box::pin(self.log_in(host)).await {
                // Held back, maybe because of others: no reason to lose a session that works.
                Err(failure) if failure.reason == FailureReason::AuthGuarded => {}
                new => {
                    kept.close().await;
                    return new.map(Some);
                }
            }
        }
        Span::current().set_attribute("esxi.session.kept", true);
        self.stats.add(&USED, Attributes::new([("kind", "kept")]), 1.0);
        Ok(Some(kept))
    }

    async fn log_in(&self, host: &Host) -> Result<Session, Failure> {
        Span::current().set_attribute("esxi.session.kept", false);
        let means = self.means();
        let login = means.accounts.for_host(host).await?;
        let session = means.connector.connect(host, &login).await?;
        self.stats.add(&USED, Attributes::new([("kind", "new")]), 1.0);
        Ok(session)
    }

    async fn ask_over(
        &self,
        mut session: Session,
        host: &Host,
        asked: &Asked<'_>,
        deadline: Instant,
    ) -> Result<Answers, Failure> {
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(MARGIN);
        let connector = self.means().connector;
        let timeout = connector.config().command_timeout.min(left);
        let limits = Limits { timeout, max_bytes: command::max_output(asked.questions.len()) };
        let marker = command::new_marker();
        let questions = asked.questions.iter().map(|(_, question, former)| (question, *former));
        let text = command::compose(questions, &marker, on_the_host(timeout));
        let mut reader = Reader::new(asked.questions.iter().map(|(_, question, _)| question), &marker);

        let started = SystemTime::now();
        let transcript = session.exec(&text, limits, |elapsed, line| reader.line(elapsed, line)).await;
        let transcript = transcript.map_err(|f| f.during(format_args!("visit of {}", host.id())))?;
        if connector.config().reuse_sessions {
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
        let killed = (0..asked.questions.len()).map(|place| reader.killed(place)).collect();
        Ok(Answers { killed, answers: reader.finish(ending, transcript.elapsed), came, started, transcript })
    }

    fn read(&self, host: &Host, asked: &Asked<'_>, answers: Answers) -> Vec<Report> {
        let nothing_asked = asked.questions.is_empty() && answers.transcript.failure().is_none();
        if answers.came == 0 && !nothing_asked {
            return Vec::new();
        }
        let id = host.id();
        let mut readings: Vec<Vec<Reading>> = asked.due.iter().map(|_| Vec::new()).collect();
        let came = answers.answers.into_iter().zip(answers.killed);
        let (current, started) = (Span::current(), answers.started);
        let spans = self.spans.below(&current);
        for ((place, ..), (mut answer, killed)) in asked.questions.iter().zip(came) {
            let lost = answers.transcript.end == End::Lost && answer.result.is_err();
            let (Some(collector), false) = (asked.due.get(*place), lost) else { continue };
            answer.question = asked.original(&answer.question);
            self.hung.asked(&id, (collector.name(), Arc::clone(&answer.question)), &answer, killed);
            let verdict = collector.read(host, &answer);
            spans.add(|| span_of(collector.as_ref(), &answer, verdict.problem, started));
            if let Some(readings) = readings.get_mut(*place) {
                readings.extend(verdict.readings);
            }
        }
        for (place, question) in &asked.left_out {
            let Some(collector) = asked.due.get(*place) else { continue };
            self.hung.left_out(&id, &(collector.name(), Arc::clone(question)));
            let result = Err(FailureReason::SkippedHung);
            let answer = Answer { question: Arc::clone(question), result, elapsed: Duration::ZERO };
            if let Some(readings) = readings.get_mut(*place) {
                readings.extend(collector.read(host, &answer).readings);
            }
        }
        let report = |(collector, readings): (&Arc<dyn HostCollector>, Vec<Reading>)| Report {
            target: id.clone(),
            collector: collector.name(),
            readings,
            stale_after: Some(collector.stale_after()),
        };
        asked.due.iter().zip(readings).map(report).collect()
    }
}

/// The question's span: from the start of the command, as all questions are asked at once, to its answer.
fn span_of(
    collector: &dyn HostCollector,
    answer: &Answer,
    problem: Option<FailureReason>,
    started: SystemTime,
) -> PastSpan {
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
    PastSpan { name: format!("{subject} {id}").into(), times, attributes, failure }
}

impl<'a> Asked<'a> {
    /// Everything that is due, but for what `rests`.
    fn new(
        due: &'a [Arc<dyn HostCollector>],
        rests: impl Fn(&Key) -> bool,
        former: impl Fn(&Key) -> Option<Former>,
    ) -> Self {
        let (mut questions, mut left_out) = (Vec::new(), Vec::new());
        for (place, collector) in due.iter().enumerate() {
            for question in collector.questions() {
                let key = (collector.name(), Arc::clone(&question.id));
                if rests(&key) {
                    left_out.push((place, Arc::clone(&question.id)));
                } else {
                    let id = format!("{place}.{}", question.id).into();
                    questions.push((place, Question { id, script: question.script.clone() }, former(&key)));
                }
            }
        }
        Self { due, questions, left_out }
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

/// Whether the host's moment has passed since its session was `opened`. Each host has one in `every` such
/// time from `epoch` on, at its own place, so that a fleet's logins are spread however its sessions began.
fn is_due_for_refresh(address: &str, every: Duration, epoch: Instant, opened: Instant) -> bool {
    next_on_grid(epoch, phase(address), every, opened) <= Instant::now()
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

    #[tokio::test(start_paused = true)]
    async fn sessions_that_began_together_are_refreshed_one_after_the_other() {
        const HOUR: Duration = Duration::from_secs(3600);
        let epoch = Instant::now();
        let mut sessions: Vec<_> = (0..600).map(|host| (format!("h{host}"), epoch, 0)).collect();
        for minute in 1..=180 {
            tokio::time::advance(HOUR / 60).await;
            let mut logins = 0;
            for (host, opened, refreshed) in &mut sessions {
                if is_due_for_refresh(host, HOUR, epoch, *opened) {
                    (*opened, *refreshed, logins) = (Instant::now(), *refreshed + 1, logins + 1);
                }
            }
            assert!(logins <= 25, "{logins} of 600 in minute {minute}");
        }
        assert!(sessions.iter().all(|(_, _, refreshed)| *refreshed == 3), "each once an hour");
    }

    #[test]
    fn scripts_are_stopped_before_the_command_is_given_up() {
        for (command, host) in [(20, 17), (10, 7), (4, 3), (2, 1), (1, 1)] {
            assert_eq!(on_the_host(Duration::from_secs(command)), Duration::from_secs(host));
        }
    }
}
