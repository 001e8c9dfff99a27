//! The fake vCenter, asked by hand: it has to be a vCenter for others than our own client, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a story may fail")]

use esxi_otel_agent::simulator::vcenter::{VcenterHandle, VcenterSim, VcenterSpec};
use esxi_otel_agent::vim::tls::install_crypto;

/// Somebody who writes SOAP by hand.
struct Hand {
    http: reqwest::Client,
    url: String,
    cookie: Option<String>,
}

const ENVELOPE: (&str, &str) = (
    r#"<?xml version="1.0"?><e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body>"#,
    "</e:Body></e:Envelope>",
);

impl Hand {
    fn at(sim: &VcenterHandle) -> Self {
        install_crypto();
        let root = reqwest::Certificate::from_pem(sim.ca_pem().as_bytes()).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
        Self { http, url: format!("https://{}/sdk", sim.address()), cookie: None }
    }

    async fn send(&mut self, body: Vec<u8>) -> (u16, String) {
        let mut request = self.http.post(&self.url).header("content-type", "text/xml").body(body);
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        if let Some(cookie) = response.headers().get("set-cookie") {
            self.cookie = Some(cookie.to_str().unwrap().split(';').next().unwrap().to_owned());
        }
        (status, response.text().await.unwrap())
    }

    async fn call(&mut self, inner: &str) -> (u16, String) {
        self.send(format!("{}{inner}{}", ENVELOPE.0, ENVELOPE.1).into_bytes()).await
    }

    async fn login(&mut self, password: &str) -> (u16, String) {
        let user = "<userName>monitor@vsphere.local</userName>";
        let this = r#"<_this type="SessionManager">SessionManager</_this>"#;
        self.call(&format!("<Login xmlns=\"urn:vim25\">{this}{user}<password>{password}</password></Login>"))
            .await
    }

    async fn next_page(&mut self, token: &str) -> (u16, String) {
        let this = r#"<_this type="PropertyCollector">propertyCollector</_this>"#;
        let method = "ContinueRetrievePropertiesEx";
        self.call(&format!("<{method} xmlns=\"urn:vim25\">{this}<token>{token}</token></{method}>")).await
    }
}

const RIGHT: &str = "p&lt;&amp;&gt;w&quot;ö";

fn recorded(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/vim/requests/{name}.xml", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn has_fault((status, body): &(u16, String), name: &str) -> bool {
    *status == 500 && body.contains(&format!("xsi:type=\"{name}\""))
}

#[tokio::test]
async fn it_understands_what_another_client_asked() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3).standalone("DC9", "alone")).await.unwrap();
    let mut hand = Hand::at(&sim);
    assert_eq!(hand.login(RIGHT).await.0, 200);
    let (status, body) = hand.send(recorded("RetrievePropertiesEx-tree-traversal")).await;
    assert_eq!((status, body.matches("<obj type=\"HostSystem\">").count()), (200, 4), "{body}");
    assert_eq!(body.matches("xsi:type=\"ManagedEntityStatus\">green<").count(), 4);
    let view = hand.send(recorded("RetrievePropertiesEx-view-traversal")).await;
    assert!(has_fault(&view, "ManagedObjectNotFound"), "{view:?}");
    let unknown =
        hand.call(r#"<QueryPerf xmlns="urn:vim25"><_this type="PerformanceManager">p</_this></QueryPerf>"#);
    assert!(has_fault(&unknown.await, "MethodNotFound"));
    assert!(has_fault(&hand.send(b"no XML".to_vec()).await, "InvalidRequest"));
}

#[tokio::test]
async fn tokens_begin_at_zero_and_can_be_spent_once_in_their_session() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(250)).await.unwrap();
    let mut hand = Hand::at(&sim);
    hand.login(RIGHT).await;
    let (_, body) = hand.send(recorded("RetrievePropertiesEx-tree-traversal")).await;
    assert!(body.contains("<token>0</token>"));
    let mut other = Hand::at(&sim);
    other.login(RIGHT).await;
    let (status, body) = hand.next_page("0").await;
    assert!(status == 200 && body.contains("<token>1</token>"));
    assert!(has_fault(&hand.next_page("0").await, "InvalidArgument"), "spent");
    assert!(has_fault(&other.next_page("1").await, "InvalidArgument"), "another session's");
}

#[tokio::test]
async fn its_cookie_counts_with_its_quotes_only_and_nobody_logs_in_twice_on_it() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut hand = Hand::at(&sim);
    hand.login(RIGHT).await;
    assert!(has_fault(&hand.login(RIGHT).await, "InvalidLogin"), "on a live session");
    let quoted = hand.cookie.take().unwrap();
    hand.cookie = Some(quoted.replace('"', ""));
    let asked = hand.send(recorded("RetrievePropertiesEx-tree-traversal")).await;
    assert!(has_fault(&asked, "NotAuthenticated"), "{asked:?}");
}

#[tokio::test]
async fn five_wrong_passwords_lock_the_account() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut hand = Hand::at(&sim);
    for _ in 0..5 {
        assert!(has_fault(&hand.login("wrong").await, "InvalidLogin"));
    }
    assert!(sim.is_locked());
    assert!(has_fault(&hand.login(RIGHT).await, "InvalidLogin"), "even the right one");
    sim.unlock();
    assert_eq!(hand.login(RIGHT).await.0, 200);
}
