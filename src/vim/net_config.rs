//! The management address of a host, out of `HostSystem.config.virtualNicManagerInfo.netConfig`.
//!
//! An array of VirtualNicManagerNetConfig (vSphere API): for each use of a host's network interfaces
//! (`nicType`) the interfaces that may have it (`candidateVnic`, with their addresses) and the keys of those
//! that have it (`selectedVnic`). `summary.managementServerIp` is the vCenter's own address and no host's.

use super::xml::{Cursor, Unreadable};
use std::net::IpAddr;

/// Most interfaces of one use.
const MAX_INTERFACES: usize = 256;

/// The first address of the first interface that is selected for management: of an interface with an IPv4
/// address that one, else its first IPv6 address beyond the link.
pub(super) fn read_management_address(cursor: &mut Cursor<'_>) -> Result<Option<IpAddr>, Unreadable> {
    let mut found = None;
    while let Some(config) = cursor.child()? {
        if !config.is_vim("VirtualNicManagerNetConfig") {
            cursor.skip()?;
            continue;
        }
        let (mut is_management, mut candidates, mut selected) = (false, Vec::new(), Vec::new());
        while let Some(part) = cursor.child()? {
            if part.is_vim("nicType") {
                is_management = cursor.text()?.trim() == "management";
            } else if part.is_vim("candidateVnic") && candidates.len() < MAX_INTERFACES {
                candidates.push(read_interface(cursor)?);
            } else if part.is_vim("selectedVnic") && selected.len() < MAX_INTERFACES {
                selected.push(cursor.text()?.into_owned());
            } else {
                cursor.skip()?;
            }
        }
        if is_management && found.is_none() {
            let selected = candidates.into_iter().filter(|interface| selected.contains(&interface.key));
            found = selected.filter_map(|interface| interface.address).next();
        }
    }
    Ok(found)
}

/// A HostVirtualNic.
struct Interface {
    key: String,
    address: Option<IpAddr>,
}

fn read_interface(cursor: &mut Cursor<'_>) -> Result<Interface, Unreadable> {
    let (mut key, mut address) = (String::new(), None);
    while let Some(part) = cursor.child()? {
        if part.is_vim("key") {
            key = cursor.text()?.into_owned();
        } else if part.is_vim("spec") {
            while let Some(part) = cursor.child()? {
                if part.is_vim("ip") { address = read_ip(cursor)? } else { cursor.skip()? }
            }
        } else {
            cursor.skip()?;
        }
    }
    Ok(Interface { key, address })
}

/// A HostIpConfig.
fn read_ip(cursor: &mut Cursor<'_>) -> Result<Option<IpAddr>, Unreadable> {
    let (mut v4, mut v6) = (None, None);
    while let Some(part) = cursor.child()? {
        if part.is_vim("ipAddress") {
            v4 = usable(&cursor.text()?);
        } else if part.is_vim("ipV6Config") {
            while let Some(part) = cursor.child()? {
                if !part.is_vim("ipV6Address") {
                    cursor.skip()?;
                    continue;
                }
                while let Some(part) = cursor.child()? {
                    if part.is_vim("ipAddress") {
                        v6 = v6.or(usable(&cursor.text()?));
                    } else {
                        cursor.skip()?;
                    }
                }
            }
        } else {
            cursor.skip()?;
        }
    }
    Ok(v4.or(v6))
}

/// The address, if somebody else than the host itself or its neighbours can reach it.
fn usable(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.trim().parse().ok()?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    (!address.is_unspecified() && !link_local).then_some(address)
}
