//! What a fake vCenter is like, and what can go wrong with it.

use super::vcenter::Authority;
use jiff::SignedDuration;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// What a fake vCenter is like.
#[derive(Debug, Clone)]
pub struct VcenterSpec {
    /// Its name: in its certificate and in its answers.
    pub name: String,
    /// The one account.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Its hosts.
    pub hosts: Vec<HostSpec>,
    /// Most objects of a page; a client may ask for fewer, never for more.
    pub page_size: usize,
    /// Added to each answer.
    pub latency: Duration,
    /// Where to listen; port 0: any free one.
    pub listen: SocketAddr,
    /// Who signs its certificate; `None`: an authority of its own.
    pub authority: Option<Authority>,
    /// Pack answers for clients that accept it.
    pub gzip: bool,
    /// Spell answers with prefixes that no server uses, to unmask clients that look at prefixes.
    pub odd_prefixes: bool,
    /// A session that was idle for longer is gone.
    pub session_idle: Duration,
    /// Rejected logins in a row after which the account is locked.
    pub lockout_after: u32,
    /// `about.apiVersion`.
    pub api_version: String,
    /// Properties of HostSystem that this version does not know.
    pub unknown_properties: Vec<String>,
    /// Its certificate is no authority's, but has signed itself, as one that may sign others.
    pub self_signed: bool,
    /// Speaks TLS 1.2 and nothing newer.
    pub tls12_only: bool,
    /// Quotes around the session's cookie, as real ones have them; a client that drops them has no session.
    pub cookie_quotes: bool,
    /// Age at which a session is gone, however busy it is.
    pub session_life: Duration,
    /// Which changes `WaitForUpdatesEx` tells of.
    pub pushes: Pushes,
    /// Fires an `AlarmStatusChangedEvent` when the status of a host changes.
    pub fires_events: bool,
    /// Most objects of one answer of `WaitForUpdatesEx`.
    pub updates_at_a_time: usize,
    /// Answers a wait at once, news or not.
    pub impatient: bool,
    /// What the account may do, on every object.
    pub privileges: Vec<String>,
    /// How far its clock is ahead; negative: behind.
    pub clock_ahead: SignedDuration,
}

/// Of which changes a property collector is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushes {
    /// Of all, as simulators elsewhere do.
    Everything,
    /// Of all but `overallStatus`: what the documentation allows a server to leave out since API 5.0.
    AllButStatus,
    /// Of none.
    Nothing,
}

/// A host and its place in the tree.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Its name as the vCenter gives it.
    pub name: String,
    /// Its datacenter; `a/b` puts datacenter `b` into folder `a`.
    pub datacenter: String,
    /// Its cluster; `None`: a host of its own. `a/b` puts cluster `b` into folder `a`.
    pub cluster: Option<String>,
}

impl VcenterSpec {
    /// A vCenter without hosts, on loopback. Account: `monitor@vsphere.local` with password `p<&>w"ö`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            user: "monitor@vsphere.local".to_owned(),
            password: "p<&>w\"ö".to_owned(),
            hosts: Vec::new(),
            page_size: 100,
            latency: Duration::ZERO,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            gzip: true,
            odd_prefixes: false,
            session_idle: Duration::from_secs(1800),
            lockout_after: 5,
            api_version: "8.0.3.0".to_owned(),
            unknown_properties: Vec::new(),
            self_signed: false,
            tls12_only: false,
            cookie_quotes: true,
            session_life: Duration::from_secs(86_400),
            pushes: Pushes::AllButStatus,
            fires_events: true,
            updates_at_a_time: 100,
            impatient: false,
            privileges: ["System.Anonymous", "System.View", "System.Read"].map(str::to_owned).to_vec(),
            clock_ahead: SignedDuration::ZERO,
        }
    }

    /// Adds a host in a cluster of a datacenter.
    #[must_use]
    pub fn host(mut self, datacenter: &str, cluster: &str, name: impl Into<String>) -> Self {
        let cluster = Some(cluster.to_owned());
        self.hosts.push(HostSpec { name: name.into(), datacenter: datacenter.to_owned(), cluster });
        self
    }

    /// Adds a host that is in no cluster.
    #[must_use]
    pub fn standalone(mut self, datacenter: &str, name: impl Into<String>) -> Self {
        self.hosts.push(HostSpec { name: name.into(), datacenter: datacenter.to_owned(), cluster: None });
        self
    }

    /// Adds `count` hosts `esx0001.<name>`…, 32 to a cluster, 10 clusters to a datacenter.
    #[must_use]
    pub fn fleet(mut self, count: usize) -> Self {
        let names: Vec<String> = (1..=count).map(|i| format!("esx{i:04}.{}", self.name)).collect();
        for (i, name) in names.into_iter().enumerate() {
            self = self.host(&format!("DC{}", i / 320), &format!("cluster{}", i / 32), name);
        }
        self
    }
}

/// `ManagedEntityStatus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// All is well.
    Green,
    /// Something may be wrong.
    Yellow,
    /// Something is wrong.
    Red,
    /// Not known.
    Gray,
    /// A word of a later version.
    Other(String),
}

impl Status {
    pub(super) fn word(&self) -> &str {
        match self {
            Self::Green => "green",
            Self::Yellow => "yellow",
            Self::Red => "red",
            Self::Gray => "gray",
            Self::Other(word) => word,
        }
    }
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcenterFault {
    /// Nothing: a good answer.
    None,
    /// 503 and a line of text: vpxd is down or starting.
    Http503Text,
    /// 502 and a line of text, as from a proxy before it.
    Http502Text,
    /// A login page with status 200.
    Html,
    /// A redirect to somewhere else.
    Redirect,
    /// A good answer that ends in its middle, although its length was told.
    CutBody,
    /// A good answer that ends in its middle, with the length that it has.
    CutXml,
    /// `text/xml` that is no XML.
    NotXml,
    /// 100 MB of nothing, packed.
    Oversize,
    /// No answer, ever.
    Hang,
    /// A good answer, but not before [`VcenterHandle::release`].
    ///
    /// [`VcenterHandle::release`]: super::vcenter::VcenterHandle::release
    Hold,
    /// A good answer with a document type that makes its entities explode.
    XmlBomb,
    /// The fault NoPermission with status 200.
    FaultWith200,
    /// All tokens are forgotten just before the call.
    SpentToken,
    /// The fault NotAuthenticated, though the session lives.
    NotAuthenticated,
    /// The fault NoPermission.
    NoPermission,
    /// All sessions expire just before the call.
    ExpireSessions,
    /// The connection is closed without an answer.
    Close,
}
