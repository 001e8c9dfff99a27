//! Which address of the inventory a vCenter's hosts have: the key that joins their series to those that come by SSH.
//!
//! Who is ambiguous has none: a join on a key that two hosts share gives both the other's series.

use crate::inventory::{Inventory, Joined, Vcenter};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

/// Most that one log line names of each kind.
const MOST_NAMED: usize = 10;

/// What the inventory says of one host.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// The address that it has there, if nobody else has it.
    pub address: Option<Arc<str>>,
    /// Its name was enough to tell.
    pub is_by_name: bool,
    /// The address is its very name.
    is_its_name: bool,
    /// Several of the inventory could be meant.
    is_ambiguous: bool,
}

impl Found {
    /// Looks for a host: by its name, or else by an address that it is managed by.
    pub fn look(name: &str, management: &[IpAddr], vcenter: &Vcenter, inventory: &Inventory) -> Self {
        let by_name = inventory.join_host(name, &vcenter.site, None);
        let is_by_name = by_name != Joined::Nobody;
        let joined = if is_by_name {
            by_name
        } else {
            let by_address =
                management.iter().map(|own| inventory.join_host(name, &vcenter.site, Some(&own.to_string())));
            by_address.into_iter().find(|joined| *joined != Joined::Nobody).unwrap_or(Joined::Nobody)
        };
        match joined {
            Joined::One(host) => Self {
                address: Some(Arc::clone(&host.address)),
                is_by_name,
                is_its_name: host.endpoint.host.eq_ignore_ascii_case(name),
                is_ambiguous: false,
            },
            Joined::Several => Self { is_ambiguous: true, is_by_name, ..Self::default() },
            Joined::Nobody => Self::default(),
        }
    }
}

/// A host of a vCenter, and what was found for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub id: &'a Arc<str>,
    pub name: &'a str,
    pub found: &'a Found,
}

/// The addresses that several hosts of a vCenter could have, by its last whole answer.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Of these the one whose very name it is has the address, or nobody: by the host's id.
    owners: HashMap<Arc<str>, Option<Arc<str>>>,
    /// What was said of it.
    said: String,
}

impl Shared {
    /// Compares all hosts of a vCenter. Says what is ambiguous, and again when that is something else.
    pub fn compare<'a>(&mut self, vcenter: &Vcenter, hosts: impl Iterator<Item = Candidate<'a>>) {
        let mut by_address: HashMap<&Arc<str>, Vec<Candidate<'a>>> = HashMap::new();
        let mut unclear: Vec<&str> = Vec::new();
        for host in hosts {
            if let Some(address) = &host.found.address {
                by_address.entry(address).or_default().push(host);
            } else if host.found.is_ambiguous {
                unclear.push(host.name);
            }
        }
        self.owners.clear();
        let mut several: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (address, hosts) in by_address.into_iter().filter(|(_, hosts)| hosts.len() > 1) {
            let owner = hosts.iter().find(|host| host.found.is_its_name).map(|host| Arc::clone(host.id));
            if owner.is_none() {
                several.insert(address, hosts.iter().map(|host| host.name).collect());
            }
            self.owners.insert(Arc::clone(address), owner);
        }
        let line = tell(&mut unclear, several);
        if self.said != line {
            if !line.is_empty() {
                tracing::warn!(
                    vcenter = %vcenter.address,
                    "hosts without the attribute address, since they can't be told from others: {line}"
                );
            }
            self.said = line;
        }
    }

    /// The address that a host has.
    pub fn address<'a>(&self, id: &str, found: &'a Found) -> Option<&'a Arc<str>> {
        let is_its_own = |address: &&Arc<str>| {
            self.owners.get(*address).is_none_or(|owner| owner.as_deref().is_some_and(|owner| owner == id))
        };
        found.address.as_ref().filter(is_its_own)
    }
}

/// What is ambiguous, in one line; empty: nothing.
fn tell(unclear: &mut [&str], several: BTreeMap<&str, Vec<&str>>) -> String {
    let mut line = String::new();
    let total = several.len();
    for (address, mut hosts) in several.into_iter().take(MOST_NAMED) {
        let _ = write!(line, "{}{address:?} may be ", if line.is_empty() { "" } else { "; " });
        list(&mut line, &mut hosts, " or ");
    }
    if total > MOST_NAMED {
        let _ = write!(line, "; and {} more addresses", total - MOST_NAMED);
    }
    if !unclear.is_empty() {
        line.push_str(if line.is_empty() { "" } else { "; " });
        line.push_str("several of the inventory may be ");
        list(&mut line, unclear, ", ");
    }
    line
}

fn list(line: &mut String, names: &mut [&str], between: &str) {
    names.sort_unstable();
    for (at, name) in names.iter().take(MOST_NAMED).enumerate() {
        let shown: String = name.chars().take(80).collect();
        let _ = write!(line, "{}{shown:?}", if at == 0 { "" } else { between });
    }
    if names.len() > MOST_NAMED {
        let _ = write!(line, " and {} more", names.len() - MOST_NAMED);
    }
}
