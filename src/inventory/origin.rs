//! Who says that a target is there.

use std::fmt;
use std::sync::Arc;

/// A source of targets. Ordered by whose word counts where two of them contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Origin {
    /// `inventory.hosts` and `inventory.vcenters`.
    Configuration,
    /// The inventory file.
    Atlas,
    /// The server of `inventory.http_sd`.
    HttpSd,
    /// The vCenter with this address, of its own hosts.
    Vcenter(Arc<str>),
}

impl fmt::Display for Origin {
    /// For people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration => f.write_str("the configuration"),
            Self::Atlas => f.write_str("the atlas"),
            Self::HttpSd => f.write_str("http_sd"),
            Self::Vcenter(address) => write!(f, "vCenter {address}"),
        }
    }
}
