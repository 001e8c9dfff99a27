//! Incidents that come and go: which, where, when, and for how long, drawn from a seed. Only the script;
//! [`super::scenario::Scenario::play`] acts it.

use super::faults::{HostFault, ServiceState};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

/// What vCenter thinks of a host: `ManagedEntityStatus` of the vSphere API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OverallStatus {
    /// Unknown.
    Gray,
    /// All is well.
    Green,
    /// May have a problem.
    Yellow,
    /// Has a problem.
    Red,
}

/// Something that goes wrong for a while. Hosts and vCenters by their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Incident {
    /// A service of a host changes its state.
    Service(usize, &'static str, ServiceKind),
    /// A host as a whole is at fault; its sessions are cut if the fault is one of connections.
    Host(usize, HostKind),
    /// vCenter thinks badly of a host.
    Status(usize, OverallStatus),
    /// A vCenter restarts.
    VcenterRestart(usize),
}

/// The service incidents of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKind {
    /// It stops.
    Stops,
    /// Its script takes long.
    Slow,
    /// Its script hangs.
    Hangs,
}

/// The host incidents of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostKind {
    /// It can't be reached.
    Unreachable,
    /// It takes commands and does not answer.
    Hangs,
    /// Its password was changed.
    WrongPassword,
}

impl ServiceKind {
    /// The state in the meantime.
    pub fn state(self) -> ServiceState {
        match self {
            Self::Stops => ServiceState::Stopped,
            Self::Slow => ServiceState::Slow(Duration::from_secs(3)),
            Self::Hangs => ServiceState::Hung,
        }
    }
}

impl HostKind {
    /// The fault in the meantime.
    pub fn fault(self) -> HostFault {
        match self {
            Self::Unreachable => HostFault::HangAtConnect,
            Self::Hangs => HostFault::HangAtCommand,
            Self::WrongPassword => HostFault::WrongPassword,
        }
    }
}

/// One step of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// When, counted from the start.
    pub at: Duration,
    /// Whether the incident begins here or is over.
    pub begins: bool,
    /// Which.
    pub incident: Incident,
}

/// The services that have incidents: some that every ESXi host has, and one whose printed name differs.
const SERVICES: &[&str] = &["hostd", "vpxa", "ntpd", "vvold", "nsx-opsagent"];
/// Draws before an incident is given up for want of a host that has none yet.
const DRAWS: usize = 8;

/// An endless sequence of steps in the order of their times. A host has one incident at a time. Wrong
/// passwords happen to the first host alone, so that an account is never at fault on a whole fleet.
#[derive(Debug)]
pub struct Timeline {
    random: StdRng,
    hosts: usize,
    vcenters: usize,
    pace: Duration,
    next: Duration,
    pending: BinaryHeap<Reverse<Step>>,
    busy: BTreeSet<usize>,
    restarting: BTreeSet<usize>,
}

impl Timeline {
    /// With a new incident about every `pace`, each of which lasts 4 to 20 times as long.
    pub fn new(seed: u64, hosts: usize, vcenters: usize, pace: Duration) -> Self {
        let pace = pace.max(Duration::from_millis(10));
        Self {
            random: StdRng::seed_from_u64(seed ^ 0x0074_696d_656c_696e),
            hosts,
            vcenters,
            pace,
            next: pace,
            pending: BinaryHeap::new(),
            busy: BTreeSet::new(),
            restarting: BTreeSet::new(),
        }
    }

    /// Draws the next incident and puts its two steps into the queue.
    fn draw(&mut self) {
        let at = self.next;
        self.next += self.pace.mul_f64(self.random.random_range(0.5..1.5));
        let lasts = self.pace.mul_f64(self.random.random_range(4.0..20.0));
        let Some(incident) = self.incident() else { return };
        self.pending.push(Reverse(Step { at, begins: true, incident }));
        self.pending.push(Reverse(Step { at: at + lasts, begins: false, incident }));
    }

    fn incident(&mut self) -> Option<Incident> {
        let kind = self.random.random_range(0..100);
        if kind < 3 && self.vcenters > 0 {
            let vcenter = self.random.random_range(0..self.vcenters);
            return self.restarting.insert(vcenter).then_some(Incident::VcenterRestart(vcenter));
        }
        let wrong_password = (3..6).contains(&kind);
        let host = if wrong_password { Some(0) } else { self.free_host() };
        let host = host.filter(|host| *host < self.hosts && self.busy.insert(*host))?;
        let service = SERVICES.get(self.random.random_range(0..SERVICES.len()))?;
        Some(match kind {
            _ if wrong_password => Incident::Host(host, HostKind::WrongPassword),
            0..45 => Incident::Service(host, service, ServiceKind::Stops),
            45..52 => Incident::Service(host, service, ServiceKind::Slow),
            52..58 => Incident::Service(host, service, ServiceKind::Hangs),
            58..66 => Incident::Host(host, HostKind::Unreachable),
            66..72 => Incident::Host(host, HostKind::Hangs),
            72..87 => Incident::Status(host, OverallStatus::Yellow),
            87..97 => Incident::Status(host, OverallStatus::Red),
            _ => Incident::Status(host, OverallStatus::Gray),
        })
    }

    fn free_host(&mut self) -> Option<usize> {
        if self.hosts == 0 {
            return None;
        }
        (0..DRAWS).map(|_| self.random.random_range(0..self.hosts)).find(|host| !self.busy.contains(host))
    }
}

impl Iterator for Timeline {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.hosts == 0 && self.vcenters == 0 {
            return None;
        }
        loop {
            match self.pending.peek() {
                Some(Reverse(step)) if step.at <= self.next => break,
                _ => self.draw(),
            }
        }
        let Reverse(step) = self.pending.pop()?;
        if !step.begins {
            match step.incident {
                Incident::Service(host, ..) | Incident::Host(host, _) | Incident::Status(host, _) => {
                    self.busy.remove(&host)
                }
                Incident::VcenterRestart(vcenter) => self.restarting.remove(&vcenter),
            };
        }
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn steps(seed: u64) -> Vec<Step> {
        Timeline::new(seed, 50, 2, Duration::from_secs(5)).take(2_000).collect()
    }

    #[test]
    fn the_same_seed_tells_the_same_story() {
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn steps_come_in_order_and_every_end_has_a_beginning() {
        let mut open = BTreeSet::new();
        let mut now = Duration::ZERO;
        for step in steps(1) {
            assert!(step.at >= now, "{step:?} after {now:?}");
            now = step.at;
            let changed = if step.begins { open.insert(step.incident) } else { open.remove(&step.incident) };
            assert!(changed, "{step:?}");
        }
    }

    #[test]
    fn a_host_has_one_incident_at_a_time_and_one_host_alone_a_wrong_password() {
        let mut busy: HashMap<usize, Incident> = HashMap::new();
        for step in steps(3) {
            let host = match step.incident {
                Incident::Service(host, ..) | Incident::Host(host, _) | Incident::Status(host, _) => host,
                Incident::VcenterRestart(_) => continue,
            };
            if matches!(step.incident, Incident::Host(_, HostKind::WrongPassword)) {
                assert_eq!(host, 0);
            }
            let before = if step.begins { busy.insert(host, step.incident) } else { busy.remove(&host) };
            assert_eq!(before.is_some(), !step.begins, "{step:?}");
        }
    }

    #[test]
    fn an_empty_estate_has_no_story_and_a_single_host_has_one() {
        assert_eq!(Timeline::new(1, 0, 0, Duration::from_secs(1)).next(), None);
        assert!(Timeline::new(1, 1, 0, Duration::from_secs(1)).take(100).count() == 100);
    }
}
