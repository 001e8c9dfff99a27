//! What is asked more rarely than at each poll: details of some hosts, and texts that are remembered.

use super::VcenterPoller;
use crate::collectors::{Detail, Lookup, VcenterAnswer};
use crate::inventory::Inventory;
use crate::readings::Report;
use crate::vim::client::VimError;
use crate::vim::property::Query;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::Instrument;

/// So many objects of one look-up may turn out to be gone.
const MOST_GONE: usize = 5;
/// Readings of a detail are stale after so many of its paces.
const STALE_PACES: u32 = 3;

impl VcenterPoller {
    /// Asks what the collectors want more rarely, as far as it is due: the reports for the readings. For
    /// after a poll that succeeded, when its own reports are out. Ends within that poll's limit of time.
    ///
    /// A failure is logged, and what was known stands until it is stale: the poll has told already how the
    /// vCenter is.
    pub async fn poll_details(&mut self, inventory: &Inventory) -> Vec<Report> {
        let mut reports = Vec::new();
        for index in 0..self.collectors.len() {
            let Some(bound) = self.collectors.get(index) else { continue };
            let now = Instant::now();
            if let Some(lookup) = bound.lookups.old(now) {
                self.look_up(index, &lookup, self.until).await;
            }
            let Some(bound) = self.collectors.get(index) else { continue };
            let details = bound.collector.details().iter().enumerate();
            let due: Vec<_> = details
                .filter_map(|(at, detail)| Some((at, detail.clone(), bound.plans.get(at)?.due(detail, now))))
                .filter(|(_, _, hosts)| !hosts.is_empty())
                .collect();
            for (at, detail, hosts) in due {
                reports.extend(self.ask_detail((index, at), &detail, &hosts, inventory).await);
            }
        }
        reports
    }

    async fn ask_detail(
        &mut self,
        (index, at): (usize, usize),
        detail: &Detail,
        hosts: &[Arc<str>],
        inventory: &Inventory,
    ) -> Option<Report> {
        let wanted: BTreeSet<&str> = detail.properties.iter().copied().collect();
        if wanted.iter().all(|property| self.unknown.properties.contains(*property)) {
            return None;
        }
        let span = tracing::info_span!(
            parent: None,
            "poll.detail",
            otel.kind = "internal",
            server.address = %self.vcenter.endpoint.host,
            esxi.site = %self.vcenter.site,
            vim.detail = detail.name,
            vim.objects = hosts.len(),
        );
        let read = self.read_known_properties(Some(hosts), &wanted, self.until).instrument(span.clone());
        let objects = match read.await {
            Ok(objects) => objects,
            Err(error) => {
                // Of a host that has just gone the next poll tells.
                if !error.is_about_an_object_of(&Query::Objects {
                    kind: "HostSystem",
                    ids: hosts,
                    properties: &[],
                }) {
                    crate::span::fail(&span, &error.failure);
                    self.say_failing(detail.name, &error);
                    self.collectors.get_mut(index)?.plans.get_mut(at)?.failed(hosts, Instant::now());
                }
                return None;
            }
        };
        self.failing.remove(detail.name);
        self.look_at_missing(&objects);
        let bound = self.collectors.get_mut(index)?;
        let answer = VcenterAnswer {
            vcenter: &self.vcenter,
            tree: &self.tree,
            hosts: &objects,
            is_whole: false,
            inventory,
            texts: bound.lookups.texts(),
        };
        let readings = bound.reader.read_detail(detail, &answer);
        bound.plans.get_mut(at)?.asked(hosts, Instant::now());
        Some(Report {
            target: self.vcenter.id(),
            collector: bound.collector.name(),
            readings,
            stale_after: Some(detail.every * STALE_PACES),
        })
    }

    /// Reads a text of some objects. What fails is logged: the hosts' answer is of use without it.
    pub(super) async fn look_up(&mut self, index: usize, lookup: &Lookup, deadline: Instant) {
        let mut ids: Vec<Arc<str>> = lookup.ids.iter().cloned().collect();
        let properties = [lookup.property];
        for _ in 0..=MOST_GONE {
            let (Some(client), Some(bound)) = (&mut self.client, self.collectors.get_mut(index)) else {
                return;
            };
            if ids.is_empty() {
                return;
            }
            let query = Query::Objects { kind: lookup.kind, ids: &ids, properties: &properties };
            let error = match client.retrieve(&query, deadline).await {
                Ok(objects) => {
                    let now = Instant::now();
                    for id in &ids {
                        let object = objects.iter().find(|object| object.id == *id);
                        let text = object.and_then(|object| object.text(lookup.property)).cloned();
                        bound.lookups.answered(id, text, now);
                    }
                    self.failing.remove(lookup.kind);
                    return;
                }
                Err(error) => error,
            };
            let gone = error.is_about_an_object_of(&query);
            let subject = error.fault.as_ref().and_then(|fault| fault.subject.clone()).unwrap_or_default();
            if !gone {
                bound.lookups.failed(Instant::now());
                self.say_failing(lookup.kind, &error);
                return;
            }
            ids.retain(|id| **id != *subject);
            bound.lookups.answered(&subject.into(), None, Instant::now());
        }
    }

    /// Once, until something works again.
    fn say_failing(&mut self, what: &'static str, error: &VimError) {
        if self.failing.insert(what) {
            tracing::warn!(vcenter = %self.vcenter.address, "reading {what} failed, and is tried again: {error}");
        }
    }
}
