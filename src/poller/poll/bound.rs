//! A collector at work on one vCenter.

use super::super::details::Plan;
use super::super::lookups::Lookups;
use crate::collectors::{Detail, VcenterAnswer, VcenterCollector, VcenterReader};
use crate::inventory::{Inventory, Vcenter};
use crate::readings::{Reading, Report};
use crate::vim::model::ManagedObject;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A collector with what it knows of this vCenter.
pub(super) struct Bound {
    pub collector: Arc<dyn VcenterCollector>,
    pub reader: Box<dyn VcenterReader>,
    pub lookups: Lookups,
    /// One for each of the collector's details.
    pub plans: Vec<Plan>,
    /// Parts of details that are not asked for any more: they end with the next report.
    ended: Vec<Arc<str>>,
    /// The parts of the last whole report, so that the series of a host that is gone can be ended.
    pub reported: HashSet<Arc<str>>,
}

impl Bound {
    pub fn new(collector: Arc<dyn VcenterCollector>) -> Self {
        Self {
            reader: collector.reader(),
            lookups: Lookups::default(),
            plans: collector.details().iter().map(|_| Plan::default()).collect(),
            ended: Vec::new(),
            reported: HashSet::new(),
            collector,
        }
    }

    /// Goes on with another collector of that name, with all that is known: nothing is asked again for it.
    pub fn goes_on_with(mut self, collector: Arc<dyn VcenterCollector>) -> Self {
        let details = self.collector.details().iter().zip(std::mem::take(&mut self.plans));
        let mut plans: HashMap<_, _> = details.map(|(detail, plan)| (detail.name, (detail, plan))).collect();
        let of = |detail: &Detail| plans.remove(detail.name).map(|(_, plan)| plan).unwrap_or_default();
        self.plans = collector.details().iter().map(of).collect();
        for (detail, plan) in plans.into_values() {
            self.ended.extend(plan.known().map(|host| detail.part(host)));
        }
        Self { collector, ..self }
    }

    /// Takes down of whom which detail is wanted. The ends of what was known of others.
    pub fn ends_of_details(
        &mut self,
        vcenter: &Vcenter,
        hosts: &[ManagedObject],
        inventory: &Inventory,
        is_whole: bool,
    ) -> Option<Report> {
        let present: HashSet<&Arc<str>> = hosts.iter().map(|host| &host.id).collect();
        let ended = std::mem::take(&mut self.ended).into_iter();
        let mut ended: Vec<_> = ended.map(|part| Reading { part, samples: Vec::new() }).collect();
        for (detail, plan) in self.collector.details().iter().zip(&mut self.plans) {
            let wanted = hosts.iter().map(|host| (&host.id, self.reader.wants(detail, host, inventory)));
            let mut gone: Vec<Arc<str>> =
                wanted.filter(|(id, want)| plan.note(id, *want)).map(|(id, _)| Arc::clone(id)).collect();
            if is_whole {
                gone.extend(plan.keep(&present));
            }
            ended.extend(gone.iter().map(|host| Reading { part: detail.part(host), samples: Vec::new() }));
        }
        let collector = self.collector.name();
        (!ended.is_empty()).then(|| Report {
            target: vcenter.id(),
            collector,
            readings: ended,
            stale_after: None,
        })
    }
}

/// What a reader makes of an answer. `reported`: the parts of the last whole one.
pub(super) fn readings_of(
    reader: &mut dyn VcenterReader,
    reported: &mut HashSet<Arc<str>>,
    answer: &VcenterAnswer<'_>,
) -> Vec<Reading> {
    let mut readings = reader.read(answer);
    if answer.is_whole {
        let present: HashSet<Arc<str>> = readings.iter().map(|reading| Arc::clone(&reading.part)).collect();
        // The answer is whole, so what it does not name any more is gone, and not just silent.
        let before = std::mem::replace(reported, present);
        let gone = before.into_iter().filter(|part| !reported.contains(part));
        readings.extend(gone.map(|part| Reading { part, samples: Vec::new() }));
    } else {
        // A host that was left out of the whole answer (a second one of its name, say) still is.
        readings.retain(|reading| reported.contains(&reading.part));
    }
    readings
}
