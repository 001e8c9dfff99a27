//! Inventory: who is there. Sources are added up, duplicates by address merged, and the result is one
//! `watch` channel of an immutable [`Inventory`].

use crate::target::TargetId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everybody who is to be visited or polled. Sorted by address, one entry an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// ESXi hosts.
    pub hosts: Vec<Arc<Host>>,
    /// vCenters.
    pub vcenters: Vec<Arc<Vcenter>>,
}

/// An ESXi host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Address as the inventory gives it (`name`, `name:port`, `[v6]:port`): value of `hostsystem`.
    pub address: Arc<str>,
    /// Where to connect.
    pub endpoint: Endpoint,
    /// Site, empty if none.
    pub site: Arc<str>,
    /// Further labels of the source.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

/// A vCenter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vcenter {
    /// Address as the inventory gives it: value of `vcenter`.
    pub address: Arc<str>,
    /// Where to connect.
    pub endpoint: Endpoint,
    /// Site, empty if none.
    pub site: Arc<str>,
}

/// Host name or address, and port if the inventory names one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Name, IPv4 or IPv6 address (without brackets).
    pub host: Arc<str>,
    /// Port, if given.
    pub port: Option<u16>,
}

impl Host {
    /// Its identity.
    pub fn id(&self) -> TargetId {
        TargetId::host(self.address.clone())
    }
}

impl Vcenter {
    /// Its identity.
    pub fn id(&self) -> TargetId {
        TargetId::vcenter(self.address.clone())
    }
}
