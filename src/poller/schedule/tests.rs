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
    hangs: Option<&'static str>,
}

impl Visits for Diary {
    async fn visit(&self, host: Arc<Host>, limit: Duration) {
        self.visits.lock().unwrap().push((host.address.to_string(), Instant::now()));
        {
            let mut under_way = self.under_way.lock().unwrap();
            under_way.0 += 1;
            under_way.1 = under_way.1.max(under_way.0);
        }
        let takes = if self.hangs == Some(&*host.address) { limit } else { self.takes };
        tokio::time::sleep(takes).await;
        self.under_way.lock().unwrap().0 -= 1;
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
    stats: Arc<Stats>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn run(hosts: usize, interval: u64, max_in_flight: usize, diary: Diary) -> Running {
    let diary = Arc::new(diary);
    let (inventory, inventory_rx) = watch::channel(fleet((0..hosts).map(|i| format!("h{i}"))));
    let (pace, pace_rx) = watch::channel(Pace { interval: Duration::from_secs(interval), max_in_flight });
    let (now, stats, cancel) = (Arc::new(Notify::new()), Stats::new(), CancellationToken::new());
    let schedule = Schedule::new(diary.clone(), inventory_rx, pace_rx, now.clone(), stats.clone());
    let task = tokio::spawn(schedule.run(cancel.clone()));
    Running { diary, inventory, _pace: pace, now, stats, cancel, task }
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
    let running = run(50, 10, 512, Diary { hangs: Some("h7"), ..Diary::default() });
    tokio::time::sleep(Duration::from_secs(100)).await;
    for host in (0..50).filter(|host| *host != 7) {
        assert!(running.diary.of(&format!("h{host}")).len() >= 9, "h{host}");
    }
    assert!(running.diary.of("h7").len() <= 10, "no pile-up");
    assert!(overruns(&running.stats) >= 4.0);
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
