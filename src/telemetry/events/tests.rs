use super::*;
use crate::inventory::{Endpoint, Host};
use crate::metric::Sample;
use crate::outcome::{Failure, FailureReason};
use crate::poller::series;
use crate::readings::{Reading, Report};
use crate::target::TargetId;
use std::collections::HashMap;

const fn def(name: &'static str) -> MetricDef {
    let (kind, unit, cadence) = (Kind::Gauge, Unit::None, Cadence::OnChange);
    MetricDef { name, kind, unit, cadence, help: "", attributes: &[] }
}
static SERVICE: MetricDef = def("esxi.critical_service.status");
static STATUS: MetricDef = def("esxi.overall_status");
static PROBLEM: MetricDef = def("esxi.critical_service.problem");
static ALARM: MetricDef = def("esxi.host.alarm");

const STALE: Duration = Duration::from_secs(180);

/// A teller that is moved by hand; what it tells goes nowhere.
struct Story {
    readings: Arc<Readings>,
    teller: Teller,
}

impl Story {
    fn new() -> Self {
        let readings = Readings::new();
        let teller = teller(Arc::clone(&readings), Stats::new(), None);
        Self { readings, teller }
    }

    fn reports(&self, target: &TargetId, samples: Vec<Sample>) {
        self.readings.record(Report {
            target: target.clone(),
            collector: "test",
            readings: vec![Reading { part: "part".into(), samples }],
            stale_after: Some(STALE),
        });
    }

    /// The service of a host, as a visit reports it.
    fn service(&self, value: f64) {
        let of = Attributes::new([("hostsystem", "esx1"), ("service", "vvold"), ("site", "eu-1")]);
        self.reports(&TargetId::host("esx1"), vec![Sample::new(&SERVICE, of, value)]);
    }

    /// A visit that can't tell of it, for this reason; it has its old status still.
    fn unknown(&self, reason: FailureReason) {
        let of = Attributes::new([("hostsystem", "esx1"), ("service", "vvold"), ("site", "eu-1")]);
        let problem = Sample::new(&PROBLEM, of.with("reason", reason.word()), 1.0);
        self.reports(&TargetId::host("esx1"), vec![Sample::new(&SERVICE, of, 1.0), problem]);
    }

    /// A host, as its vCenter sees it.
    fn host(&self, status: f64, alarms: &[(&str, &str)]) {
        let of = Attributes::new([("hostsystem", "esx1"), ("site", "eu-1"), ("vcenter", "vc1")]);
        let alarm = |(alarm, severity): &(&str, &str)| {
            Sample::new(&ALARM, of.with("alarm", *alarm).with("severity", *severity), 1.0)
        };
        let mut samples = vec![Sample::new(&STATUS, of.clone(), status)];
        samples.extend(alarms.iter().map(alarm));
        self.reports(&TargetId::vcenter("vc1"), samples);
    }

    fn visit(&self, address: &str, failure: Option<FailureReason>) {
        let address: Arc<str> = address.into();
        let endpoint = Endpoint { host: address.clone(), port: None };
        let host = Host { address, endpoint, site: "eu-1".into(), labels: Default::default() };
        let failure = failure.map(|reason| Failure::new(reason, format!("{}: {reason}", host.address)));
        series::conclude_visit(&self.readings, &host, failure, Duration::ZERO);
    }

