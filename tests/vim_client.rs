//! Stories of one vCenter and its client: sessions, pages, and all that goes wrong on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a story may fail")]

mod vim_support;
#[path = "harness/tls.rs"]
mod tls;

use esxi_otel_agent::inventory::Allow;
use esxi_otel_agent::outcome::FailureReason;
use esxi_otel_agent::simulator::vcenter::{Authority, VcenterFault, VcenterSim, VcenterSpec};
use esxi_otel_agent::vim::VimClient;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use vim_support::{Setup, counted, hosts_of};

const PROPERTIES: &[&str] = &["name", "parent", "overallStatus"];

/// The names of the hosts, or why not.
async fn read(client: &mut VimClient) -> Result<Vec<String>, FailureReason> {
    let result = client.read_tree(PROPERTIES, Instant::now() + Duration::from_secs(60)).await;
    result.map(|objects| hosts_of(&objects)).map_err(|error| {
        assert!(!error.to_string().contains('\n') && error.to_string().contains("vCenter"), "{error}");
        error.failure.reason
    })
}

#[tokio::test]
async fn all_pages_are_followed_whatever_size_was_asked_for() {
    for (page_size, pages) in [(0, 4), (1000, 4), (50, 7)] {
        let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(320)).await.unwrap();
        let mut client = Setup::of(&sim).page_size(page_size).client();
        assert_eq!(read(&mut client).await.unwrap(), sim.hosts(), "each host once");
        let calls = sim.calls("RetrievePropertiesEx") + sim.calls("ContinueRetrievePropertiesEx");
        assert_eq!(calls, pages, "page size {page_size}");
        client.logout().await;
    }
}

#[tokio::test]
async fn the_session_is_kept_between_reads_and_ended_in_the_end() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let setup = Setup::of(&sim);
    let mut client = setup.client();
    for _ in 0..3 {
        assert_eq!(read(&mut client).await.map(|hosts| hosts.len()), Ok(3));
        assert_eq!((sim.logins(), sim.open_sessions()), (1, 1));
    }
    client.logout().await;
    assert_eq!((sim.open_sessions(), sim.failed_logins()), (0, 0));
    assert_eq!(sim.last_user_agent(), concat!("esxi-otel-agent/", env!("CARGO_PKG_VERSION")));
    assert_eq!(counted(&setup.stats, "esxi.agent.soap.requests", "RetrievePropertiesEx", "ok"), 3.0);
    assert_eq!(counted(&setup.stats, "esxi.agent.soap.requests", "Logout", "ok"), 1.0);
    client.logout().await;
    assert_eq!(sim.calls("Logout"), 1, "there is nothing to end twice");
}

#[tokio::test]
async fn answers_are_understood_whatever_prefixes_they_use_packed_or_not() {
    for (odd_prefixes, gzip) in [(true, true), (true, false), (false, false)] {
        let spec = VcenterSpec { odd_prefixes, gzip, ..VcenterSpec::new("vc1").fleet(120) };
        let sim = VcenterSim::start(spec).await.unwrap();
        let mut client = Setup::of(&sim).client();
        assert_eq!(read(&mut client).await.unwrap(), sim.hosts());
        client.logout().await;
        assert_eq!(sim.open_sessions(), 0);
    }
}

#[tokio::test]
async fn a_cookie_counts_as_it_came_with_quotes_or_without() {
    for cookie_quotes in [true, false] {
        let spec = VcenterSpec { cookie_quotes, ..VcenterSpec::new("vc1").fleet(120) };
        let sim = VcenterSim::start(spec).await.unwrap();
        let mut client = Setup::of(&sim).client();
        assert_eq!(read(&mut client).await.map(|hosts| hosts.len()), Ok(120), "quotes: {cookie_quotes}");
        client.logout().await;
        assert_eq!((sim.logins(), sim.open_sessions()), (1, 0));
    }
}

