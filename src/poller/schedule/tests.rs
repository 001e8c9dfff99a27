use super::*;
use crate::inventory::Endpoint;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Visits that take the time they are told, and remember when they happened.
#[derive(Default)]
struct Diary {
    visits: Mutex<Vec<(String, Instant)>>,
    under_way: Mutex<(usize, usize)>,
    forgotten: Mutex<Vec<String>>,
    takes: Duration,
    /// Hosts that do not answer for now: how long their visits take, and what becomes of them.
    ill: Mutex<HashMap<String, (Duration, Lane)>>,
}

impl Visits for Diary {
    async fn visit(&self, host: Arc<Host>, _limit: Duration) -> Option<Lane> {
        self.visits.lock().unwrap().push((host.address.to_string(), Instant::now()));
        {
            let mut under_way = self.under_way.lock().unwrap();
            under_way.0 += 1;
            under_way.1 = under_way.1.max(under_way.0);
        }
        let ill = self.ill.lock().unwrap().get(&*host.address).copied();
        let (takes, lane) = ill.unwrap_or((self.takes, Lane::Normal));
        tokio::time::sleep(takes).await;
        self.under_way.lock().unwrap().0 -= 1;
        Some(lane)
    }

    fn forget(&self, host: &TargetId) {
        self.forgotten.lock().unwrap().push(host.address.to_string());
    }
}

impl Diary {
    fn of(&self, host: &str) -> Vec<Instant> {
        self.visits.lock().unwrap().iter().filter(|(h, _)| h == host).map(|(_, at)| *at).collect()
    }
}

fn fleet(names: impl IntoIterator<Item = String>) -> Arc<Inventory> {
    let host = |name: String| {
        let address: Arc<str> = name.into();
        let endpoint = Endpoint { host: address.clone(), port: None };
        Host { address, endpoint, site: "".into(), labels: BTreeMap::new() }
    };
    Arc::new(Inventory::new(names.into_iter().map(host).collect(), Vec::new()))
}

