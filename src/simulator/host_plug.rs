//! A socket that lets nobody in: further connections to its address hang before they are established.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};

/// A listening socket with a full backlog: Linux drops the SYN of whoever comes next. It takes
/// precedence over a socket that listens on the wildcard address.
#[derive(Debug)]
pub(super) struct Plug {
    _listener: TcpListener,
    _filling: TcpStream,
}

impl Plug {
    /// `socket` must not be bound yet.
    pub fn new(socket: TcpSocket, address: SocketAddr) -> io::Result<Self> {
        socket.bind(address)?;
        // A backlog of 0 has room for one.
        let listener = socket.listen(0)?;
        let filling = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        Ok(Self { _listener: listener, _filling: filling })
    }
}
