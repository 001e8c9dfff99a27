//! A socket that can be taken away from whoever uses it, and is read in large pieces.

use bytes::{Buf, Bytes};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Most bytes of one read from the socket: an answer of a visit and more.
const AHEAD: usize = 8 * 1024;

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
///
/// It also reads each packet in two parts, the length first. What has come is therefore read from the
/// socket as a whole, and handed on from memory, which is held only until it has been.
pub(super) struct OwnedStream {
    stream: TcpStream,
    ahead: Bytes,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    heard: Arc<Heard>,
}

impl OwnedStream {
    pub(super) fn new(stream: TcpStream, token: CancellationToken) -> Self {
        let cancelled = Box::pin(token.cancelled_owned());
        Self { stream, ahead: Bytes::new(), cancelled, heard: Arc::default() }
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
        if self.ahead.is_empty() {
            let mut space = [MaybeUninit::uninit(); AHEAD];
            let mut came = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut came))?;
            let came = came.filled();
            self.heard.listen(came);
            let (now, later) = came.split_at(came.len().min(buf.remaining()));
            buf.put_slice(now);
            if !later.is_empty() {
                self.ahead = Bytes::copy_from_slice(later);
            }
        } else {
            let (now, _) = self.ahead.split_at(self.ahead.len().min(buf.remaining()));
            buf.put_slice(now);
            let taken = now.len();
            self.ahead.advance(taken);
            if self.ahead.is_empty() {
                self.ahead = Bytes::new();
            }
        }
        Poll::Ready(Ok(()))
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
