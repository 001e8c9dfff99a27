//! How long it takes from a host that turns red on its vCenter to the Collector that has it: `cargo bench --bench hints`,
//! or of the stories below those with a word in their titles: `STORY=storm cargo bench --bench hints`.
//!
//! Method. Simulated vCenters, a Collector and the agent, in one process, over TLS and gRPC on loopback. Hosts turn red
//! at random moments (a Poisson process), any of all vCenters; the time of each is taken from the change in the vCenter
//! to the request to the Collector that holds its status 0. The vCenters keep changes of `overallStatus` to themselves,
//! as real ones do since API 5.0, and fire an `AlarmStatusChangedEvent`: the agent has to listen for events.
//!
//! * **hints**: polls every 60 s, so that nothing but a hint can bring it within the goal of 95 % in 1 s. Twenty vCenters,
//!   on each of which a host turns red every 20 s or so.
//! * **hints, one busy vCenter**: a host of the same vCenter turns red about every second. It is read at most once a
//!   second on account of hints, so that some wait for their turn.
//! * **hints, a storm**: 500 hosts of one vCenter turn red at the same moment.
//! * **no hints**: polls every 5 s. The goal is the interval and 1 s at most.

#[path = "common/estate.rs"]
mod estate;

use estate::{Estate, RunningAgent};
use esxi_otel_agent::simulator::vcenter::{Status, VcenterHandle};
use rand::seq::SliceRandom as _;
use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Nothing takes longer.
const LIMIT: Duration = Duration::from_secs(120);
const STATUS: &str = "esxi.overall_status";

/// The agent's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What happens to an estate.
struct Story {
    title: &'static str,
    vcenters: usize,
    hosts: usize,
    interval: &'static str,
    hints: bool,
    /// How many hosts turn red.
    reds: usize,
    /// Time between two of them, on the average.
    gap: Duration,
}

fn main() -> Result<()> {
    // Without --bench it is run as a test: small then.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let busy = Duration::from_secs(1);
    let mut stories = [
        Story {
            title: "hints, 20 vCenters polled every 60 s",
            vcenters: 20,
            hosts: 50,
            interval: "60s",
            hints: true,
            reds: 240,
            gap: busy,
        },
        Story {
            title: "hints, one busy vCenter polled every 60 s",
            vcenters: 1,
            hosts: 500,
            interval: "60s",
            hints: true,
            reds: 100,
            gap: busy,
        },
        Story {
            title: "hints, a storm, polled every 60 s",
            vcenters: 1,
            hosts: 500,
            interval: "60s",
            hints: true,
            reds: 500,
            gap: Duration::ZERO,
        },
        Story {
            title: "no hints, 20 vCenters polled every 5 s",
            vcenters: 20,
            hosts: 50,
            interval: "5s",
            hints: false,
            reds: 240,
            gap: busy / 4,
        },
    ];
    if !is_bench {
        for story in &mut stories {
            (story.vcenters, story.hosts, story.reds) = (story.vcenters.min(2), 4, 4);
            (story.interval, story.gap) = (if story.hints { "60s" } else { "1s" }, story.gap / 20);
        }
    }
    let wanted = std::env::var("STORY").unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("from red on the vCenter to the Collector; hosts, median, 95 %, the longest; within 1 s");
    for story in stories.iter().filter(|story| story.title.contains(&wanted)) {
        let mut took = runtime.block_on(tell(story))?;
        took.sort();
        let at = |share: usize| took.get((took.len() * share).div_ceil(100).saturating_sub(1)).copied();
        let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64();
        let within = took.iter().filter(|took| **took <= Duration::from_secs(1)).count();
        println!(
            "{:<44} {:>4} {:>7.3} s {:>7.3} s {:>7.3} s {:>6.1} %",
            story.title,
            took.len(),
            seconds(at(50)),
            seconds(at(95)),
            seconds(at(100)),
            100.0 * within as f64 / took.len().max(1) as f64,
        );
    }
    Ok(())
}

/// The times of all hosts.
async fn tell(story: &Story) -> Result<Vec<Duration>> {
    let estate = Estate::start(story.vcenters, story.hosts).await?;
    let agent = estate.agent(story.interval, story.hints).await?;
    let hosts = story.vcenters * story.hosts;
    let all = estate.sink.wait_until(|seen| seen.series(STATUS, &[]).count() == hosts, LIMIT);
    all.await?;
    if story.hints {
        until_listening(&agent, story.vcenters).await?;
    }
    let of_vcenter = |vcenter| {
        let hosts = VcenterHandle::hosts(vcenter).into_iter();
        hosts.map(move |host| (vcenter, host))
    };
    let mut order: Vec<(&VcenterHandle, String)> = estate.vcenters.iter().flat_map(of_vcenter).collect();
    order.shuffle(&mut rand::rng());
    let (turned, turning) = std::sync::mpsc::channel();
    let turn = async {
        for (vcenter, host) in order.into_iter().take(story.reds) {
            if !story.gap.is_zero() {
                let chance: f64 = rand::random();
                tokio::time::sleep(story.gap.mul_f64(-(1.0 - chance).ln())).await;
            }
            turned.send((host.clone(), Instant::now()))?;
            vcenter.set_status(&host, &Status::Red);
        }
        Ok::<_, Box<dyn Error>>(())
    };
    let arrive = async {
        let (mut began, mut took) = (HashMap::new(), Vec::new());
        let mut changes = estate.sink.changes();
        while took.len() < story.reds {
            changes.changed().await?;
            let now = Instant::now();
            began.extend(turning.try_iter());
            estate.sink.seen(|seen| {
                let red = seen
                    .series(STATUS, &[])
                    .filter(|(_, points)| points.back().and_then(|point| point.value) == Some(0.0));
                let names = red.filter_map(|(series, _)| began.remove(series.get("hostsystem")?));
                took.extend(names.map(|began| now.saturating_duration_since(began)));
            });
        }
        Ok::<_, Box<dyn Error>>(took)
    };
    let limit = LIMIT + story.gap * u32::try_from(story.reds)? * 2;
    let (turned, took) = tokio::time::timeout(limit, async { tokio::join!(turn, arrive) }).await?;
    turned?;
    agent.stop().await?;
    if let Some(vcenter) = estate.vcenters.iter().find(|vcenter| vcenter.most_sessions() > 1) {
        return Err(format!("{} sessions at a time", vcenter.most_sessions()).into());
    }
    took
}

/// Every vCenter has told how things are, and was read after that: from now on a change is news.
async fn until_listening(agent: &RunningAgent, vcenters: usize) -> Result<()> {
    let read = || -> f64 {
        let samples = agent.handle.stats.samples();
        let own = samples.iter().filter(|sample| sample.def.name == "esxi.agent.vcenter.hints");
        let read = own.filter(|sample| sample.attributes.get("outcome") == Some("read"));
        read.map(|sample| sample.value).sum()
    };
    let listening = async {
        while read() < vcenters as f64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What that read may still ask for, and the pause after it.
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    Ok(tokio::time::timeout(LIMIT, listening).await?)
}