struct Running {
    diary: Arc<Diary>,
    inventory: watch::Sender<Arc<Inventory>>,
    _pace: watch::Sender<Pace>,
    now: Arc<Notify>,
    callers: Arc<Callers>,
    stats: Arc<Stats>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn run(hosts: usize, interval: u64, max_in_flight: usize, diary: Diary) -> Running {
    let diary = Arc::new(diary);
    let (inventory, inventory_rx) = watch::channel(fleet((0..hosts).map(|i| format!("h{i}"))));
    let (pace, pace_rx) = watch::channel(Pace { interval: Duration::from_secs(interval), max_in_flight });
    let (now, stats, cancel) = (Arc::new(Notify::new()), Stats::new(), CancellationToken::new());
    let callers = Arc::<Callers>::default();
    let schedule =
        Schedule::new(diary.clone(), inventory_rx, pace_rx, now.clone(), callers.clone(), stats.clone());
    let task = tokio::spawn(schedule.run(cancel.clone()));
    Running { diary, inventory, _pace: pace, now, callers, stats, cancel, task }
}

/// Hosts `h0` to `h<count - 1>` whose visits take so long and end in that lane.
fn ill(count: usize, takes: Duration, lane: Lane) -> Diary {
    let ill = (0..count).map(|host| (format!("h{host}"), (takes, lane))).collect();
    Diary { ill: Mutex::new(ill), takes: Duration::from_millis(200), ..Diary::default() }
}

fn lanes(stats: &Stats) -> [f64; 3] {
    let samples = stats.samples();
    let of = |lane| samples.iter().find(|s| s.attributes.get("lane") == Some(lane)).map_or(0.0, |s| s.value);
    ["normal", "slow", "backoff"].map(of)
}

fn overruns(stats: &Stats) -> f64 {
    stats.samples().iter().filter(|s| s.def == &OVERRUNS).map(|s| s.value).sum()
}

#[tokio::test(start_paused = true)]
async fn every_host_is_visited_once_an_interval_at_its_own_place() {
    let running = run(100, 60, 100, Diary { takes: Duration::from_millis(300), ..Diary::default() });
    tokio::time::sleep(Duration::from_secs(600)).await;
    for host in 0..100 {
        let times = running.diary.of(&format!("h{host}"));
        assert!((9..=11).contains(&times.len()), "h{host}: {} visits", times.len());
        let gaps: Vec<_> = times.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(gaps.iter().all(|gap| *gap <= Duration::from_secs(91)), "h{host}: {gaps:?}");
        let regular = &gaps[1..];
        assert!(regular.iter().all(|gap| gap.as_secs_f64().round() == 60.0), "h{host}: {gaps:?}");
    }
    assert_eq!(overruns(&running.stats), 0.0);
    let most = running.diary.under_way.lock().unwrap().1;
    assert!(most < 60, "spread over the interval, but {most} were under way at once");
}

#[tokio::test(start_paused = true)]
async fn a_small_fleet_is_known_within_seconds() {
    let running = run(10, 60, 512, Diary::default());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(running.diary.visits.lock().unwrap().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn never_more_than_max_in_flight_and_what_is_late_is_counted() {
    let running = run(20, 10, 2, Diary { takes: Duration::from_secs(2), ..Diary::default() });
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(running.diary.under_way.lock().unwrap().1, 2);
    assert!(overruns(&running.stats) > 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_hangs_is_late_alone() {
    let running = run(50, 10, 512, ill(1, Duration::from_secs(10), Lane::Slow));
    tokio::time::sleep(Duration::from_secs(100)).await;
    for host in 1..50 {
        assert!(running.diary.of(&format!("h{host}")).len() >= 9, "h{host}");
    }
    assert!((3..=6).contains(&running.diary.of("h0").len()), "asked, but more rarely");
    assert_eq!(overruns(&running.stats), 1.0, "then it was known to be slow");
}

const HANGS: Duration = Duration::from_secs(40);

#[tokio::test(start_paused = true)]
async fn a_tenth_of_the_fleet_that_hangs_holds_up_nobody_else() {
    // Eight places for 200 hosts: the twenty that hang could fill them all, and without a lane of their own
    // each round of them alone would take 100 of its 60 seconds.
    let running = run(200, 60, 8, ill(20, HANGS, Lane::Slow));
    tokio::time::sleep(Duration::from_secs(180)).await;
    assert_eq!(lanes(&running.stats), [180.0, 20.0, 0.0]);
    let (late, settled) = (overruns(&running.stats), Instant::now());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    for host in 20..200 {
        let times = running.diary.of(&format!("h{host}"));
        let regular: Vec<Instant> = times.into_iter().filter(|at| *at >= settled).collect();
        assert!((59..=61).contains(&regular.len()), "h{host}: {} visits in an hour", regular.len());
        let gaps = regular.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64());
        assert!(
            gaps.clone().all(|gap| (59.0..61.0).contains(&gap)),
            "h{host}: {:?}",
            gaps.collect::<Vec<_>>()
        );
    }
    assert_eq!(overruns(&running.stats), late, "nobody is late any more");
    for host in 0..20 {
        let tries = running.diary.of(&format!("h{host}")).iter().filter(|at| **at >= settled).count();
        assert!((5..=14).contains(&tries), "h{host}: {tries} tries in an hour");
    }
    let mut visits = running.diary.visits.lock().unwrap().clone();
    visits.retain(|(host, at)| host[1..].parse::<u32>().unwrap() < 20 && *at >= settled);
    for (i, (_, start)) in visits.iter().enumerate() {
        let beside = visits[..i].iter().filter(|(_, other)| *other + HANGS > *start).count();
        assert!(beside < 2, "two of eight places are for the slow");
    }
}

#[tokio::test(start_paused = true)]
async fn one_answer_brings_a_slow_host_back() {
    let running = run(4, 10, 8, ill(1, Duration::from_secs(6), Lane::Slow));
    tokio::time::sleep(Duration::from_secs(100)).await;
    let tries = running.diary.of("h0").len();
    assert!((3..=6).contains(&tries), "{tries} tries");
    assert_eq!(lanes(&running.stats), [3.0, 1.0, 0.0]);
    running.diary.ill.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(110)).await;
    assert_eq!(lanes(&running.stats), [4.0, 0.0, 0.0]);
    let before = running.diary.of("h0").len();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(running.diary.of("h0").len() - before, 10, "once an interval again");
}

#[tokio::test(start_paused = true)]
async fn who_is_not_there_is_tried_more_and_more_rarely_and_at_once_on_a_sign_of_life() {
    let running = run(2, 60, 8, ill(1, Duration::from_millis(5), Lane::Backoff));
    tokio::time::sleep(Duration::from_secs(7200)).await;
    let times = running.diary.of("h0");
    let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() / 60.0).collect();
    for (gap, most) in gaps[1..].iter().zip([2.0, 4.0, 8.0, 10.0, 10.0, 10.0]) {
        assert!((most * 0.74..most + 0.01).contains(gap), "{gap} of {most} intervals: {gaps:?}");
    }
    assert_eq!(lanes(&running.stats), [1.0, 0.0, 1.0]);

    // Right after a try the next one is minutes away.
    while running.diary.of("h0").len() == times.len() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (tries, others) = (times.len() + 1, running.diary.of("h1").len());
    tokio::time::sleep(Duration::from_secs(20)).await;
    running.diary.ill.lock().unwrap().clear();
    for host in ["h0", "h1", "stranger"] {
        running.callers.hurry(TargetId::host(host));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(running.diary.of("h0").len(), tries + 1);
    assert!(running.diary.of("h1").len() <= others + 1, "who answers keeps its pace");
    assert_eq!(lanes(&running.stats), [2.0, 0.0, 0.0]);
}

/// After how long each of the hosts that were ill is visited, once they are well: the longest time.
async fn back_after(running: &Running, hosts: std::ops::Range<usize>) -> Duration {
    let (start, before) = (Instant::now(), running.diary.visits.lock().unwrap().len());
    running.diary.ill.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(1200)).await;
    let visits = running.diary.visits.lock().unwrap()[before..].to_vec();
    let first = |host: String| visits.iter().find(|(h, _)| *h == host).unwrap().1 - start;
    hosts.map(|host| first(format!("h{host}"))).max().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_was_lost_at_once_is_back_within_two_intervals() {
    for (hosts, takes, lane) in [
        (1000, Duration::from_secs(10), Lane::Slow),
        (1000, Duration::from_millis(5), Lane::Backoff),
        (3, Duration::from_millis(5), Lane::Backoff),
    ] {
        let running = run(hosts, 60, 128, ill(hosts, takes, lane));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let gaps = running.diary.of("h1").windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
        assert!(gaps.len() < 20 || hosts == 3, "their pauses grow: {gaps:?}");
        let (before, start) = (running.diary.visits.lock().unwrap().len(), Instant::now());
        let took = back_after(&running, 0..hosts).await;
        assert!(took <= Duration::from_secs(125), "{hosts} {lane:?}: {took:?}");
        // Not all at one moment.
        let visits = running.diary.visits.lock().unwrap();
        let busiest = (0..125u64).map(|second| {
            let at = start + Duration::from_secs(second);
            visits[before..].iter().filter(|(_, t)| *t >= at && *t < at + Duration::from_secs(1)).count()
        });
        assert!(busiest.max().unwrap() <= 130, "spread over a ramp");
        assert_eq!(lanes(&running.stats), [hosts as f64, 0.0, 0.0]);
    }
}

#[tokio::test(start_paused = true)]
async fn those_that_come_back_later_are_found_within_two_intervals_as_well() {
    let running = run(100, 60, 64, ill(100, Duration::from_millis(5), Lane::Backoff));
    tokio::time::sleep(Duration::from_secs(1800)).await;
    running.diary.ill.lock().unwrap().retain(|host, _| host[1..].parse::<usize>().unwrap() >= 50);
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(lanes(&running.stats), [50.0, 0.0, 50.0]);
    assert!(back_after(&running, 50..100).await <= Duration::from_secs(125));
}

#[tokio::test(start_paused = true)]
async fn who_was_lost_alone_is_not_tried_more_often_when_others_come_back() {
    let running = run(100, 60, 64, ill(1, Duration::from_millis(5), Lane::Backoff));
    tokio::time::sleep(Duration::from_secs(1800)).await;
    let all = ill(100, Duration::from_millis(5), Lane::Backoff).ill.into_inner().unwrap();
    *running.diary.ill.lock().unwrap() = all;
    tokio::time::sleep(Duration::from_secs(1200)).await;
    running.diary.ill.lock().unwrap().retain(|host, _| host == "h0");
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(lanes(&running.stats), [99.0, 0.0, 1.0]);
    let times = running.diary.of("h0");
    let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert!(gaps[6..].iter().all(|gap| *gap > 440.0), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_paused_host_is_tried_at_once_when_the_inventory_changes_it() {
    let running = run(1, 60, 8, ill(1, Duration::from_millis(5), Lane::Backoff));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let tries = running.diary.of("h0").len();
    let host = |site: &str| {
        let host = Host { site: site.into(), ..Host::clone(&fleet(["h0".to_owned()]).hosts[0]) };
        Arc::new(Inventory::new(vec![host], Vec::new()))
    };
    running.inventory.send(host("")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(running.diary.of("h0").len() <= tries + 1, "nothing has changed");
    let tries = running.diary.of("h0").len();
    running.inventory.send(host("eu-1")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(running.diary.of("h0").len(), tries + 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_host_that_leaves_gives_its_place_back() {
    let running = run(2, 60, 4, ill(2, HANGS, Lane::Slow));
    tokio::time::sleep(Duration::from_secs(3000)).await;
    // The only slow place is taken by whoever is visited at the moment: both leave and come back.
    running.now.notify_one();
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.inventory.send(fleet([])).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(lanes(&running.stats), [0.0; 3]);
    running.inventory.send(fleet(["h0".to_owned(), "h1".to_owned()])).unwrap();
    let before = running.diary.of("h0").len();
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert!(running.diary.of("h0").len() > before + 2);
    assert_eq!(lanes(&running.stats), [0.0, 2.0, 0.0]);
}

#[tokio::test(start_paused = true)]
async fn the_timetable_follows_the_inventory() {
    let running = run(2, 10, 8, Diary::default());
    tokio::time::sleep(Duration::from_secs(5)).await;
    running.inventory.send(fleet(["h1".to_owned(), "new".to_owned()])).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*running.diary.forgotten.lock().unwrap(), ["h0"]);
    assert_eq!(running.diary.of("new").len(), 1);
    let before = running.diary.of("h0").len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running.diary.of("h0").len(), before);
}

#[tokio::test(start_paused = true)]
async fn visits_can_be_asked_for_at_once() {
    let running = run(5, 3600, 8, Diary::default());
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.now.notify_one();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(running.diary.visits.lock().unwrap().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn who_is_just_being_visited_is_visited_again_when_visits_are_asked_for() {
    let running = run(5, 3600, 8, Diary { takes: Duration::from_secs(2), ..Diary::default() });
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.now.notify_one();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(running.diary.visits.lock().unwrap().len(), 10, "once more, and not for ever");
}

#[tokio::test(start_paused = true)]
async fn cancelling_drops_what_is_under_way() {
    let running = run(5, 3600, 8, Diary { takes: Duration::from_secs(60), ..Diary::default() });
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.cancel.cancel();
    tokio::time::timeout(Duration::from_secs(1), running.task).await.unwrap().unwrap();
}

#[test]
fn phases_are_spread_evenly() {
    let mut tenths = [0; 10];
    for host in 0..10_000 {
        tenths[(phase(&format!("node{host:05}.example.org")) * 10.0) as usize] += 1;
    }
    assert!(tenths.iter().all(|count| (900..1100).contains(count)), "{tenths:?}");
}
