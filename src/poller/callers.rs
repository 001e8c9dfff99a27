//! Hosts that there is a reason to visit before their time: a vCenter that had lost them has found them again.

use crate::collectors::overall_state::CONNECTION_STATE;
use crate::metric::Sample;
use crate::readings::Report;
use crate::target::TargetId;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Hosts to visit at once if the timetable has them paused. Bounded by the inventory.
#[derive(Debug, Default)]
pub(super) struct Callers {
    known: Mutex<Known>,
    called: Notify,
}

#[derive(Debug, Default)]
struct Known {
    /// Whom to visit.
    back: HashSet<TargetId>,
    /// Addresses of the hosts that each vCenter has lost.
    lost: HashMap<TargetId, HashSet<Arc<str>>>,
}

impl Callers {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is a sign that the host answers again.
    pub(super) fn hurry(&self, host: TargetId) {
        self.lock().back.insert(host);
        self.called.notify_one();
    }

    /// Looks through a vCenter's answer, about all its hosts (`is_whole`) or some of them, for hosts that are
    /// connected again.
    pub(super) fn look_at(&self, vcenter: &TargetId, reports: &[Report], is_whole: bool) {
        let samples = reports.iter().flat_map(|report| &report.readings).flat_map(|reading| &reading.samples);
        let is_about_connected = |sample: &&Sample| {
            sample.def == &CONNECTION_STATE && sample.attributes.get("state") == Some("connected")
        };
        let mut lost = HashSet::new();
        let mut connected = HashSet::new();
        for sample in samples.filter(is_about_connected) {
            let Some(address) = sample.attributes.get("address") else { continue };
            if sample.value > 0.0 { &mut connected } else { &mut lost }.insert(Arc::<str>::from(address));
        }
        let mut known = self.lock();
        let before = known.lost.remove(vcenter).unwrap_or_default();
        if !is_whole {
            lost.extend(before.iter().filter(|address| !connected.contains(*address)).cloned());
        }
        known.lost.insert(vcenter.clone(), lost);
        drop(known);
        for address in before.intersection(&connected) {
            self.hurry(TargetId::host(Arc::clone(address)));
        }
    }

    /// The vCenter has left the inventory.
    pub(super) fn forget(&self, vcenter: &TargetId) {
        self.lock().lost.remove(vcenter);
    }

    /// Waits until somebody is to be visited. For one waiter: the timetable.
    pub(super) async fn called(&self) -> HashSet<TargetId> {
        loop {
            let back = std::mem::take(&mut self.lock().back);
            if !back.is_empty() {
                return back;
            }
            self.called.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Attributes;
    use crate::readings::Reading;
    use futures::FutureExt as _;

    /// What a vCenter says of its hosts: whether each is connected.
    fn poll(hosts: &[(&str, bool)]) -> Vec<Report> {
        let readings = hosts.iter().map(|(address, connected)| {
            let of = |state: &'static str, value: bool| {
                let attributes = Attributes::new([("address", *address), ("state", state)]);
                Sample::new(&CONNECTION_STATE, attributes, f64::from(u8::from(value)))
            };
            let samples = vec![of("connected", *connected), of("notResponding", !connected)];
            Reading { part: (*address).into(), samples }
        });
        let (target, readings) = (TargetId::vcenter("vc1"), readings.collect());
        vec![Report { target, collector: "overall_state", readings, stale_after: None }]
    }

    #[tokio::test]
    async fn a_host_that_its_vcenter_finds_again_is_called_once() {
        let (callers, vc1) = (Callers::default(), TargetId::vcenter("vc1"));
        callers.look_at(&vc1, &poll(&[("esx1", false), ("esx2", true)]), true);
        assert_eq!(callers.called().now_or_never(), None, "esx2 was connected all the time");
        callers.look_at(&vc1, &poll(&[("esx1", true), ("esx2", true)]), true);
        assert_eq!(callers.called().now_or_never(), Some(HashSet::from([TargetId::host("esx1")])));
        callers.look_at(&vc1, &poll(&[("esx1", true), ("esx2", true)]), true);
        assert_eq!(callers.called().now_or_never(), None);
    }
    #[tokio::test]
    async fn an_answer_about_some_hosts_says_nothing_of_the_others() {
        let (callers, vc1) = (Callers::default(), TargetId::vcenter("vc1"));
        callers.look_at(&vc1, &poll(&[("esx1", false), ("esx2", false)]), true);
        callers.look_at(&vc1, &poll(&[("esx2", true)]), false);
        assert_eq!(callers.called().now_or_never(), Some(HashSet::from([TargetId::host("esx2")])));
        callers.look_at(&vc1, &poll(&[("esx1", true), ("esx2", true)]), true);
        assert_eq!(callers.called().now_or_never(), Some(HashSet::from([TargetId::host("esx1")])));
    }
}
