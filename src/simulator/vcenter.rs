//! A fake vCenter: SOAP over HTTPS, with the habits of real ones that simulators elsewhere lack.
//!
//! It sends about 100 objects a page whatever the client asks for, hands out tokens that can be spent once
//! (the first one is `"0"`), quotes its session cookie, takes a login on a live session for an
//! `InvalidLogin`, locks accounts, forgets everything at a restart, and packs its answers. Its property
//! collectors may keep a change of status to themselves, while an event tells of it.

use super::vcenter_condition::Triggered;
use super::vcenter_request::MoRef;
use super::vcenter_server::{self, Shared};
pub use super::vcenter_spec::{HostSpec, Pushes, Status, VcenterFault, VcenterSpec};
use super::vcenter_state::State;
use super::vcenter_tree::{Entity, Property};
use crate::config::Thumbprint;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

static TLS12_ONLY: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];

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

    /// A certificate with its key for a server of `names`.
    fn issue(&self, names: Vec<String>) -> io::Result<Identity> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let params = CertificateParams::new(names).map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &*self.0).map_err(io::Error::other)?;
        Ok(Identity { certificate: certificate.der().clone(), key })
    }
}

/// A server's certificate and its key.
struct Identity {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Identity {
    /// One that signed itself, as an authority of its own: what installers leave behind.
    fn self_signed(names: Vec<String>) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).map_err(io::Error::other)?;
        Ok(Self { certificate: certificate.der().clone(), key })
    }

    fn tls(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> io::Result<rustls::ServerConfig> {
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key.into())
            .map_err(io::Error::other)
    }
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
        let identity =
            if spec.self_signed { Identity::self_signed(names)? } else { authority.issue(names)? };
        let versions = if spec.tls12_only { TLS12_ONLY } else { rustls::DEFAULT_VERSIONS };
        let tls = identity.tls(versions)?;
        let thumbprint = Thumbprint::of(&identity.certificate);
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(spec)),
            changed: Notify::new(),
            is_down: watch::Sender::new(false),
            releases: watch::Sender::new(()),
            stopped: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        vcenter_server::spawn(&tasks, listener, tls, Arc::clone(&shared));
        Ok(VcenterHandle { shared, address, authority, thumbprint, tasks })
    }
}

/// A running fake vCenter: change it, break it, look at it.
#[derive(Debug)]
pub struct VcenterHandle {
    pub(super) shared: Arc<Shared>,
    address: SocketAddr,
    authority: Authority,
    thumbprint: Thumbprint,
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

    /// SHA-256 of its certificate.
    pub fn thumbprint(&self) -> Thumbprint {
        self.thumbprint
    }

