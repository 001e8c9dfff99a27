//! How the hosts of a fleet listen: addresses, sockets, and the tasks that accept.

use super::faults::HostFault;
use super::host::{Fleet, FleetError, FleetSpec};
use super::host_plug::Plug;
use super::host_session;
use super::host_state::Host;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;

/// How the hosts listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    /// One socket on the wildcard address, bound to the loopback device; the host is told by the address
    /// that a client connected to. For large fleets: one descriptor in all. Linux allows it without
    /// privileges from 5.7 on; where it is not allowed each host gets a socket.
    Shared,
    /// One socket a host.
    PerHost,
}

/// Up to so many hosts get a socket each unless the spec says otherwise.
const PER_HOST_UP_TO: usize = 256;
const BACKLOG: u32 = 4_096;
/// The first address is 127.16.0.1, out of the way of what else lives on the loopback network.
const FIRST_OCTET: usize = 16;
/// 1 to 250, so that no address looks like a network's or a broadcast.
const LAST_OCTETS: usize = 250;
/// Ports to try when the kernel's choice for the first host is taken at another's address.
const PORT_TRIES: usize = 16;

/// The address of the host with this index.
pub(super) fn address(index: usize) -> Ipv4Addr {
    let (high, last) = (index / LAST_OCTETS, index % LAST_OCTETS + 1);
    let octet = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, octet(FIRST_OCTET + high / 256), octet(high % 256), octet(last))
}

/// The index of the host with this address, if it has the form of one.
fn index(address: IpAddr) -> Option<usize> {
    let IpAddr::V4(address) = address else { return None };
    let [127, a, b, c] = address.octets() else { return None };
    let high = usize::from(a).checked_sub(FIRST_OCTET)? * 256 + usize::from(b);
    let last = usize::from(c).checked_sub(1).filter(|last| *last < LAST_OCTETS)?;
    Some(high * LAST_OCTETS + last)
}

/// Bound sockets.
pub(super) enum Bound {
    Shared(TcpListener),
    PerHost(Vec<TcpListener>),
}

impl Bound {
    pub fn shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }
}

/// The listening socket of a host that has one of its own, and a word to its task when it has changed.
#[derive(Debug, Default)]
pub(super) struct Slot {
    listener: Mutex<Option<TcpListener>>,
    changed: Notify,
}

impl Slot {
    fn put(&self, listener: Option<TcpListener>) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = listener;
        self.changed.notify_one();
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let accept =
                poll_fn(|context| match &*self.listener.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some(listener) => listener.poll_accept(context),
                    None => Poll::Pending,
                });
            tokio::select! {
                accepted = accept => return accepted,
                () = self.changed.notified() => {}
            }
        }
    }
}

