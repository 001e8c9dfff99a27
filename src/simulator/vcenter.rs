//! A fake vCenter: SOAP over HTTPS, with the habits of real ones that simulators elsewhere lack.
//!
//! It sends about 100 objects a page whatever the client asks for, hands out tokens that can be spent once
//! (the first one is `"0"`), quotes its session cookie, takes a login on a live session for an
//! `InvalidLogin`, locks accounts, forgets everything at a restart, and packs its answers. It has no
//! `WaitForUpdatesEx`: a change of status is told to those only who ask.

use super::vcenter_request::MoRef;
use super::vcenter_server::{self, Shared};
use super::vcenter_tree::{Dialect, Entity, Property, Tree};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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

/// A certificate authority for simulated servers.
#[derive(Clone)]
pub struct Authority(Arc<CertifiedIssuer<'static, KeyPair>>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(name: &str) -> io::Result<Self> {
        let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        Ok(Self(Arc::new(CertifiedIssuer::self_signed(params, key).map_err(io::Error::other)?)))
    }

    /// Its certificate: what a client's `ca_file` has to hold.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate chain and key for a server of `names`.
    pub(super) fn issue(&self, names: Vec<String>) -> io::Result<rustls::ServerConfig> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let params = CertificateParams::new(names).map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &*self.0).map_err(io::Error::other)?;
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .map_err(io::Error::other)
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
    fn word(&self) -> &str {
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
    /// The fault NotAuthenticated, though the session lives.
    NotAuthenticated,
    /// The fault NoPermission.
    NoPermission,
    /// All sessions expire just before the call.
    ExpireSessions,
    /// The connection is closed without an answer.
    Close,
}

/// A fake vCenter that runs until its handle is dropped.
#[derive(Debug)]
pub struct VcenterSim;

impl VcenterSim {
    /// Starts one.
    ///
    /// # Errors
    /// When its address can't be listened on.
    pub async fn start(spec: VcenterSpec) -> io::Result<VcenterHandle> {
        let listener = tokio::net::TcpListener::bind(spec.listen).await?;
        let address = listener.local_addr()?;
        let authority = match &spec.authority {
            Some(authority) => authority.clone(),
            None => Authority::new(&format!("{} authority", spec.name))?,
        };
        let names = vec![spec.name.clone(), "localhost".to_owned(), address.ip().to_string()];
        let tls = authority.issue(names)?;
        let shared =
            Arc::new(Shared { state: Mutex::new(State::new(spec)), stopped: CancellationToken::new() });
        let tasks = TaskTracker::new();
        vcenter_server::spawn(&tasks, listener, tls, Arc::clone(&shared));
        Ok(VcenterHandle { shared, address, authority, tasks })
    }
}

/// A running fake vCenter: change it, break it, look at it.
#[derive(Debug)]
pub struct VcenterHandle {
    shared: Arc<Shared>,
    address: SocketAddr,
    authority: Authority,
    tasks: TaskTracker,
}

impl Drop for VcenterHandle {
    fn drop(&mut self) {
        self.shared.stopped.cancel();
    }
}

