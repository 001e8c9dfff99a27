//! The addresses that a host is managed by, from `HostVirtualNicManagerInfo.netConfig`.
//!
//! `summary.managementServerIp` is the vCenter's address, and `config.network.vnic` does not say which of a
//! host's adapters is for management: this property alone does.

use crate::vim::model::{Item, ManagedObject};
use std::sync::Arc;

/// Longest text of an address.
const MAX_ADDRESS: usize = 64;

/// The addresses of the adapters that are selected for management, IPv4 ones first.
pub(super) fn management(host: &ManagedObject) -> Vec<Arc<str>> {
    let all = host.items("config.virtualNicManagerInfo.netConfig").iter();
    let of_management = |config: &&Item| config.get("nicType").is_some_and(|kind| &**kind == "management");
    let mut addresses: Vec<Arc<str>> = all.filter(of_management).flat_map(selected).collect();
    addresses.retain(|address| !address.is_empty() && address.len() <= MAX_ADDRESS);
    addresses.sort_by_key(|address| address.contains(':'));
    addresses
}

/// A `selectedVnic` is the key of a `candidateVnic`, which comes before its addresses.
fn selected(config: &Item) -> Vec<Arc<str>> {
    let selected: Vec<&Arc<str>> = config.all("selectedVnic").collect();
    let (mut is_selected, mut addresses) = (false, Vec::new());
    for (path, text) in &config.fields {
        match &**path {
            "candidateVnic.key" => is_selected = selected.contains(&text),
            "candidateVnic.spec.ip.ipAddress" | "candidateVnic.spec.ip.ipV6Config.ipV6Address.ipAddress"
                if is_selected =>
            {
                addresses.push(Arc::clone(text));
            }
            _ => {}
        }
    }
    addresses
}
