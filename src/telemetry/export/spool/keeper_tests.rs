use super::*;
use crate::config::SpoolConfig;
use crate::telemetry::export::encode::Batch;
use crate::telemetry::export::queue::{Caps, Load};
use std::path::Path;
use std::time::SystemTime;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

struct Story {
    folder: TempDir,
    queue: Arc<Queue>,
    keeper: Option<Keeper>,
    stats: Arc<Stats>,
    pushed: usize,
}

impl Story {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut SpoolConfig)) -> Self {
        Self::in_folder(tempfile::tempdir().expect("a folder"), Duration::ZERO, change)
    }

    /// A process that began when the clock was wrong by so much.
    fn in_folder(folder: TempDir, wrong: Duration, change: impl FnOnce(&mut SpoolConfig)) -> Self {
        let path = folder.path().join("spool");
        let mut config = SpoolConfig { path, max_bytes: 1 << 30, max_age: Duration::from_secs(86_400) };
        change(&mut config);
        let queue = Queue::started(Caps { bytes: 1_000, age: config.max_age }, SystemTime::now() - wrong);
        let queue = Arc::new(queue);
        let stats = Stats::new();
        let options = SpoolOptions { config, patience: Duration::ZERO };
        let keeper = Keeper::start(&queue, options, Arc::clone(&stats)).expect("a thread");
        Self { folder, queue, keeper: Some(keeper), stats, pushed: 0 }
    }

    fn spool(&self) -> std::path::PathBuf {
        self.folder.path().join("spool")
    }

    /// Batches of 100 bytes, whose points are their number.
    fn push(&mut self, batches: usize) {
        self.push_of(batches, self.queue.now());
    }

    fn push_of(&mut self, batches: usize, collected: SystemTime) {
        for _ in 0..batches {
            self.pushed += 1;
            let bytes: Vec<u8> = (0..100).map(|_| rand::random()).collect();
            let batch = Batch { bytes: bytes.into(), points: self.pushed };
            self.queue.drops.note(&self.stats, self.queue.push(batch, collected, self.queue.now()));
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Load) -> bool) {
        let search = async {
            while !holds(&self.queue.load()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(LIMIT, search).await;
        found.unwrap_or_else(|_| panic!("{what}: {:?}", self.queue.load()));
    }

    /// Waits until everything is on the disk.
    async fn written(&self) {
        self.until("opened", |_| self.spool().join("format").exists()).await;
        assert!(tokio::time::timeout(LIMIT, self.flush()).await.expect("in time"));
    }

    async fn flush(&self) -> bool {
        // The folder may not be open yet.
        while !self.queue.flush().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// Sends everything. Returns the numbers in the order in which they came.
    async fn drain(&self) -> Vec<usize> {
        let mut order = vec![];
        let draining = async {
            while self.queue.load().points > 0 {
                let (ticket, batch) = self.queue.wait_front().await;
                order.push(batch.points);
                self.queue.acknowledge(ticket);
            }
        };
        tokio::time::timeout(LIMIT, draining).await.expect("in time");
        order
    }

    fn dropped(&self, reason: &str) -> f64 {
        let samples = self.stats.samples();
        let drops = samples.iter().filter(|sample| sample.attributes.get("reason") == Some(reason));
        drops.map(|sample| sample.value).sum()
    }

    /// Ends as a killed process does, but that its lock is gone for sure. The next one has the same folder.
    async fn again(mut self) -> Self {
        self.keeper.take().expect("runs").end().await;
        let pushed = self.pushed;
        Self { pushed, ..Self::in_folder(self.folder, Duration::ZERO, |_| {}) }
    }
}

fn numbers(range: std::ops::RangeInclusive<usize>) -> Vec<usize> {
    range.collect()
}

#[tokio::test]
async fn what_waits_for_long_leaves_memory_and_comes_back_in_order() {
    let mut story = Story::new();
    story.push(5);
    story.written().await;
    // Memory holds ten of them.
    for _ in 0..10 {
        story.push(5);
        story.written().await;
    }
    assert_eq!(story.queue.load().volatile, 0);
    assert_eq!(story.drain().await, numbers(1..=55));
    assert_eq!(story.dropped("no_room"), 0.0);
}

#[tokio::test]
async fn the_next_process_sends_what_is_there_first() {
    let mut story = Story::new();
    story.push(3);
    story.written().await;
    let mut story = story.again().await;
    story.push(2);
    assert_eq!(story.drain().await, numbers(1..=5));
    assert!(story.flush().await, "how far it was sent");
    let story = story.again().await;
    story.written().await;
    assert_eq!(story.drain().await, Vec::<usize>::new(), "only once");
}

#[tokio::test]
async fn what_is_sent_at_once_never_touches_the_disk() {
    let mut story = Story::new();
    story.keeper.take().expect("runs").end().await;
    let config = SpoolConfig { path: story.spool(), max_bytes: 1 << 30, max_age: LIMIT };
    story.queue = Arc::new(Queue::new(Caps { bytes: 1_000, age: LIMIT }));
    let options = SpoolOptions { config, patience: Duration::from_secs(3_600) };
    story.keeper = Some(Keeper::start(&story.queue, options, Arc::clone(&story.stats)).expect("a thread"));
    story.push(5);
    assert_eq!(story.drain().await, numbers(1..=5));
    assert!(story.flush().await);
    let names = std::fs::read_dir(story.spool()).expect("a folder").flatten();
    assert!(!names.into_iter().any(|file| file.file_name().to_string_lossy().ends_with(".segment")));
}

#[tokio::test]
async fn above_its_cap_the_oldest_segments_go_and_are_counted_exactly() {
    // Segments of 16 kB, which hold about 110 of these.
    let mut story = Story::with(|config| config.max_bytes = 256 << 10);
    for _ in 0..300 {
        story.push(10);
        story.written().await;
    }
    story.until("within the cap", |load| load.spooled <= 256 << 10).await;
    let sent = story.drain().await;
    let first = *sent.first().expect("something");
    // What had been read before its segment went is sent all the same, so there may be a gap behind it.
    let all: usize = (1..=3_000).sum();
    assert_eq!(sent.iter().sum::<usize>() as f64 + story.dropped("no_room"), all as f64, "from {first}");
    assert!(sent.is_sorted() && sent.ends_with(&numbers(2_000..=3_000)));
}

#[tokio::test]
async fn what_was_read_goes_with_its_segment_and_the_next_process_has_what_this_one_says() {
    let mut story = Story::with(|config| config.max_bytes = 4_000);
    // All of it is read ahead: there is room for it in memory.
    for _ in 0..20 {
        story.push(5);
        story.written().await;
    }
    story.until("the cap", |load| load.spooled <= 4_000).await;
    assert!(story.dropped("no_room") > 0.0);
    let waiting = story.queue.load();
    assert_eq!(waiting.volatile, 0);
    let pushed: usize = (1..=100).sum();
    assert_eq!(waiting.points as f64 + story.dropped("no_room"), pushed as f64, "counted exactly");
    let story = story.again().await;
    story.written().await;
    assert_eq!(story.queue.load().points, waiting.points, "nothing was in memory alone");
}

#[tokio::test]
async fn what_is_too_old_goes_and_a_clock_that_was_ahead_makes_nothing_old() {
    let mut story = Story::new();
    let (past, future) = (Duration::from_secs(100_000), Duration::from_secs(1_000_000));
    story.push_of(1, story.queue.now() + future);
    story.written().await;
    let mut story = story.again().await;
    story.push_of(2, story.queue.now() - past);
    story.push(1);
    assert_eq!(story.drain().await, [1, 4]);
    assert_eq!(story.dropped("too_old"), 2.0 + 3.0);
}

#[tokio::test]
async fn a_clock_that_was_wrong_when_the_agent_began_makes_nothing_old_for_the_next_one() {
    let days = Duration::from_secs(30 * 86_400);
    let mut story = Story::in_folder(tempfile::tempdir().expect("a folder"), days, |_| {});
    story.push(3);
    story.written().await;
    let story = story.again().await;
    story.written().await;
    let load = story.queue.load();
    let age = load.oldest.and_then(|oldest| story.queue.now().duration_since(oldest).ok());
    assert!(age.is_some_and(|age| age < LIMIT * 2), "it was collected a moment ago: {age:?}");
    assert_eq!((story.drain().await, story.dropped("too_old")), (numbers(1..=3), 0.0));
}

#[tokio::test]
async fn what_another_process_wrote_does_not_go_for_its_age_while_the_clock_may_still_be_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let batch = Batch { bytes: "request".into(), points: 7 };
    let collected = SystemTime::now() - Duration::from_secs(30 * 86_400);
    let mut spool = Spool::open(&folder.path().join("spool"), 1 << 30).expect("a folder");
    spool.append([(&batch, collected)], false).expect("room");
    drop(spool);
    let story = Story::in_folder(folder, Duration::ZERO, |_| {});
    story.until("opened", |load| load.points == 7).await;
    story.flush().await;
    assert_eq!((story.drain().await, story.dropped("too_old")), (vec![7], 0.0));
}

#[tokio::test]
async fn what_an_agent_wrote_whose_clock_was_wrong_is_not_old_for_itself() {
    let days = Duration::from_secs(30 * 86_400);
    let mut story = Story::in_folder(tempfile::tempdir().expect("a folder"), days, |_| {});
    for _ in 0..11 {
        story.push(5);
        story.written().await;
    }
    assert_eq!((story.drain().await, story.dropped("too_old")), (numbers(1..=55), 0.0));
}

#[tokio::test]
async fn a_folder_that_can_not_be_used_leaves_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("spool")).expect("writable");
    std::fs::write(folder.path().join("spool/photo.jpg"), "a photo").expect("writable");
    let mut story = Story::in_folder(folder, Duration::ZERO, |_| {});
    story.push(12);
    assert_eq!(story.drain().await, numbers(3..=12), "as far as there is room");
    assert_eq!(story.dropped("no_room"), 1.0 + 2.0);
    assert!(!story.queue.flush().await, "nothing is safe");
}

