//! `check --connect` and `host-keys`, as people call them, against a simulated estate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod harness;

use esxi_otel_agent::simulator::faults::HostFault;
use esxi_otel_agent::simulator::host::FleetSpec;
use esxi_otel_agent::simulator::vcenter::{VcenterFault, VcenterSpec};
use harness::estate::Estate;
use serde_json::{Value, json};
use std::process::Output;
use tokio::process::Command;

/// Runs the agent with the estate's configuration, in which `(what, with)` are replaced.
async fn agent(estate: &Estate, replaced: (&str, &str), arguments: &[&str]) -> Output {
    estate.config(&[]);
    let file = estate.folder.path().join("config.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(replaced.0));
    std::fs::write(&file, text.replace(replaced.0, replaced.1)).unwrap();
    let (esxi, vcenter) = (FleetSpec::default(), VcenterSpec::new(""));
    let mut command = Command::new(env!("CARGO_BIN_EXE_esxi-otel-agent"));
    command.env_clear().env("CONFIG_FILE", file);
    command.env("ESXI_USER", &esxi.user).env("ESXI_PASSWORD", esxi.password.expose());
    // Nobody is to go by way of a proxy that was not asked for.
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        command.env(variable, "http://127.0.0.1:9");
    }
    command.env("VCENTER_USER", &vcenter.user).env("VCENTER_PASSWORD", &vcenter.password);
    harness::in_time("the verb", command.args(arguments).output()).await.unwrap()
}