    /// What would be told of what has happened since.
    fn news(&mut self) -> Vec<(&'static str, Severity, String)> {
        let mut told = Vec::new();
        while let Some(news) = self.teller.hearing.try_next() {
            let change = match news {
                News::Changed(change) if !change.is_first => change,
                other => {
                    self.teller.hear(other);
                    continue;
                }
            };
            let Some(event) = rules::event(&change, &self.readings) else { continue };
            let subject = rules::subject(&change);
            let event = match self.teller.damping.judge(&change.target, subject, &event, Instant::now()) {
                Verdict::Tell => event,
                Verdict::Flapping => flapping(event),
                Verdict::Suppressed | Verdict::Nothing => continue,
            };
            told.push((event.def.name, event.severity, event.body));
        }
        told
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_tells_nothing_and_a_change_is_told_once() {
    let mut story = Story::new();
    story.service(0.0);
    story.host(0.0, &[("Fan", "red")]);
    assert_eq!(story.news(), []);
    story.service(0.0);
    assert_eq!(story.news(), [], "as before");
    story.service(1.0);
    let running = ("esxi.service.running", Severity::Info, "host esx1: service vvold runs again".to_owned());
    assert_eq!(story.news(), [running]);
    story.service(0.0);
    let stopped = ("esxi.service.stopped", Severity::Warn, "host esx1: service vvold has stopped".to_owned());
    assert_eq!(story.news(), [stopped]);
}

#[tokio::test(start_paused = true)]
async fn a_red_host_is_told_with_its_alarms() {
    let mut story = Story::new();
    story.host(2.0, &[]);
    story.host(0.0, &[("Host memory usage", "yellow"), ("Fan", "red")]);
    let told: HashMap<_, _> =
        story.news().into_iter().map(|(name, severity, body)| (name, (severity, body))).collect();
    let (severity, body) = &told["esxi.host.status_changed"];
    assert_eq!(*severity, Severity::Error);
    assert_eq!(body, "host esx1 is red (was green) at vCenter vc1: Fan, Host memory usage");
    assert_eq!(told.len(), 2, "the alarms are events of their own: {told:?}");
    story.host(0.0, &[("Host memory usage", "red"), ("Fan", "red")]);
    let told = story.news();
    assert_eq!(told.len(), 1, "an alarm that gets worse is not over: {told:?}");
    assert_eq!((told[0].0, told[0].1), ("esxi.host.alarm_triggered", Severity::Error));
    story.host(2.0, &[]);
    let names: Vec<_> = story.news().into_iter().map(|(name, severity, _)| (name, severity)).collect();
    assert!(names.contains(&("esxi.host.status_changed", Severity::Info)));
    assert_eq!(names.iter().filter(|(name, _)| *name == "esxi.host.alarm_cleared").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_is_told_once_and_when_it_can_be_told_again() {
    let mut story = Story::new();
    story.service(1.0);
    for _ in 0..10 {
        story.unknown(FailureReason::CommandTimeout);
        story.unknown(FailureReason::SkippedHung);
    }
    let hangs = "host esx1: service vvold can't be told: command_timeout".to_owned();
    assert_eq!(story.news(), [("esxi.service.unknown", Severity::Warn, hangs)]);
    story.service(1.0);
    let again = "host esx1: service vvold can be told again".to_owned();
    assert_eq!(story.news(), [("esxi.service.known", Severity::Info, again)]);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_asked_about_for_the_first_time_has_not_stopped() {
    let mut story = Story::new();
    story.reports(&TargetId::host("esx1"), vec![]);
    let of = Attributes::new([("hostsystem", "esx1"), ("service", "vvold"), ("site", "eu-1")]);
    let problem = Sample::new(&PROBLEM, of.with("reason", FailureReason::NotInstalled.word()), 1.0);
    story.reports(&TargetId::host("esx1"), vec![Sample::new(&SERVICE, of, 0.0), problem]);
    assert_eq!(story.news(), []);
    story.service(1.0);
    assert_eq!(story.news().len(), 1, "it was installed and runs");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_known_by_now_is_no_news_and_a_host_that_left_has_no_alarm_that_is_over() {
    let mut story = Story::new();
    story.host(0.0, &[]);
    story.host(0.0, &[("Fan", "red")]);
    assert_eq!(story.news().len(), 1);
    let of = Attributes::new([
        ("address", "10.0.0.1"),
        ("hostsystem", "esx1"),
        ("site", "eu-1"),
        ("vcenter", "vc1"),
    ]);
    let alarm = Sample::new(&ALARM, of.with("alarm", "Fan").with("severity", "red"), 1.0);
    story.reports(&TargetId::vcenter("vc1"), vec![Sample::new(&STATUS, of, 0.0), alarm]);
    assert_eq!(story.news(), []);
    story.reports(&TargetId::vcenter("vc1"), vec![]);
    assert_eq!(story.news(), []);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_fails_is_told_with_the_reason_and_a_new_reason_is_told_again() {
    let mut story = Story::new();
    story.visit("esx1", None);
    story.visit("esx1", Some(FailureReason::ConnectRefused));
    story.visit("esx1", Some(FailureReason::ConnectRefused));
    story.visit("esx1", Some(FailureReason::HostKeyChanged));
    story.visit("esx1", None);
    let told = story.news();
    let names: Vec<_> = told.iter().map(|(name, _, _)| *name).collect();
    assert_eq!(names, ["esxi.host.unreachable", "esxi.host.key_changed", "esxi.host.reachable"]);
    assert!(told[0].2.starts_with("host esx1 is unreachable: connect_refused"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn what_fails_at_the_start_is_one_line_for_the_whole_fleet() {
    let mut story = Story::new();
    for host in 0..100 {
        let failure = match host {
            0..3 => Some(FailureReason::Dns),
            3..10 => Some(FailureReason::ConnectRefused),
            _ => None,
        };
        story.visit(&format!("esx{host}"), failure);
    }
    assert_eq!(story.news(), []);
    assert_eq!(story.teller.firsts.take(Instant::now()), None, "there may be more");
    tokio::time::advance(LOOK).await;
    let event = story.teller.firsts.take(Instant::now()).expect("an event");
    assert_eq!(
        event.body,
        "the first visit or poll failed of 10 hosts: 7 connect_refused (such as esx3), 3 dns (such as esx0)"
    );
    assert_eq!(story.teller.firsts.take(Instant::now()), None, "once");
    story.visit("esx0", None);
    assert_eq!(story.news().len(), 1, "that it is there is told, as it was not");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_was_stopped_and_not_heard_of_for_long_is_told_to_run_again() {
    let mut story = Story::new();
    let host = TargetId::host("esx1");
    story.service(1.0);
    story.reports(&host, vec![]);
    story.service(1.0);
    assert_eq!(story.news(), [], "it was never told to be stopped");
    let other = Attributes::new([("hostsystem", "esx1"), ("service", "hostd")]);
    // Another part of the collector stands, so that the next report is not the first one.
    story.readings.record(Report {
        target: host.clone(),
        collector: "test",
        readings: vec![Reading { part: "hostd".into(), samples: vec![Sample::new(&SERVICE, other, 1.0)] }],
        stale_after: None,
    });
    story.service(0.0);
    story.reports(&host, vec![]);
    story.service(1.0);
    let names: Vec<_> = story.news().into_iter().map(|(name, _, _)| name).collect();
    assert_eq!(names, ["esxi.service.stopped", "esxi.service.running"]);
}

#[tokio::test(start_paused = true)]
async fn what_changed_during_an_outage_is_told_once_it_is_over() {
    let mut story = Story::new();
    let outage = || tokio::time::advance(STALE * 3);
    story.service(1.0);
    story.host(2.0, &[]);
    outage().await;
    assert!(story.readings.snapshot().is_empty(), "nothing is reported any more");
    story.service(0.0);
    story.host(0.0, &[]);
    let told: Vec<_> = story.news().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(told, ["host esx1: service vvold has stopped", "host esx1 is red (was green) at vCenter vc1"]);
    outage().await;
    assert!(story.readings.snapshot().is_empty());
    story.service(0.0);
    story.host(0.0, &[]);
    assert_eq!(story.news(), [], "that was told already");
    outage().await;
    assert!(story.readings.snapshot().is_empty());
    story.service(1.0);
    story.host(2.0, &[]);
    let told: Vec<_> = story.news().into_iter().map(|(name, _, _)| name).collect();
    assert_eq!(told, ["esxi.service.running", "esxi.host.status_changed"]);
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_back_after_more_than_a_day_is_as_new() {
    let mut story = Story::new();
    story.service(0.0);
    story.host(0.0, &[("Fan", "red")]);
    tokio::time::advance(Duration::from_secs(25 * 3600)).await;
    assert!(story.readings.snapshot().is_empty());
    story.service(0.0);
    story.host(0.0, &[("Fan", "red")]);
    assert_eq!(story.news(), []);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_leaves_is_not_told_and_forgotten() {
    let mut story = Story::new();
    story.service(1.0);
    story.service(0.0);
    assert_eq!(story.news().len(), 1);
    story.readings.forget(&TargetId::host("esx1"));
    assert_eq!(story.news(), []);
    story.service(1.0);
    assert_eq!(story.news(), [], "it is new");
}

#[tokio::test(start_paused = true)]
async fn what_happens_to_the_agent_itself_is_told_once() {
    static CLOSED: MetricDef = def("esxi.agent.guard.closed");
    static POINTS: MetricDef = MetricDef { kind: Kind::Counter, ..def("esxi.agent.export.points") };
    let stats = Stats::new();
    let mut own = Own::default();
    let mut look = |stats: &Stats| -> Vec<_> {
        own.look(&stats.samples(), 0, Instant::now()).into_iter().map(|event| event.def.name).collect()
    };
    assert_eq!(look(&stats), Vec::<&str>::new());
    stats.set(&CLOSED, Attributes::new([("kind", "credential")]), 1.0);
    stats.add(&POINTS, Attributes::new([("outcome", "dropped")]), 70.0);
    assert_eq!(look(&stats), ["esxi.agent.guard_closed", "esxi.agent.points_dropped"]);
    stats.set(&CLOSED, Attributes::new([("kind", "credential")]), 0.0);
    stats.add(&POINTS, Attributes::new([("outcome", "dropped")]), 70.0);
    assert_eq!(look(&stats), ["esxi.agent.guard_opened"], "that points are dropped was told a moment ago");
    stats.add(&POINTS, Attributes::new([("outcome", "rejected")]), 7.0);
    assert_eq!(look(&stats), ["esxi.agent.points_dropped"], "that they are refused is something else");
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(look(&stats), ["esxi.agent.points_dropped"]);
}

#[test]
fn every_metric_that_rules_know_exists() {
    let all = super::super::catalog::all();
    // Made by a collector that not every build has.
    for name in rules::METRICS {
        assert!(all.iter().any(|def| def.name == *name), "{name}");
    }
    for name in own::METRICS {
        assert!(all.iter().any(|def| def.name == *name), "{name}");
    }
}
