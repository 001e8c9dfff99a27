//! Hosts as a vCenter lists them, and which of them are visited at which address.

use super::atlas::Skipped;
use super::{Endpoint, Host, Vcenter};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Which vCenters are asked for their hosts, and what is made of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoverConfig {
    /// By the address of a vCenter of the configuration, in lower case; `None`: its hosts come from elsewhere.
    pub explicit: BTreeMap<String, Option<Discover>>,
    /// Of all other vCenters, whoever lists them.
    pub others: Option<Discover>,
    /// How often the list of a vCenter is read that this agent asks nothing else; and how often management
    /// addresses are read of any, since they are large.
    pub interval: Duration,
}

impl Default for DiscoverConfig {
    fn default() -> Self {
        Self { explicit: BTreeMap::new(), others: None, interval: Duration::from_secs(120) }
    }
}

impl DiscoverConfig {
    /// What is made of this vCenter's list; `None`: it is not asked for one.
    pub fn of(&self, vcenter: &Vcenter) -> Option<Discover> {
        let explicit = self.explicit.get(&vcenter.address.to_ascii_lowercase());
        explicit.copied().unwrap_or(self.others)
    }

    /// Whether any vCenter may be asked.
    pub fn is_on(&self) -> bool {
        self.others.is_some() || self.explicit.values().any(Option::is_some)
    }
}

/// What is made of a vCenter's list of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discover {
    /// Under which address they are visited.
    pub address: DiscoveredAddress,
    /// Visit those in maintenance mode.
    pub maintenance: bool,
    /// Visit those that somebody has disconnected from the vCenter. One that does not answer the vCenter is
    /// visited in any case.
    pub disconnected: bool,
}

impl Default for Discover {
    fn default() -> Self {
        Self { address: DiscoveredAddress::Name, maintenance: true, disconnected: false }
    }
}

/// The address of a discovered host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveredAddress {
    /// The name that it has in the vCenter.
    Name,
    /// The address of its management interface.
    Management,
}

/// A host as its vCenter lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundHost {
    /// Identity within the vCenter (`host-15`), which survives a renaming.
    pub id: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The first address of its management interface, if it is known.
    pub management_address: Option<IpAddr>,
    /// How vCenter and host are connected.
    pub connection: Connection,
    /// Whether it is in maintenance mode.
    pub in_maintenance: bool,
    /// Its cluster, if it is in one.
    pub cluster: Option<Arc<str>>,
    /// Its datacenter.
    pub datacenter: Option<Arc<str>>,
}

/// `HostSystemConnectionState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Connection {
    /// It is managed by the vCenter. Also where the vCenter does not say.
    Connected,
    /// The vCenter has lost it.
    NotResponding,
    /// Somebody has disconnected it.
    Disconnected,
}

/// What a vCenter answers when it is asked for its hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundHosts {
    /// All of them.
    pub hosts: Vec<FoundHost>,
    /// Whether it is certain that the vCenter said so. Without verified TLS anybody can name hosts, which would be
    /// given the password: such a list counts only where [`super::Allow`] names who may have that.
    pub is_verified: bool,
}

/// The last whole list of a vCenter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostList {
    pub(super) vcenter: Arc<Vcenter>,
    pub(super) discover: Discover,
    pub(super) hosts: Arc<[FoundHost]>,
    pub(super) is_verified: bool,
    /// It was listed since the start.
    pub(super) is_live: bool,
}

impl HostList {
    /// The hosts that are wanted, with what the vCenter says of each. Those that can't be visited are
    /// counted.
    pub(super) fn wanted(&self, skipped: &mut Skipped) -> Vec<(&FoundHost, Host)> {
        let Discover { maintenance, disconnected, .. } = self.discover;
        let by_choice = |host: &&FoundHost| {
            (maintenance || !host.in_maintenance)
                && (disconnected || host.connection != Connection::Disconnected)
        };
        let mut wanted = Vec::new();
        for found in self.hosts.iter().filter(by_choice) {
            match self.host(found) {
                Ok(host) => wanted.push((found, host)),
                Err(reason) => skipped.add(reason.to_owned(), || shown(&found.name)),
            }
        }
        wanted
    }

    fn host(&self, found: &FoundHost) -> Result<Host, &'static str> {
        let address: Arc<str> = match self.discover.address {
            DiscoveredAddress::Name => Arc::clone(&found.name),
            DiscoveredAddress::Management => {
                found.management_address.ok_or("no management address")?.to_string().into()
            }
        };
        let endpoint: Endpoint = address.parse().map_err(|_| "the name is no address")?;
        let label = |(name, value): (&str, Option<&Arc<str>>)| Some((Arc::from(name), Arc::clone(value?)));
        let labels = [
            ("name", Some(&found.name)),
            ("vcenter", Some(&self.vcenter.address)),
            ("cluster", found.cluster.as_ref()),
            ("datacenter", found.datacenter.as_ref()),
        ];
        let labels = labels.into_iter().filter_map(label).collect();
        Ok(Host { address, endpoint, site: Arc::clone(&self.vcenter.site), labels })
    }
}

/// Puts in the management addresses that an answer does not have and an earlier one had: a host that lost
/// its connection, or its name, is still the same. By its identity alone only within one run: a vCenter that was set up
/// anew meanwhile gives the same ones to other hosts.
pub(super) fn keep_addresses(hosts: &mut [FoundHost], before: &[FoundHost], is_live: bool) {
    let known: BTreeMap<&str, (&str, IpAddr)> =
        before.iter().filter_map(|host| Some((&*host.id, (&*host.name, host.management_address?)))).collect();
    for host in hosts.iter_mut().filter(|host| host.management_address.is_none()) {
        let known = known.get(&*host.id).filter(|(name, _)| is_live || **name == *host.name);
        host.management_address = known.map(|(_, address)| *address);
    }
}

/// A peer's word in a log line.
fn shown(name: &str) -> String {
    format!("{:?}", name.chars().take(80).collect::<String>())
}
