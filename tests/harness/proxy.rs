//! An HTTP proxy that makes tunnels (`CONNECT`, RFC 9110, section 9.3.6), and leads all of them to one place.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// More than any head that a client of ours sends.
const HEAD_LIMIT: usize = 8192;

/// A running proxy; ends when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

struct State {
    /// `None`: nobody has to prove anything.
    basic: Mutex<Option<String>>,
    manner: Manner,
    heads: Mutex<Vec<String>>,
}

/// What a proxy does with those who are welcome.
pub enum Manner {
    LeadsTo(SocketAddr),
    /// Takes connections and never answers.
    Hangs,
    /// Finds nobody at the other end.
    Refuses,
}

impl Proxy {
    /// One that leads to `place`.
    pub async fn start(place: SocketAddr) -> Self {
        Self::with(Manner::LeadsTo(place)).await
    }

    /// One of that manner.
    pub async fn with(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { basic: Mutex::default(), manner, heads: Mutex::default() });
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                tokio::spawn(async move { state.serve(client).await });
            }
        });
        Self { address, state, _task: AbortOnDropHandle::new(task) }
    }

    /// From now on this is wanted: `user:password` in Base64.
    pub fn wants(&self, basic: &str) {
        *self.state.basic.lock().unwrap() = Some(basic.to_owned());
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The first lines of what it was asked.
    pub fn asked(&self) -> Vec<String> {
        let heads = self.state.heads.lock().unwrap();
        heads.iter().map(|head| head.lines().next().unwrap().to_owned()).collect()
    }
}

impl State {
    async fn serve(&self, mut client: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_LIMIT {
            let Ok(byte) = client.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        self.heads.lock().unwrap().push(head.clone());
        let wanted = self.basic.lock().unwrap().clone();
        let is_welcome = wanted.is_none_or(|wanted| {
            let mut headers = head.lines().filter_map(|line| line.split_once(": "));
            headers.any(|(name, value)| {
                name.eq_ignore_ascii_case("proxy-authorization") && value == format!("Basic {wanted}")
            })
        });
        let answer = match &self.manner {
            Manner::Hangs => return std::future::pending().await,
            _ if !head.starts_with("CONNECT ") => "405 Method Not Allowed",
            _ if !is_welcome => "407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"",
            Manner::Refuses => "502 Bad Gateway",
            Manner::LeadsTo(_) => "200 Connection established",
        };
        let _ = client.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await;
        if let Manner::LeadsTo(place) = self.manner
            && answer.starts_with("200")
        {
            let mut server = TcpStream::connect(place).await.unwrap();
            let _ = copy_bidirectional(&mut client, &mut server).await;
        }
    }
}
