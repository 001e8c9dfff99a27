//! HTTPS for the simulated vCenter: connections, cookies, packing, and what goes wrong on the way.

use super::vcenter_calls::Reply;
use super::vcenter_request::{Call, MoRef};
use super::vcenter_spec::VcenterFault;
use super::vcenter_state::{ROOT, State};
use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE, USER_AGENT,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

const COOKIE_NAME: &str = "vmware_soap_session";
/// Largest request.
const MAX_REQUEST: usize = 1024 * 1024;
/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Size of the answer that is too large, unpacked.
const OVERSIZE: usize = 100_000_000;

/// What the handle and the connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub state: Mutex<State>,
    /// Something has changed that somebody may wait for.
    pub changed: Notify,
    /// Nobody is listened to.
    pub is_down: watch::Sender<bool>,
    /// Changes whenever the answers go out that are held back.
    pub releases: watch::Sender<()>,
    pub stopped: CancellationToken,
}

/// Accepts connections until it is stopped. Nothing that happens here is part of anybody's trace.
pub(super) fn spawn(
    tasks: &TaskTracker,
    listener: TcpListener,
    tls: rustls::ServerConfig,
    shared: Arc<Shared>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let connections = tasks.clone();
    let stopped = shared.stopped.clone();
    let listening = async move {
        let mut is_down = shared.is_down.subscribe();
        let Ok(address) = listener.local_addr() else { return };
        let mut listener = Some(listener);
        loop {
            let open = match listener.take() {
                Some(open) => open,
                None => listen_again(address).await,
            };
            tokio::select! {
                () = accept(&open, &connections, &acceptor, &shared) => {}
                _ = is_down.wait_for(|is_down| *is_down) => {}
            }
            drop(open);
            let _ = is_down.wait_for(|is_down| !*is_down).await;
        }
    };
    let listening = async move { stopped.run_until_cancelled(listening).await };
    tasks.spawn(listening.with_subscriber(NoSubscriber::default()));
}

/// At the address that was its own before.
async fn listen_again(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Accepts connections for ever. Each ends when the server stops or goes down.
async fn accept(listener: &TcpListener, tasks: &TaskTracker, acceptor: &TlsAcceptor, shared: &Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(shared));
        let connection = async move {
            let (stopped, mut is_down) = (shared.stopped.clone(), shared.is_down.subscribe());
            tokio::select! {
                () = stopped.cancelled() => {}
                _ = is_down.wait_for(|is_down| *is_down) => {}
                () = connection(stream, acceptor, shared) => {}
            }
        };
        tasks.spawn(connection.with_subscriber(NoSubscriber::default()));
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let service = hyper::service::service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { serve(request, &shared).await }
    });
    // A client that goes away is no news.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Answers a request. An error closes the connection.
async fn serve(request: Request<Incoming>, shared: &Shared) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let header =
        |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    if head.uri.path() != "/sdk" || head.method != hyper::Method::POST {
        return text(StatusCode::NOT_FOUND, "text/plain", "Not found");
    }
    let packs = header(ACCEPT_ENCODING).contains("gzip");
    let session = session_of(&header(COOKIE), shared.lock().spec.cookie_quotes);
    let body = axum::body::to_bytes(Body::new(body), MAX_REQUEST).await.map_err(io::Error::other)?;
    let call = Call::read(&body);
    let method = call.as_ref().map(|call| call.method.clone()).unwrap_or_default();
    let mut releases = shared.releases.subscribe();
    let (fault, latency, gzip) = {
        let mut state = shared.lock();
        state.requests += 1;
        *state.calls.entry(method.clone()).or_default() += 1;
        state.user_agent = header(USER_AGENT);
        let next = state.faults.iter().position(|(of, _)| of.as_ref().is_none_or(|of| *of == method));
        let fault = next.and_then(|next| state.faults.remove(next)).map(|(_, fault)| fault);
        let fault = fault.or(state.standing_fault);
        (fault, state.spec.latency, state.spec.gzip && packs)
    };
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    match fault {
        Some(VcenterFault::Http503Text) => {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                "503 Service Unavailable (Failed to connect to endpoint)",
            );
        }
        Some(VcenterFault::Http502Text) => {
            return text(StatusCode::BAD_GATEWAY, "text/plain", "502 Bad Gateway");
        }
        Some(VcenterFault::Html) => {
            return text(
                StatusCode::OK,
                "text/html; charset=utf-8",
                "<!DOCTYPE html><html><body>Log in</body></html>",
            );
        }
        Some(VcenterFault::NotXml) => {
            return text(StatusCode::OK, "text/xml; charset=utf-8", "vCenter is fine, thank you");
        }
        Some(VcenterFault::Redirect) => {
            let answer =
                Response::builder().status(StatusCode::FOUND).header(LOCATION, "https://192.0.2.1/sdk");
            return answer.body(Body::empty()).map_err(io::Error::other);
        }
        Some(VcenterFault::Oversize) => return oversize(),
        Some(VcenterFault::Close) => return Err(io::Error::other("closed")),
        Some(VcenterFault::Hang) => std::future::pending::<()>().await,
        Some(VcenterFault::Hold) => _ = releases.changed().await,
        _ => {}
    }
    if let Ok(call) = &call {
        wait_for_news(call, session.as_deref(), shared).await;
    }
    let reply = {
        let mut state = shared.lock();
        if fault == Some(VcenterFault::ExpireSessions) {
            state.end_sessions();
        }
        if fault == Some(VcenterFault::SpentToken) {
            state.tokens.clear();
        }
        match (&call, fault) {
            (Err(problem), _) => state.fault("InvalidRequest", &problem.to_string(), ""),
            (Ok(call), Some(VcenterFault::NotAuthenticated)) => state.not_authenticated(&call.this),
            (Ok(_), Some(VcenterFault::NoPermission | VcenterFault::FaultWith200)) => {
                let root = MoRef { kind: "Folder".to_owned(), id: ROOT.to_owned() };
                let inner = state.dialect.reference("object", &root)
                    + &state.dialect.element("privilegeId", "System.View");
                state.fault("NoPermission", "Permission to perform this operation was denied.", &inner)
            }
            (Ok(call), _) => state.answer(call, session.as_deref()),
        }
    };
    let quote = if shared.lock().spec.cookie_quotes { "\"" } else { "" };
    respond(reply, gzip, fault, quote)
}

