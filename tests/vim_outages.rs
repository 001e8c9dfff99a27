//! Stories of vCenters that are down, hang, or are slow, and of the others meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a story may fail"
)]

mod harness;
mod vim_support;

use esxi_otel_agent::inventory::Inventory;
use esxi_otel_agent::poller::VcenterPolls;
use esxi_otel_agent::readings::Readings;
use esxi_otel_agent::simulator::vcenter::{VcenterFault, VcenterHandle, VcenterSim, VcenterSpec};
use esxi_otel_agent::stats::Stats;
use harness::estate::{Estate, RunningAgent};
use harness::{Metronome, in_time, until};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

const POLLS: &str = "RetrievePropertiesEx";

/// Polls of vCenters that ended so, or other than well.
fn polls(stats: &Stats, is_wanted: impl Fn(&str) -> bool) -> f64 {
    let samples = stats.samples();
    let of_polls = samples.iter().filter(|sample| {
        sample.def.name == "esxi.agent.visits" && sample.attributes.get("kind") == Some("vcenter")
    });
    of_polls
        .filter(|sample| sample.attributes.get("outcome").is_some_and(&is_wanted))
        .map(|sample| sample.value)
        .sum()
}

/// Reads on account of hints.
fn hurried(agent: &RunningAgent) -> f64 {
    let samples = agent.handle.stats.samples();
    let hints = samples.iter().filter(|sample| sample.def.name == "esxi.agent.vcenter.hints");
    let read = hints.filter(|sample| sample.attributes.get("outcome") == Some("read"));
    read.map(|sample| sample.value).sum()
}

/// What the agent says of a vCenter.
fn is_up(agent: &RunningAgent, vcenter: &VcenterHandle) -> Option<f64> {
    let (snapshot, address) = (agent.handle.readings.snapshot(), vcenter.address().to_string());
    let mut up = snapshot.samples().filter(|sample| sample.def.name == "esxi.vcenter.up");
    up.find(|sample| sample.attributes.get("vcenter") == Some(&address)).map(|sample| sample.value)
}

async fn until_up(agent: &RunningAgent, vcenter: &VcenterHandle, value: f64) {
    until("the vCenter", || (is_up(agent, vcenter) == Some(value)).then_some(())).await;
}

/// It fails by this reason, twice at least, until `end`; the poll that begins next after that is a good one.
async fn fails_until(agent: &RunningAgent, ill: &VcenterHandle, reason: &str, end: impl FnOnce()) {
    let failed = || polls(&agent.handle.stats, |outcome| outcome == reason);
    let before = failed();
    until(reason, || (failed() >= before + 2.0).then_some(())).await;
    end();
    let trouble = || polls(&agent.handle.stats, |outcome| outcome != "success");
    let before = trouble();
    until_up(agent, ill, 1.0).await;
    // One may have been under way at the end.
    assert!(trouble() <= before + 1.0, "{reason}: {} polls failed afterwards", trouble() - before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vcenter_that_restarts_again_and_again_hangs_and_is_unavailable_disturbs_no_other_and_comes_back() {
    let estate = Estate::with_vcenters(1, 3, |_, _| {}).await;
    let (ill, well) = (&estate.vcenters[0], &estate.vcenters[1..]);
    let agent = estate
        .agent(&[
            ("collectors.overall_state_collector.interval", "1s"),
            ("collectors.critical_service_collector.enabled", "false"),
            // More than a poll may take, so that a login that has begun is never cut off.
            ("vcenter.timeouts.call", "5s"),
        ])
        .await;
    for vcenter in &estate.vcenters {
        until_up(&agent, vcenter, 1.0).await;
    }
    // From then on nothing is read but by the polls: nothing happens on the hosts.
    until("the reads when they began to listen", || (hurried(&agent) >= 3.0).then_some(())).await;
    let count = || well.iter().map(|vcenter| vcenter.calls(POLLS)).collect::<Vec<_>>();
    let (before, began, metronome) = (count(), Instant::now(), Metronome::start());
    for _ in 0..3 {
        ill.go_down();
        fails_until(&agent, ill, "connect_refused", || ill.come_up()).await;
    }
    // In a session that there is, and then while logging in.
    for is_lost in [false, true] {
        ill.fail_every_call(Some(VcenterFault::Hang));
        if is_lost {
            ill.restart();
        }
        fails_until(&agent, ill, "command_timeout", || ill.fail_every_call(None)).await;
    }
    ill.fail_every_call(Some(VcenterFault::Http503Text));
    fails_until(&agent, ill, "vcenter_unavailable", || ill.fail_every_call(None)).await;

    let seconds = began.elapsed().as_secs();
    let withheld = metronome.withheld().as_secs_f64().ceil() as u64;
    for (before, after) in before.into_iter().zip(count()) {
        let polled = after - before;
        let expected = seconds.saturating_sub(1 + withheld)..=seconds + 1;
        assert!(expected.contains(&polled), "{polled} polls in {seconds} s, {withheld} s of them withheld");
    }
    agent.stop().await;
    for vcenter in &estate.vcenters {
        assert_eq!((vcenter.most_sessions(), vcenter.failed_logins()), (1, 0));
        assert_eq!((vcenter.open_sessions(), vcenter.collectors()), (0, 0), "nothing is left behind");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_configuration_that_comes_during_a_poll_is_taken_over_right_after_it() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(2)).await.unwrap();
    let setup = vim_support::Setup::of(&sim);
    let hourly = setup.polls(Duration::from_secs(3600));
    let (polling, poll) = watch::channel(Arc::new(hourly));
    let (inventory, present) = watch::channel(Arc::new(Inventory::default()));
    let polls = VcenterPolls::new(poll, Readings::new(), Arc::clone(&setup.stats), watch::Sender::new(false));
    let cancel = CancellationToken::new();
    let running = Arc::new(polls).run(present, Arc::new(Notify::new()), cancel.clone());
    let story = async {
        sim.fail_next_call(POLLS, VcenterFault::Hold);
        inventory.send_replace(Arc::new(Inventory::new(Vec::new(), vec![setup.vcenter.clone()])));
        until("the first poll", || (sim.calls(POLLS) == 1).then_some(())).await;
        let session = sim.logins();
        let quicker = setup.polls(Duration::from_secs(1));
        polling.send_replace(Arc::new(quicker));
        assert_eq!(sim.calls(POLLS), 1, "the poll is still under way");
        sim.release();
        until("the next poll, which was an hour away", || (sim.calls(POLLS) > 1).then_some(())).await;
        assert_eq!(sim.logins(), session, "in the same session");
        cancel.cancel();
    };
    in_time("the polls", async { tokio::join!(running, story) }).await;
    assert_eq!((sim.open_sessions(), sim.failed_logins()), (0, 0));
}
