//! Visits: what becomes of a host's answers, its silence and its sessions.

use super::peer::{Commands, Login, PASSWORD, PATIENCE, Peer, Say, Scripts, until};
use super::{Agent, echo, host};
use esxi_otel_agent::accounts::guard::Guard;
use esxi_otel_agent::accounts::{Account, Accounts, AccountsConfig, Proof, Secret, SecretSource};
use esxi_otel_agent::collectors::HostCollector;
use esxi_otel_agent::collectors::critical_service::CriticalService;
use esxi_otel_agent::config::{CriticalServiceConfig, NotInstalled, Service, SshConfig};
use esxi_otel_agent::metric::Sample;
use esxi_otel_agent::outcome::FailureReason;
use esxi_otel_agent::poller::visit::{Visited, Visitor};
use esxi_otel_agent::span::PastSpans;
use esxi_otel_agent::stats::Stats;
use rustix::process::{Pid, test_kill_process_group};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

struct InitD(tempfile::TempDir);

/// With `hang` a script hangs, and says so once its keeper listens to a SIGTERM: one that came sooner would end
/// the keeper, and nobody would kill the script.
const HANG: &str = r#"hang(){
until grep -q '^SigCgt.*[4-7c-f]...$' /proc/$PPID/status; do sleep 0.01; done
read _ _ _ k _ </proc/$PPID/stat
echo $$ >"${0%/*}/hung.$k"
exec sleep 60
}"#;

