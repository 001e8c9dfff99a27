//! What the inventory makes of a Prometheus `http_sd` server, and of its absence.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

#[path = "harness/said.rs"]
mod said;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use esxi_otel_agent::config::{InventoryConfig, StaticTarget};
use esxi_otel_agent::inventory::{Allow, HttpSdConfig, InventoryWatch, SdAuth};
use esxi_otel_agent::stats::Stats;
use said::Said;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber as _;

/// What the server answers to each request, and the heads of those that came.
#[derive(Clone)]
struct Server {
    answer: Arc<Mutex<Answer>>,
    asked: Arc<Mutex<Vec<HeaderMap>>>,
    port: u16,
}

#[derive(Clone)]
struct Answer {
    status: StatusCode,
    kind: &'static str,
    body: Vec<u8>,
    etag: Option<&'static str>,
    gzip: bool,
}

impl Answer {
    fn rows(rows: &Value) -> Self {
        let body = rows.to_string().into_bytes();
        Self { status: StatusCode::OK, kind: "application/json", body, etag: None, gzip: false }
    }

    fn status(status: StatusCode) -> Self {
        Self { status, ..Self::rows(&json!("no list")) }
    }
}

async fn answer(State(server): State<Server>, head: HeaderMap) -> Response {
    let answer = server.answer.lock().unwrap().clone();
    let known = head.get(header::IF_NONE_MATCH).cloned();
    server.asked.lock().unwrap().push(head);
    if let (Some(etag), Some(known)) = (answer.etag, known)
        && known == etag
    {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let mut head = HeaderMap::new();
    head.insert(header::CONTENT_TYPE, answer.kind.parse().unwrap());
    if let Some(etag) = answer.etag {
        head.insert(header::ETAG, etag.parse().unwrap());
    }
    if answer.status.is_redirection() {
        head.insert(header::LOCATION, "/elsewhere".parse().unwrap());
    }
    let mut body = answer.body;
    if answer.gzip {
        head.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&body).unwrap();
        body = packed.finish().unwrap();
    }
    (answer.status, head, body).into_response()
}

impl Server {
    async fn start(rows: &Value) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer_now = Arc::new(Mutex::new(Answer::rows(rows)));
        let server = Self { answer: answer_now, asked: Arc::default(), port };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn last_head(&self, name: &str) -> Option<String> {
        let asked = self.asked.lock().unwrap();
        asked.last()?.get(name).map(|value| value.to_str().unwrap().to_owned())
    }
}

struct Site {
    config: InventoryConfig,
    stats: Arc<Stats>,
    state: tempfile::TempDir,
    said: Said,
}

impl Site {
    fn of(port: u16) -> Self {
        let state = tempfile::tempdir().unwrap();
        let url = format!("http://127.0.0.1:{port}/targets?token=hunter2").parse().unwrap();
        let interval = Duration::from_secs(60);
        let http_sd = Some(HttpSdConfig { url, interval, ca_file: None, auth: SdAuth::None });
        let memory = Some(state.path().join("inventory"));
        let config = InventoryConfig { http_sd, memory, ..InventoryConfig::default() };
        Self { config, stats: Stats::new(), state, said: Said::default() }
    }

    async fn start(&self, stop: &CancellationToken) -> InventoryWatch {
        let starting = InventoryWatch::start(&self.config, Arc::clone(&self.stats), stop.clone());
        starting.with_subscriber(self.said.clone()).await.unwrap()
    }

    fn metric(&self, name: &str) -> Vec<f64> {
        let of_sd =
            self.stats.samples().into_iter().filter(|sample| {
                sample.def.name == name && sample.attributes.get("source") == Some("http_sd")
            });
        of_sd.map(|sample| sample.value).collect()
    }
}

fn esxi(name: &str) -> Value {
    json!({"targets": ["10.1.2.3"], "labels": {"job": "vmware-esxi", "name": name, "site": "eu-de-1a"}})
}

fn hosts(watch: &InventoryWatch) -> Vec<String> {
    let names =
        watch.subscribe().borrow().hosts.iter().map(|host| host.address.to_string()).collect::<Vec<_>>();
    names.iter().map(|name| name.trim_end_matches(".cc.eu-de-1.cloud.sap").to_owned()).collect()
}

