use super::*;
use crate::config::Compression;
use crate::telemetry::export::peer::Signal;
use std::collections::BTreeSet;
use std::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Ports of the Collectors that take connections.
#[derive(Debug, Clone, Default)]
struct There {
    ports: Arc<Mutex<BTreeSet<u16>>>,
    /// How long it takes to find out.
    takes: Arc<Mutex<Duration>>,
}

impl There {
    fn set(&self, ports: &[u16]) {
        *self.ports.lock().expect("no panic") = ports.iter().copied().collect();
    }
}

impl Probe for There {
    async fn is_there(&self, peer: &Peer) -> bool {
        let takes = *self.takes.lock().expect("no panic");
        sleep(takes).await;
        self.ports.lock().expect("no panic").iter().any(|port| peer.name() == name(*port))
    }
}

fn name(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn list(ports: &[u16]) -> Collectors {
    let destination = |port: &u16| {
        let peer = Peer::of_test(&name(*port));
        Destination { peer, compression: Compression::None }
    };
    ports.iter().map(destination).collect()
}

struct Story {
    there: There,
    collectors: watch::Sender<Collectors>,
    destination: watch::Receiver<Destination>,
    presence: Arc<Presence>,
    stats: Arc<Stats>,
    _task: AbortOnDropHandle<()>,
}

/// Of these Collectors, all of which are there.
fn story(ports: &[u16]) -> Story {
    let there = There::default();
    there.set(ports);
    let all = list(ports);
    let first = all.first().expect("one").clone();
    let presence = Arc::new(Presence::new(first.peer.name()));
    let (collectors, listed) = watch::channel(all);
    let (sender, destination) = watch::channel(first);
    let stats = Stats::new();
    let failover = Failover::new(there.clone(), sender, Arc::clone(&presence), Arc::clone(&stats));
    let _task = AbortOnDropHandle::new(tokio::spawn(failover.run(listed)));
    Story { there, collectors, destination, presence, stats, _task }
}

impl Story {
    fn peer(&self) -> String {
        self.destination.borrow().peer.name().to_owned()
    }

    fn counted(&self) -> Option<f64> {
        self.stats.samples().iter().find(|sample| sample.def == &COLLECTOR).map(|sample| sample.value)
    }

    /// What is sent to the current one fails.
    fn lose(&self) {
        self.presence.is_lost(Signal::Metrics, &self.peer(), "away");
    }

    /// Waits until everything goes to `port`. Returns how long that took.
    async fn goes_to(&mut self, port: u16) -> Duration {
        let began = Instant::now();
        let arrived = self.destination.wait_for(|destination| destination.peer.name() == name(port));
        tokio::time::timeout(HOUR, arrived).await.expect("within an hour").expect("it runs");
        began.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_one_that_is_there_gets_everything_until_the_first_one_is_back() {
    let mut story = story(&[1, 2, 3]);
    story.there.set(&[3]);
    story.lose();
    assert_eq!(story.goes_to(3).await, Duration::ZERO);
    assert!(!story.presence.is_away(), "nobody has missed it yet");
    assert_eq!(story.counted(), Some(2.0));
    story.there.set(&[2, 3]);
    let took = story.goes_to(2).await;
    assert!(took <= MINUTE + STAY, "{took:?}");
    story.there.set(&[1, 2, 3]);
    let took = story.goes_to(1).await;
    assert!(took <= MINUTE + STAY, "{took:?}");
    assert_eq!(story.counted(), Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn while_all_are_away_nothing_changes_and_whoever_is_back_first_gets_everything() {
    let mut story = story(&[1, 2]);
    story.there.set(&[]);
    story.lose();
    sleep(MINUTE).await;
    assert_eq!(story.peer(), name(1));
    story.there.set(&[2]);
    let took = story.goes_to(2).await;
    assert!(took <= STAY, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_back_by_itself_is_not_left() {
    let mut story = story(&[1, 2]);
    story.there.set(&[]);
    story.lose();
    sleep(MINUTE).await;
    story.presence.is_there(Signal::Metrics, &name(1));
    story.there.set(&[1, 2]);
    sleep(HOUR).await;
    assert!(!story.destination.has_changed().expect("it runs"));
    assert_eq!(story.peer(), name(1));
    story.goes_to(1).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_back_while_another_one_is_looked_at_is_not_left() {
    let mut story = story(&[1, 2]);
    *story.there.takes.lock().expect("no panic") = Duration::from_secs(2);
    story.lose();
    sleep(Duration::from_secs(1)).await;
    story.presence.is_there(Signal::Metrics, &name(1));
    sleep(HOUR).await;
    assert!(!story.destination.has_changed().expect("it runs"));
    story.goes_to(1).await;
}

#[tokio::test(start_paused = true)]
async fn new_ways_to_the_same_collectors_change_neither_the_current_one_nor_what_is_known_of_them() {
    let mut story = story(&[1, 2]);
    for _ in 0..3 {
        story.lose();
        story.goes_to(2).await;
        story.goes_to(1).await;
    }
    story.lose();
    story.goes_to(2).await;
    story.destination.mark_unchanged();
    story.collectors.send_replace(list(&[1, 2]));
    story.destination.changed().await.expect("it runs");
    assert_eq!((story.peer(), story.counted()), (name(2), Some(1.0)), "with its new headers, say");
    let took = story.goes_to(1).await;
    assert!(took > 2 * MINUTE, "it was lost soon, several times: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_one_refuses_that_was_left_is_no_loss_of_the_next_one() {
    let mut story = story(&[1, 2]);
    story.lose();
    story.goes_to(2).await;
    story.presence.is_lost(Signal::Traces, &name(1), "late");
    assert!(!story.presence.is_away());
}

#[tokio::test(start_paused = true)]
async fn two_that_take_connections_and_nothing_else_are_changed_for_each_other_ever_more_seldom() {
    let mut story = story(&[1, 2]);
    let end = Instant::now() + HOUR;
    let mut changes = 0;
    loop {
        story.lose();
        story.destination.mark_unchanged();
        let changed = tokio::time::timeout_at(end, story.destination.changed()).await;
        if changed.is_err() {
            break;
        }
        changes += 1;
    }
    // 0 s, 5 s, 15 s, 35 s, 75 s, 155 s, and then every 160 s.
    assert!((20..=30).contains(&changes), "{changes}");
}

#[tokio::test(start_paused = true)]
async fn a_first_one_that_fails_whenever_it_gets_everything_is_tried_ever_more_seldom() {
    let mut story = story(&[1, 2]);
    let end = Instant::now() + HOUR;
    let mut tries = 0;
    while tokio::time::timeout_at(end, async {
        story.lose();
        story.goes_to(2).await;
        story.goes_to(1).await;
    })
    .await
    .is_ok()
    {
        tries += 1;
    }
    // After 1, 2, 4, 8, 16 minutes, and then every 32.
    assert!((4..=6).contains(&tries), "{tries}");
}

#[tokio::test(start_paused = true)]
async fn another_list_holds_at_once_and_begins_with_its_first_one() {
    let mut story = story(&[1, 2]);
    story.lose();
    story.goes_to(2).await;
    story.there.set(&[1, 2, 3, 4]);
    story.collectors.send_replace(list(&[3, 4]));
    assert_eq!(story.goes_to(3).await, Duration::ZERO);
    story.lose();
    assert!(story.goes_to(4).await <= STAY);
    story.collectors.send_replace(list(&[4]));
    sleep(HOUR).await;
    assert_eq!((story.peer(), story.counted()), (name(4), None), "there is no other one");
}
