//! All sources added up.
//!
//! Two entries with one address are one target: its labels are joined, and where they contradict each other
//! the word of the earlier source counts (configuration, atlas, http_sd, vCenters).
//!
//! A host that a vCenter lists and that another source lists under another address is that one and not a second
//! one. Its name or its management address tells. The first label of its name does so only where nobody else is like
//! that: to visit a host under two names is a lesser evil than not to visit one at all.

use super::atlas::Skipped;
use super::discovered::{FoundHost, HostList};
use super::join::{Alias, Index, Match, canonical};
use super::origin::Origin;
use super::{Host, Inventory, Shard, Vcenter};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// The targets that one source lists.
pub(super) struct Rows<'a> {
    pub(super) origin: Origin,
    pub(super) hosts: &'a [Host],
    pub(super) vcenters: &'a [Vcenter],
}

/// What comes of it.
pub(super) struct Merged {
    pub(super) inventory: Inventory,
    /// Where sources contradict each other, a line each.
    pub(super) conflicts: BTreeSet<String>,
    /// What can't be used of a vCenter's list.
    pub(super) skipped: BTreeMap<Origin, Skipped>,
}

/// Adds up `rows`, in the order of their origins, and the lists of those vCenters that are in them.
pub(super) fn merge(rows: &[Rows<'_>], lists: &[HostList], shard: Shard) -> Merged {
    let mut conflicts = BTreeSet::new();
    let (mut hosts, mut vcenters) = (Table::default(), Table::default());
    for Rows { origin, hosts: own, vcenters: own_vcenters } in rows {
        for host in *own {
            hosts.add(host.clone(), origin, &mut conflicts);
        }
        for vcenter in *own_vcenters {
            vcenters.add(vcenter.clone(), origin, &mut conflicts);
        }
    }
    let lists: Vec<_> = lists.iter().filter(|list| vcenters.has(&list.vcenter.address)).collect();
    let (aliases, skipped) = discover(&mut hosts, &lists, &mut conflicts);
    let inventory = Inventory::merged(hosts.targets(), vcenters.targets(), shard, &aliases);
    Merged { inventory, conflicts, skipped }
}

/// Adds what vCenters list. Says under which names they know which hosts.
fn discover(
    hosts: &mut Table<Host>,
    lists: &[&HostList],
    conflicts: &mut BTreeSet<String>,
) -> (Vec<Alias>, BTreeMap<Origin, Skipped>) {
    let listed = Index::new(hosts.entries.iter().map(|(host, _)| host), &[]);
    let (mut aliases, mut skipped, mut wanted) = (Vec::new(), BTreeMap::new(), Vec::new());
    for list in lists {
        let origin = Origin::Vcenter(Arc::clone(&list.vcenter.address));
        let mut unusable = Skipped::default();
        for (found, host) in list.wanted(&mut unusable) {
            wanted.push((found.connection, origin.clone(), found, host));
        }
        skipped.insert(origin, unusable);
    }
    // A host that moves from one vCenter to another is in both for a while: the one that has it counts.
    wanted.sort_by(|a, b| (a.0, &a.1, &a.2.id).cmp(&(b.0, &b.1, &b.2.id)));
    let all = || lists.iter().flat_map(|list| list.hosts.iter().map(move |found| (list, found)));
    // Who is left out by choice is still nobody else.
    let known = Recognized::new(&listed, all().map(|(list, found)| (found, &*list.vcenter.site)));
    let is_wanted: HashSet<_> =
        wanted.iter().map(|(_, origin, found, _)| (origin.clone(), Arc::clone(&found.id))).collect();
    let mut told = HashSet::new();
    for (_, origin, found, host) in wanted {
        let (site, name) = (Arc::clone(&host.site), Arc::clone(&found.name));
        let at = match known.find(found, &host.site) {
            Some(Known::Same(at)) => hosts.join(at, host, &origin, conflicts),
            Some(Known::Alike(at)) => {
                let other = |(known, _): &&(Host, Origin)| is_other_domain(&known.endpoint.host, &name);
                if let Some((Host { address, .. }, _)) = hosts.entries.get(at).filter(other)
                    && told.insert(origin.clone())
                {
                    conflicts.insert(format!(
                        "{origin} lists {name}, which is taken for {address} (first label and site are equal), and \
                         maybe others like that: a host that is another one has to be listed by its own name, too"
                    ));
                }
                hosts.join(at, host, &origin, conflicts)
            }
            None => hosts.add(host, &origin, conflicts),
        };
        aliases.extend(hosts.address(at).map(|address| Alias { name, site, address }));
    }
    // A host that a vCenter calls by another name is the same while it is in maintenance.
    for (list, found) in all() {
        let origin = Origin::Vcenter(Arc::clone(&list.vcenter.address));
        if !is_wanted.contains(&(origin, Arc::clone(&found.id)))
            && let Some(Known::Same(at) | Known::Alike(at)) = known.find(found, &list.vcenter.site)
            && let Some(address) = hosts.address(at)
        {
            let (name, site) = (Arc::clone(&found.name), Arc::clone(&list.vcenter.site));
            aliases.push(Alias { name, site, address });
        }
    }
    (aliases, skipped)
}

/// Who of the inventory is meant by the hosts that vCenters list.
struct Recognized<'a> {
    listed: &'a Index,
    /// Those that are meant for certain.
    same: HashSet<usize>,
    /// Names of those that may be meant by their first label.
    alike: HashMap<usize, HashSet<String>>,
}

