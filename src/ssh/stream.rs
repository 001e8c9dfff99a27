//! A socket that can be taken away from whoever uses it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What a peer's identification begins with (RFC 4253, section 4.2); other lines may come before it.
const IDENTIFICATION: &[u8] = b"SSH-";

/// Whether the peer has spoken, and SSH. russh tells no difference between a peer that hung up and one that
/// spoke another protocol and hung up.
#[derive(Debug, Default)]
pub(super) struct Heard(AtomicU8);

impl Heard {
    const WORDS: u8 = 1;
    const SSH: u8 = 2;

    /// Whether the peer sent something, but no identification of SSH.
    pub(super) fn other_protocol(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::WORDS
    }

    fn listen(&self, bytes: &[u8]) {
        if !bytes.is_empty() && self.0.load(Ordering::Relaxed) != Self::SSH {
            let ssh = bytes.windows(IDENTIFICATION.len()).any(|window| window == IDENTIFICATION);
            self.0.store(if ssh { Self::SSH } else { Self::WORDS }, Ordering::Relaxed);
        }
    }
}

/// A TCP stream whose reads and writes fail from the moment that its token is cancelled.
///
/// russh runs a session in a task of its own. Dropping the future that connects, or the handle of a
/// stalled session, leaves that task and its socket behind for as long as the peer is silent; a failing
/// read ends it at once.
pub(super) struct OwnedStream {
    stream: TcpStream,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    heard: Arc<Heard>,
}

impl OwnedStream {
    pub(super) fn new(stream: TcpStream, token: CancellationToken) -> Self {
        Self { stream, cancelled: Box::pin(token.cancelled_owned()), heard: Arc::default() }
    }

    pub(super) fn heard(&self) -> Arc<Heard> {
        Arc::clone(&self.heard)
    }

    fn alive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cancelled.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "given up by the agent")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for OwnedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.heard.listen(buf.filled().get(before..).unwrap_or_default());
        read
    }
}

impl AsyncWrite for OwnedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