/// Answers every call by the recorded answer of its name, in chunks and with trailers, as some proxies do.
async fn answer_in_chunks(stream: tokio::net::TcpStream, acceptor: tokio_rustls::TlsAcceptor) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = acceptor.accept(stream).await.unwrap();
    let mut asked = Vec::new();
    loop {
        let mut some = [0; 16 * 1024];
        let count = stream.read(&mut some).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        asked.extend_from_slice(some.get(..count).unwrap_or_default());
        let text = String::from_utf8_lossy(&asked).into_owned();
        if !text.ends_with("</soapenv:Envelope>") {
            continue;
        }
        asked.clear();
        let recorded = [
            ("<RetrieveServiceContent", "RetrieveServiceContent"),
            ("<RetrievePropertiesEx", "RetrievePropertiesEx-tree-traversal"),
            ("<Login", "Login"),
            ("<Logout", "Logout"),
        ];
        let (_, name) = recorded.into_iter().find(|(call, _)| text.contains(call)).expect("a known call");
        let path = format!("{}/tests/fixtures/vim/vcsim-0.24.2/{name}.xml", env!("CARGO_MANIFEST_DIR"));
        let mut answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\
            Trailer: X-Checksum\r\nSet-Cookie: vmware_soap_session=abc; Path=/; HttpOnly; Secure\r\n\r\n"
            .to_vec();
        for chunk in std::fs::read(path).unwrap().chunks(777) {
            answer.extend(format!("{:x};part=1\r\n", chunk.len()).into_bytes());
            answer.extend_from_slice(chunk);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\nX-Checksum: 1234\r\nServer-Timing: total;dur=1\r\n\r\n");
        stream.write_all(&answer).await.unwrap();
    }
}

#[tokio::test]
async fn answers_in_chunks_with_trailers_are_whole() {
    let (acceptor, certificate) = tls::self_signed("vc1");
    let sim = VcenterSim::start(VcenterSpec::new("vc1")).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::of(&sim).port(listener.local_addr().unwrap().port());
    let peer = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_in_chunks(stream, acceptor.clone()));
        }
    });
    let thumbprint = esxi_otel_agent::config::Thumbprint::of(certificate.der());
    setup.config.thumbprints.insert("127.0.0.1".to_owned(), thumbprint);
    let mut client = setup.client();
    for _ in 0..2 {
        assert!(read(&mut client).await.unwrap().contains(&"DC0_H0".to_owned()));
    }
    client.logout().await;
    assert_eq!(counted(&setup.stats, "esxi.agent.soap.requests", "Logout", "ok"), 1.0);
    peer.abort();
}

#[tokio::test]
async fn a_missing_privilege_is_named_with_its_object() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut client = Setup::of(&sim).client();
    read(&mut client).await.unwrap();
    sim.fail_next(VcenterFault::NoPermission);
    let error = client.read_tree(PROPERTIES, Instant::now() + Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(error.failure.reason, FailureReason::PermissionDenied);
    assert!(error.to_string().contains("NoPermission (System.View on Folder:group-d1)"), "{error}");
    client.logout().await;
}

#[tokio::test]
async fn a_session_that_expired_is_replaced_once_also_in_the_middle_of_the_pages() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(250)).await.unwrap();
    let mut client = Setup::of(&sim).client();
    read(&mut client).await.unwrap();
    sim.expire_sessions();
    assert_eq!(read(&mut client).await.unwrap().len(), 250);
    assert_eq!(sim.logins(), 2);
    sim.fail_next_call("ContinueRetrievePropertiesEx", VcenterFault::ExpireSessions);
    assert_eq!(read(&mut client).await.unwrap().len(), 250, "from the start, none missing, none twice");
    assert_eq!((sim.logins(), sim.failed_logins(), sim.open_sessions()), (3, 0, 1));
    client.logout().await;
}

#[tokio::test]
async fn a_server_that_never_accepts_the_session_is_not_stormed_with_logins() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut client = Setup::of(&sim).client();
    for _ in 0..2 {
        sim.fail_next_call("RetrievePropertiesEx", VcenterFault::NotAuthenticated);
    }
    assert_eq!(read(&mut client).await, Err(FailureReason::CommandFailed));
    assert_eq!(sim.logins(), 2);
    client.logout().await;
    assert_eq!(sim.open_sessions(), 0, "the session that was doubted is ended, too");
}

#[tokio::test]
async fn after_a_restart_the_client_logs_in_again() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut client = Setup::of(&sim).client();
    read(&mut client).await.unwrap();
    sim.restart();
    assert_eq!(read(&mut client).await.unwrap().len(), 3);
    assert_eq!((sim.logins(), sim.failed_logins(), sim.open_sessions()), (2, 0, 1));
    client.logout().await;
    assert_eq!(sim.open_sessions(), 0);
}

#[tokio::test]
async fn a_wrong_password_is_tried_once() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut client = Setup::of(&sim).password("wrong").client();
    assert_eq!(read(&mut client).await, Err(FailureReason::AuthFailed));
    for _ in 0..10 {
        assert_eq!(read(&mut client).await, Err(FailureReason::AuthGuarded));
    }
    assert_eq!((sim.failed_logins(), sim.is_locked()), (1, false));
    assert_eq!(sim.requests(), 2, "what is guarded is not even dialed");
}

