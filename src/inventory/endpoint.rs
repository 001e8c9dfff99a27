//! Addresses as people and inventories write them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// Host name or address, and port if the inventory names one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Name, IPv4 or IPv6 address (without brackets).
    pub host: Arc<str>,
    /// Port, if given.
    pub port: Option<u16>,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Nothing there.
    #[error("an address must not be empty")]
    Empty,
    /// `[::1` and the like.
    #[error("{0:?} is no address: after [ an IPv6 address and ] are needed, as in [2001:db8::1]:22")]
    Brackets(String),
    /// Not 1–65535.
    #[error("{0:?} is no address: the port has to be a number from 1 to 65535")]
    Port(String),
    /// A URL, a user name, a blank, …
    #[error(
        "{0:?} is no address: a name, an IPv4 or an IPv6 address is needed, \
         as in esx1.example.org, esx1.example.org:22 or [2001:db8::1]:22"
    )]
    Name(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// Reads `name`, `name:port`, an IPv4 address with or without a port, `[v6]`, `[v6]:port` and a bare
    /// IPv6 address. A name consists of letters, digits, `-`, `_` and `.` (RFC 1123 plus the underscore,
    /// which is in use), 253 bytes at most, and begins with none of `-` and `.`.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        let port = |port: &str| match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(EndpointError::Port(shorten(text))),
        };
        if let Some(rest) = text.strip_prefix('[') {
            let brackets = || EndpointError::Brackets(shorten(text));
            let (host, rest) = rest.split_once(']').ok_or_else(brackets)?;
            host.parse::<Ipv6Addr>().map_err(|_| brackets())?;
            let port = match rest.strip_prefix(':') {
                Some(rest) => port(rest)?,
                None if rest.is_empty() => None,
                None => return Err(brackets()),
            };
            return Ok(Self { host: host.into(), port });
        }
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok(Self { host: text.into(), port: None });
        }
        // Of a URL the scheme would be taken for a name and the rest for its port.
        if text.contains('/') {
            return Err(EndpointError::Name(shorten(text)));
        }
        let (host, port) = match text.split_once(':') {
            Some((host, rest)) if is_name(host) => (host, port(rest)?),
            Some(_) => return Err(EndpointError::Name(shorten(text))),
            None => (text, None),
        };
        if is_name(host) {
            Ok(Self { host: host.into(), port })
        } else {
            Err(EndpointError::Name(shorten(text)))
        }
    }
}

impl Endpoint {
    /// The address, if the host is one and not a name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.host.contains(':')) {
            (None, _) => f.write_str(&self.host),
            (Some(port), false) => write!(f, "{}:{port}", self.host),
            (Some(port), true) => write!(f, "[{}]:{port}", self.host),
        }
    }
}

fn is_name(host: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=253).contains(&host.len()) && host.bytes().all(ok) && !host.starts_with(['-', '.'])
}

/// Whatever a file holds, an error stays one readable line.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_in_use_is_understood() {
        for (text, host, port) in [
            ("esx1.example.org", "esx1.example.org", None),
            ("esx1.example.org:2222", "esx1.example.org", Some(2222)),
            ("esx_1", "esx_1", None),
            ("192.0.2.1", "192.0.2.1", None),
            ("192.0.2.1:22", "192.0.2.1", Some(22)),
            ("2001:db8::1", "2001:db8::1", None),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("[2001:db8::1]:22", "2001:db8::1", Some(22)),
        ] {
            assert_eq!(text.parse(), Ok(Endpoint { host: host.into(), port }), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        let name = |text: &str| EndpointError::Name(text.to_owned());
        for (text, error) in [
            ("", EndpointError::Empty),
            ("esx1:0", EndpointError::Port("esx1:0".to_owned())),
            ("esx1:65536", EndpointError::Port("esx1:65536".to_owned())),
            ("esx1:ssh", EndpointError::Port("esx1:ssh".to_owned())),
            ("esx1:", EndpointError::Port("esx1:".to_owned())),
            ("[::1", EndpointError::Brackets("[::1".to_owned())),
            ("[::1]22", EndpointError::Brackets("[::1]22".to_owned())),
            ("[esx1]:22", EndpointError::Brackets("[esx1]:22".to_owned())),
            ("root@esx1", name("root@esx1")),
            ("https://vc/sdk", name("https://vc/sdk")),
            ("esx 1", name("esx 1")),
            ("-oProxyCommand=x", name("-oProxyCommand=x")),
            (":22", name(":22")),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_understood_is_written_back_the_same(text in "\\PC{0,40}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            }
        }
    }
}
