//! The way through an HTTP proxy, where the configuration names one for a vCenter.

use crate::accounts::{Secret, read_secret_file};
use crate::config::{ProxyUrl, VcenterConfig};
use crate::inventory::{Allow, Vcenter};
use crate::outcome::{Failure, FailureReason};

/// A proxy that is asked for a tunnel to one vCenter.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) url: ProxyUrl,
    /// User and password.
    auth: Option<(String, Secret)>,
}

impl Tunnel {
    /// The one to `vcenter`; `None`: it is connected to directly. Blocks while it reads the password.
    ///
    /// # Errors
    /// When the password can't be read, or nothing but the address could tell that the vCenter is allowed:
    /// it is the proxy that looks names up.
    pub(super) fn to(
        vcenter: &Vcenter,
        config: &VcenterConfig,
        allow: &Allow,
    ) -> Result<Option<Self>, Failure> {
        let host = &*vcenter.endpoint.host;
        let Some(config) = config.proxy.as_ref().filter(|proxy| !proxy.no_proxy.names(host)) else {
            return Ok(None);
        };
        if !allow.names(host) {
            let line = format!(
                "{}: the addresses of {host} are known to the proxy alone, and the name is not in inventory.allow",
                vcenter.id()
            );
            return Err(Failure::new(FailureReason::AddressNotAllowed, line));
        }
        let auth = config.auth.as_ref().map(|auth| match read_secret_file(&auth.password_file) {
            Ok(password) => Ok((auth.username.clone(), password)),
            Err(why) => {
                let line = format!("vcenter.proxy.basic_auth: {why}");
                Err(Failure::new(FailureReason::NoCredentials, line))
            }
        });
        Ok(Some(Self { url: config.url.clone(), auth: auth.transpose()? }))
    }

    /// A failure on the way through it. Without that its refusals would be taken for those of the vCenter.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        // The words of `hyper-util`, which tells no status.
        let remedy = match &*failure.message {
            message if message.ends_with("tunnel error: unsuccessful") => {
                ": it refuses the account or the vCenter's port, or does not reach the vCenter; its log tells"
            }
            message if message.ends_with("tunnel error: proxy authorization required") => {
                ": vcenter.proxy.basic_auth is missing or refused"
            }
            _ => "",
        };
        let message = format!("by the proxy {}: {}{remedy}", self.url, failure.message);
        Failure::new(failure.reason, message)
    }

    /// For a client.
    pub(super) fn proxy(&self) -> reqwest::Proxy {
        let url = self.url.as_str().to_owned();
        // Not `Proxy::https`: that puts the password into its URL, where it is printed, and where a `%` in it is
        // taken for an escape.
        let proxy = reqwest::Proxy::custom(move |_| Some(url.clone()));
        match &self.auth {
            Some((user, password)) => proxy.basic_auth(user, password.expose()),
            None => proxy,
        }
    }
}
