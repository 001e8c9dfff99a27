//! The guard over restarts of the agent, beside other verbs, and as operators see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use harness::estate::Estate;
use harness::until;
use std::process::{Command, Output};

const SSH_UP: &str = "esxi.host.ssh.up";
const SSH_FAILURE: &str = "esxi.host.ssh.failure";
const WRONG: [(&str, &str); 1] = [("$ESXI_PASSWORD", "wrong")];

/// Runs a verb of the program with the estate's configuration, `wrong` as the password.
fn program(estate: &Estate, password: &str, verb: &[&str]) -> Output {
    estate.config(&[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_esxi-otel-agent"));
    command
        .env_clear()
        .env("HOME", estate.folder.path())
        .env("CONFIG_FILE", estate.folder.path().join("config.yaml"));
    command.env("ESXI_USER", "root").env("ESXI_PASSWORD", password).args(verb).output().unwrap()
}

fn printed(output: &Output) -> (i32, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (
        output.status.code().unwrap(),
        if text.is_empty() { String::from_utf8_lossy(&output.stderr).into_owned() } else { text },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_costs_three_tries_over_all_restarts() {
    let estate = Estate::new(12, 0).await;
    for _ in 0..4 {
        let agent = estate.agent(&WRONG).await;
        for host in 0..12 {
            let visited = || {
                agent.handle.readings.snapshot().samples().any(|sample| {
                    sample.def.name == SSH_UP
                        && sample.attributes.get("hostsystem") == Some(&estate.host(host))
                })
            };
            until("a visit", || visited().then_some(())).await;
        }
        agent.stop().await;
    }
    for _ in 0..3 {
        let (code, _) = printed(&program(&estate, "wrong", &["once"]));
        assert_eq!(code, 1);
    }
    let tries: u64 = (0..12).map(|host| estate.fleet.failed_logins(host)).sum();
    assert!((1..=3).contains(&tries), "{tries} tries");
    assert!((0..12).all(|host| estate.fleet.failed_logins(host) <= 2 && !estate.fleet.locked(host)));
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_what_waits_and_open_it() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&WRONG).await;
    estate.arrives(SSH_UP, &[], 0.0).await;
    agent.handle.now.everybody();
    estate.arrives(SSH_FAILURE, &[("reason", "auth_guarded")], 1.0).await;

    let (code, text) = printed(&program(&estate, "x", &["guard"]));
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("unproven")
            && text.contains("1 of 3")
            && text.contains("this password was rejected there"),
        "{text}"
    );
    let (code, text) = printed(&program(&estate, "x", &["guard", "list", "--format", "json"]));
    assert_eq!(code, 0, "{text}");
    let known: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(known["targets"][0]["address"], estate.host(0));
    assert_eq!(known["credentials"][0]["state"], "unproven");

    assert_eq!(printed(&program(&estate, "x", &["guard", "release", "--host", "nobody"])).0, 1);
    let (code, text) = printed(&program(&estate, "x", &["guard", "release", "--host", &estate.host(0)]));
    assert_eq!((code, text), (0, format!("released: {}\n", estate.host(0))));
    let tries = estate.fleet.failed_logins(0);
    until("the next try", || {
        agent.handle.now.everybody();
        (estate.fleet.failed_logins(0) > tries).then_some(())
    })
    .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_disk_no_password_is_tried_and_the_line_says_why() {
    let estate = Estate::new(2, 0).await;
    estate.config(&[("ssh.host_key_policy", "insecure")]);
    // No file may grow: what a full disk is, without filling one.
    let script = "ulimit -f 0; trap '' XFSZ; exec \"$0\" once --format json";
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_esxi-otel-agent"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("CONFIG_FILE", estate.folder.path().join("config.yaml"));
    let output = command.env("ESXI_USER", "root").env("ESXI_PASSWORD", "x").output().unwrap();
    let (code, text) = printed(&output);
    assert_eq!(code, 1, "{text}");
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["hosts"][0]["reason"], "auth_guarded");
    let message = told["hosts"][0]["message"].as_str().unwrap();
    assert!(message.contains("the guard's memory can't be written: "), "{message}");
    assert!((0..2).all(|host| estate.fleet.failed_logins(host) + estate.fleet.logins(host) == 0));
}