#[tokio::test]
async fn a_disk_that_does_not_take_anything_leaves_memory_and_is_used_again() {
    let mut story = Story::new();
    story.push(1);
    story.written().await;
    // The folder is moved away: also root can't write then.
    let (here, away) = (story.spool(), story.folder.path().join("away"));
    assert_eq!(story.drain().await, [1]);
    assert!(story.flush().await, "all segments are gone");
    std::fs::rename(&here, &away).expect("movable");
    story.push(3);
    assert!(!story.queue.flush().await, "not safe");
    std::fs::rename(&away, &here).expect("movable");
    assert!(story.flush().await);
    assert_eq!(story.queue.load().volatile, 0);
    assert_eq!(story.drain().await, numbers(2..=4));
    assert_eq!(story.stats.samples().len(), 0, "nothing was dropped");
}

#[tokio::test]
async fn where_only_the_cursor_can_not_be_written_that_is_said_once_and_nothing_is_lost() {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let writer = Arc::new(log.reopen().expect("a file"));
    let _default = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(writer).finish());
    let said = |words: &str| std::fs::read_to_string(log.path()).expect("readable").matches(words).count();
    let mut story = Story::new();
    story.written().await;
    // As on a file system that has become read-only: what is open already can still be written.
    let obstacle = story.spool().join("cursor.new");
    std::fs::create_dir(&obstacle).expect("a folder");
    for round in 0..3 {
        story.push(2);
        assert!(story.flush().await, "entries are written");
        assert_eq!(story.drain().await, numbers(2 * round + 1..=2 * round + 2));
        assert!(story.flush().await);
    }
    assert_eq!((said("spool can't be written"), said("can be used again")), (1, 0));
    std::fs::remove_dir(&obstacle).expect("empty");
    story.push(1);
    assert!(story.flush().await);
    assert_eq!((said("spool can't be written"), said("can be used again")), (1, 1));
    let story = story.again().await;
    story.until("opened", |load| load.points > 0).await;
    assert_eq!(story.drain().await, [7], "how far it was is known");
}

#[test]
fn a_full_disk_is_told_from_a_broken_one() {
    let error = |kind: io::ErrorKind| super::super::folder::io_error("written", Path::new("x"))(kind.into());
    assert!(is_full(&error(io::ErrorKind::StorageFull)));
    assert!(!is_full(&error(io::ErrorKind::PermissionDenied)));
}
