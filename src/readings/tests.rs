use super::*;
use crate::metric::{Kind, Unit};

static STATE: MetricDef = MetricDef {
    name: "t.state",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "",
    attributes: &["s"],
};
static TOOK: MetricDef = MetricDef {
    name: "t.took",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "",
    attributes: &[],
};

fn state(service: &str, value: f64) -> Sample {
    Sample::new(&STATE, Attributes::new([("s", service)]), value)
}

fn took(value: f64) -> Sample {
    Sample::new(&TOOK, Attributes::new([("s", "x")]), value)
}

fn report(host: &str, part: &str, samples: Vec<Sample>, stale_after: Option<u64>) -> Report {
    Report {
        target: TargetId::host(host),
        collector: "c",
        readings: vec![Reading { part: part.into(), samples }],
        stale_after: stale_after.map(Duration::from_secs),
    }
}

fn followed() -> (Arc<Readings>, Following) {
    let readings = Readings::new();
    let following = readings.follow();
    (readings, following)
}

#[tokio::test(start_paused = true)]
async fn a_reading_is_reported_until_it_is_stale_and_never_again() {
    let readings = Readings::new();
    readings.record(report("h", "hostd", vec![state("hostd", 1.0)], Some(180)));
    tokio::time::advance(Duration::from_secs(179)).await;
    assert_eq!(readings.snapshot().len(), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(readings.snapshot().is_empty());
}

#[tokio::test]
async fn only_states_that_differ_are_changes() {
    let (readings, following) = followed();
    readings.record(report("h", "p", vec![state("a", 1.0), took(0.1)], None));
    assert_eq!(following.take().updated, [state("a", 1.0)]);
    readings.record(report("h", "p", vec![state("a", 1.0), took(0.2)], None));
    assert!(following.take().is_empty());
    readings.record(report("h", "p", vec![state("a", 0.0), took(0.2)], None));
    assert_eq!(following.take().updated, [state("a", 0.0)]);
}

#[tokio::test]
async fn a_series_that_a_part_no_longer_reports_has_ended() {
    let (readings, following) = followed();
    readings.record(report("h", "p", vec![state("old", 1.0)], None));
    following.take();
    readings.record(report("h", "p", vec![state("new", 1.0)], None));
    let changes = following.take();
    assert_eq!(changes.updated, [state("new", 1.0)]);
    assert_eq!(changes.ended, [(&STATE, Attributes::new([("s", "old")]))]);

    readings.record(report("h", "p", vec![], None));
    assert_eq!(following.take().ended.len(), 1);
    assert!(readings.snapshot().is_empty());
}

#[tokio::test]
async fn a_series_that_moves_to_another_part_goes_on() {
    for order in [["old", "new"], ["new", "old"]] {
        let (readings, following) = followed();
        readings.record(report("h", "old", vec![state("a", 1.0), took(0.1)], None));
        following.take();
        let samples = |part: &str| if part == "new" { vec![state("a", 0.0), took(0.2)] } else { vec![] };
        let part = |part: &str| Reading { part: part.into(), samples: samples(part) };
        let moved = Report { readings: order.map(part).into(), ..report("h", "", vec![], None) };
        readings.record(moved);
        let changes = following.take();
        assert_eq!((changes.updated, changes.ended), (vec![state("a", 0.0)], vec![]), "{order:?}");
    }
}

#[tokio::test]
async fn a_target_that_leaves_takes_its_series_and_its_status_along() {
    let (readings, following) = followed();
    let id = TargetId::host("h");
    readings.record(report("h", "p", vec![state("a", 1.0)], None));
    readings.conclude(&id, None, Duration::ZERO, SystemTime::UNIX_EPOCH);
    following.take();
    readings.forget(&id);
    assert_eq!(following.take().ended.len(), 1);
    assert!(readings.status(&id).is_none());
}

#[tokio::test]
async fn changes_do_not_pile_up_where_nobody_takes_them() {
    let readings = Readings::new();
    readings.record(report("h", "p", vec![state("a", 1.0)], None));
    readings.forget(&TargetId::host("h"));
    assert!(readings.follow().take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_after_it_was_stale_is_a_new_series_whether_or_not_somebody_looked_meanwhile() {
    for looks in [false, true] {
        let (readings, following) = followed();
        readings.record(report("h", "p", vec![state("a", 1.0)], Some(180)));
        following.take();
        tokio::time::advance(Duration::from_secs(200)).await;
        if looks {
            assert!(readings.snapshot().is_empty());
        }
        readings.record(report("h", "p", vec![state("a", 1.0)], Some(180)));
        assert_eq!(following.take().updated, [state("a", 1.0)]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_for_long_is_forgotten() {
    let readings = Readings::new();
    readings.record(report("h", "p", vec![state("a", 1.0)], Some(180)));
    tokio::time::advance(REMEMBERED + Duration::from_secs(180)).await;
    assert!(readings.snapshot().is_empty());
    assert!(readings.lock().targets.values().all(|target| target.parts.is_empty()));
}

#[tokio::test]
async fn a_failure_keeps_the_time_of_the_last_success() {
    let readings = Readings::new();
    let id = TargetId::host("h");
    let failure = Failure::new(crate::outcome::FailureReason::Dns, "no such name");
    readings.conclude(&id, None, Duration::ZERO, SystemTime::UNIX_EPOCH);
    readings.conclude(&id, Some(failure), Duration::ZERO, SystemTime::now());
    assert_eq!(readings.status(&id).and_then(|s| s.last_success), Some(SystemTime::UNIX_EPOCH));
}

#[tokio::test]
async fn whoever_waits_for_a_change_is_woken_by_one_that_came_before() {
    let (readings, following) = followed();
    readings.record(report("h", "p", vec![state("a", 1.0)], None));
    tokio::time::timeout(Duration::from_secs(1), following.changed()).await.expect("woken");
}

#[tokio::test]
async fn a_series_keeps_its_identity_from_one_report_to_the_next() {
    let readings = Readings::new();
    let identities = || -> Vec<usize> {
        readings.snapshot().samples().map(|sample| sample.attributes.identity()).collect()
    };
    readings.record(report("h", "p", vec![state("a", 1.0), state("b", 1.0)], None));
    let before = identities();
    readings.record(report("h", "p", vec![state("a", 1.0), state("c", 1.0)], None));
    let after = identities();
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1], "another series at its place");
}