#[tokio::test]
async fn the_rows_are_those_of_the_atlas_and_unchanged_ones_are_not_sent_twice() {
    let server = Server::start(&json!([])).await;
    server.answers(Answer {
        etag: Some("\"v1\""),
        gzip: true,
        ..Answer::rows(&json!([esxi("n1"), esxi("n2")]))
    });
    let (site, stop) = (Site::of(server.port), CancellationToken::new());
    let watch = site.start(&stop).await;
    assert_eq!(hosts(&watch), ["n1", "n2"]);
    assert_eq!(server.last_head("accept").as_deref(), Some("application/json"));
    assert_eq!(server.last_head("x-prometheus-refresh-interval-seconds").as_deref(), Some("60"));
    assert_eq!(server.last_head("if-none-match"), None);
    assert_eq!(site.metric("esxi.agent.inventory.error"), [0.0]);

    watch.poll_now().await;
    assert_eq!(server.last_head("if-none-match").as_deref(), Some("\"v1\""));
    assert_eq!(hosts(&watch), ["n1", "n2"]);

    server.answers(Answer { etag: Some("\"v2\""), ..Answer::rows(&json!([esxi("n3")])) });
    watch.poll_now().await;
    assert_eq!(hosts(&watch), ["n3"]);
    stop.cancel();
    watch.stopped().await;
}

#[tokio::test]
async fn whatever_is_no_list_keeps_the_last_good_one_and_is_said_once() {
    let server = Server::start(&json!([esxi("n1")])).await;
    let (site, stop) = (Site::of(server.port), CancellationToken::new());
    let watch = site.start(&stop).await;
    let page = Answer { kind: "text/html; charset=utf-8", ..Answer::status(StatusCode::OK) };
    let disguised = Answer { body: b"\n<!doctype html>".to_vec(), ..Answer::status(StatusCode::OK) };
    let bomb = Answer { body: vec![b' '; 50_000_001], gzip: true, ..Answer::status(StatusCode::OK) };
    let etag = Answer { etag: Some("\"bad\""), ..Answer::rows(&json!({})) };
    for (bad, why) in [
        (Answer::status(StatusCode::INTERNAL_SERVER_ERROR), "HTTP 500 Internal Server Error"),
        (Answer::status(StatusCode::FOUND), "HTTP 302 Found: a redirect, which is not followed"),
        (
            Answer::status(StatusCode::NOT_MODIFIED),
            "HTTP 304 Not Modified: a redirect, which is not followed",
        ),
        (page, "the answer is text/html instead of application/json: a login page?"),
        (disguised, "the answer is HTML or XML instead of JSON: a login page?"),
        (bomb, "the answer is larger than 50 MB"),
        (etag.clone(), "the answer:1:1: is no array of targets: invalid type: map, expected a sequence"),
        (etag, "the answer:1:1: is no array of targets: invalid type: map, expected a sequence"),
        (
            Answer::rows(&json!([])),
            "holds no target (no row with the job vmware-esxi or vcenter that is wanted)",
        ),
    ] {
        let said_before = site.said.lines().len();
        for _ in 0..2 {
            server.answers(bad.clone());
            watch.poll_now().await;
        }
        assert_eq!(hosts(&watch), ["n1"], "{why}");
        assert_eq!(site.metric("esxi.agent.inventory.error"), [1.0]);
        let url = format!("http://127.0.0.1:{}/targets?…", server.port);
        let line = format!("inventory: http_sd {url}: {why}; its last good list stands (targets: 1)");
        assert_eq!(watch.notes(), [line.as_str()]);
        server.answers(Answer::rows(&json!([esxi("n1")])));
        watch.poll_now().await;
        assert_eq!(site.said.lines()[said_before..], [line.as_str(), "inventory: http_sd answers again"]);
        assert_eq!(site.metric("esxi.agent.inventory.error"), [0.0]);
    }
    stop.cancel();
    watch.stopped().await;
}

#[tokio::test]
async fn an_agent_that_starts_while_the_server_is_away_knows_what_it_listed_last() {
    let server = Server::start(&json!([esxi("n1")])).await;
    let mut site = Site::of(server.port);
    let stop = CancellationToken::new();
    let watch = site.start(&stop).await;
    stop.cancel();
    watch.stopped().await;

    server.answers(Answer::status(StatusCode::BAD_GATEWAY));
    site.config.hosts =
        vec![StaticTarget { address: "esx9".to_owned(), site: String::new(), labels: BTreeMap::new() }];
    let stop = CancellationToken::new();
    let watch = site.start(&stop).await;
    assert_eq!(hosts(&watch), ["esx9", "n1"]);
    assert_eq!(watch.sources_in_trouble(), 1);
    assert!(watch.notes()[0].ends_with("its last good list stands (targets: 1)"), "{:?}", watch.notes());

    // Another server's list is another one.
    let other = Site::of(1);
    let config = InventoryConfig { memory: site.config.memory.clone(), ..other.config.clone() };
    let other = InventoryWatch::start(&config, Stats::new(), stop.clone()).await.unwrap();
    assert_eq!(hosts(&other), Vec::<String>::new());
    assert!(other.notes()[0].ends_with("nobody of it is known until it answers"), "{:?}", other.notes());

    server.answers(Answer::rows(&json!([esxi("n2")])));
    watch.poll_now().await;
    assert_eq!(hosts(&watch), ["esx9", "n2"]);
    assert_eq!(watch.sources_in_trouble(), 0);
    stop.cancel();
    watch.stopped().await;
    other.stopped().await;
    drop(site.state);
}

