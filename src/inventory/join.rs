//! The join between what a vCenter calls a host and what the inventory calls it. Indexed: a vCenter
//! asks for each of its hosts at every poll.

use super::Host;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Hosts by what they can be recognized by. Values are places in the list of hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    by_name: HashMap<String, Match>,
    by_alias_and_site: HashMap<(String, Arc<str>), Match>,
    by_label_and_site: HashMap<(String, Arc<str>), Match>,
    /// Whether some host's address is an IP address.
    pub(super) has_ip_addresses: bool,
}

/// What a vCenter that lists its hosts calls one of them.
#[derive(Debug, Clone)]
pub(super) struct Alias {
    pub(super) name: Arc<str>,
    /// Site of the vCenter.
    pub(super) site: Arc<str>,
    /// Address of the host in the inventory.
    pub(super) address: Arc<str>,
}

/// Who is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    One(usize),
    Ambiguous,
}

impl Index {
    pub(super) fn new<'a>(hosts: impl Iterator<Item = &'a Host>, aliases: &[Alias]) -> Self {
        let mut index = Self::default();
        let mut places = HashMap::new();
        for (at, host) in hosts.enumerate() {
            if !aliases.is_empty() {
                places.insert(Arc::clone(&host.address), at);
            }
            let name = canonical(&host.endpoint.host);
            if let Some(label) = first_label(&name) {
                add(&mut index.by_label_and_site, (label.to_owned(), Arc::clone(&host.site)), at);
            }
            index.has_ip_addresses |= name.parse::<IpAddr>().is_ok();
            add(&mut index.by_name, name, at);
        }
        for Alias { name, site, address } in aliases {
            if let Some(at) = places.get(address) {
                add(&mut index.by_alias_and_site, (canonical(name), Arc::clone(site)), *at);
            }
        }
        index
    }

    /// `None`: nobody.
    pub(super) fn find(&self, name: &str, site: &str, management_address: Option<&str>) -> Option<Match> {
        let canonical = canonical(name);
        let by_name = self.by_name.get(&canonical).copied();
        let by_alias = || self.by_alias_and_site.get(&(canonical, Arc::from(site))).copied();
        let by_label = || self.find_alike(name, site);
        let by_address = || self.find_same(management_address?);
        by_name.or_else(by_alias).or_else(by_label).or_else(by_address)
    }

    /// Who has this very name or address.
    pub(super) fn find_same(&self, name: &str) -> Option<Match> {
        self.by_name.get(&canonical(name)).copied()
    }

    /// Whose name begins with the same label, at this site.
    pub(super) fn find_alike(&self, name: &str, site: &str) -> Option<Match> {
        let key = (first_label(&canonical(name))?.to_owned(), Arc::from(site));
        self.by_label_and_site.get(&key).copied()
    }
}

fn add<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Match>, key: K, at: usize) {
    let other = |known: &mut Match| {
        if *known != Match::One(at) {
            *known = Match::Ambiguous;
        }
    };
    map.entry(key).and_modify(other).or_insert(Match::One(at));
}

/// One notation for names that differ in case only, and for IPv6 addresses.
pub(super) fn canonical(name: &str) -> String {
    match name.parse::<IpAddr>() {
        Ok(ip) => ip.to_string(),
        Err(_) => name.trim_end_matches('.').to_ascii_lowercase(),
    }
}

/// The first label of a name; an IP address has none.
fn first_label(name: &str) -> Option<&str> {
    let is_name = name.parse::<IpAddr>().is_err();
    name.split('.').next().filter(|label| is_name && !label.is_empty())
}
