//! The critical service collector: does `/etc/init.d/<service> status` say that the service runs?

use super::{Answer, HostCollector, Metrics, Question, Verdict, command};
use crate::config::{CriticalServiceConfig, NotInstalled, Service};
use crate::inventory::Host;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Sample, Unit};
use crate::outcome::FailureReason;
use crate::readings::Reading;
use std::sync::Arc;
use std::time::Duration;

/// Where ESXi keeps its init scripts.
const INIT_D: &str = "/etc/init.d";

/// `esxi.critical_service.status`
pub static STATUS: MetricDef = MetricDef {
    name: "esxi.critical_service.status",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "Whether the service runs on the host, as its init script says: 1 running, 0 stopped.",
    attributes: &["hostsystem", "service", "site"],
};

/// `esxi.critical_service.problem`
pub static PROBLEM: MetricDef = MetricDef {
    name: "esxi.critical_service.problem",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "1 while it can't be told whether the service runs, or while it is not installed.",
    attributes: &["hostsystem", "reason", "service", "site"],
};

/// The metrics of this collector.
pub static METRICS: Metrics = &[&STATUS, &PROBLEM];

/// What an init script's answer says of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceState {
    /// It runs.
    Running,
    /// It does not run.
    Stopped,
    /// There is no init script of its name.
    NotInstalled,
    /// The answer says neither, or both.
    Unreadable,
}

/// Reads the answer of `/etc/init.d/<service> status`.
///
/// Written for lines that nobody has seen yet, so a wrong answer is worse than none:
///
/// * Text decides. No sourced fact says with what status a script exits for a stopped service, so the
///   exit status alone never means running or stopped. 126 and 127 count only beside the shell's own words.
/// * A line counts if it *ends* in what it says, full stop and capitals aside: `X is running`, `X is not
///   running`, `X is stopped`. So neither `checking whether X is running...` nor `X is running out of
///   memory` means running. The name in the line is not compared: nsx-opsagent prints `opsAgent`.
/// * Lines that contradict each other make the whole answer unreadable.
pub fn decide(lines: &[String], exit: i32) -> ServiceState {
    let mut said = lines.iter().filter_map(|line| says(line));
    if let Some(first) = said.next() {
        return if said.all(|other| other == first) { first } else { ServiceState::Unreadable };
    }
    if exit == 127 && lines.iter().any(|line| misses_script(line)) {
        ServiceState::NotInstalled
    } else {
        ServiceState::Unreadable
    }
}

/// Whether the shell says that the init script is missing: `sh: /etc/init.d/x: not found` (busybox), `…: No
/// such file or directory` (others). A script that misses one of its own tools exits with 127, too, but
/// then the last word is the tool's: `/etc/init.d/x: line 12: esxcli: not found`.
fn misses_script(line: &str) -> bool {
    let line = line.trim_end();
    let subject =
        line.strip_suffix(": not found").or_else(|| line.strip_suffix(": No such file or directory"));
    subject
        .and_then(|subject| subject.split([' ', ':']).next_back())
        .is_some_and(|word| word.contains("init.d/"))
}

/// Words that make a line a question, a condition or a story.
const DOUBT: &[&str] = &[
    "whether",
    "if",
    "unless",
    "until",
    "when",
    "while",
    "check",
    "checking",
    "verify",
    "verifying",
    "wait",
    "waiting",
    "should",
    "cannot",
    "can't",
    "expected",
    "was",
];

/// What one line says, if it says anything.
fn says(line: &str) -> Option<ServiceState> {
    let line = line.trim().to_lowercase();
    // One full stop is a sentence's; three are somebody still at work.
    let line =
        if line.ends_with("..") { return None } else { line.strip_suffix('.').unwrap_or(&line).trim_end() };
    // `vpxa: running` is as good as `vpxa is running`.
    let line = without_pid(line).replace(": ", " is ");
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.iter().any(|word| DOUBT.contains(word)) || line.ends_with('?') {
        return None;
    }
    match words.as_slice() {
        [.., "not", "running" | "started" | "active" | "up"] | [.., "isn't", "running"] => {
            Some(ServiceState::Stopped)
        }
        [_, .., "is" | "are", "stopped" | "dead" | "inactive" | "down"] => Some(ServiceState::Stopped),
        [_, .., "is" | "are", "running" | "started"] => Some(ServiceState::Running),
        [_, .., "already", "running"] => Some(ServiceState::Running),
        ["stopped"] | [_, "stopped"] => Some(ServiceState::Stopped),
        ["running"] | [_, "running"] => Some(ServiceState::Running),
        _ => None,
    }
}