#[tokio::test]
async fn secrets_are_read_at_each_fetch() {
    let server = Server::start(&json!([esxi("n1")])).await;
    let mut site = Site::of(server.port);
    let file = site.state.path().join("secret");
    std::fs::write(&file, "one\n").unwrap();
    let http_sd = site.config.http_sd.as_mut().unwrap();
    http_sd.auth = SdAuth::Bearer(file.clone());
    let stop = CancellationToken::new();
    let watch = site.start(&stop).await;
    assert_eq!(server.last_head("authorization").as_deref(), Some("Bearer one"));
    std::fs::write(&file, "two\n").unwrap();
    watch.poll_now().await;
    assert_eq!(server.last_head("authorization").as_deref(), Some("Bearer two"));
    std::fs::remove_file(&file).unwrap();
    watch.poll_now().await;
    assert_eq!(hosts(&watch), ["n1"]);
    assert!(watch.notes()[0].contains("cannot read"), "{:?}", watch.notes());

    std::fs::write(&file, "pw").unwrap();
    let auth = SdAuth::Basic { username: "u".to_owned(), password_file: file };
    let mut config = site.config.clone();
    config.http_sd.as_mut().unwrap().auth = auth;
    let mut watch = watch;
    watch.reconfigure(&config).await.unwrap();
    assert_eq!(server.last_head("authorization").as_deref(), Some("Basic dTpwdw=="));
    stop.cancel();
    watch.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn it_is_asked_again_without_being_told() {
    let server = Server::start(&json!([esxi("n1")])).await;
    let (site, stop) = (Site::of(server.port), CancellationToken::new());
    let watch = site.start(&stop).await;
    let mut inventory = watch.subscribe();
    server.answers(Answer::rows(&json!([esxi("n2")])));
    inventory.changed().await.unwrap();
    assert_eq!(hosts(&watch), ["n2"]);
    stop.cancel();
    watch.stopped().await;
}

#[tokio::test]
async fn a_server_that_is_away_during_a_reload_still_lists_what_it_did_also_without_a_disk() {
    let server = Server::start(&json!([esxi("n1")])).await;
    let (mut site, stop) = (Site::of(server.port), CancellationToken::new());
    site.config.memory = None;
    let mut watch = site.start(&stop).await;
    server.answers(Answer { status: StatusCode::SERVICE_UNAVAILABLE, ..Answer::rows(&json!([])) });
    let config = InventoryConfig { allow: Allow::only(vec![".sap".parse().unwrap()]), ..site.config.clone() };
    watch.reconfigure(&config).await.unwrap();
    assert_eq!(hosts(&watch), ["n1"]);
    let note = watch.notes().concat();
    assert!(note.ends_with("HTTP 503 Service Unavailable; its last good list stands (targets: 1)"), "{note}");
    stop.cancel();
    watch.stopped().await;
}

#[tokio::test]
async fn another_configuration_takes_the_place_of_the_first_for_those_who_listen() {
    let (one, two) = (Server::start(&json!([esxi("n1")])).await, Server::start(&json!([esxi("n2")])).await);
    let (site, stop) = (Site::of(one.port), CancellationToken::new());
    let mut watch = site.start(&stop).await;
    let mut inventory = watch.subscribe();
    inventory.mark_unchanged();
    watch.reconfigure(&Site::of(two.port).config).await.unwrap();
    assert!(inventory.has_changed().unwrap());
    assert_eq!(hosts(&watch), ["n2"]);
    let bad = InventoryConfig { atlas: Some("/nowhere.json".into()), ..site.config.clone() };
    watch.reconfigure(&bad).await.unwrap_err();
    assert_eq!(hosts(&watch), ["n2"], "a bad one changes nothing");
    assert_eq!(one.asked.lock().unwrap().len(), 1, "nor is the server asked for it");
    watch.reconfigure(&InventoryConfig::default()).await.unwrap();
    assert_eq!(hosts(&watch), Vec::<String>::new());
    assert_eq!(site.metric("esxi.agent.inventory.error"), Vec::<f64>::new(), "its series have ended");
    stop.cancel();
    watch.stopped().await;
}
