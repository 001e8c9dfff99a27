use super::*;
use crate::config::Compression;
use crate::metric::{Cadence, Kind, Unit};
use crate::telemetry::export::peer::Peer;
use std::sync::atomic::AtomicBool;
use tokio::task::JoinHandle;

static ITEMS: MetricDef = MetricDef {
    name: "t.items",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Items.",
    attributes: &["outcome"],
};

/// A Collector that is away for a while.
#[derive(Debug, Clone, Default)]
struct Flaky {
    away: Arc<AtomicBool>,
    refuses: Arc<AtomicBool>,
    /// By this code, in place of that for a bad request.
    how: Option<&'static str>,
    exhausted: Arc<AtomicBool>,
    /// Most items of one request; 0: any number. And an item that is too large by itself.
    most: Arc<AtomicUsize>,
    monster: Option<usize>,
    tries: Arc<AtomicUsize>,
    /// Connections made so far, and those of them that go nowhere any more.
    made: Arc<AtomicUsize>,
    dead: Arc<AtomicUsize>,
    /// Which of them this is.
    connection: usize,
    taken: Arc<Mutex<Vec<usize>>>,
}

impl Post for Flaky {
    type Item = usize;
    const SIGNAL: Signal = Signal::Traces;

    async fn post(&self, items: Vec<usize>) -> OTelSdkResult {
        self.tries.fetch_add(1, Ordering::Relaxed);
        if self.connection <= self.dead.load(Ordering::Relaxed) {
            std::future::pending().await
        }
        let error =
            |code: &str| OTelSdkError::InternalFailure(format!("export failed with gRPC code: {code}"));
        if self.away.load(Ordering::Relaxed) {
            return Err(error("Unavailable"));
        }
        if self.refuses.load(Ordering::Relaxed) {
            return Err(error(self.how.unwrap_or("InvalidArgument")));
        }
        if self.exhausted.load(Ordering::Relaxed) {
            return Err(error("ResourceExhausted"));
        }
        let most = self.most.load(Ordering::Relaxed);
        if most > 0 && items.len() > most || self.monster.is_some_and(|monster| items.contains(&monster)) {
            return Err(error("OutOfRange"));
        }
        self.taken.lock().expect("no panic").extend(items);
        Ok(())
    }
}

struct Story {
    outbox: Outbox<usize>,
    flaky: Flaky,
    stats: Arc<Stats>,
    presence: Arc<Presence>,
    destination: watch::Sender<Destination>,
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn story(cap: usize) -> Story {
    story_of(cap, Flaky::default())
}

fn story_of(cap: usize, flaky: Flaky) -> Story {
    let stats = Stats::new();
    let outbox = Outbox::new(cap, &ITEMS, Arc::clone(&stats));
    let peer = Peer::of_test("http://127.0.0.1:9");
    let presence = Arc::new(Presence::new(peer.name()));
    let seen = Arc::clone(&presence);
    let (destination, follow) = watch::channel(Destination { peer, compression: Compression::None });
    let build = {
        let flaky = flaky.clone();
        move |_: &Destination| {
            let connection = flaky.made.fetch_add(1, Ordering::Relaxed) + 1;
            Ok(Flaky { connection, ..flaky.clone() })
        }
    };
    let postman = Postman::new(outbox.clone(), follow, build, presence).expect("built");
    let (closing, closes) = watch::channel(false);
    let task = tokio::spawn(postman.run(closes));
    Story { outbox, flaky, stats, presence: seen, destination, closing, task }
}

impl Story {
    fn push(&self, items: std::ops::Range<usize>) {
        items.for_each(|item| self.outbox.push(item));
    }

    fn taken(&self) -> Vec<usize> {
        self.flaky.taken.lock().expect("no panic").clone()
    }