#[tokio::test]
async fn a_login_whose_answer_was_lost_counts_against_the_target() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut client = Setup::of(&sim).client();
    sim.fail_next_call("Login", VcenterFault::Close);
    assert_eq!(read(&mut client).await, Err(FailureReason::ConnectionLost));
    assert_eq!(read(&mut client).await, Err(FailureReason::AuthGuarded));
    assert_eq!(sim.calls("Login"), 1);
}

#[tokio::test]
async fn a_login_whose_answer_is_cut_off_leaves_no_session_behind() {
    for (fault, reason) in [
        (VcenterFault::CutBody, FailureReason::ConnectionLost),
        (VcenterFault::CutXml, FailureReason::AnswerUnreadable),
    ] {
        let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
        let mut client = Setup::of(&sim).client();
        sim.fail_next_call("Login", fault);
        assert_eq!(read(&mut client).await, Err(reason));
        assert_eq!((sim.logins(), sim.open_sessions()), (1, 0), "its cookie came before that: {fault:?}");
        client.logout().await;
        assert_eq!(sim.calls("Logout"), 1);
    }
}

#[tokio::test]
async fn an_account_without_any_role_is_told_so_and_not_guarded() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut client = Setup::of(&sim).client();
    sim.fail_next_call("Login", VcenterFault::NoPermission);
    assert_eq!(read(&mut client).await, Err(FailureReason::PermissionDenied));
    assert!(read(&mut client).await.is_ok(), "once a role is granted");
    client.logout().await;
}

#[tokio::test]
async fn each_kind_of_broken_answer_has_its_reason_and_the_next_read_is_good() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(150)).await.unwrap();
    let setup = Setup::of(&sim);
    let mut client = setup.client();
    read(&mut client).await.unwrap();
    for (fault, reason) in [
        (VcenterFault::Http503Text, FailureReason::VcenterUnavailable),
        (VcenterFault::Http502Text, FailureReason::VcenterUnavailable),
        (VcenterFault::Html, FailureReason::AnswerUnreadable),
        (VcenterFault::NotXml, FailureReason::AnswerUnreadable),
        (VcenterFault::CutXml, FailureReason::AnswerUnreadable),
        (VcenterFault::CutBody, FailureReason::ConnectionLost),
        (VcenterFault::Redirect, FailureReason::ProtocolError),
        (VcenterFault::NoPermission, FailureReason::PermissionDenied),
        (VcenterFault::Oversize, FailureReason::AnswerTooLarge),
    ] {
        sim.fail_next(fault);
        assert_eq!(read(&mut client).await, Err(reason), "{fault:?}");
        sim.fail_next_call("ContinueRetrievePropertiesEx", fault);
        assert_eq!(read(&mut client).await, Err(reason), "{fault:?} on the second page");
        assert_eq!(read(&mut client).await.map(|hosts| hosts.len()), Ok(150), "after {fault:?}");
    }
    assert_eq!((sim.logins(), sim.open_sessions()), (1, 1), "none of this costs the session");
    assert_eq!(
        counted(&setup.stats, "esxi.agent.soap.requests", "RetrievePropertiesEx", "answer_too_large"),
        1.0
    );
    client.logout().await;
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced_without_a_word() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut client = Setup::of(&sim).client();
    read(&mut client).await.unwrap();
    sim.fail_next_call("RetrievePropertiesEx", VcenterFault::Close);
    assert_eq!(read(&mut client).await.map(|hosts| hosts.len()), Ok(3));
    assert_eq!(sim.logins(), 1);
    client.logout().await;
}

#[tokio::test]
async fn a_server_that_hangs_is_left_after_the_time_out() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let mut client = Setup::of(&sim).call_timeout(Duration::from_secs(3)).client();
    read(&mut client).await.unwrap();
    sim.fail_next(VcenterFault::Hang);
    assert_eq!(read(&mut client).await, Err(FailureReason::CommandTimeout));
    assert!(read(&mut client).await.is_ok());
    client.logout().await;
    assert_eq!(sim.open_sessions(), 0);
}

#[tokio::test]
async fn a_caller_that_gives_up_in_the_middle_of_a_login_leaves_no_session_behind() {
    let spec = VcenterSpec { latency: Duration::from_millis(200), ..VcenterSpec::new("vc1").fleet(3) };
    let sim = VcenterSim::start(spec).await.unwrap();
    let mut client = Setup::of(&sim).client();
    tokio::select! {
        _ = read(&mut client) => panic!("the login takes longer than that"),
        () = vim_support::until(|| sim.calls("Login") == 1) => {}
    }
    client.logout().await;
    assert_eq!((sim.logins(), sim.open_sessions()), (1, 0));
}

