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

#[cfg(test)]
mod tests {
    use crate::vim::model::{Interner, Value};
    use crate::vim::property::read_page;
    use crate::vim::soap::Method;

    fn interface(name: &str, ip: &str) -> String {
        format!(
            "<candidateVnic><device>{name}</device><key>key-vim.host.VirtualNic-{name}</key><portgroup/>\
             <spec><ip><dhcp>false</dhcp>{ip}<subnetMask>255.255.255.0</subnetMask></ip><mac>00:50:56:6f:4d:f4</mac>\
             <mtu>1500</mtu></spec></candidateVnic>"
        )
    }

    fn used(nic_type: &str, interfaces: &[String], selected: &[&str]) -> String {
        let selected = selected
            .iter()
            .map(|name| format!("<selectedVnic>key-vim.host.VirtualNic-{name}</selectedVnic>"));
        format!(
            "<VirtualNicManagerNetConfig><nicType>{nic_type}</nicType><multiSelectAllowed>true</multiSelectAllowed>\
             {}{}</VirtualNicManagerNetConfig>",
            interfaces.concat(),
            selected.collect::<String>()
        )
    }

    /// The property as a vCenter sends it.
    fn read(configs: &str) -> Value {
        let body = format!(
            r#"<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><RetrievePropertiesExResponse xmlns="urn:vim25"><returnval><objects><obj type="HostSystem">host-15</obj><propSet><name>config.virtualNicManagerInfo.netConfig</name><val xsi:type="ArrayOfVirtualNicManagerNetConfig">{configs}</val></propSet><propSet><name>name</name><val xsi:type="xsd:string">esx1</val></propSet></objects></returnval></RetrievePropertiesExResponse></soapenv:Body></soapenv:Envelope>"#
        );
        let page =
            read_page(Method::RetrievePropertiesEx, body.as_bytes(), &mut Interner::default()).unwrap();
        let object = page.objects.into_iter().next().unwrap();
        assert_eq!(object.name().as_deref(), Some("esx1"), "what follows is read on");
        object.get("config.virtualNicManagerInfo.netConfig").unwrap().clone()
    }

    #[test]
    fn it_is_that_of_the_interface_that_is_selected_for_management() {
        let v4 = |address: &str| format!("<ipAddress>{address}</ipAddress>");
        let v6 = "<ipAddress></ipAddress><ipV6Config>\
                  <ipV6Address><ipAddress>fe80::1</ipAddress><prefixLength>64</prefixLength></ipV6Address>\
                  <ipV6Address><ipAddress>2001:db8::1</ipAddress></ipV6Address></ipV6Config>";
        let both = [interface("vmk1", &v4("192.0.2.1")), interface("vmk0", &v4("10.0.0.1"))];
        let only_v6 = [interface("vmk0", v6)];
        let address = |text: &str| Value::ManagementAddress(text.parse().unwrap());
        for (configs, expected) in [
            (used("vmotion", &both, &["vmk1"]) + &used("management", &both, &["vmk0"]), address("10.0.0.1")),
            (used("management", &both, &["vmk1"]), address("192.0.2.1")),
            (used("management", &both, &["vmk0", "vmk1"]), address("192.0.2.1")),
            (used("management", &only_v6, &["vmk0"]), address("2001:db8::1")),
            (used("management", &[interface("vmk0", &v4("0.0.0.0"))], &["vmk0"]), Value::Other),
            (used("management", &[interface("vmk0", &v4("no address"))], &["vmk0"]), Value::Other),
            (used("management", &both, &[]), Value::Other),
            (used("vmotion", &both, &["vmk1"]), Value::Other),
            (String::new(), Value::Other),
        ] {
            assert_eq!(read(&configs), expected, "{configs}");
        }
    }

    #[test]
    fn recorded_answers_are_understood() {
        const RECORDED: &str = "tests/fixtures/vim/vcsim-0.56.0/RetrievePropertiesEx-net-config.xml";
        let body = std::fs::read(RECORDED).unwrap();
        let page = read_page(Method::RetrievePropertiesEx, &body, &mut Interner::default()).unwrap();
        let loopback = Value::ManagementAddress("127.0.0.1".parse().unwrap());
        assert_eq!(page.objects.len(), 2);
        for host in page.objects {
            assert_eq!(
                host.get("config.virtualNicManagerInfo.netConfig"),
                Some(&loopback),
                "{:?}",
                host.name()
            );
        }
    }
}