/// Holds back the answer to a wait until there is something to say, or the client wants it all the same.
async fn wait_for_news(call: &Call, session: Option<&str>, shared: &Shared) {
    let began = Instant::now();
    loop {
        let mut changed = std::pin::pin!(shared.changed.notified());
        changed.as_mut().enable();
        let Some(limit) = shared.lock().nothing_new(call, session) else { return };
        let limit = limit.min(Duration::from_secs(3600));
        if tokio::time::timeout_at(began + limit, changed).await.is_err() {
            return;
        }
    }
}

/// The session of a request. Where there are quotes they are part of the cookie's value: a client that drops
/// them has none.
fn session_of(cookies: &str, quotes: bool) -> Option<String> {
    let ours = cookies
        .split(';')
        .map(str::trim)
        .find_map(|cookie| cookie.strip_prefix(COOKIE_NAME)?.strip_prefix('='))?;
    let ours = if quotes { ours.strip_prefix('"')?.strip_suffix('"')? } else { ours };
    Some(ours.to_owned())
}

fn respond(reply: Reply, gzip: bool, fault: Option<VcenterFault>, quote: &str) -> io::Result<Response<Body>> {
    let is_ok = reply.ok || fault == Some(VcenterFault::FaultWith200);
    let status = if is_ok { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    let mut response = Response::builder().status(status).header(CONTENT_TYPE, "text/xml; charset=utf-8");
    if let Some(cookie) = &reply.cookie {
        let cookie = format!("{COOKIE_NAME}={quote}{cookie}{quote}; Path=/; HttpOnly; Secure");
        response = response.header(SET_COOKIE, cookie);
    }
    let half = reply.body.len() / 2;
    match fault {
        Some(VcenterFault::CutBody) => {
            let start = Bytes::copy_from_slice(reply.body.as_bytes().get(..half).unwrap_or_default());
            // The pause lets the first half out before the connection goes.
            let end = async {
                tokio::task::yield_now().await;
                Err(io::Error::other("cut"))
            };
            let cut = futures::stream::once(async { Ok(start) }).chain(futures::stream::once(end));
            response.header(CONTENT_LENGTH, reply.body.len()).body(Body::from_stream(cut))
        }
        Some(VcenterFault::XmlBomb) => {
            let bomb = "<!DOCTYPE b [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]>";
            let (head, rest) = reply.body.split_once('\n').unwrap_or_default();
            response.body(Body::from(format!("{head}\n{bomb}{rest}")))
        }
        Some(VcenterFault::CutXml) => {
            response.body(Body::from(reply.body.as_bytes().get(..half).unwrap_or_default().to_vec()))
        }
        _ if gzip => {
            let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
            packer.write_all(reply.body.as_bytes())?;
            response.header(CONTENT_ENCODING, "gzip").body(Body::from(packer.finish()?))
        }
        _ => response.body(Body::from(reply.body)),
    }
    .map_err(io::Error::other)
}

fn text(status: StatusCode, kind: &str, text: &'static str) -> io::Result<Response<Body>> {
    let response = Response::builder().status(status).header(CONTENT_TYPE, kind);
    response.body(Body::from(text)).map_err(io::Error::other)
}

fn oversize() -> io::Result<Response<Body>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    let blank = [b' '; 64 * 1024];
    let mut left = OVERSIZE;
    while left > 0 {
        let some = blank.get(..left.min(blank.len())).unwrap_or_default();
        packer.write_all(some)?;
        left -= some.len();
    }
    let response = Response::builder().header(CONTENT_TYPE, "text/xml").header(CONTENT_ENCODING, "gzip");
    response.body(Body::from(packer.finish()?)).map_err(io::Error::other)
}