/// The line without the process id that a script may add to what it says: `… (pid 2099)`, `…, pid 2099`,
/// `… with pid: 2099`, `… pid=2099`.
fn without_pid(line: &str) -> &str {
    let Some(at) = line.rfind("pid") else { return line };
    let (before, id) = line.split_at(at);
    let id = id.trim_start_matches("pids").trim_start_matches("pid");
    let is_id = |c: char| c.is_ascii_digit() || matches!(c, ' ' | ':' | '=' | ',' | ')' | '#');
    if !id.chars().all(is_id)
        || !id.contains(|c: char| c.is_ascii_digit())
        || before.ends_with(char::is_alphanumeric)
    {
        return line;
    }
    let before = before.trim_end_matches(['(', ' ', ',', ';']);
    ["with", "as"].iter().find_map(|word| before.strip_suffix(word)).unwrap_or(before).trim_end()
}

/// The collector.
#[derive(Debug)]
pub struct CriticalService {
    config: CriticalServiceConfig,
    questions: Vec<Question>,
}

impl CriticalService {
    /// Asks for the services of `config`.
    pub fn new(config: &CriticalServiceConfig) -> Self {
        Self::below(INIT_D, config)
    }

    /// With the init scripts in another folder.
    pub fn below(folder: &str, config: &CriticalServiceConfig) -> Self {
        let question = |service: &Service| Question {
            id: service.name.clone(),
            // The name needs no quotes, having been checked; the folder might.
            // `exec`: so the script itself is what is killed at the limit, not a shell that waits for it.
            script: format!("exec {}/{} status", bare_or_quoted(folder), bare_or_quoted(&service.name)),
        };
        Self { config: config.clone(), questions: config.services.iter().map(question).collect() }
    }

    fn attributes(&self, host: &Host, service: &str) -> Attributes {
        let reported_as =
            self.config.services.iter().find(|s| &*s.name == service).map(|s| s.reported_as.clone());
        Attributes::new([
            ("hostsystem", host.address.clone()),
            ("service", reported_as.unwrap_or_else(|| Arc::from(service))),
            ("site", host.site.clone()),
        ])
    }
}

fn bare_or_quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { command::quote(text) }
}

impl HostCollector for CriticalService {
    fn name(&self) -> &'static str {
        "critical_service"
    }

    fn interval(&self) -> Duration {
        self.config.interval
    }

    fn stale_after(&self) -> Duration {
        self.config.stale_after
    }

    fn subject(&self) -> &'static str {
        "service"
    }

    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn read(&self, host: &Host, answer: &Answer) -> Verdict {
        let attributes = self.attributes(host, &answer.question);
        let state =
            answer.result.as_ref().map(|reply| decide(&reply.lines, reply.exit)).map_err(|reason| *reason);
        let status = |value| Some(vec![Sample::new(&STATUS, attributes.clone(), value)]);
        // `None`: the last status stands until it is stale.
        let (status, problem) = match state {
            Ok(ServiceState::Running) => (status(1.0), None),
            Ok(ServiceState::Stopped) => (status(0.0), None),
            Ok(ServiceState::NotInstalled) => match self.config.not_installed {
                NotInstalled::Stopped => (status(0.0), Some(FailureReason::NotInstalled)),
                NotInstalled::Absent => (Some(Vec::new()), Some(FailureReason::NotInstalled)),
            },
            Ok(ServiceState::Unreadable) => (None, Some(FailureReason::AnswerUnreadable)),
            Err(reason) => (None, Some(problem_word(reason))),
        };
        let sample =
            |reason: FailureReason| Sample::new(&PROBLEM, attributes.with("reason", reason.word()), 1.0);
        let problem_part = format!("{} problem", answer.question).into();
        let problem_reading =
            Reading { part: problem_part, samples: problem.map(sample).into_iter().collect() };
        let status = status.map(|samples| Reading { part: answer.question.clone(), samples });
        Verdict { readings: status.into_iter().chain([problem_reading]).collect(), problem }
    }
}

