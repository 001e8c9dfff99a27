//! Name look-ups that keep to `inventory.allow`.

use crate::inventory::Allow;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::sync::Arc;

/// None of a name's addresses may be given a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not in inventory.allow")]
pub(super) struct NotAllowed(pub(super) String);

/// The system's resolver, without addresses that are not allowed.
#[derive(Debug)]
pub(super) struct AllowedOnly(pub(super) Arc<Allow>);

impl Resolve for AllowedOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let allow = Arc::clone(&self.0);
        Box::pin(async move {
            // The port is put in by whoever connects.
            let all: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<_> = all.iter().copied().filter(|address| allow.holds(address.ip())).collect();
            if allowed.is_empty() && !all.is_empty() {
                let all = all.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
                return Err(NotAllowed(format!("{} ({all})", name.as_str())).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}
