//! From a name to a TCP connection.

use super::resolve::Resolver;
use crate::inventory::Allow;
use crate::outcome::{Failure, FailureReason};
use crate::steps::Steps;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

/// How long one address is tried alone before the next one joins in (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);

/// What dialing needs of others.
pub(super) struct Dialer<'a> {
    /// Looks names up.
    pub resolver: &'a Resolver,
    /// Addresses outside are left out.
    pub allow: &'a Allow,
    /// Takes down how long the steps took.
    pub steps: &'a Steps,
}

impl Dialer<'_> {
    /// Looks `host` up and connects to the first of its allowed addresses that answers, all within `limit`.
    pub(super) async fn dial(&self, host: &str, port: u16, limit: Duration) -> Result<TcpStream, Failure> {
        let deadline = Instant::now() + limit;
        let addresses = by_turns(self.steps.timed("name", self.addresses(host, port, deadline)).await?);
        let connecting = async {
            match timeout_at(deadline, race(&addresses)).await {
                Ok(result) => result.map_err(|(address, error)| failure(address, &error)),
                Err(_) => {
                    let message = format!("connect to {}: no answer within {limit:?}", list(&addresses));
                    Err(Failure::new(FailureReason::ConnectTimeout, message))
                }
            }
        };
        let stream = self.steps.timed("tcp", connecting).await?;
        // Without it each command waits 40 ms for a delayed acknowledgement.
        stream.set_nodelay(true).map_err(|error| {
            Failure::new(FailureReason::ConnectionLost, format!("connection to {host} port {port}: {error}"))
        })?;
        Ok(stream)
    }

    /// The addresses of `host` that may be connected to.
    async fn addresses(&self, host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, Failure> {
        let outside = |what: &str| {
            Failure::new(FailureReason::AddressNotAllowed, format!("{what} is not in inventory.allow"))
        };
        if !self.allow.may_hold(host) {
            return Err(outside(host));
        }
        let mut addresses = self.resolver.resolve(host, port, deadline).await?;
        if !self.allow.names(host) {
            let all = list(&addresses);
            addresses.retain(|address| self.allow.holds(address.ip()));
            if addresses.is_empty() {
                return Err(outside(&format!("{host} ({all})")));
            }
        }
        Ok(addresses)
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// The resolver's order, but IPv6 and IPv4 by turns, so that a network without one of them costs one
/// stagger and not one for each of its addresses (RFC 8305, 4).
fn by_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().map(SocketAddr::is_ipv6);
    let (mut these, mut those): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| Some(address.is_ipv6()) == first);
    let mut mixed = Vec::with_capacity(these.len() + those.len());
    while let Some(address) = these.pop_front() {
        mixed.push(address);
        if !those.is_empty() {
            std::mem::swap(&mut these, &mut those);
        }
    }
    mixed
}

/// Tries the addresses in their order, the next one as soon as one failed or [`STAGGER`] has
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

    async fn dial(host: &str, port: u16, limit: Duration) -> Result<TcpStream, Failure> {
        let (resolver, steps) = (Resolver::default(), Steps::default());
        Dialer { resolver: &resolver, allow: &Allow::EVERYBODY, steps: &steps }.dial(host, port, limit).await
    }

    async fn reason(host: &str, port: u16) -> FailureReason {
        dial(host, port, LIMIT).await.unwrap_err().reason
    }

    #[tokio::test]
    async fn a_closed_port_and_an_unknown_name_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        dial("127.0.0.1", port, LIMIT).await.unwrap();
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
            let (resolver, steps) = (Resolver::default(), Steps::default());
            let dialer = Dialer { resolver: &resolver, allow: &allow, steps: &steps };
            let reason = dialer.dial(host, port, LIMIT).await.err().map(|failure| failure.reason);
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
        let failure = dial(&host, port, Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::ConnectTimeout, "{failure}");
    }

    #[test]
    fn the_families_take_turns_beginning_with_the_one_that_the_resolver_prefers() {
        let addresses = |text: &str| -> Vec<SocketAddr> {
            let one = |c: char| match c {
                'a'..='f' => SocketAddr::from((std::net::Ipv6Addr::from_bits(c.into()), 22)),
                _ => SocketAddr::from(([10, 0, 0, c as u8], 22)),
            };
            text.chars().map(one).collect()
        };
        for (given, mixed) in
            [("", ""), ("a", "a"), ("abc12", "a1b2c"), ("1234ab", "1a2b34"), ("123", "123"), ("a1b2", "a1b2")]
        {
            assert_eq!(by_turns(addresses(given)), addresses(mixed), "{given}");
        }
    }
}