/// The metric's `reason` has few words: an answer that is too large can't be read either.
fn problem_word(reason: FailureReason) -> FailureReason {
    match reason {
        FailureReason::AnswerTooLarge => FailureReason::AnswerUnreadable,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectors::Reply;
    use crate::inventory::Endpoint;

    #[track_caller]
    fn expect(text: &str, exit: i32, state: ServiceState) {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(decide(&lines, exit), state, "{text:?} with exit status {exit}");
    }

    #[test]
    fn lines_that_real_hosts_print_are_understood() {
        for line in ["hostd is running.", "vpxa is running", "ntpd is running", "opsAgent is running"] {
            // The exit status is only a hint, and no good one.
            expect(line, 0, ServiceState::Running);
            expect(line, 1, ServiceState::Running);
        }
        for line in [
            "hostd is not running.",
            "ntpd is not running",
            "vvold is not running.",
            "vsanperfsvc is not running.",
            "net-lbt is not running",
            "openwsmand is not running",
            "sfcbd is not running",
        ] {
            expect(line, 3, ServiceState::Stopped);
            expect(line, 0, ServiceState::Stopped);
        }
        expect("sh: /etc/init.d/nsxa: not found", 127, ServiceState::NotInstalled);
        expect("sh: exec: line 1: /etc/init.d/nsxa: not found", 127, ServiceState::NotInstalled);
        expect("sh: /etc/init.d/nsxa: Permission denied", 126, ServiceState::Unreadable);
    }

    #[test]
    fn wordings_that_nobody_has_seen_yet_are_understood_where_they_are_clear() {
        for line in [
            "HOSTD IS RUNNING",
            "  nsx-proxy is Running.  ",
            "vmware nsx proxy service is running",
            "Status of nsxa: running",
            "nsxa service status: running",
            "vpxa: running",
            "ntpd is already running",
            "ntpd is started",
            "watchdog is running\nhostd is running.",
            "hostd is running (pid 2099123).",
            "hostd is running, pid: 2099123",
            "hostd is running with pid 2099123",
            "hostd (pid 2099123) is running",
            "Status: nsxa is running pid=12",
            "sfcbd is running (pids 12, 13)",
            "watchdog-hostd: PID file /var/run/vmware/watchdog-hostd.PID does not exist\n\nhostd is running.",
        ] {
            expect(line, 0, ServiceState::Running);
        }
        for line in [
            "NSXA IS NOT RUNNING.",
            "vpxa: not running",
            "vpxa: stopped",
            "vpxa stopped.",
            "stopped",
            "nsxa is stopped",
            "nsxa is currently not running",
            "ramdisk root is full\nvvold is not running.",
            "checking whether vpxa is running...\nvpxa is not running",
        ] {
            expect(line, 0, ServiceState::Stopped);
        }
    }

    #[test]
    fn a_line_about_running_that_does_not_say_so_fools_nobody() {
        for line in [
            "",
            "\n\n",
            "checking whether hostd is running...",
            "checking whether hostd is running",
            "Checking if hostd is running:",
            "Is hostd running?",
            "hostd is running out of memory",
            "cannot tell if hostd is running",
            "hostd was running",
            "hostd is running as rapid 7",
            "hostd is running (pid file is stale)",
            "hostd is running low on memory",
            "running /etc/init.d/hostd status",
            "hostd should be running",
            "hostd is running...",
            "usage: hostd {start|stop|status|restart}",
            "Traceback (most recent call last):\n  File \"x\"\nKeyError: 'running'",
            "unknown",
        ] {
            expect(line, 0, ServiceState::Unreadable);
            expect(line, 1, ServiceState::Unreadable);
        }
    }

    #[test]
    fn an_answer_that_says_both_says_nothing() {
        expect("hostd is running.\nhostd is not running.", 0, ServiceState::Unreadable);
    }

    #[test]
    fn exit_status_127_alone_does_not_mean_that_the_script_is_missing() {
        expect("", 127, ServiceState::Unreadable);
        expect("/etc/init.d/vvold: line 12: esxcli: not found", 127, ServiceState::Unreadable);
        expect("sh: /etc/init.d/nsxa: not found", 0, ServiceState::Unreadable);
        expect("bash: line 1: /etc/init.d/nsxa: No such file or directory", 127, ServiceState::NotInstalled);
    }

    fn collector(not_installed: NotInstalled) -> CriticalService {
        let service =
            |name: &str, reported_as: &str| Service { name: name.into(), reported_as: reported_as.into() };
        CriticalService::new(&CriticalServiceConfig {
            interval: Duration::from_secs(60),
            stale_after: Duration::from_secs(180),
            max_in_flight: 1,
            services: vec![service("hostd", "hostd"), service("nsx-opsagent", "opsAgent")],
            not_installed,
        })
    }

    fn read(
        not_installed: NotInstalled,
        result: Result<(&str, i32), FailureReason>,
    ) -> (Vec<String>, Verdict) {
        let endpoint = Endpoint { host: "esx1".into(), port: None };
        let host = Host { address: "esx1".into(), endpoint, site: "eu".into(), labels: Default::default() };
        let result = result.map(|(line, exit)| Reply { lines: vec![line.to_owned()], exit });
        let answer = Answer { question: "nsx-opsagent".into(), result, elapsed: Duration::ZERO };
        let verdict = collector(not_installed).read(&host, &answer);
        let show = |s: &Sample| {
            let pairs: Vec<_> = s.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("{}{{{}}} {}", s.def.prometheus_name(), pairs.join(","), s.value)
        };
        let shown = verdict.readings.iter().flat_map(|r| r.samples.iter().map(show)).collect();
        (shown, verdict)
    }

    const STOPPED_LINE: &str = "esxi_critical_service_status{hostsystem=esx1,service=opsAgent,site=eu} 0";

    #[test]
    fn a_known_state_replaces_the_status_and_ends_the_problem() {
        let (shown, verdict) = read(NotInstalled::Stopped, Ok(("opsAgent is running", 0)));
        assert_eq!(shown, ["esxi_critical_service_status{hostsystem=esx1,service=opsAgent,site=eu} 1"]);
        let parts: Vec<_> = verdict.readings.iter().map(|r| &*r.part).collect();
        assert_eq!(parts, ["nsx-opsagent", "nsx-opsagent problem"]);
        assert_eq!(verdict.problem, None);
        assert_eq!(read(NotInstalled::Stopped, Ok(("opsAgent is not running", 0))).0, [STOPPED_LINE]);
    }

    #[test]
    fn an_unknown_state_leaves_the_last_status_alone_and_names_the_problem() {
        let (shown, verdict) = read(NotInstalled::Stopped, Err(FailureReason::CommandTimeout));
        let problem = "esxi_critical_service_problem{hostsystem=esx1,reason=command_timeout,service=opsAgent,site=eu} 1";
        assert_eq!(shown, [problem]);
        assert_eq!(verdict.readings.len(), 1, "no reading of the status: the last one stands");
        let (shown, _) = read(NotInstalled::Stopped, Ok(("what?", 0)));
        assert!(shown[0].contains("reason=answer_unreadable"));
    }

    #[test]
    fn a_service_that_is_not_installed_is_stopped_or_absent_as_configured() {
        let missing = Ok(("sh: /etc/init.d/nsx-opsagent: not found", 127));
        let problem =
            "esxi_critical_service_problem{hostsystem=esx1,reason=not_installed,service=opsAgent,site=eu} 1";
        assert_eq!(read(NotInstalled::Stopped, missing).0, [STOPPED_LINE, problem]);
        let (shown, verdict) = read(NotInstalled::Absent, missing);
        assert_eq!(shown, [problem]);
        assert_eq!(verdict.readings[0].samples, [], "an empty reading ends an old status");
        assert_eq!(verdict.problem, Some(FailureReason::NotInstalled));
    }

    #[test]
    fn the_question_is_the_init_scripts_own_status() {
        assert_eq!(
            collector(NotInstalled::Absent).questions()[1].script,
            "exec /etc/init.d/nsx-opsagent status"
        );
    }
}
