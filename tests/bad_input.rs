//! What an operator may get wrong, told by the program itself: one clear line for each problem, exit code 2
//! at the start, a reason at run time, and never a panic or a secret.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod harness;

use esxi_otel_agent::simulator::faults::HostFault;
use harness::estate::Estate;
use harness::{LIMIT, in_time, until};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::process::Command;

/// With XML's own characters, quotes of the shell, blanks and more than ASCII.
const ODD_PASSWORD: &str = "p&<\">' $x\\ äß😀";

/// The program in a folder, with accounts in an environment that is otherwise empty.
fn program(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esxi-otel-agent"));
    command.args(line.split_whitespace()).current_dir(folder).env_clear().env("STATE_DIRECTORY", folder);
    for account in ["VCENTER", "ESXI"] {
        command.env(format!("{account}_USER"), "monitor").env(format!("{account}_PASSWORD"), "hunter2");
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output(command: &mut Command) -> Output {
    in_time("the end of the program", command.output()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What the program says when it refuses: exit code 2, and nothing on standard output.
async fn refusal(command: &mut Command) -> String {
    let output = output(command).await;
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()), "{said}");
    said.trim_end().to_owned()
}

fn atlas_row(name: &str, site: &str) -> Value {
    json!({"targets": [], "labels": {"job": "vmware-esxi", "name": name, "site": site}})
}

/// A folder with a configuration of one host that nobody answers for.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = "inventory: {hosts: [{address: '127.0.0.1:1'}]}\ncollectors: {critical_service_collector: }\n\
                  otlp: {enabled: false}\nprometheus: {listen: '127.0.0.1:0'}\n";
    fs::write(folder.path().join("good.yaml"), config).unwrap();
    fs::write(folder.path().join("atlas.json"), json!([atlas_row("n1", "eu-de-1a")]).to_string()).unwrap();
    folder
}

#[tokio::test]
async fn files_that_can_not_be_read_are_named() {
    let folder = folder();
    fs::create_dir(folder.path().join("folder")).unwrap();
    symlink("loop", folder.path().join("loop")).unwrap();
    for verb in ["run", "once", "check"] {
        for (line, wanted) in [
            ("--config gone", "gone: cannot be read: No such file or directory (os error 2)"),
            ("--config folder", "folder: is a directory; a YAML file is needed"),
            ("--config loop", "loop: cannot be read: Too many levels of symbolic links (os error 40)"),
            (
                "--config good.yaml --atlas gone",
                "inventory: gone: cannot be read: No such file or directory (os error 2)",
            ),
            ("--config good.yaml --atlas folder", "inventory: folder: is a directory; a JSON file is needed"),
            (
                "--config good.yaml --atlas loop",
                "inventory: loop: cannot be read: Too many levels of symbolic links (os error 40)",
            ),
        ] {
            assert_eq!(refusal(&mut program(folder.path(), &format!("{verb} {line}"))).await, wanted);
        }
    }
}

#[tokio::test]
async fn every_problem_of_a_configuration_is_a_line_with_its_place() {
    let folder = folder();
    fs::write(folder.path().join("bad.yaml"), "prot: 1\nport: 1\nport: 2\nssh: 5\notlp: {intervl: 3s}\n")
        .unwrap();
    assert_eq!(
        refusal(&mut program(folder.path(), "run --config bad.yaml --atlas atlas.json")).await,
        "bad.yaml:1:1: prot: unknown key; did you mean port?\n\
         bad.yaml:3:1: port: given twice (first in line 2)\n\
         bad.yaml:4:1: ssh: 5 where keys and values are needed\n\
         bad.yaml:5:8: otlp.intervl: unknown key; did you mean interval?"
    );
}

#[tokio::test]
async fn an_atlas_that_is_none_is_refused_with_the_place() {
    let folder = folder();
    for (content, wanted) in [
        ("", ":1:1: is empty; a JSON array is needed"),
        ("hello: yaml", ":1:1: is no JSON: expected value"),
        ("{\"a\": 1}", ":1:1: is no array of targets: invalid type: map, expected a sequence"),
        ("[\n{\"targets\": [\"a", ":2:15: ends in the middle: EOF while parsing a string"),
        ("[]", ": holds no target (no row with the job vmware-esxi or vcenter that is wanted)"),
        (
            "[{\"labels\": {\"job\": \"vmware-esxi\", \"name\": \"n1\", \"site\": \"nowhere\"}}]",
            ": holds no target (no row with the job vmware-esxi or vcenter that is wanted); \
             skipped: 1 × site names no region (as in row 1, \"n1\")",
        ),
    ] {
        fs::write(folder.path().join("bad.json"), content).unwrap();
        let said = refusal(&mut program(folder.path(), "check --atlas bad.json")).await;
        assert_eq!(said, format!("inventory: bad.json{wanted}"));
    }
    File::create(folder.path().join("bad.json")).unwrap().set_len(50_000_001).unwrap();
    let said = refusal(&mut program(folder.path(), "check --atlas bad.json")).await;
    assert_eq!(said, "inventory: bad.json: is larger than 50 MB, the limit of an inventory file");
}

#[tokio::test]
async fn rows_that_can_not_be_used_are_told_by_check() {
    let folder = folder();
    let rows = json!([
        atlas_row("n1", "eu-de-1a"),
        atlas_row("n1", "eu-de-1a"),
        atlas_row("N1", "eu-de-1b"),
        {"labels": {"job": "vmware-esxi", "site": "eu-de-1a"}},
        {"labels": {"job": "vcenter"}},
        5
    ]);
    fs::write(folder.path().join("rows.json"), rows.to_string()).unwrap();
    let wanted = "inventory: rows of the atlas that can't be used: \
         2 × address of another row, with another site (as in n1.cc.eu-de-1.cloud.sap, \"eu-de-1a\" beside \"eu-de-1b\"); \
         1 × no label name (as in row 4); 1 × no label server_name (as in row 5); \
         1 × row is no object with labels (as in row 6)";
    let told = output(&mut program(folder.path(), "check --atlas rows.json")).await;
    assert_eq!(told.status.code(), Some(0));
    let told = text(&told.stdout);
    assert!(told.lines().any(|line| line == format!("note: {wanted}")), "{told}");
    let told = output(&mut program(folder.path(), "check --atlas rows.json --format json")).await;
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!((&told["notes"], &told["hosts"].as_array().unwrap().len()), (&json!([wanted]), &1));
}

#[tokio::test]
async fn a_source_that_is_away_is_told_by_check_in_its_exit_code_too() {
    let folder = folder();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = fs::read_to_string(folder.path().join("good.yaml")).unwrap();
    let server = format!("inventory: {{http_sd: {{url: 'http://{nobody}/'}}, ");
    fs::write(folder.path().join("away.yaml"), config.replace("inventory: {", &server)).unwrap();
    let told = output(&mut program(folder.path(), "check --config away.yaml")).await;
    assert_eq!(told.status.code(), Some(1));
    let told = text(&told.stdout);
    assert!(told.contains(&format!("note: inventory: http_sd http://{nobody}/: ")), "{told}");
    assert!(told.contains("nobody of it is known until it answers"), "{told}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = fs::read_to_string(folder.path().join("good.yaml")).unwrap();
    let config = config.replace("127.0.0.1:0", &address.to_string());
    fs::write(folder.path().join("taken.yaml"), config).unwrap();
    let said = refusal(&mut program(folder.path(), "run --config taken.yaml")).await;
    assert_eq!(said, format!("prometheus.listen: {address}: Address already in use (os error 98)"));
}

#[tokio::test]
async fn secrets_that_are_none_are_refused_by_the_name_of_their_file() {
    let folder = folder();
    let key =
        russh::keys::PrivateKey::random(&mut russh::keys::key::safe_rng(), russh::keys::Algorithm::Ed25519);
    let key = key.unwrap();
    let locked = key.encrypt(&mut russh::keys::key::safe_rng(), "hunter3").unwrap();
    let pem = |key: &russh::keys::PrivateKey| key.to_openssh(Default::default()).unwrap().to_string();
    for (name, content) in [
        ("empty", ""),
        ("newline", "\n"),
        ("good", "hunter2\n"),
        ("key", &pem(&key)),
        ("locked", &pem(&locked)),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    for (variable, file, wanted) in [
        ("ESXI_PASSWORD_FILE", "gone", "cannot read gone: No such file or directory (os error 2)"),
        ("ESXI_PASSWORD_FILE", "empty", "empty is empty"),
        ("ESXI_PASSWORD_FILE", "newline", "newline is empty"),
        ("ESXI_KEY_FILE", "gone", "cannot read gone: No such file or directory (os error 2)"),
        ("ESXI_KEY_FILE", "good", "good holds no private key: Could not read key"),
        (
            "ESXI_KEY_FILE",
            "locked",
            "locked is protected by a passphrase: put it into a file and name that (key_passphrase_file or \
             ESXI_KEY_PASSPHRASE_FILE)",
        ),
    ] {
        let mut command = program(folder.path(), "check --config good.yaml");
        let said = refusal(command.env_remove("ESXI_PASSWORD").env(variable, file)).await;
        assert_eq!(said, format!("{variable}: {wanted}"));
    }
    for (variable, file) in [("ESXI_PASSWORD_FILE", "good"), ("ESXI_KEY_FILE", "key")] {
        let mut command = program(folder.path(), "check --config good.yaml");
        let good = output(command.env_remove("ESXI_PASSWORD").env(variable, file)).await;
        assert_eq!((good.status.code(), text(&good.stderr)), (Some(0), String::new()));
    }
}

/// A pipe whose reader has gone.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[tokio::test]
async fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one_line() {
    let folder = folder();
    for (line, code) in [
        ("once --config good.yaml --format table", 1),
        ("once --config good.yaml --format json", 1),
        ("once --config good.yaml --format prometheus", 1),
        ("check --config good.yaml --format text", 0),
        ("check --config good.yaml --format json", 0),
        ("demo --hosts 2 --duration 30s", 0),
    ] {
        let mut command = program(folder.path(), line);
        let mut child = command.stdout(closed_pipe()).stderr(Stdio::piped()).spawn().unwrap();
        let ended = in_time(line, child.wait()).await.unwrap();
        let mut said = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut child.stderr.take().unwrap(), &mut said).await.unwrap();
        assert!(ended.code() == Some(code) && !said.contains("panicked"), "{line}: {ended} {said}");

        let full = File::options().write(true).open("/dev/full").unwrap();
        let full = in_time(
            line,
            program(folder.path(), line)
                .stdout(full)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
                .wait_with_output(),
        );
        let full = full.await.unwrap();
        let said = text(&full.stderr);
        let said = said.lines().last().unwrap_or_default();
        assert_eq!(
            (full.status.code(), said),
            (Some(2), "writing the result: No space left on device (os error 28)")
        );
    }
    let mut unheard = program(folder.path(), "run --config gone");
    let unheard = unheard.stderr(File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(in_time("the refusal", unheard.status()).await.unwrap().code(), Some(2));
}

/// The program against an estate.
fn at(estate: &Estate, line: &str) -> Command {
    let (file, env) = estate.write_config();
    let mut command = program(estate.folder.path(), line);
    command.envs(env).env("CONFIG_FILE", file);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_any_characters_works_also_with_a_newline_after_it() {
    let estate = Estate::with_password(1, 1, Some(ODD_PASSWORD)).await;
    let once = output(&mut at(&estate, "once")).await;
    assert_eq!(once.status.code(), Some(0), "{}", text(&once.stdout));

    let file = estate.folder.path().join("password");
    fs::write(&file, format!("{ODD_PASSWORD}\n")).unwrap();
    let mut command = at(&estate, "once");
    for account in ["ESXI", "VCENTER"] {
        command.env_remove(format!("{account}_PASSWORD")).env(format!("{account}_PASSWORD_FILE"), &file);
    }
    let once = output(&mut command).await;
    assert_eq!(once.status.code(), Some(0), "{}", text(&once.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_that_can_not_be_written_is_the_visits_reason_and_broken_host_keys_are_told() {
    let estate = Estate::new(1, 0).await;
    let (file, _) = estate.write_config();
    let config = fs::read_to_string(&file).unwrap();
    let state = estate.folder.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("known_hosts"), "# mine\nesx1 ssh-ed25519 AAAA\nnonsense\n").unwrap();
    let once = output(&mut at(&estate, "once -v")).await;
    let said = text(&once.stderr);
    let broken = "passed over as no valid entries: line 2, 3";
    assert!(once.status.success() && said.matches(broken).count() == 1, "{said}");

    // Nobody can make a folder there, not even root.
    let no_state = config.replace(&state.display().to_string(), "/proc/nowhere");
    fs::write(estate.folder.path().join("no-state.yaml"), no_state).unwrap();
    let mut command = at(&estate, "once --format json");
    let once = output(command.env("CONFIG_FILE", "no-state.yaml")).await;
    let found: Value =
        serde_json::from_slice(&once.stdout).unwrap_or_else(|_| panic!("{}", text(&once.stderr)));
    let host = &found["hosts"][0];
    // The guard comes first: what it can't remember, it does not let be tried.
    assert_eq!((once.status.code(), &host["reason"]), (Some(1), &json!("auth_guarded")), "{host}");
    assert!(host["message"].as_str().unwrap().contains("/proc/nowhere/"), "{host}");
    let volatile = fs::read_to_string(estate.folder.path().join("no-state.yaml")).unwrap();
    fs::write(estate.folder.path().join("no-state.yaml"), volatile + "\nlockout: {volatile: true}\n")
        .unwrap();
    let mut command = at(&estate, "once --format json");
    let once = output(command.env("CONFIG_FILE", "no-state.yaml")).await;
    let found: Value =
        serde_json::from_slice(&once.stdout).unwrap_or_else(|_| panic!("{}", text(&once.stderr)));
    let host = &found["hosts"][0];
    assert_eq!((once.status.code(), &host["reason"]), (Some(1), &json!("host_key_unknown")), "{host}");
    assert!(host["message"].as_str().unwrap().contains("/proc/nowhere/known_hosts"), "{host}");

    let at_a_file = config.replace(&state.display().to_string(), "/dev/null");
    fs::write(estate.folder.path().join("no-state.yaml"), at_a_file).unwrap();
    let mut command = at(&estate, "once");
    let said = refusal(command.env("CONFIG_FILE", "no-state.yaml")).await;
    assert_eq!(said, "read known hosts /dev/null/known_hosts: Not a directory (os error 20)");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_seen_anywhere_and_the_end_is_quick_although_everything_hangs() {
    let (password, header) = ("SECRET-pass", "SECRET-header");
    let estate = Estate::with_password(3, 1, Some(password)).await;
    estate.fleet.set_fault(1, HostFault::WrongPassword);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let log = File::create(estate.folder.path().join("log")).unwrap();
    let (file, _) = estate.write_config();
    let config = fs::read_to_string(&file).unwrap().replace("127.0.0.1:0", &free.to_string());
    fs::write(estate.folder.path().join("run.yaml"), config).unwrap();
    let secret = |command: &mut Command| {
        command
            .env("CONFIG_FILE", "run.yaml")
            .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization={header}"));
    };
    let mut command = at(&estate, "run -vv");
    secret(&mut command);
    let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    estate.arrives("esxi.host.ssh.up", &[("hostsystem", &estate.host(0))], 1.0).await;
    estate.arrives("esxi.host.ssh.up", &[("hostsystem", &estate.host(1))], 0.0).await;
    estate.arrives("esxi.vcenter.up", &[], 1.0).await;
    let is_told = |seen: &esxi_otel_agent::simulator::sink::Seen| {
        !seen.spans.is_empty() && seen.logs.iter().any(|log| log.body.contains("auth_failed"))
    };
    estate.sink.wait_until(is_told, LIMIT).await.unwrap();

    let mut everything = estate.sink.seen(|seen| {
        assert!(
            seen.messages.iter().any(|m| m.headers.get("authorization").is_some_and(|value| value == header))
        );
        format!("{:?} {:?} {:?}", seen.spans, seen.logs, seen.resource)
    });
    everything += &page(free);
    let process = format!("/proc/{}/cmdline", child.id().unwrap());
    everything += &fs::read_to_string(process).unwrap();
    for format in ["text", "json"] {
        let mut check = at(&estate, &format!("check -vv --format {format}"));
        secret(&mut check);
        let check = output(&mut check).await;
        assert!(check.status.success());
        everything += &(text(&check.stdout) + &text(&check.stderr));
    }

    for host in 0..3 {
        estate.fleet.set_fault(host, HostFault::HangAtCommand);
    }
    estate.sink.set_fault(Some(esxi_otel_agent::simulator::sink::Fault::Hang));
    let began = Instant::now();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let ended = in_time("the end", child.wait()).await.unwrap();
    assert!(ended.success() && began.elapsed() < Duration::from_secs(10), "{ended} {:?}", began.elapsed());

    let log = fs::read_to_string(estate.folder.path().join("log")).unwrap();
    assert!(log.contains("auth_failed"), "{log}");
    everything += &log;
    for secret in [password, header] {
        assert!(!everything.contains(secret), "{secret}");
    }
}

fn page(address: SocketAddr) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut stream, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_atlas_that_turns_bad_is_said_once_and_seen_in_the_metrics() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&[]).await;
    let address = agent.handle.web.unwrap();
    estate.arrives("esxi.host.ssh.up", &[], 1.0).await;
    let atlas = estate.folder.path().join("atlas.json");
    let error = |value: &'static str| {
        until("the inventory's error", move || {
            page(address)
                .contains(&format!("esxi_agent_inventory_error{{source=\"atlas\"}} {value}\n"))
                .then_some(())
        })
    };
    fs::write(&atlas, "[]").unwrap();
    error("1").await;
    fs::write(&atlas, "}{").unwrap();
    assert!(page(address).contains("esxi_agent_targets{kind=\"host\"} 1\n"), "the last good one stands");
    estate.write_atlas([0]);
    error("0").await;
    agent.stop().await;
}