    async fn taken_are(&self, count: usize) -> Vec<usize> {
        for _ in 0..100_000 {
            if self.taken().len() >= count {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.taken()
    }

    fn counted(&self, outcome: &str) -> f64 {
        let samples = self.stats.samples();
        let of = samples.iter().find(|sample| sample.attributes.get("outcome") == Some(outcome));
        of.map_or(0.0, |sample| sample.value)
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_comes_first_and_in_order_when_the_collector_is_back() {
    let story = story(10_000);
    story.flaky.away.store(true, Ordering::Relaxed);
    story.push(0..700);
    sleep(Duration::from_secs(120)).await;
    story.push(700..1_500);
    story.flaky.away.store(false, Ordering::Relaxed);
    assert_eq!(story.taken_are(1_500).await, (0..1_500).collect::<Vec<_>>());
    assert_eq!((story.counted("exported"), story.counted("dropped")), (1_500.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn an_absent_collector_is_not_tried_with_every_item() {
    let story = story(10_000);
    story.flaky.away.store(true, Ordering::Relaxed);
    for second in 0..600 {
        story.push(second * 10..second * 10 + 10);
        sleep(Duration::from_secs(1)).await;
    }
    let tries = story.flaky.tries.load(Ordering::Relaxed);
    assert!((20..60).contains(&tries), "{tries}");
}

#[tokio::test(start_paused = true)]
async fn above_the_cap_the_oldest_go_and_are_counted() {
    let story = story(1_000);
    story.flaky.away.store(true, Ordering::Relaxed);
    story.push(0..600);
    sleep(Duration::from_secs(10)).await;
    story.push(600..1_400);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(story.counted("dropped"), 400.0);
    story.flaky.away.store(false, Ordering::Relaxed);
    assert_eq!(story.taken_are(1_000).await, (400..1_400).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_round_of_a_large_fleet_fits_without_a_loss() {
    let story = story(crate::telemetry::traces::cap(10_000));
    story.flaky.away.store(true, Ordering::Relaxed);
    story.push(0..160_000);
    sleep(Duration::from_secs(30)).await;
    story.flaky.away.store(false, Ordering::Relaxed);
    assert_eq!(story.taken_are(160_000).await.len(), 160_000);
    assert_eq!(story.counted("dropped"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_counted_and_holds_up_nobody() {
    let story = story(10_000);
    story.flaky.refuses.store(true, Ordering::Relaxed);
    story.push(0..10);
    sleep(Duration::from_secs(5)).await;
    story.flaky.refuses.store(false, Ordering::Relaxed);
    story.push(10..20);
    assert_eq!(story.taken_are(10).await, (10..20).collect::<Vec<_>>());
    assert_eq!(story.counted("dropped"), 10.0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_into_a_black_hole_costs_one_call_and_no_item() {
    let story = story(10_000);
    story.push(0..10);
    assert_eq!(story.taken_are(10).await.len(), 10);
    story.flaky.dead.store(story.flaky.made.load(Ordering::Relaxed), Ordering::Relaxed);
    story.push(10..20);
    sleep(Duration::from_secs(15)).await;
    assert_eq!(story.taken(), (0..20).collect::<Vec<_>>(), "its limit, a pause, and a new one");
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_refuses_is_one_that_is_there() {
    let story = story(10_000);
    story.flaky.away.store(true, Ordering::Relaxed);
    story.push(0..10);
    sleep(Duration::from_secs(120)).await;
    assert!(story.presence.is_away());
    story.flaky.refuses.store(true, Ordering::Relaxed);
    story.flaky.away.store(false, Ordering::Relaxed);
    sleep(Pauses::LONGEST).await;
    assert!(!story.presence.is_away());
    story.flaky.away.store(true, Ordering::Relaxed);
    story.push(10..20);
    sleep(Duration::from_secs(5)).await;
    story.flaky.refuses.store(false, Ordering::Relaxed);
    story.flaky.away.store(false, Ordering::Relaxed);
    // Jitter decides whether one of 2 to 4 s ends now, or another of 4 to 8 s. Those of before last 15 s at least.
    sleep(Duration::from_secs(9)).await;
    assert_eq!(story.taken(), (10..20).collect::<Vec<_>>(), "pauses begin short again");
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_takes_small_messages_gets_small_ones_and_all_of_it() {
    let story = story(10_000);
    story.flaky.most.store(100, Ordering::Relaxed);
    story.push(0..2_000);
    assert_eq!(story.taken_are(2_000).await, (0..2_000).collect::<Vec<_>>());
    let tries = story.flaky.tries.load(Ordering::Relaxed);
    assert!(tries < 60, "that it is small is remembered: {tries}");
    assert!(!story.presence.is_away());
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_out_of_quota_for_minutes_is_left_alone_and_nearly_nothing_is_lost() {
    let story = story(10_000);
    story.flaky.exhausted.store(true, Ordering::Relaxed);
    story.push(0..2_000);
    sleep(Duration::from_secs(600)).await;
    let tries = story.flaky.tries.load(Ordering::Relaxed);
    assert!(tries < 60, "{tries}");
    assert!(story.presence.is_away(), "another one may be there");
    let dropped = story.counted("dropped");
    assert!(dropped < 15.0, "{dropped}");
    story.flaky.exhausted.store(false, Ordering::Relaxed);
    assert_eq!(story.taken_are(2_000 - dropped as usize).await.len(), 2_000 - dropped as usize);
}

#[tokio::test(start_paused = true)]
async fn one_item_that_nobody_takes_costs_no_other() {
    let story = story_of(10_000, Flaky { monster: Some(700), ..Flaky::default() });
    story.push(0..2_000);
    let expected: Vec<_> = (0..2_000).filter(|item| *item != 700).collect();
    assert_eq!(story.taken_are(1_999).await, expected);
    assert_eq!(story.counted("dropped"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_expired_costs_a_request_a_try_and_a_missing_pipeline_holds_up_nothing() {
    let refusing = |how| {
        let story = story_of(100_000, Flaky { how: Some(how), ..Flaky::default() });
        story.flaky.refuses.store(true, Ordering::Relaxed);
        story.push(0..AT_ONCE * 100);
        story
    };
    let expired = refusing("Unauthenticated");
    sleep(Duration::from_secs(120)).await;
    let lost = expired.counted("dropped") / AT_ONCE as f64;
    // With the shortest pauses that jitter allows: at 0, 0.5, 1.5, 3.5, 7.5, 15.5 s, and every 15 s from then on.
    assert!((5.0..=13.0).contains(&lost), "{lost}");
    let without = refusing("Unimplemented");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(without.counted("dropped"), (AT_ONCE * 100) as f64);
    assert!(!without.presence.is_away(), "metrics may well be taken there");
}

#[tokio::test(start_paused = true)]
async fn another_collector_is_tried_at_once() {
    let story = story(10_000);
    story.flaky.away.store(true, Ordering::Relaxed);
    story.push(0..10);
    sleep(Duration::from_secs(600)).await;
    story.flaky.away.store(false, Ordering::Relaxed);
    story.destination.send_modify(|_| {});
    sleep(Duration::from_millis(1)).await;
    assert_eq!(story.taken().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn the_end_sends_what_is_left_and_does_not_wait_for_full_requests() {
    let story = story(10_000);
    story.push(0..3);
    story.closing.send_replace(true);
    story.task.await.expect("no panic");
    assert_eq!(story.flaky.taken.lock().expect("no panic").len(), 3);
}