async fn connect(estate: &Estate, replaced: (&str, &str)) -> (Value, Option<i32>) {
    let output = agent(estate, replaced, &["check", "--connect", "--format", "json"]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    (report, output.status.code())
}

fn steps(connection: &Value) -> Vec<&str> {
    connection["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect()
}

const SAME: (&str, &str) = ("", "");

#[tokio::test(flavor = "multi_thread")]
async fn every_step_is_told_and_nothing_is_left_behind() {
    let estate = Estate::new(2, 1).await;
    let (report, code) = connect(&estate, SAME).await;
    assert_eq!(code, Some(0), "{report:#}");
    let host = &report["hosts"][0];
    let all = ["name", "tcp", "key_exchange", "methods", "guard", "login", "command", "sessions"];
    assert_eq!(steps(host), all);
    assert_eq!(host["facts"]["host_key"], "new");
    assert_eq!(host["facts"]["method"], "keyboard-interactive");
    assert!(host["facts"]["host_key_fingerprint"].as_str().unwrap().starts_with("SHA256:"));
    assert_eq!(host["services"]["hostd"], "running");
    assert_eq!(host["facts"]["sessions_allowed"], ">= 3");
    let vcenter = &report["vcenters"][0];
    assert_eq!(steps(vcenter), ["connect", "login", "read", "hints", "logout"]);
    assert_eq!(vcenter["facts"]["hosts"], json!(2));
    assert_eq!(vcenter["facts"]["tls_verified"], json!(true));
    assert_eq!(vcenter["facts"]["tls"], "TLS 1.3");
    assert!(!estate.folder.path().join("state/known_hosts").exists(), "it records no key");
    assert_eq!((estate.vcenters[0].logins(), estate.vcenters[0].open_sessions()), (1, 0));
    assert_eq!((estate.fleet.logins(0), estate.fleet.commands(0)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_many_sessions_a_host_allows_is_found_out() {
    for (allowed, told) in [(1, json!(1)), (2, json!(2)), (10, json!(">= 3"))] {
        let spec = FleetSpec { hosts: 1, max_sessions: allowed, ..FleetSpec::default() };
        let estate = Estate::with_fleet(spec, 0, None).await;
        let (report, code) = connect(&estate, SAME).await;
        assert_eq!((code, &report["hosts"][0]["facts"]["sessions_allowed"]), (Some(0), &told), "{report:#}");
        assert_eq!((estate.fleet.logins(0), estate.fleet.commands(0)), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vcenter_is_told_with_certificate_privileges_hints_and_clock() {
    let estate = Estate::with_vcenters(2, 2, |vcenter, spec| {
        if vcenter == 0 {
            spec.unknown_properties = vec!["runtime.inQuarantineMode".to_owned()];
        } else {
            spec.privileges = vec!["System.View".to_owned()];
            spec.clock_ahead = jiff::SignedDuration::from_secs(-300);
        }
    })
    .await;
    estate.vcenters[1].fail_next_call("CreateCollectorForEvents", VcenterFault::NoPermission);
    estate.vcenters[1].deny(&estate.host(1), "overallStatus");
    estate.vcenters[1].deny(&estate.host(1), "summary.rebootRequired");
    estate.vcenters[1].deny(&estate.host(0), "config.virtualNicManagerInfo.netConfig");
    let ids = [0, 1].map(|host| estate.vcenters[1].id(&estate.host(host)));
    let pinned = estate.vcenters[0].thumbprint().to_string();
    let address = estate.vcenters[0].address();
    let pin = format!("vcenter: {{thumbprints: {{'{address}': '{pinned}'}}, ");
    let (report, code) = connect(&estate, ("vcenter: {", &pin)).await;
    assert_eq!(code, Some(0), "{report:#}");
    // In the order of their addresses, which differ at each start.
    let facts = |vcenter: usize| {
        let address = estate.vcenters[vcenter].address().to_string();
        let mut all = report["vcenters"].as_array().unwrap().iter();
        all.find(|told| told["address"] == address.as_str()).unwrap()["facts"].clone()
    };
    for (key, value) in [
        ("tls_trust", json!("pinned")),
        ("certificate_sha256", json!(pinned)),
        ("certificate_issuer", json!("CN=estate")),
        ("privileges", json!("System.View, System.Read")),
        ("privileges_missing", json!("")),
        ("hints", json!("changes of hosts and alarms")),
        ("hosts_not_readable", json!(0)),
        ("page_size", json!(6)),
    ] {
        assert_eq!(facts(0)[key], value, "{key}");
    }
    assert!(facts(0)["certificate_days_left"].as_u64().unwrap() > 300);
    assert!(facts(0)["clock_ahead_seconds"].as_f64().unwrap().abs() < 10.0);
    assert_eq!(
        (facts(1)["tls_trust"].clone(), facts(1)["privileges_missing"].clone()),
        (json!("ca_file"), json!("System.Read"))
    );
    let [denied, other] =
        [1, 0].map(|host| format!("fault NoPermission (System.Read on HostSystem:{})", ids[host]));
    assert_eq!(facts(1)["hosts_not_readable"], json!(2));
    assert_eq!(
        facts(1)["not_readable"],
        json!(format!(
            "config.virtualNicManagerInfo.netConfig of 1: {other}, overallStatus of 1: {denied}, \
             summary.rebootRequired of 1: {denied}"
        ))
    );
    assert_eq!(facts(0)["unknown_properties"], json!("runtime.inQuarantineMode"));
    assert!((-310.0..-290.0).contains(&facts(1)["clock_ahead_seconds"].as_f64().unwrap()));
    for vcenter in &estate.vcenters {
        assert_eq!((vcenter.logins(), vcenter.open_sessions(), vcenter.collectors()), (1, 0, 0));
    }

    estate.vcenters[1].fail_next_call("CreateCollectorForEvents", VcenterFault::NoPermission);
    let output = agent(&estate, SAME, &["check", "--connect"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    for said in [
        "the account lacks System.Read at the root",
        "no events: CreateCollectorForEvents of vCenter",
        "2 hosts, config.virtualNicManagerInfo.netConfig of 1: fault NoPermission (System.Read on HostSystem:",
        "its version has no runtime.inQuarantineMode",
        "its clock is 300 s behind ours",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_is_shown_all_the_same() {
    let estate = Estate::with_vcenters(1, 1, |_, spec| spec.self_signed = true).await;
    let (report, code) = connect(&estate, SAME).await;
    let vcenter = &report["vcenters"][0];
    assert_eq!((code, &vcenter["reason"]), (Some(1), &json!("tls")));
    assert_eq!(vcenter["facts"]["certificate_sha256"], estate.vcenters[0].thumbprint().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_fails_is_told_with_the_step_and_the_exit_code() {
    let estate = Estate::new(2, 0).await;
    estate.fleet.set_fault(1, HostFault::WrongPassword);
    let (report, code) = connect(&estate, SAME).await;
    assert_eq!(code, Some(1));
    assert_eq!((&report["hosts"][0]["up"], &report["hosts"][1]["up"]), (&json!(true), &json!(false)));
    let host = &report["hosts"][1];
    assert_eq!(host["steps"].as_array().unwrap().last().unwrap()["reason"], "auth_failed");
    assert_eq!(host["services"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_not_allowed_gets_no_connection() {
    let estate = Estate::new(1, 1).await;
    let (report, code) = connect(&estate, ("inventory: {", "inventory: {allow: [10.0.0.0/8, .org], ")).await;
    assert_eq!(code, Some(1));
    for connection in [&report["hosts"][0], &report["vcenters"][0]] {
        assert_eq!(connection["reason"], "address_not_allowed", "{connection:#}");
        assert_eq!(connection["facts"]["address"], Value::Null);
    }
    assert_eq!((estate.fleet.connections(0), estate.vcenters[0].calls("RetrieveServiceContent")), (0, 0));
    let (report, code) = connect(&estate, ("inventory: {", "inventory: {allow: [127.0.0.0/8], ")).await;
    assert_eq!(code, Some(0), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_leaves_for_a_host_whose_key_is_not_known() {
    let estate = Estate::new(1, 0).await;
    let (report, code) = connect(&estate, ("ssh: {", "ssh: {host_key_policy: strict, ")).await;
    assert_eq!((code, &report["hosts"][0]["reason"]), (Some(1), &json!("host_key_unknown")));
    assert_eq!(steps(&report["hosts"][0]), ["name", "tcp", "key_exchange"]);
    assert_eq!((estate.fleet.logins(0), estate.fleet.failed_logins(0)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_round_recorded_is_known_listed_and_forgotten() {
    let estate = Estate::new(1, 0).await;
    assert!(agent(&estate, SAME, &["once"]).await.status.success());
    let (report, _) = connect(&estate, SAME).await;
    assert_eq!(report["hosts"][0]["facts"]["host_key"], "known");

    let listed = agent(&estate, SAME, &["host-keys", "list", "--format", "json"]).await;
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["keys"][0]["fingerprint"], report["hosts"][0]["facts"]["host_key_fingerprint"]);

    let host = estate.host(0);
    for (code, said) in [(0, "removed line 1"), (1, "no key of")] {
        let forgotten = agent(&estate, SAME, &["host-keys", "forget", &host]).await;
        let text = String::from_utf8(forgotten.stdout).unwrap();
        assert_eq!(forgotten.status.code(), Some(code), "{text}");
        assert!(text.contains(said), "{text}");
    }
    assert_eq!(connect(&estate, SAME).await.0["hosts"][0]["facts"]["host_key"], "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_fit_120_columns_and_a_name_that_nobody_has_is_an_error() {
    let estate = Estate::new(4, 1).await;
    estate.fleet.set_fault(1, HostFault::NoCommonAlgorithm);
    let output = agent(&estate, SAME, &["check", "--connect"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let table = text.lines().filter(|line| line.contains('─') || line.contains(" of "));
    assert!(table.clone().count() > 5, "{text}");
    assert!(table.map(|line| line.chars().count()).all(|width| width <= 120), "{text}");
    assert!(text.ends_with("4 hosts and 1 vCenter checked, 1 failed\n"), "{text}");
    let output = agent(&estate, SAME, &["check", "--connect", "--host", "nobody"]).await;
    assert_eq!(output.status.code(), Some(2));
}