impl VcenterHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of its authority.
    pub fn ca_pem(&self) -> String {
        self.authority.pem()
    }

    /// Sets `overallStatus` of a host. Nobody is told.
    pub fn set_status(&self, host: &str, status: &Status) {
        self.set(host, "overallStatus", Property::Text("ManagedEntityStatus", status.word().to_owned()));
    }

    /// Sets `runtime.connectionState` of a host: `connected`, `disconnected`, `notResponding`.
    pub fn set_connection(&self, host: &str, state: &str) {
        self.set(
            host,
            "runtime.connectionState",
            Property::Text("HostSystemConnectionState", state.to_owned()),
        );
    }

    /// Sets `runtime.powerState` of a host: `poweredOn`, `poweredOff`, `standBy`, `unknown`.
    pub fn set_power(&self, host: &str, state: &str) {
        self.set(host, "runtime.powerState", Property::Text("HostSystemPowerState", state.to_owned()));
    }

    /// Sets `runtime.inMaintenanceMode` of a host.
    pub fn set_maintenance(&self, host: &str, on: bool) {
        self.set(host, "runtime.inMaintenanceMode", Property::Bool(on));
    }

    /// Unsets a property of a host.
    pub fn unset(&self, host: &str, property: &str) {
        self.with_host(host, |entity| entity.unset(property));
    }

    /// Makes a property of a host unreadable.
    pub fn deny(&self, host: &str, property: &str) {
        self.with_host(host, |entity| entity.deny(property));
    }

    /// Renames a host; it stays the same object.
    pub fn rename(&self, host: &str, name: &str) {
        self.with_host(host, |entity| entity.set("name", Property::Text("string", name.to_owned())));
        let mut state = self.state();
        if let Some(id) = state.hosts.remove(host) {
            state.hosts.insert(name.to_owned(), id);
        }
    }

    /// Adds a host.
    pub fn add_host(&self, host: &HostSpec) {
        self.state().add_host(host);
    }

    /// Removes a host.
    pub fn remove_host(&self, host: &str) {
        self.state().remove_host(host);
    }

    /// The names of its hosts, sorted.
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts: Vec<String> = self.state().hosts.keys().cloned().collect();
        hosts.sort();
        hosts
    }

    /// Ends every session, as the idle limit does.
    pub fn expire_sessions(&self) {
        self.state().end_sessions();
    }

    /// Restarts the server: sessions are gone, and a client that still holds one is told
    /// `ManagedObjectNotFound`.
    pub fn restart(&self) {
        let mut state = self.state();
        let lost: Vec<String> = state.sessions.keys().cloned().collect();
        state.end_sessions();
        state.before_restart.extend(lost);
    }

    /// Lets the next call fail.
    pub fn fail_next(&self, fault: VcenterFault) {
        self.state().faults.push_back((None, fault));
    }

    /// Lets the next call of `method` fail.
    pub fn fail_next_call(&self, method: &str, fault: VcenterFault) {
        self.state().faults.push_back((Some(method.to_owned()), fault));
    }

    /// Changes what is added to each answer.
    pub fn set_latency(&self, latency: Duration) {
        self.state().spec.latency = latency;
    }

    /// Changes the password of the account.
    pub fn set_password(&self, password: &str) {
        self.state().spec.password = password.to_owned();
    }

    /// Number of sessions that are open.
    pub fn open_sessions(&self) -> usize {
        self.state().sessions.len()
    }

    /// Number of logins that succeeded so far.
    pub fn logins(&self) -> u64 {
        self.state().logins
    }

    /// Number of logins that were rejected so far.
    pub fn failed_logins(&self) -> u64 {
        self.state().failed_logins
    }

    /// Whether the account is locked.
    pub fn is_locked(&self) -> bool {
        self.state().is_locked()
    }

    /// Unlocks the account.
    pub fn unlock(&self) {
        self.state().rejected_in_a_row = 0;
    }

    /// Number of calls so far, whatever came of them.
    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// Number of calls of `method` so far.
    pub fn calls(&self, method: &str) -> u64 {
        self.state().calls.get(method).copied().unwrap_or_default()
    }

    /// The `User-Agent` of the last call.
    pub fn last_user_agent(&self) -> String {
        self.state().user_agent.clone()
    }

    /// Stops it, and waits until its last task has ended.
    pub async fn stop(self) {
        self.shared.stopped.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    fn set(&self, host: &str, path: &'static str, value: Property) {
        self.with_host(host, |entity| entity.set(path, value));
    }

    fn with_host(&self, host: &str, change: impl FnOnce(&mut Entity)) {
        let mut state = self.state();
        let reference = state.hosts.get(host).map(|id| MoRef { kind: "HostSystem".into(), id: id.clone() });
        if let Some(entity) = reference.and_then(|reference| state.tree.get(&reference)) {
            change(entity);
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that changes.
#[derive(Debug)]
pub(super) struct State {
    pub spec: VcenterSpec,
    pub dialect: Dialect,
    pub tree: Tree,
    /// Identity of each host by its name.
    hosts: HashMap<String, String>,
    /// Identity of each datacenter, folder and cluster by its path.
    places: HashMap<String, MoRef>,
    next_id: u32,
    /// Live sessions by cookie, and when they were last used.
    pub sessions: HashMap<String, tokio::time::Instant>,
    /// Sessions that a restart ended.
    pub before_restart: HashSet<String>,
    /// What a token stands for: its session, what was asked, and the objects that are left.
    pub tokens: HashMap<String, super::vcenter_calls::Rest>,
    pub next_token: u64,
    pub faults: VecDeque<(Option<String>, VcenterFault)>,
    pub logins: u64,
    pub failed_logins: u64,
    pub rejected_in_a_row: u32,
    pub requests: u64,
    pub calls: HashMap<String, u64>,
    pub user_agent: String,
}

pub(super) const ROOT: &str = "group-d1";

impl State {
    fn new(spec: VcenterSpec) -> Self {
        let dialect = if spec.odd_prefixes { Dialect::odd() } else { Dialect::vcenter() };
        let mut tree = Tree { unknown: spec.unknown_properties.iter().cloned().collect(), ..Tree::default() };
        let mut root = Entity::new("Folder", ROOT.to_owned());
        root.set("name", Property::Text("string", "Datacenters".to_owned()));
        let reference = root.reference.clone();
        tree.entities.insert(ROOT.to_owned(), root);
        let hosts = spec.hosts.clone();
        let mut state = Self {
            spec,
            dialect,
            tree,
            hosts: HashMap::new(),
            places: HashMap::from([(String::new(), reference)]),
            next_id: 2,
            sessions: HashMap::new(),
            before_restart: HashSet::new(),
            tokens: HashMap::new(),
            next_token: 0,
            faults: VecDeque::new(),
            logins: 0,
            failed_logins: 0,
            rejected_in_a_row: 0,
            requests: 0,
            calls: HashMap::new(),
            user_agent: String::new(),
        };
        for host in &hosts {
            state.add_host(host);
        }
        state
    }

    pub fn is_locked(&self) -> bool {
        self.rejected_in_a_row >= self.spec.lockout_after
    }

    pub fn end_sessions(&mut self) {
        self.sessions.clear();
        self.tokens.clear();
    }

    fn add(&mut self, kind: &str, prefix: &str, name: &str, parent: &MoRef, path: &'static str) -> MoRef {
        let mut entity = Entity::new(kind, format!("{prefix}-{}", self.next_id));
        self.next_id += 1;
        let reference = entity.reference.clone();
        // How a vCenter escapes names.
        let name = name.replace('%', "%25").replace('/', "%2f").replace('\\', "%5c");
        entity.set("name", Property::Text("string", name));
        entity.set("parent", Property::One(parent.clone()));
        self.tree.entities.insert(reference.id.clone(), entity);
        if let Some(parent) = self.tree.get(parent) {
            if path == "hostFolder" {
                parent.set(path, Property::One(reference.clone()));
            } else {
                parent.push(path, reference.clone());
            }
        }
        reference
    }

    /// The place of `path`, made if it is not there: folders, and a last part of `kind`.
    fn place(&mut self, under: &MoRef, base: &str, path: &str, kind: &str, prefix: &str) -> (MoRef, String) {
        let mut at = (under.clone(), base.to_owned());
        let last = path.split('/').count();
        for (i, part) in path.split('/').enumerate() {
            let key = format!("{}/{part}", at.1);
            let reference = match self.places.get(&key) {
                Some(known) => known.clone(),
                None if i + 1 == last => self.add(kind, prefix, part, &at.0, "childEntity"),
                None => self.add("Folder", "group-h", part, &at.0, "childEntity"),
            };
            self.places.insert(key.clone(), reference.clone());
            at = (reference, key);
        }
        at
    }

    fn add_host(&mut self, spec: &HostSpec) {
        let root = MoRef { kind: "Folder".to_owned(), id: ROOT.to_owned() };
        let (datacenter, base) = self.place(&root, "", &spec.datacenter, "Datacenter", "datacenter");
        let key = format!("{base}//host");
        let folder = match self.places.get(&key) {
            Some(known) => known.clone(),
            None => self.add("Folder", "group-h", "host", &datacenter, "hostFolder"),
        };
        self.places.insert(key.clone(), folder.clone());
        let compute = match &spec.cluster {
            Some(cluster) => self.place(&folder, &key, cluster, "ClusterComputeResource", "domain-c").0,
            None => self.add("ComputeResource", "domain-s", &spec.name, &folder, "childEntity"),
        };
        let host = self.add("HostSystem", "host", &spec.name, &compute, "host");
        self.hosts.insert(spec.name.clone(), host.id.clone());
        let Some(entity) = self.tree.get(&host) else { return };
        let text = |kind, text: &str| Property::Text(kind, text.to_owned());
        entity.set("overallStatus", text("ManagedEntityStatus", "green"));
        entity.set("runtime.connectionState", text("HostSystemConnectionState", "connected"));
        entity.set("runtime.powerState", text("HostSystemPowerState", "poweredOn"));
        entity.set("runtime.inMaintenanceMode", Property::Bool(false));
        entity.set("runtime.inQuarantineMode", Property::Bool(false));
        entity.set("runtime.bootTime", Property::Time("2026-03-01T04:05:06.789Z".to_owned()));
        entity.set("summary.rebootRequired", Property::Bool(false));
        entity.set("summary.config.product.version", text("string", "8.0.3"));
        entity.set("summary.config.product.build", text("string", "24022510"));
        entity.set("summary.hardware.model", text("string", "PowerEdge R760"));
    }

    fn remove_host(&mut self, name: &str) {
        let Some(id) = self.hosts.remove(name) else { return };
        let host = MoRef { kind: "HostSystem".to_owned(), id };
        self.tree.entities.remove(&host.id);
        for entity in self.tree.entities.values_mut() {
            if matches!(entity.reference.kind.as_str(), "ComputeResource" | "ClusterComputeResource") {
                entity.remove_child("host", &host);
            }
        }
    }
}
