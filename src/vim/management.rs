//! The addresses that a host is managed by, from `HostVirtualNicManagerInfo.netConfig`.
//!
//! `summary.managementServerIp` is the vCenter's address, and `config.network.vnic` does not say which of a
//! host's adapters is for management: this property alone does.

use super::model::{Item, ManagedObject};
use std::net::IpAddr;
use std::sync::Arc;

/// The property: some kilobytes a host.
pub const NET_CONFIG: &str = "config.virtualNicManagerInfo.netConfig";

/// The addresses of the adapters that are selected for management, IPv4 ones first: those that somebody else
/// than the host itself or its neighbours can reach.
pub fn addresses(host: &ManagedObject) -> Vec<IpAddr> {
    let all = host.items(NET_CONFIG).iter();
    let of_management = |config: &&Item| config.get("nicType").is_some_and(|kind| &**kind == "management");
    let mut addresses: Vec<IpAddr> =
        all.filter(of_management).flat_map(selected).filter_map(|text| usable(&text)).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

fn usable(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.trim().parse().ok()?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    (!address.is_unspecified() && !link_local).then_some(address)
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
