//! The section `vcenter.proxy`: the HTTP proxy that stands between this machine and the vCenters. Only this
//! section names one: variables (`HTTPS_PROXY`) would send passwords along a way that the file does not tell of.

use super::section::{By, Section};
use super::values::{parsed, quoted, text};
use crate::accounts::secret::read_secret_file;
use crate::inventory::{Allow, AllowRule};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The proxy, and for whom it is. It is asked for a tunnel (`CONNECT`), in which TLS goes through to the vCenter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Where it is.
    pub url: ProxyUrl,
    /// vCenters that are connected to without it: by name, or by address where the inventory has one.
    pub no_proxy: Allow,
    /// As whom; `None`: it wants to know nothing.
    pub auth: Option<ProxyAuth>,
}

/// How the agent proves itself to a proxy, by HTTP's basic authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyAuth {
    /// User.
    pub username: String,
    /// File with the password. Read whenever the ways to vCenters are set up anew.
    pub password_file: PathBuf,
}

/// The URL of a proxy: `http://host:port`, without a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyUrl(url::Url);

impl ProxyUrl {
    /// All of it; nothing in it is secret.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProxyUrl {
    type Err = String;

    /// The error is one line, and repeats nothing that may be a secret.
    fn from_str(text: &str) -> Result<Self, String> {
        const WRITE: &str = "write http://proxy.example.org:3128";
        if text.contains('@') {
            return Err("must not hold a user name or password; put them into basic_auth".to_owned());
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("{} has no scheme; write http://{text}", quoted(text)));
        };
        if !scheme.eq_ignore_ascii_case("http") {
            let why = "TLS goes through the proxy, not to it";
            return Err(format!("has the scheme {}; {why}: write http://{rest}", quoted(scheme)));
        }
        let url: url::Url = text.parse().map_err(|e| format!("{} is no URL: {e}; {WRITE}", quoted(text)))?;
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("{} has more than host and port; {WRITE}", quoted(text)));
        }
        Ok(Self(url))
    }
}

/// `None`: there is no proxy, or what there is makes no sense, which is reported.
pub(super) fn proxy(vcenter: &mut Section<'_>) -> Option<ProxyConfig> {
    let context = vcenter.context;
    let place = vcenter.place_of("proxy");
    let mut section = vcenter.section("proxy");
    let url = section.setting("url", parsed::<ProxyUrl>).optional();
    let place_of_list = section.place_of("no_proxy");
    let rules: Vec<AllowRule> =
        section.list("no_proxy").unwrap_or_default().iter().filter_map(|rule| rule.parse(parsed)).collect();
    if !rules.is_empty() {
        let shown: Vec<String> = rules.iter().map(AllowRule::to_string).collect();
        context.record("vcenter.proxy.no_proxy", shown.join(", "), place_of_list);
    }
    let place_of_auth = section.place_of("basic_auth");
    let mut basic = section.section("basic_auth");
    let username = basic.setting("username", text).optional();
    let password_file = basic.setting("password_file", |value| context.path(value)).optional();
    drop(basic);
    if let Some(file) = &password_file
        && let Err(why) = read_secret_file(&file.value)
    {
        context.problem_at(file, why);
    }
    let auth = match (username, password_file) {
        // It ends the name in what is sent (RFC 7617, section 2).
        (Some(username), _) if username.value.contains(':') => {
            context.problem_at(&username, "must not hold a colon");
            None
        }
        (Some(username), Some(file)) => {
            Some(ProxyAuth { username: username.value, password_file: file.value })
        }
        (None, None) => None,
        _ => {
            let needs = "needs both username and password_file";
            context.problem(place_of_auth, "vcenter.proxy.basic_auth", needs);
            None
        }
    };
    if place != By::Nobody && url.is_none() && !section.names("url") {
        context.problem(place, "vcenter.proxy", "has no url");
    }
    Some(ProxyConfig { url: url?.value, no_proxy: Allow::only(rules), auth })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_host_and_port_and_nothing_that_may_be_a_secret() {
        let url: ProxyUrl = "HTTP://Proxy.example.org:3128/".parse().unwrap();
        assert_eq!(url.to_string(), "http://proxy.example.org:3128");
        for (text, problem) in [
            ("proxy:3128", "\"proxy:3128\" has no scheme; write http://proxy:3128"),
            (
                "https://proxy:3128",
                "has the scheme \"https\"; TLS goes through the proxy, not to it: write http://proxy:3128",
            ),
            (
                "http://u:hunter2@proxy:3128",
                "must not hold a user name or password; put them into basic_auth",
            ),
            (
                "http://proxy:3128/x",
                "\"http://proxy:3128/x\" has more than host and port; write http://proxy.example.org:3128",
            ),
            ("http://", "\"http://\" is no URL: empty host; write http://proxy.example.org:3128"),
        ] {
            assert_eq!(text.parse::<ProxyUrl>().unwrap_err(), problem, "{text}");
        }
    }
}
