//! Kills, cuts and full disks while points are exported. `KILLS=200 cargo test --test export_kills` for more of them.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod export;

use esxi_otel_agent::config::{OtlpConfig, SpoolConfig};
use esxi_otel_agent::simulator::sink::{Fault, Seen, Sink, SinkOptions};
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::telemetry::export::encode::Batch;
use esxi_otel_agent::telemetry::export::queue::{Caps, Queue};
use esxi_otel_agent::telemetry::export::spool::{Keeper, Loaded, Spool, SpoolOptions};
use export::{Agent, LIMIT, otlp};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

const NAME: &str = "test.service.status";

fn kills(usually: u32) -> u32 {
    std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(usually)
}

fn spooled(endpoint: String, path: &Path) -> OtlpConfig {
    let max_age = Duration::from_secs(86_400);
    OtlpConfig {
        spool: Some(SpoolConfig { path: path.to_owned(), max_bytes: 1 << 30, max_age }),
        ..otlp(endpoint)
    }
}

/// This program again, as one of its own tests that is only for children.
fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    command
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("only for children: {name}"))
}

/// Ends with the test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Exports one number after the other, and says which are on disk.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "for children"]
async fn the_agent_that_is_killed() {
    let agent = Agent::start(&spooled(variable("ENDPOINT"), Path::new(&variable("SPOOL"))));
    for number in variable("FROM").parse::<u64>().expect("a number").. {
        agent.visited("esx1", &[(&number.to_string(), 1.0)]);
        agent.exporter.export_now().await.expect("running");
        if agent.queue.flush().await {
            println!("kept {number}");
        }
    }
}

/// The points of each series in the order in which they came first.
fn times(seen: &Seen) -> BTreeMap<String, Vec<Duration>> {
    let mut all: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for (series, points) in seen.series(NAME, &[]) {
        let times = all.entry(series["service"].clone()).or_default();
        for point in points {
            if !times.contains(&point.time) {
                times.push(point.time);
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_at_any_moment_loses_nothing_that_it_had_on_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spool");
    let sink = Sink::start(SinkOptions::default()).expect("a free port");
    let (mut next, mut kept) = (0, vec![]);
    for kill in 0..kills(15) {
        sink.set_fault((kill % 3 > 0).then_some(Fault::Unavailable));
        let mut command = child("the_agent_that_is_killed");
        command.env("ENDPOINT", sink.endpoint()).env("SPOOL", &path).env("FROM", next.to_string());
        let mut agent = Killed(command.stdout(Stdio::piped()).spawn().expect("runs"));
        let output = BufReader::new(agent.0.stdout.take().expect("piped"));
        let (said, says) = std::sync::mpsc::channel();
        let reading = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let number = line.split("kept ").nth(1).and_then(|number| number.trim().parse::<u64>().ok());
                if number.is_some_and(|number| said.send(number).is_err()) {
                    return;
                }
            }
        });
        // A start that fails would say nothing.
        let first = says.recv_timeout(LIMIT).expect("it starts, and keeps something");
        std::thread::sleep(Duration::from_micros(rand::random_range(0..60_000)));
        drop(agent);
        reading.join().expect("no panic");
        kept.extend(std::iter::once(first).chain(says.try_iter()));
        next = kept.last().map_or(next, |last| last + 1_000);
    }
    sink.set_fault(None);
    let agent = Agent::start(&spooled(sink.endpoint(), &path));
    agent.visited("esx1", &[("the last", 1.0)]);
    let last = |seen: &Seen| seen.series(NAME, &[("service", "the last")]).next().is_some();
    sink.wait_until(last, LIMIT * 4).await.expect("everything before it, too");
    let times = sink.seen(times);
    let lost: Vec<_> = kept.iter().filter(|number| !times.contains_key(&number.to_string())).collect();
    assert!(lost.is_empty(), "{} of {} were lost: {lost:?}", lost.len(), kept.len());
    assert!(times.values().all(|times| times.is_sorted()));
    assert_eq!(agent.counted("dropped"), 0.0);
    println!("{} kept over {} kills", kept.len(), kills(15));
}

/// Hands connections on until it is told to cut them all.
async fn cut_line(
    to: std::net::SocketAddr,
    mut cuts: tokio::sync::watch::Receiver<()>,
) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut cuts = cuts.clone();
            cuts.borrow_and_update();
            tokio::spawn(async move {
                let Ok(mut server) = TcpStream::connect(to).await else { return };
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => {}
                    _ = cuts.changed() => {}
                }
            });
        }
        cuts.borrow_and_update();
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_cut_at_any_moment_loses_nothing() {
    let sink = Sink::start(SinkOptions::default()).expect("a free port");
    let (cut, cuts) = tokio::sync::watch::channel(());
    let line = cut_line(sink.address(), cuts).await;
    let folder = tempfile::tempdir().expect("a folder");
    let agent = Agent::start(&spooled(format!("http://{line}"), &folder.path().join("spool")));
    // The sink remembers 1,000 points of a series.
    let rounds = (u64::from(kills(15)) * 10).min(900);
    for number in 0..rounds {
        agent.visited("esx1", &[("hostd", number as f64)]);
        agent.exporter.export_now().await.expect("running");
        if number % 10 == 5 {
            cut.send_replace(());
        }
    }
    let last = |seen: &Seen| seen.value(NAME, &[]) == Some((rounds - 1) as f64);
    sink.wait_until(last, LIMIT * 4).await.expect("the last one");
    let mut values = sink.seen(|seen| seen.values(NAME, &[]));
    // What was taken when its answer was lost comes twice.
    let mut came = std::collections::HashSet::new();
    values.retain(|value| came.insert(value.expect("no end") as u64));
    let expected: Vec<_> = (0..rounds).map(|number| Some(number as f64)).collect();
    assert_eq!(values, expected, "each once, in order");
}

