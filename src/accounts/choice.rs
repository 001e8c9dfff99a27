//! Which account a target gets.

use super::{Account, AccountsConfig, KeySource, Proof, SecretSource};
use crate::inventory::{Host, Vcenter};
use regex::Regex;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Accounts for some of the targets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CredentialRule {
    /// Where it stands, for people: `credentials[0]`.
    pub name: String,
    /// A target has to match all of them, by label. None: everybody does.
    pub matches: BTreeMap<String, Matcher>,
    /// For hosts; `None`: the rule is passed over for them.
    pub esxi: Option<Account>,
    /// For vCenters; `None`: the rule is passed over for them.
    pub vcenter: Option<Account>,
}

/// A regular expression that has to match a label's whole value. A label that a target lacks is empty.
#[derive(Debug, Clone)]
pub struct Matcher(Regex);

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl FromStr for Matcher {
    type Err = String;

    /// The error is one line.
    fn from_str(pattern: &str) -> Result<Self, String> {
        let problem = |e: regex::Error| {
            let text = e.to_string();
            let cause = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("{pattern:?} is no regular expression: {cause}")
        };
        // By itself first, so that a parenthesis too many can't undo the anchors.
        Regex::new(pattern).map_err(problem)?;
        Regex::new(&format!("^(?:{pattern})$")).map(Self).map_err(problem)
    }
}

impl Matcher {
    fn matches(&self, value: &str) -> bool {
        self.0.is_match(value)
    }
}

/// The account that a target gets, and who says so.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'a> {
    /// The account.
    pub account: &'a Account,
    /// The rule's name, or `environment`.
    pub origin: &'a str,
}

/// What rules look at.
struct Target<'a> {
    address: &'a str,
    name: &'a str,
    site: &'a str,
    labels: &'a BTreeMap<Arc<str>, Arc<str>>,
}

impl Target<'_> {
    fn label(&self, name: &str) -> &str {
        let label = || self.labels.get(name).map(|value| &**value);
        match name {
            "address" => self.address,
            "name" => label().unwrap_or(self.name),
            "site" => self.site,
            _ => label().unwrap_or_default(),
        }
    }
}

impl CredentialRule {
    fn fits(&self, target: &Target<'_>) -> bool {
        self.matches.iter().all(|(label, matcher)| matcher.matches(target.label(label)))
    }
}

impl AccountsConfig {
    /// The account for a host; `None`: there is none for it.
    pub fn of_host(&self, host: &Host) -> Option<Chosen<'_>> {
        let target = Target {
            address: &host.address,
            name: &host.endpoint.host,
            site: &host.site,
            labels: &host.labels,
        };
        self.choose(&target, |rule| rule.esxi.as_ref(), self.esxi.as_ref())
    }

    /// The account for a vCenter; `None`: there is none for it.
    pub fn of_vcenter(&self, vcenter: &Vcenter) -> Option<Chosen<'_>> {
        let target = Target {
            address: &vcenter.address,
            name: &vcenter.endpoint.host,
            site: &vcenter.site,
            labels: &vcenter.labels,
        };
        self.choose(&target, |rule| rule.vcenter.as_ref(), self.vcenter.as_ref())
    }

    fn choose<'a>(
        &'a self,
        target: &Target<'_>,
        of_kind: impl Fn(&'a CredentialRule) -> Option<&'a Account>,
        otherwise: Option<&'a Account>,
    ) -> Option<Chosen<'a>> {
        let of_rule = |rule: &'a CredentialRule| {
            let account = of_kind(rule)?;
            rule.fits(target).then_some(Chosen { account, origin: &rule.name })
        };
        let environment = || Some(Chosen { account: otherwise?, origin: "environment" });
        self.rules.iter().find_map(of_rule).or_else(environment)
    }
}

impl fmt::Display for Chosen<'_> {
    /// For people: the user, how it proves itself, and who says so. Never a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {} ({})", self.account.user, self.account.proof, self.origin)
    }
}

impl fmt::Display for Proof {
    /// For people: what it is and where it stands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proof::Password(source) => write!(f, "password{}", Of(source)),
            Proof::MasterPassword(source) => write!(f, "master password{}", Of(source)),
            Proof::Key(KeySource { file, password: None, .. }) => write!(f, "key {}", file.display()),
            Proof::Key(KeySource { file, password: Some(source), .. }) => {
                write!(f, "key {} and password{}", file.display(), Of(source))
            }
        }
    }
}

struct Of<'a>(&'a SecretSource);

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SecretSource::Value(_) => Ok(()),
            SecretSource::File(path) => write!(f, " of {}", path.display()),
        }
    }
}
