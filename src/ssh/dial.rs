//! From a name to a TCP connection.

use crate::inventory::Allow;
use crate::outcome::{Failure, FailureReason};
use crate::steps::Steps;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

/// How long one address is tried alone before the next one joins in (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Looks `host` up and connects to the first of its addresses that answers, all within `limit`. Addresses
/// that are not allowed are left out.
pub(super) async fn dial(
    (host, port): (&str, u16),
    limit: Duration,
    allow: &Allow,
    steps: &Steps,
) -> Result<TcpStream, Failure> {
    let deadline = Instant::now() + limit;
    let addresses = steps.timed("name", addresses(host, port, deadline, allow)).await?;
    let connecting = async {
        match timeout_at(deadline, race(&addresses)).await {
            Ok(result) => result.map_err(|(address, error)| failure(address, &error)),
            Err(_) => {
                let message = format!("connect to {}: no answer within {limit:?}", list(&addresses));
                Err(Failure::new(FailureReason::ConnectTimeout, message))
            }
        }
    };
    let stream = steps.timed("tcp", connecting).await?;
    // Without it each command waits 40 ms for a delayed acknowledgement.
    stream.set_nodelay(true).map_err(|error| {
        Failure::new(FailureReason::ConnectionLost, format!("connection to {host} port {port}: {error}"))
    })?;
    Ok(stream)
}

/// The addresses of `host` that may be connected to.
async fn addresses(
    host: &str,
    port: u16,
    deadline: Instant,
    allow: &Allow,
) -> Result<Vec<SocketAddr>, Failure> {
    let outside = |what: &str| {
        Failure::new(FailureReason::AddressNotAllowed, format!("{what} is not in inventory.allow"))
    };
    if !allow.may_hold(host) {
        return Err(outside(host));
    }
    let mut addresses = resolve(host, port, deadline).await?;
    if !allow.names(host) {
        let all = list(&addresses);
        addresses.retain(|address| allow.holds(address.ip()));
        if addresses.is_empty() {
            return Err(outside(&format!("{host} ({all})")));
        }
    }
    Ok(addresses)
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

async fn resolve(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, Failure> {
    let failed =
        |why: &dyn std::fmt::Display| Failure::new(FailureReason::Dns, format!("look up {host}: {why}"));
    let addresses = match timeout_at(deadline, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
        Ok(Err(error)) => return Err(failed(&error)),
        Err(_) => return Err(failed(&"no answer in time")),
    };
    if addresses.is_empty() { Err(failed(&"it has no address")) } else { Ok(addresses) }
}

/// Tries the addresses in the resolver's order, the next one as soon as one failed or [`STAGGER`] has
/// passed. Fails with the last address's error.
async fn race(addresses: &[SocketAddr]) -> Result<TcpStream, (Option<SocketAddr>, io::Error)> {
    let attempt =
        |address: SocketAddr| async move { TcpStream::connect(address).await.map_err(|e| (address, e)) };
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut last = (None, io::Error::from(io::ErrorKind::AddrNotAvailable));
    loop {
        if let Some(address) = waiting.next() {
            attempts.push(attempt(address));
        } else if attempts.is_empty() {
            return Err(last);
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some(result) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err((address, error)) => last = (Some(address), error),
            },
            () = sleep(STAGGER), if more => {}
        }
    }
}

fn failure(address: Option<SocketAddr>, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused => FailureReason::ConnectRefused,
        // The kernel gave up before our own limit.
        io::ErrorKind::TimedOut => FailureReason::ConnectTimeout,
        _ => FailureReason::Unreachable,
    };
    match address {
        Some(address) => Failure::new(reason, format!("connect to {address}: {error}")),
        None => Failure::new(reason, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn reason(host: &str, port: u16) -> FailureReason {
        dial((host, port), LIMIT, &Allow::EVERYBODY, &Steps::default()).await.unwrap_err().reason
    }

    #[tokio::test]
    async fn a_closed_port_and_an_unknown_name_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        dial(("127.0.0.1", port), LIMIT, &Allow::EVERYBODY, &Steps::default()).await.unwrap();
        drop(listener);
        assert_eq!(reason("127.0.0.1", port).await, FailureReason::ConnectRefused);
        assert_eq!(reason("no-such-host.invalid", 22).await, FailureReason::Dns);
    }

    #[tokio::test]
    async fn a_name_is_allowed_by_itself_or_by_where_it_leads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for (rule, host, allowed) in [
            ("localhost", "localhost", true),
            ("127.0.0.0/8", "localhost", true),
            ("127.0.0.0/8", "127.0.0.1", true),
            ("10.0.0.0/8", "localhost", false),
            (".example.org", "localhost", false),
            ("localhost", "127.0.0.1", false),
        ] {
            let allow = Allow::only(vec![rule.parse().unwrap()]);
            let reason = dial((host, port), LIMIT, &allow, &Steps::default()).await.err().map(|f| f.reason);
            let expected = (!allowed).then_some(FailureReason::AddressNotAllowed);
            assert_eq!(reason, expected, "{host} with {rule}");
        }
    }

    #[tokio::test]
    async fn an_address_that_refuses_gives_way_to_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let bad = SocketAddr::from(([127, 0, 0, 2], good.port()));
        assert_eq!(race(&[bad, good]).await.unwrap().peer_addr().unwrap(), good);
        assert_eq!(race(&[bad, bad]).await.unwrap_err().0, Some(bad));
    }

    #[tokio::test]
    async fn an_address_that_is_silent_does_not_hold_up_the_next() {
        // A listener whose backlog is full drops further connection requests.
        let full = tokio::net::TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(1).unwrap();
        let silent = full.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(stream)) = timeout_at(Instant::now() + STAGGER, TcpStream::connect(silent)).await {
            held.push(stream);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        assert_eq!(race(&[silent, good]).await.unwrap().peer_addr().unwrap(), good);
        let (host, port) = (silent.ip().to_string(), silent.port());
        let (limit, steps) = (Duration::from_millis(100), Steps::default());
        let failure = dial((&host, port), limit, &Allow::EVERYBODY, &steps).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::ConnectTimeout, "{failure}");
    }
}