/// Who is meant, and how certain that is.
enum Known {
    Same(usize),
    Alike(usize),
}

impl<'a> Recognized<'a> {
    /// `found`: hosts, and their vCenter's site.
    fn new<'f>(listed: &'a Index, found: impl Iterator<Item = (&'f FoundHost, &'f str)>) -> Self {
        let (same, alike) = (HashSet::new(), HashMap::new());
        let mut recognized = Self { listed, same, alike };
        for (found, site) in found {
            match recognized.look(found, site) {
                Some(Known::Same(at)) => drop(recognized.same.insert(at)),
                Some(Known::Alike(at)) => {
                    recognized.alike.entry(at).or_default().insert(canonical(&found.name));
                }
                None => {}
            }
        }
        recognized
    }

    fn look(&self, found: &FoundHost, site: &str) -> Option<Known> {
        let by_address = || self.listed.find_same(&found.management_address?.to_string());
        match self.listed.find_same(&found.name).or_else(by_address) {
            Some(Match::One(at)) => Some(Known::Same(at)),
            Some(Match::Ambiguous) => None,
            None => match self.listed.find_alike(&found.name, site)? {
                Match::One(at) => Some(Known::Alike(at)),
                Match::Ambiguous => None,
            },
        }
    }

    fn find(&self, found: &FoundHost, site: &str) -> Option<Known> {
        self.look(found, site).filter(|known| match known {
            Known::Same(_) => true,
            Known::Alike(at) => {
                !self.same.contains(at) && self.alike.get(at).is_some_and(|names| names.len() == 1)
            }
        })
    }
}

/// Whether both names have a domain, and not the same one.
fn is_other_domain(one: &str, other: &str) -> bool {
    let domain = |name: &str| canonical(name).split_once('.').map(|(_, domain)| domain.to_owned());
    domain(one).zip(domain(other)).is_some_and(|(one, other)| one != other)
}

type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// What hosts and vCenters have in common.
trait Target {
    const KIND: &'static str;
    fn parts(&mut self) -> (&Arc<str>, &mut Arc<str>, &mut Labels);
    fn address(&self) -> &Arc<str>;
}

impl Target for Host {
    const KIND: &'static str = "host";
    fn parts(&mut self) -> (&Arc<str>, &mut Arc<str>, &mut Labels) {
        (&self.address, &mut self.site, &mut self.labels)
    }
    fn address(&self) -> &Arc<str> {
        &self.address
    }
}

impl Target for Vcenter {
    const KIND: &'static str = "vCenter";
    fn parts(&mut self) -> (&Arc<str>, &mut Arc<str>, &mut Labels) {
        (&self.address, &mut self.site, &mut self.labels)
    }
    fn address(&self) -> &Arc<str> {
        &self.address
    }
}

/// Targets by address, with the source that was first.
struct Table<T> {
    entries: Vec<(T, Origin)>,
    by_address: HashMap<String, usize>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), by_address: HashMap::new() }
    }
}

impl<T: Target> Table<T> {
    /// Adds a target, or joins it with the one of the same address. Returns its place.
    fn add(&mut self, target: T, origin: &Origin, conflicts: &mut BTreeSet<String>) -> usize {
        let address = target.address().to_ascii_lowercase();
        if let Some(at) = self.by_address.get(&address) {
            return self.join(*at, target, origin, conflicts);
        }
        let at = self.entries.len();
        self.by_address.insert(address, at);
        self.entries.push((target, origin.clone()));
        at
    }

    /// What is said of the target at this place once more.
    fn join(&mut self, at: usize, mut more: T, origin: &Origin, conflicts: &mut BTreeSet<String>) -> usize {
        let Some((known, first)) = self.entries.get_mut(at) else { return at };
        let (address, site, labels) = known.parts();
        let (_, other, more) = more.parts();
        if site.is_empty() {
            *site = Arc::clone(other);
        } else if !other.is_empty() && other != site {
            let kind = T::KIND;
            conflicts.insert(format!(
                "{kind} {address} is in site {site:?} by {first} and in {other:?} by {origin}: {site:?} stands"
            ));
        }
        for (label, value) in std::mem::take(more) {
            labels.entry(label).or_insert(value);
        }
        at
    }

    fn has(&self, address: &str) -> bool {
        self.by_address.contains_key(&address.to_ascii_lowercase())
    }

    fn address(&self, at: usize) -> Option<Arc<str>> {
        self.entries.get(at).map(|(target, _)| Arc::clone(target.address()))
    }

    fn targets(self) -> Vec<T> {
        self.entries.into_iter().map(|(target, _)| target).collect()
    }
}