/// Binds the sockets of a fleet. Returns them and the port.
pub(super) fn bind(spec: &FleetSpec) -> Result<(Bound, u16), FleetError> {
    let by_size = if spec.hosts <= PER_HOST_UP_TO { Sockets::PerHost } else { Sockets::Shared };
    let wanted = spec.sockets.unwrap_or(by_size);
    let failed = |address, source| FleetError::Listen { address, source };
    if wanted == Sockets::Shared {
        let wildcard = SocketAddr::from((Ipv4Addr::UNSPECIFIED, spec.port));
        match socket(true) {
            Ok(socket) => {
                let listener = listen(socket, wildcard).map_err(|error| failed(wildcard, error))?;
                let port = listener.local_addr().map_err(|error| failed(wildcard, error))?.port();
                return Ok((Bound::Shared(listener), port));
            }
            // Never listen on the wildcard address of all devices: one socket a host, then.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(failed(wildcard, error)),
        }
    }
    let mut last = None;
    for _ in 0..PORT_TRIES {
        match bind_each(spec.hosts, spec.port) {
            Ok((listeners, port)) => return Ok((Bound::PerHost(listeners), port)),
            Err((address, error)) => {
                let retry = spec.port == 0 && error.kind() == io::ErrorKind::AddrInUse;
                last = Some(failed(address, error));
                if !retry {
                    break;
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        failed(SocketAddr::from((address(0), spec.port)), io::ErrorKind::AddrInUse.into())
    }))
}

fn bind_each(hosts: usize, mut port: u16) -> Result<(Vec<TcpListener>, u16), (SocketAddr, io::Error)> {
    let mut listeners = Vec::with_capacity(hosts);
    for index in 0..hosts {
        let at = SocketAddr::from((address(index), port));
        let listener = socket(false).and_then(|socket| listen(socket, at)).map_err(|error| (at, error))?;
        port = listener.local_addr().map_err(|error| (at, error))?.port();
        listeners.push(listener);
    }
    Ok((listeners, port))
}

/// A socket that only the loopback device reaches, if `shared`.
fn socket(shared: bool) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if shared {
        // A plug has to be able to listen on an address of its own beside the wildcard's.
        socket.set_reuseport(true)?;
        #[cfg(target_os = "linux")]
        socket.bind_device(Some(b"lo"))?;
        #[cfg(not(target_os = "linux"))]
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(socket)
}

fn listen(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpListener> {
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Starts the tasks that accept.
pub(super) fn accept(fleet: &Arc<Fleet>, bound: Bound) {
    match bound {
        Bound::Shared(listener) => {
            let owner = fleet.clone();
            fleet.tasks.spawn(async move {
                let accept = async {
                    loop {
                        take(&owner, listener.accept().await).await;
                    }
                };
                owner.stop.run_until_cancelled(accept).await;
            });
        }
        Bound::PerHost(listeners) => {
            for (host, listener) in fleet.hosts.iter().zip(listeners) {
                host.listener.put(Some(listener));
                let (owner, host) = (fleet.clone(), host.clone());
                fleet.tasks.spawn(async move {
                    let accept = async {
                        loop {
                            take(&owner, host.listener.accept().await).await;
                        }
                    };
                    owner.stop.run_until_cancelled(accept).await;
                    host.listener.put(None);
                });
            }
        }
    }
}

async fn take(fleet: &Arc<Fleet>, accepted: io::Result<(TcpStream, SocketAddr)>) {
    let Ok((stream, _)) = accepted else {
        // Out of descriptors, as a rule: those that end make room.
        tokio::time::sleep(Duration::from_millis(50)).await;
        return;
    };
    let host = stream.local_addr().ok().and_then(|at| fleet.hosts.get(index(at.ip())?).cloned());
    match host {
        Some(host) if host.fault() != Some(HostFault::RefuseConnection) => {
            fleet.tasks.spawn(host_session::serve(fleet.clone(), host, stream));
        }
        // An address without a host.
        _ => drop(stream.set_zero_linger()),
    }
}

/// Sets the fault of a host, and makes its socket fit.
pub(super) fn set_fault(fleet: &Fleet, host: &Host, fault: Option<HostFault>) {
    let at = SocketAddr::from((host.address, fleet.port));
    let mut state = host.lock();
    state.fault = fault;
    state.plug = None;
    if fleet.stop.is_cancelled() {
        return;
    }
    let unreachable = matches!(fault, Some(HostFault::RefuseConnection | HostFault::HangAtConnect));
    if !fleet.shared {
        let listens = host.listener.listener.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if unreachable {
            host.listener.put(None);
        } else if !listens {
            // Without a socket the host goes on refusing, which is what it was told to do before.
            host.listener.put(socket(false).and_then(|socket| listen(socket, at)).ok());
        }
    }
    if fault == Some(HostFault::HangAtConnect) {
        // Without the plug the connection is established and then hangs.
        state.plug = socket(fleet.shared).and_then(|socket| Plug::new(socket, at)).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::host::MOST_HOSTS;

    #[test]
    fn every_index_has_an_address_of_its_own() {
        assert_eq!(address(0), Ipv4Addr::new(127, 16, 0, 1));
        assert_eq!(address(250), Ipv4Addr::new(127, 16, 1, 1));
        for i in (0..MOST_HOSTS).step_by(997).chain([249, 250, 63_999, 64_000, MOST_HOSTS - 1]) {
            assert_eq!(index(address(i).into()), Some(i));
        }
    }

    #[test]
    fn other_addresses_are_no_hosts() {
        for other in ["127.0.0.1", "127.16.0.0", "127.16.0.251", "10.16.0.1", "::1"] {
            assert_eq!(index(other.parse().unwrap()), None, "{other}");
        }
    }
}
