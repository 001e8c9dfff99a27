//! What vCenters list, as a source: told by whoever polls them.

use super::discovered::keep_addresses;
use super::origin::Origin;
use super::sources::Sources;
use super::{Discover, FoundHost, FoundHosts, Inventory, Vcenter};
use crate::outcome::Failure;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Takes what vCenters say of their hosts. Clones are handles of the same source.
#[derive(Debug, Clone)]
pub struct Discovery(Arc<Sources>);

/// A list as it is kept over restarts.
#[derive(Serialize, Deserialize)]
struct Kept {
    vcenter: Arc<str>,
    hosts: Arc<[FoundHost]>,
    #[serde(default)]
    is_verified: bool,
}

impl Discovery {
    pub(super) fn new(sources: Arc<Sources>) -> Self {
        Self(sources)
    }

    /// What is made of this vCenter's list; `None`: nobody wants one.
    pub fn of(&self, vcenter: &Vcenter) -> Option<Discover> {
        self.0.discover_config().of(vcenter)
    }

    /// Whether any vCenter may be asked.
    pub fn is_on(&self) -> bool {
        self.0.discover_config().is_on()
    }

    /// How often a list is read that comes with no other answer, and what is large in any.
    pub fn interval(&self) -> Duration {
        self.0.discover_config().interval
    }

    /// Whether another source lists hosts by their IP addresses, so that management addresses tell who is who.
    pub fn needs_addresses(&self) -> bool {
        self.0.has_ip_addresses()
    }

    /// The vCenter's whole answer: these are its hosts. Returns the inventory that comes of it. No host after
    /// there were some is suspicious: the last list stands, and that is said.
    pub async fn found(&self, vcenter: &Arc<Vcenter>, mut found: FoundHosts) -> Arc<Inventory> {
        if found.hosts.is_empty() && self.known(vcenter).await > 0 {
            let why = format!("vCenter {} lists no host any more", vcenter.address);
            return self.stands(vcenter, why);
        }
        if self.0.listed_by(vcenter).is_none() {
            keep_addresses(&mut found.hosts, &self.remembered(vcenter).await.hosts, false);
        }
        let is_verified = found.is_verified;
        let (news, inventory) = self.0.accept_list(vcenter, found, true);
        if let Some(hosts) = news {
            self.keep(Kept { vcenter: Arc::clone(&vcenter.address), hosts, is_verified });
        }
        inventory
    }

    /// The vCenter did not answer: its last list stands.
    pub async fn failed(&self, vcenter: &Arc<Vcenter>, failure: &Failure) {
        if self.of(vcenter).is_some() {
            self.known(vcenter).await;
            self.stands(vcenter, failure.to_string());
        }
    }

    fn stands(&self, vcenter: &Vcenter, why: String) -> Arc<Inventory> {
        self.0.trouble(&Origin::Vcenter(Arc::clone(&vcenter.address)), why, 1);
        self.0.subscribe().borrow().clone()
    }

    /// Number of hosts that the vCenter listed last, be it before this start: then they are in the inventory
    /// from now on.
    async fn known(&self, vcenter: &Arc<Vcenter>) -> usize {
        if let Some(known) = self.0.listed_by(vcenter) {
            return known;
        }
        let remembered = self.remembered(vcenter).await;
        let known = remembered.hosts.len();
        if known > 0 {
            self.0.accept_list(vcenter, remembered, false);
        }
        known
    }

    /// What the vCenter listed before this start.
    async fn remembered(&self, vcenter: &Vcenter) -> FoundHosts {
        let nobody = FoundHosts::default();
        let Some(file) = self.0.memory().file("vcenter", &vcenter.address) else { return nobody };
        let Some(content) = self.0.memory().read(&file).await else { return nobody };
        match serde_json::from_slice::<Kept>(&content) {
            Ok(Kept { vcenter: of, hosts, is_verified }) if of == vcenter.address => {
                FoundHosts { hosts: hosts.to_vec(), is_verified }
            }
            Ok(_) => nobody,
            Err(error) => {
                tracing::warn!("inventory: {} is no list of hosts: {error}", file.display());
                nobody
            }
        }
    }

    fn keep(&self, kept: Kept) {
        let Some(file) = self.0.memory().file("vcenter", &kept.vcenter) else { return };
        if let Ok(content) = serde_json::to_vec(&kept) {
            self.0.memory().keep(file, content);
        }
    }
}