#[tokio::test]
async fn a_login_that_takes_longer_than_its_caller_may_is_the_next_callers() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let setup = Setup::of(&sim);
    let mut client = setup.client();
    sim.fail_next_call("Login", VcenterFault::Hold);
    let early = client.read_tree(PROPERTIES, Instant::now() + Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(early.failure.reason, FailureReason::CommandTimeout);
    assert!(early.to_string().contains("goes on"), "{early}");
    sim.release();
    assert_eq!(read(&mut client).await.map(|hosts| hosts.len()), Ok(3));
    assert_eq!((sim.calls("Login"), sim.logins(), sim.open_sessions()), (1, 1, 1));
    client.logout().await;
    assert_eq!(sim.open_sessions(), 0);
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_ends_before_any_secret() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let other = Authority::new("somebody else").unwrap();
    let mut client = Setup::of(&sim).ca(&other.pem()).client();
    assert_eq!(read(&mut client).await, Err(FailureReason::Tls));
    assert_eq!(sim.requests(), 0);
    let mut client = Setup::of(&sim).system_roots().client();
    assert_eq!(read(&mut client).await, Err(FailureReason::Tls));
    let both = format!("{}{}", other.pem(), sim.ca_pem());
    let mut client = Setup::of(&sim).ca(&both).client();
    assert!(read(&mut client).await.is_ok(), "a file may hold several roots");
    client.logout().await;
    let mut client = Setup::of(&sim).unverified().client();
    assert!(read(&mut client).await.is_ok(), "unless it was switched off");
    client.logout().await;
}

#[tokio::test]
async fn who_is_not_there_has_a_reason_too() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(3)).await.unwrap();
    let setup = Setup::of(&sim);
    sim.stop().await;
    assert_eq!(read(&mut setup.client()).await, Err(FailureReason::ConnectRefused));
    let mut nowhere = setup.at("no-such-host.invalid");
    // A resolver that nobody answers gives up in the end.
    nowhere.config.connect_timeout = Duration::from_secs(60);
    assert_eq!(read(&mut nowhere.client()).await, Err(FailureReason::Dns));
}

#[tokio::test]
async fn a_tcp_peer_that_speaks_no_tls_is_no_vcenter() {
    use tokio::io::AsyncWriteExt;
    let sim = VcenterSim::start(VcenterSpec::new("vc1")).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut client = Setup::of(&sim).port(port).client();
    assert_eq!(read(&mut client).await, Err(FailureReason::Tls));
    peer.abort();
}

#[tokio::test]
async fn five_thousand_hosts_come_whole() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(5000)).await.unwrap();
    let mut client = Setup::of(&sim).client();
    assert_eq!(read(&mut client).await.unwrap().len(), 5000);
    assert!(sim.calls("ContinueRetrievePropertiesEx") >= 50);
    client.logout().await;
}

#[tokio::test]
async fn a_tcp_peer_that_never_says_a_word_is_left_after_the_connect_time_out() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1")).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::of(&sim).port(listener.local_addr().unwrap().port());
    setup.config.connect_timeout = Duration::from_millis(200);
    assert_eq!(read(&mut setup.client()).await, Err(FailureReason::ConnectTimeout));
}

#[tokio::test]
async fn a_vcenter_is_allowed_by_its_name_or_by_where_that_leads() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(1)).await.unwrap();
    for (rule, host, allowed) in [
        ("127.0.0.0/8", "127.0.0.1", true),
        ("127.0.0.0/8", "localhost", true),
        ("localhost", "localhost", true),
        ("10.0.0.0/8", "localhost", false),
        ("10.0.0.0/8", "127.0.0.1", false),
        (".example.org", "localhost", false),
        // Names by our reading, addresses by that of URLs: no look-up stands before the connection.
        ("127.0.0.0/8", "2130706433", true),
        ("10.0.0.0/8", "2130706433", false),
        ("10.0.0.0/8", "0x7f000001", false),
        ("10.0.0.0/8", "127.0.0.1.", false),
        ("10.0.0.0/8", "127.0.1", false),
    ] {
        let setup = Setup::of(&sim).unverified().at(host);
        let mut access = setup.access();
        access.allow = Arc::new(Allow::only(vec![rule.parse().unwrap()]));
        let vcenter = Arc::new(setup.vcenter.clone());
        let calls = sim.calls("RetrieveServiceContent");
        let result = match VimClient::new(&setup.config, vcenter, access, Arc::clone(&setup.stats)) {
            Ok(mut client) => {
                let result = read(&mut client).await.map(drop);
                client.logout().await;
                result
            }
            Err(failure) => Err(failure.reason),
        };
        let expected = if allowed { Ok(()) } else { Err(FailureReason::AddressNotAllowed) };
        assert_eq!(result, expected, "{host} with {rule}");
        assert_eq!(sim.calls("RetrieveServiceContent") > calls, allowed);
    }
}