impl InitD {
    /// Each script is written by a process of its own: what another test starts meanwhile would inherit the
    /// open file from this one, and until it has let go of it nobody can execute the script (ETXTBSY).
    fn new(scripts: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in scripts {
            let mut writer = Command::new("/bin/sh")
                .args(["-c", r#"cat >"$0" && chmod 755 "$0""#])
                .arg(folder.path().join(name))
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            write!(writer.stdin.take().unwrap(), "#!/bin/sh\n{HANG}\n{text}\n").unwrap();
            assert!(writer.wait().unwrap().success());
        }
        Self(folder)
    }

    fn commands(&self) -> Commands {
        // As on the host, the scripts seem to stand below `init.d`.
        let folder = self.0.path().to_str().unwrap().to_owned();
        // The time of a watchdog is up when its script hangs, and what it should have been is taken down. So
        // nobody has to wait for it, and none bites a script that is merely slow.
        let profile = format!(
            "sleep(){{\necho \"$1\" >>'{folder}/limits'\nread _ _ _ k _ </proc/self/stat\n\
             until [ -s '{folder}/hung.'$k ]; do command sleep 0.02; done\n}}\n"
        );
        Commands::Shell(Scripts { folder, profile })
    }

    /// The limits of the scripts, in seconds.
    fn limits(&self) -> Vec<String> {
        let limits = std::fs::read_to_string(self.0.path().join("limits")).unwrap();
        limits.lines().map(str::to_owned).collect()
    }

    /// Waits until those that were killed are gone: they stand until their keepers have taken notice.
    async fn until_gone(&self) {
        for file in std::fs::read_dir(self.0.path()).unwrap().map(Result::unwrap) {
            if file.file_name().to_str().unwrap().starts_with("hung.") {
                let script = std::fs::read_to_string(file.path()).unwrap().trim().parse().unwrap();
                let group = Pid::from_raw(script).unwrap();
                until(|| test_kill_process_group(group).is_err(), || format!("{group:?} is gone")).await;
            }
        }
    }
}

struct Round {
    visitor: Visitor,
    accounts: Arc<Accounts>,
    guard: Arc<Guard>,
    due: Vec<Arc<dyn HostCollector>>,
    stats: Arc<Stats>,
    _folder: tempfile::TempDir,
}

impl Round {
    fn new(services: &[&str], change: impl FnOnce(&mut SshConfig)) -> Self {
        let service = |name: &&str| Service { name: (*name).into(), reported_as: (*name).into() };
        let collector = CriticalService::new(&CriticalServiceConfig {
            interval: Duration::from_secs(60),
            stale_after: Duration::from_secs(180),
            max_in_flight: 8,
            services: services.iter().map(service).collect(),
            not_installed: NotInstalled::Stopped,
        });
        let proof = Proof::Password(SecretSource::Value(Secret::new(PASSWORD)));
        let esxi = Some(Account { user: "root".into(), proof });
        let accounts = Arc::new(Accounts::new(AccountsConfig { esxi, ..AccountsConfig::default() }));
        let Agent { connector, guard, stats, folder } = Agent::with(change);
        let visitor = Visitor::new(connector, accounts.clone(), stats.clone(), PastSpans::default());
        Self { visitor, accounts, guard, due: vec![Arc::new(collector)], stats, _folder: folder }
    }

    /// How many visits had such a session.
    fn used(&self, kind: &str) -> f64 {
        let samples = self.stats.samples();
        let mut used = samples.iter().filter(|s| s.def.name == "esxi.agent.ssh.sessions.used");
        used.find(|s| s.attributes.get("kind") == Some(kind)).map_or(0.0, |s| s.value)
    }

    async fn visit(&self, peer: &Peer) -> Visited {
        self.visitor.visit(&Arc::new(host(peer.port)), &self.due, Duration::from_secs(30)).await
    }
}

/// What a visit says of the services, `name=value` or `name:reason`.
fn shown(visited: &Visited) -> Vec<String> {
    let samples = visited.reports.iter().flat_map(|r| &r.readings).flat_map(|r| &r.samples);
    let show = |s: &Sample| {
        let service = s.attributes.get("service").unwrap();
        s.attributes
            .get("reason")
            .map_or_else(|| format!("{service}={}", s.value), |why| format!("{service}:{why}"))
    };
    samples.map(show).collect()
}

#[tokio::test]
async fn a_visit_says_of_each_service_what_its_script_says_and_keeps_the_session() {
    let init =
        InitD::new(&[("hostd", "echo hostd is running."), ("vpxa", "echo vpxa is not running; exit 3")]);
    let peer = Peer::start(Login::KeyboardInteractive, init.commands()).await;
    let round = Round::new(&["hostd", "vpxa"], |_| {});
    for _ in 0..3 {
        let visited = round.visit(&peer).await;
        visited.outcome.as_ref().unwrap();
        assert_eq!(shown(&visited), ["hostd=1", "vpxa=0"]);
        assert_eq!(visited.reports[0].collector, "critical_service");
    }
    assert_eq!(peer.seen(), (1, 3));
    round.visitor.close_all().await;
    peer.until("the session is over", |state| state.open == 0).await;
    assert_eq!(shown(&round.visit(&peer).await).len(), 2, "after that, sessions last for one visit");
    peer.until("the session is over", |state| state.open == 0).await;
}

#[tokio::test]
async fn without_reuse_a_session_lasts_for_one_visit_and_a_forgotten_host_has_none() {
    let init = InitD::new(&[("hostd", "echo hostd is running.")]);
    let peer = Peer::start(Login::KeyboardInteractive, init.commands()).await;
    let round = Round::new(&["hostd"], |config| config.reuse_sessions = false);
    for _ in 0..2 {
        assert_eq!(shown(&round.visit(&peer).await), ["hostd=1"]);
    }
    assert_eq!(peer.state().sessions, 2);
    peer.until("the sessions are over", |state| state.open == 0).await;
    let round = Round::new(&["hostd"], |_| {});
    round.visit(&peer).await.outcome.unwrap();
    assert_eq!(peer.state().open, 1);
    round.visitor.forget(&host(peer.port).id());
    peer.until("the session is over", |state| state.open == 0).await;
}

#[tokio::test]
async fn a_kept_session_that_died_is_replaced_within_the_visit() {
    let init = InitD::new(&[("hostd", "echo hostd is running.")]);
    let peer = Peer::start(Login::KeyboardInteractive, init.commands()).await;
    let round = Round::new(&["hostd"], |_| {});
    round.visit(&peer).await.outcome.unwrap();
    // The end of the connection may or may not have been noticed when the next visit begins.
    peer.cut_all();
    assert_eq!(shown(&round.visit(&peer).await), ["hostd=1"]);
    assert_eq!(peer.state().sessions, 2);
    // A host that lets nobody in any more is not asked twice.
    peer.cut_all();
    peer.state().login = Login::NoMethodLeft;
    let visited = round.visit(&peer).await;
    assert_eq!(visited.outcome.unwrap_err().reason, FailureReason::AuthFailed);
    assert_eq!(peer.state().connections, 3);
}

#[tokio::test]
async fn a_host_that_refuses_channels_on_a_kept_session_gets_a_new_session() {
    let init = InitD::new(&[("hostd", "echo hostd is running.")]);
    let peer = Peer::start(Login::KeyboardInteractive, init.commands()).await;
    let round = Round::new(&["hostd"], |_| {});
    round.visit(&peer).await.outcome.unwrap();
    peer.state().commands = Commands::NoChannel;
    let visited = round.visit(&peer).await;
    assert_eq!(visited.outcome.unwrap_err().reason, FailureReason::SessionLimit);
    assert_eq!(peer.state().sessions, 2, "tried once anew");
    let replaced = round.stats.samples().iter().any(|s| s.def.name == "esxi.agent.ssh.sessions.replaced");
    assert!(replaced);
}

#[tokio::test]
async fn a_hung_service_is_its_own_problem_and_no_failure_of_ssh() {
    let init = InitD::new(&[("hostd", "echo hostd is running."), ("vpxa", "hang")]);
    let peer = Peer::start(Login::KeyboardInteractive, init.commands()).await;
    let round = Round::new(&["hostd", "vpxa"], |config| config.command_timeout = Duration::from_secs(20));
    let visited = round.visit(&peer).await;
    visited.outcome.as_ref().unwrap();
    assert_eq!(shown(&visited), ["hostd=1", "vpxa:command_timeout"]);
    assert!(!visited.reports[0].readings.iter().any(|r| &*r.part == "vpxa"), "its last status stands");
    assert!(init.limits().iter().all(|limit| limit == "17"), "early enough for the host itself to say so");
}

#[tokio::test]
async fn what_hung_is_left_out_for_longer_and_longer_and_its_script_is_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let (started, heal) = (folder.path().join("started"), folder.path().join("heal"));
    let vpxa =
        format!("echo x >>{}; [ -e {} ] || hang; echo vpxa is running", started.display(), heal.display());
    let init = InitD::new(&[("hostd", "echo hostd is running."), ("vpxa", &vpxa)]);
    let peer = Peer::start(Login::KeyboardInteractive, init.commands()).await;
    let round = Round::new(&["hostd", "vpxa"], |_| {});
    let starts = || std::fs::read_to_string(&started).unwrap_or_default().lines().count();
    let (hung, skipped) = (["hostd=1", "vpxa:command_timeout"], ["hostd=1", "vpxa:skipped_hung"]);
    for (expected, times) in [(hung, 1), (skipped, 1), (hung, 2), (skipped, 2), (skipped, 2)] {
        let visited = round.visit(&peer).await;
        visited.outcome.as_ref().unwrap();
        assert_eq!(shown(&visited), expected);
        assert_eq!(starts(), times);
        init.until_gone().await;
    }
    std::fs::write(heal, "").unwrap();
    for _ in 0..2 {
        assert_eq!(shown(&round.visit(&peer).await), ["hostd=1", "vpxa=1"]);
    }
}

#[tokio::test]
async fn a_host_on_which_everything_is_left_out_is_visited_all_the_same() {
    let init = InitD::new(&[("vpxa", "hang")]);
    let peer = Peer::start(Login::KeyboardInteractive, init.commands()).await;
    let round = Round::new(&["vpxa"], |_| {});
    assert_eq!(shown(&round.visit(&peer).await), ["vpxa:command_timeout"]);
    let visited = round.visit(&peer).await;
    visited.outcome.as_ref().unwrap();
    assert_eq!(shown(&visited), ["vpxa:skipped_hung"]);
    // A visit that somebody asks for asks everything.
    round.visitor.ask_all();
    init.until_gone().await;
    assert_eq!(shown(&round.visit(&peer).await), ["vpxa:command_timeout"]);
}

#[tokio::test]
async fn a_session_is_refreshed_at_its_time() {
    let init = InitD::new(&[("hostd", "echo hostd is running.")]);
    let peer = Peer::start(Login::KeyboardInteractive, init.commands()).await;
    let often = Duration::from_nanos(1);
    let round = Round::new(&["hostd"], |config| config.refresh_sessions = Some(often));
    for _ in 0..3 {
        assert_eq!(shown(&round.visit(&peer).await), ["hostd=1"]);
    }
    assert_eq!(peer.state().sessions, 3);
    peer.until("the old sessions are over", |state| state.open == 1).await;
    assert_eq!((round.used("new"), round.used("kept")), (3.0, 0.0));

    // A rejected login shows what the kept session hid.
    peer.state().login = Login::NoMethodLeft;
    assert_eq!(round.visit(&peer).await.outcome.unwrap_err().reason, FailureReason::AuthFailed);
    peer.until("the refused session's predecessor is over", |state| state.open == 0).await;

    let rarely = Round::new(&["hostd"], |config| config.refresh_sessions = Some(Duration::from_secs(86_400)));
    peer.state().login = Login::KeyboardInteractive;
    for _ in 0..3 {
        assert_eq!(shown(&rarely.visit(&peer).await), ["hostd=1"]);
    }
    assert_eq!((rarely.used("new"), rarely.used("kept")), (1.0, 2.0));
}

#[tokio::test]
async fn a_session_that_works_is_not_given_up_for_a_login_that_the_guard_holds_back() {
    let init = InitD::new(&[("hostd", "echo hostd is running.")]);
    let peer = Peer::start(Login::KeyboardInteractive, init.commands()).await;
    let round = Round::new(&["hostd"], |config| config.refresh_sessions = Some(Duration::from_nanos(1)));
    round.visit(&peer).await.outcome.unwrap();
    let host = host(peer.port);
    let credential = round.accounts.for_host(&host).await.unwrap().credential;
    round.guard.permit(&host.id(), credential).await.unwrap().rejected();
    for _ in 0..2 {
        assert_eq!(shown(&round.visit(&peer).await), ["hostd=1"]);
    }
    assert_eq!(peer.state().sessions, 1);
    assert_eq!((round.used("new"), round.used("kept")), (1.0, 2.0));
}

#[tokio::test]
async fn a_host_that_answers_nothing_fails_the_visit_and_says_nothing_of_services() {
    let (soon, long) = (Duration::from_millis(500), Duration::from_secs(20));
    for (say, limit, reason) in [
        (vec![Say::Out(b"Welcome\n"), Say::Stall], soon, FailureReason::CommandTimeout),
        (vec![Say::Flood], long, FailureReason::AnswerTooLarge),
        (vec![Say::Out(b"no shell for you\n"), Say::Exit(1), Say::Close], long, FailureReason::CommandFailed),
        (vec![Say::Out(b"?\n"), Say::Exit(0), Say::Close], long, FailureReason::AnswerUnreadable),
        (vec![Say::Cut], long, FailureReason::ConnectionLost),
    ] {
        let peer = Peer::start(Login::KeyboardInteractive, Commands::Play(say)).await;
        let round = Round::new(&["hostd"], |config| config.command_timeout = limit);
        let visited = round.visit(&peer).await;
        assert_eq!(visited.outcome.as_ref().unwrap_err().reason, reason);
        assert!(visited.reports.is_empty(), "{visited:?}");
    }
}

#[tokio::test]
async fn a_visit_ends_at_its_limit_whatever_it_waits_for() {
    let peer = Peer::start(Login::SilentAfterPassword, echo()).await;
    let round = Round::new(&["hostd"], |config| config.login_timeout = Duration::from_secs(60));
    let host = Arc::new(host(peer.port));
    let visit = round.visitor.visit(&host, &round.due, Duration::from_millis(500));
    let visited = tokio::time::timeout(PATIENCE, visit).await.unwrap();
    assert_eq!(visited.outcome.unwrap_err().reason, FailureReason::CommandTimeout);
    peer.until("the socket is closed", |state| state.open == 0).await;
}
