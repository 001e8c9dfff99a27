//! Leaf: who is visited or polled.

use std::fmt;
use std::sync::Arc;

/// The two kinds of targets, by the way in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetKind {
    /// An ESXi host, visited by SSH.
    Host,
    /// A vCenter, polled by SOAP.
    Vcenter,
}

impl TargetKind {
    /// The word that stands in metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            TargetKind::Host => "host",
            TargetKind::Vcenter => "vcenter",
        }
    }
}

/// Identity of a target: its kind and its address as the inventory writes it (`name`, `name:port`,
/// `[v6]:port`). Two rows with one address are one target.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId {
    /// How it is asked.
    pub kind: TargetKind,
    /// Its address, as the inventory gives it.
    pub address: Arc<str>,
}

impl TargetId {
    /// An ESXi host.
    pub fn host(address: impl Into<Arc<str>>) -> Self {
        Self { kind: TargetKind::Host, address: address.into() }
    }

    /// A vCenter.
    pub fn vcenter(address: impl Into<Arc<str>>) -> Self {
        Self { kind: TargetKind::Vcenter, address: address.into() }
    }
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TargetKind::Host => write!(f, "host {}", self.address),
            TargetKind::Vcenter => write!(f, "vCenter {}", self.address),
        }
    }
}