    /// Sets `overallStatus` of a host. Who is told of it depends on what the vCenter pushes and fires.
    pub fn set_status(&self, host: &str, status: &Status) {
        self.set(host, "overallStatus", Property::Text("ManagedEntityStatus", status.word().to_owned()));
        let mut state = self.state();
        if let Some(host) = state.host(host) {
            state.fire_alarm(&host, status.word());
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// An alarm of a virtual machine has changed its status: an event that is about no host.
    pub fn fire_alarm_of_a_machine(&self) {
        self.state().fire_alarm(&MoRef { kind: "VirtualMachine".into(), id: "vm-1".into() }, "red");
        self.shared.changed.notify_waiters();
    }

    /// From now on no version of what is watched is valid that a client holds.
    pub fn forget_versions(&self) {
        self.state().watchers.forget_versions();
        self.shared.changed.notify_waiters();
    }

    /// How many collectors of properties and of events there are in all sessions.
    pub fn collectors(&self) -> usize {
        let mut state = self.state();
        state.end_what_sessions_had();
        state.watchers.count()
    }

    /// Most sessions that were open at a time.
    pub fn most_sessions(&self) -> usize {
        self.state().watchers.most_sessions
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

    /// Sets `runtime.inQuarantineMode` of a host.
    pub fn set_quarantine(&self, host: &str, on: bool) {
        self.set(host, "runtime.inQuarantineMode", Property::Bool(on));
    }

    /// Sets `runtime.bootTime` of a host: an XML Schema dateTime.
    pub fn set_boot_time(&self, host: &str, time: &str) {
        self.set(host, "runtime.bootTime", Property::Time(time.to_owned()));
    }

    /// Triggers an alarm on a host; its status stays as it is. `severity`: `yellow`, `red`.
    pub fn trigger_alarm(&self, host: &str, alarm: &str, severity: &str) {
        let entity = MoRef { kind: "HostSystem".into(), id: self.id(host) };
        self.trigger(host, entity, alarm, severity);
    }

    /// Triggers an alarm on a virtual machine of a host, which the host's list has, too.
    pub fn trigger_alarm_below(&self, host: &str, alarm: &str, severity: &str) {
        self.trigger(host, MoRef { kind: "VirtualMachine".into(), id: "vm-4711".into() }, alarm, severity);
    }

    fn trigger(&self, host: &str, entity: MoRef, alarm: &str, severity: &str) {
        let alarm = self.state().alarm(alarm);
        let triggered = Triggered { alarm, entity, severity: severity.to_owned(), acknowledged: false };
        self.with_host(host, |host| host.condition().alarms.push(triggered));
    }

    /// Acknowledges an alarm of a host.
    pub fn acknowledge_alarm(&self, host: &str, alarm: &str) {
        let alarm = self.state().alarm(alarm);
        self.with_host(host, |host| {
            let own = host.condition().alarms.iter_mut().filter(|triggered| triggered.alarm == alarm);
            own.for_each(|triggered| triggered.acknowledged = true);
        });
    }

    /// Ends all alarms of a host.
    pub fn clear_alarms(&self, host: &str) {
        self.with_host(host, |host| host.condition().alarms.clear());
    }

    /// Renames the definition of an alarm.
    pub fn rename_alarm(&self, alarm: &str, name: &str) {
        self.state().rename_alarm(alarm, name);
    }

    /// Sets the configuration issues of a host: the type of the event and its message.
    pub fn set_issues(&self, host: &str, issues: &[(&str, &str)]) {
        let issues = issues.iter().map(|(kind, message)| ((*kind).to_owned(), (*message).to_owned()));
        self.with_host(host, |host| host.condition().issues = issues.collect());
    }

    /// Sets the state of a component of a host: `cpu`, `memory` or `storage`, its name, and `Green`,
    /// `Yellow`, `Red` or `Unknown`.
    pub fn set_hardware(&self, host: &str, kind: &str, component: &str, state: &str) {
        let key = (kind.to_owned(), component.to_owned());
        self.with_host(host, |host| host.condition().hardware.insert(key, state.to_owned()));
    }

    /// Sets the state of a sensor of a host: its name, its type (`fan`, say), and `green`, `yellow`, `red` or
    /// `unknown`.
    pub fn set_sensor(&self, host: &str, sensor: &str, kind: &str, state: &str) {
        let value = (kind.to_owned(), state.to_owned());
        self.with_host(host, |host| host.condition().sensors.insert(sensor.to_owned(), value));
    }

    /// All components and sensors of a host are well again, and it has no issue.
    pub fn repair(&self, host: &str) {
        self.with_host(host, |host| {
            host.condition().hardware.clear();
            host.condition().sensors.clear();
            host.condition().issues.clear();
        });
    }

    /// Sets a service of a host: whether it runs, and its policy: `on`, `off`, `automatic`.
    pub fn set_service(&self, host: &str, service: &str, running: bool, policy: &str) {
        let value = (running, policy.to_owned());
        self.with_host(host, |host| host.condition().services.insert(service.to_owned(), value));
    }

    /// Gives a host the address that it is managed by.
    pub fn set_management_address(&self, host: &str, address: &str) {
        self.with_host(host, |host| host.condition().management = Some(address.to_owned()));
    }

    /// Moves a host into another cluster; it stays the same object.
    pub fn move_host(&self, host: &str, cluster: &str) {
        self.state().move_host(host, cluster);
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
        self.set(host, "name", Property::Text("string", name.to_owned()));
        let mut state = self.state();
        if let Some(id) = state.hosts.remove(host) {
            state.hosts.insert(name.to_owned(), id);
        }
    }

    /// Adds a host.
    pub fn add_host(&self, host: &HostSpec) {
        let mut state = self.state();
        state.add_host(host);
        if let Some(host) = state.host(&host.name) {
            state.came_or_went("enter", &host);
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Removes a host.
    pub fn remove_host(&self, host: &str) {
        let mut state = self.state();
        let reference = state.host(host);
        state.remove_host(host);
        if let Some(host) = reference {
            state.came_or_went("leave", &host);
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// The names of its hosts, sorted.
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts: Vec<String> = self.state().hosts.keys().cloned().collect();
        hosts.sort();
        hosts
    }

    /// The identity of a host, `host-15` say; empty if there is none of that name.
    pub fn id(&self, host: &str) -> String {
        self.state().hosts.get(host).cloned().unwrap_or_default()
    }

    /// Ends every session, as the idle limit does.
    pub fn expire_sessions(&self) {
        self.state().end_sessions();
        self.shared.changed.notify_waiters();
    }

    /// Restarts the server: sessions are gone, and a client that still holds one is told
    /// `ManagedObjectNotFound`.
    pub fn restart(&self) {
        let mut state = self.state();
        let lost: Vec<String> = state.sessions.keys().cloned().collect();
        state.end_sessions();
        state.before_restart.extend(lost);
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Lets the next call fail.
    pub fn fail_next(&self, fault: VcenterFault) {
        self.state().faults.push_back((None, fault));
    }

    /// Lets the next call of `method` fail.
    pub fn fail_next_call(&self, method: &str, fault: VcenterFault) {
        self.state().faults.push_back((Some(method.to_owned()), fault));
    }

    /// Lets the `nth` call of `method` from now on fail, 1 for the next one. The calls before it are good.
    pub fn fail_nth_call(&self, method: &str, nth: usize, fault: VcenterFault) {
        let mut state = self.state();
        for _ in 1..nth {
            state.faults.push_back((Some(method.to_owned()), VcenterFault::None));
        }
        state.faults.push_back((Some(method.to_owned()), fault));
    }

    /// Lets the answers out that [`VcenterFault::Hold`] holds back.
    pub fn release(&self) {
        self.shared.releases.send_replace(());
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
        let mut state = self.state();
        if let Some(host) = state.host(host) {
            state.changed(&host, path);
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    fn with_host<T>(&self, host: &str, change: impl FnOnce(&mut Entity) -> T) {
        let mut state = self.state();
        if let Some(entity) = state.host(host).and_then(|reference| state.tree.get(&reference)) {
            change(entity);
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