/// In a small file system of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "for children"]
async fn the_agent_on_a_full_disk() {
    let path = Path::new(&variable("SPOOL")).to_owned();
    let ballast = path.with_file_name("ballast");
    std::fs::write(&ballast, vec![1; 12 << 20]).expect("room");
    let queue = Arc::new(Queue::new(Caps { bytes: 400_000, age: LIMIT * 100 }));
    let stats = Stats::new();
    let config = SpoolConfig { path, max_bytes: 16 << 20, max_age: LIMIT * 100 };
    let options = SpoolOptions { config, patience: Duration::ZERO };
    let keeper = Keeper::start(&queue, options, Arc::clone(&stats)).expect("a thread");
    let push = |number: usize| {
        let bytes: Vec<u8> = (0..10_000).map(|_| rand::random()).collect();
        let batch = Batch { bytes: bytes.into(), points: number };
        queue.drops.note(&stats, queue.push(batch, queue.now(), queue.now()));
    };
    let flushed = || async { tokio::time::timeout(LIMIT, queue.flush()).await.expect("it never hangs") };
    while !flushed().await {
        tokio::task::yield_now().await;
    }
    // 32 MiB have room for 17 of what is 40, since a part is left free.
    (1..=4_000).for_each(|number| {
        push(number);
        if number % 10 == 0 {
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(flushed()));
        }
    });
    let waiting = queue.load();
    assert!(waiting.spooled > 4 << 20 && waiting.spooled < 20 << 20, "{waiting:?}");
    let dropped = || {
        let samples = stats.samples();
        samples.iter().filter(|s| s.attributes.get("reason").is_some()).map(|s| s.value).sum::<f64>()
    };
    assert!(dropped() > 0.0);
    std::fs::remove_file(&ballast).expect("there");
    assert!(flushed().await, "there is room again");
    (4_001..=4_030).for_each(push);
    assert!(flushed().await);
    let mut sent = vec![];
    while queue.load().points > 0 {
        let (ticket, batch) = tokio::time::timeout(LIMIT, queue.wait_front()).await.expect("something");
        sent.push(batch.points);
        queue.acknowledge(ticket);
    }
    assert!(sent.is_sorted() && sent.ends_with(&(4_001..=4_030).collect::<Vec<_>>()));
    let all: usize = (1..=4_030).sum();
    assert_eq!(sent.iter().sum::<usize>() as f64 + dropped(), all as f64, "counted exactly");
    keeper.end().await;
    println!("went on: {} of 4030 sent", sent.len());
}

/// With a limit on open files of its own.
#[test]
#[ignore = "for children"]
fn the_agent_that_can_open_no_more_files() {
    let path = Path::new(&variable("SPOOL")).to_owned();
    let open = || Spool::open(&path, 1 << 30);
    let batches: Vec<_> = (1..=3).map(|points| Batch { bytes: "request".into(), points }).collect();
    for batch in &batches {
        // Each a segment.
        open().expect("a folder").append([(batch, SystemTime::now())], false).expect("room");
    }
    let mut spool = open().expect("free again");
    let limit = getrlimit(Resource::Nofile);
    let of = |current| setrlimit(Resource::Nofile, Rlimit { current, ..limit }).expect("allowed");
    of(Some(0));
    let while_there_are_none = spool.load(1_000);
    of(limit.current);
    assert_eq!(while_there_are_none, Loaded::default(), "nothing is read, and nothing lost");
    assert_eq!(spool.load(1_000).entries.len(), 3);
    drop(spool);
    // The next process gets the lock and nothing more, whatever it reads first.
    let free = std::fs::File::open("/dev/null").expect("there").as_raw_fd();
    of(Some(u64::try_from(free).expect("a number") + 1));
    let error = open().expect_err("it can't be read").to_string();
    of(limit.current);
    assert!(error.contains("Too many open files"), "{error}");
    let mut spool = open().expect("as it was");
    assert_eq!((spool.load(1_000).entries.len(), spool.damaged()), (3, 0));
    println!("went on");
}

#[test]
fn a_lack_of_file_descriptors_is_no_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut story = child("the_agent_that_can_open_no_more_files");
    let output = story.env("SPOOL", folder.path().join("spool")).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("went on"), "{said}");
}

#[test]
fn a_full_disk_costs_the_oldest_points_which_are_counted_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("unshare");
    let mount = "mount -t tmpfs -o size=32m,mode=700 spool \"$0\" && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", mount]).arg(folder.path());
    let story = child("the_agent_on_a_full_disk");
    command.arg(story.get_program()).args(story.get_args()).env("SPOOL", folder.path().join("spool"));
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return println!("left out, there is no unshare: {error}"),
    };
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !said.contains("running 1 test") {
        // Only root may mount.
        return println!("left out, no file system of its own: {said}");
    }
    assert!(output.status.success() && said.contains("went on: "), "{said}");
}
