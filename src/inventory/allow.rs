//! Which addresses may be given a password.

use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One rule of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowRule {
    /// A network, or one address.
    Network(IpNet),
    /// Names that end like this; begins with a dot.
    Suffix(String),
    /// This name.
    Name(String),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowError {
    /// `10.0.0.1/8`.
    #[error("{0:?} has bits set beyond its prefix; write {1} for the network, or the address alone")]
    HostBits(String, IpNet),
    /// Anything else.
    #[error(
        "{0:?} is no network, no address and no name; write 10.0.0.0/8, 2001:db8::/32, .example.org for all \
         names below it, or esx1.example.org"
    )]
    Nothing(String),
}

impl FromStr for AllowRule {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        if let Ok(network) = text.parse::<IpNet>() {
            if network != network.trunc() {
                return Err(AllowError::HostBits(text.to_owned(), network.trunc()));
            }
            return Ok(Self::Network(network));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let bare = name.strip_prefix('.').unwrap_or(&name);
        let label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
        };
        // Four numbers were meant to be an address.
        let numeric = bare.split('.').all(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if numeric || bare.len() > 253 || !bare.split('.').all(label) {
            return Err(AllowError::Nothing(text.to_owned()));
        }
        Ok(if name.starts_with('.') { Self::Suffix(name) } else { Self::Name(name) })
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Suffix(name) | Self::Name(name) => f.write_str(name),
        }
    }
}

/// The addresses that may be given a password (`inventory.allow`). Whoever is outside gets no connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow(Option<Vec<AllowRule>>);

impl Allow {
    /// Everybody.
    pub const EVERYBODY: Self = Self(None);

    /// Only those that a rule fits.
    pub fn only(rules: Vec<AllowRule>) -> Self {
        Self(Some(rules))
    }

    /// Whether nobody is left out.
    pub fn is_everybody(&self) -> bool {
        self.0.is_none()
    }

    /// Whether `host`, a name or an address, is allowed as it is written, so that it does not matter where
    /// a name leads.
    pub fn names(&self, host: &str) -> bool {
        let Some(rules) = &self.0 else { return true };
        if let Ok(address) = host.parse() {
            return self.holds(address);
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        rules.iter().any(|rule| match rule {
            AllowRule::Network(_) => false,
            AllowRule::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            AllowRule::Name(name) => *name == host,
        })
    }

    /// Whether the address is in a network of the list. An IPv4 address that is written as IPv6 is itself.
    pub fn holds(&self, address: IpAddr) -> bool {
        let Some(rules) = &self.0 else { return true };
        let address = address.to_canonical();
        rules.iter().any(|rule| matches!(rule, AllowRule::Network(network) if network.contains(&address)))
    }

    /// Whether it can still be allowed by the addresses that it turns out to have.
    pub fn may_hold(&self, host: &str) -> bool {
        if host.parse::<IpAddr>().is_ok() || self.names(host) {
            return self.names(host);
        }
        self.0.iter().flatten().any(|rule| matches!(rule, AllowRule::Network(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(rules: &[&str]) -> Allow {
        Allow::only(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    #[test]
    fn a_name_is_allowed_by_its_suffix_and_an_address_by_its_network() {
        let allow = allow(&["10.0.0.0/8", "2001:db8::/32", ".example.org", "vc1.lab"]);
        for (host, allowed) in [
            ("esx1.example.org", true),
            ("ESX1.Example.ORG.", true),
            ("example.org", false),
            ("esx1.badexample.org", false),
            ("esx1.example.org.evil.net", false),
            ("vc1.lab", true),
            ("x.vc1.lab", false),
            ("10.1.2.3", true),
            ("11.1.2.3", false),
            ("2001:db8::1", true),
            ("::ffff:10.1.2.3", true),
            ("fe80::1", false),
        ] {
            assert_eq!(allow.names(host), allowed, "{host}");
            assert!(Allow::EVERYBODY.names(host));
        }
        assert!(allow.may_hold("anything.net"), "its address may be in 10.0.0.0/8");
        assert!(!allow.may_hold("11.1.2.3"));
        assert!(!self::allow(&[".example.org"]).may_hold("anything.net"));
        assert!(!self::allow(&[]).may_hold("anything.net"), "an empty list allows nobody");
    }

    #[test]
    fn what_is_no_rule_is_told_with_what_would_be_one() {
        for text in ["", ".", "10.0.0", "10.0.0.256", "*.example.org", "https://vc1", "a b", "10.0.0.0/33"] {
            let error = text.parse::<AllowRule>().unwrap_err().to_string();
            assert!(error.contains("write 10.0.0.0/8"), "{text}: {error}");
        }
        let error = "10.1.2.3/8".parse::<AllowRule>().unwrap_err().to_string();
        assert!(error.contains("write 10.0.0.0/8 for the network"), "{error}");
        assert_eq!("10.1.2.3".parse::<AllowRule>().unwrap().to_string(), "10.1.2.3/32");
    }
}
