//! What `check --connect` found, as a table or as JSON.

use crate::commands::count;
use crate::commands::report::{OutcomeRow, dense_table};
use crate::config::SshConfig;
use crate::outcome::Failure;
use crate::steps::Taken;
use comfy_table::{ContentArrangement, Table};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

/// Width of tables that go to no terminal.
const WIDTH: u16 = 120;
/// Up to so many targets are shown step by step.
const IN_DETAIL: usize = 3;

/// The whole report.
#[derive(Debug, Serialize)]
pub(super) struct Connections {
    /// By SSH.
    pub(super) hosts: Vec<Connection>,
    /// By SOAP.
    pub(super) vcenters: Vec<Connection>,
}

/// One host or vCenter.
#[derive(Debug, Serialize)]
pub(super) struct Connection {
    address: String,
    site: String,
    #[serde(skip)]
    failure: Option<Failure>,
    #[serde(flatten)]
    outcome: OutcomeRow,
    steps: Vec<StepRow>,
    #[serde(serialize_with = "with_numbers")]
    facts: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    services: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct StepRow {
    name: &'static str,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl Connection {
    pub(super) fn new(
        address: &str,
        site: &str,
        failure: Option<Failure>,
        took: Duration,
        taken: Taken,
    ) -> Self {
        let step = |step: crate::steps::Step| StepRow {
            name: step.name,
            seconds: step.took.as_secs_f64(),
            reason: step.failure.map(|failure| failure.reason.word()),
        };
        Self {
            address: address.to_owned(),
            site: site.to_owned(),
            outcome: OutcomeRow::new(failure.as_ref(), took.as_secs_f64()),
            failure,
            steps: taken.steps.into_iter().map(step).collect(),
            facts: taken.facts,
            services: BTreeMap::new(),
        }
    }

    pub(super) fn with_services(mut self, services: BTreeMap<String, String>) -> Self {
        self.services = services;
        self
    }

    /// Why it failed, if it is the one of this address.
    pub(super) fn failure_of(&self, address: &str) -> Option<&Failure> {
        self.failure.as_ref().filter(|_| self.address == address)
    }

    fn fact(&self, name: &str) -> &str {
        self.facts.get(name).map_or("", String::as_str)
    }

    /// The IP address that answered, where the address is another one.
    fn ip(&self) -> &str {
        let ip = self.fact("address").rsplit_once(':').map_or("", |(ip, _)| ip);
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        if self.address.contains(ip) { "" } else { ip }
    }

    fn succeeded(&self, step: &str) -> bool {
        self.steps.iter().any(|row| row.name == step && row.reason.is_none())
    }

    /// The method, once it has been accepted.
    fn login(&self) -> &str {
        if self.succeeded("login") { self.fact("method") } else { "" }
    }

    /// `5 of 7` services; `once` tells each of them.
    fn running(&self) -> String {
        let running = self.services.values().filter(|state| *state == "running").count();
        if self.services.is_empty() { String::new() } else { format!("{running} of {}", self.services.len()) }
    }

    /// `4 × 100`: how many pages, and objects on the first one.
    fn pages(&self) -> String {
        match (self.fact("pages"), self.fact("page_size")) {
            ("", _) => String::new(),
            (pages, size) => format!("{pages} × {size}"),
        }
    }

    /// What a vCenter is, and why its certificate is believed.
    fn tls_and_api(&self) -> String {
        let trust = match self.fact("tls_trust") {
            "pinned" => "pinned",
            "ca_file" => "trusted by vcenter.ca_file",
            "system_roots" => "trusted by the system's roots",
            _ => "not verified",
        };
        let indent = " ".repeat(27);
        let mut text =
            format!("{}, {} {}", self.fact("tls"), self.fact("api_type"), self.fact("api_version"));
        let fact = |name| self.fact(name);
        if !fact("proxy").is_empty() {
            let _ = write!(text, "\n{indent}by the proxy {}", fact("proxy"));
        }
        let (subject, issuer) = (fact("certificate_subject"), fact("certificate_issuer"));
        let _ = write!(text, "\n{indent}certificate {trust}: {subject}, issued by {issuer}");
        if !fact("certificate_chain").is_empty() {
            let _ = write!(text, "\n{indent}chain: {}", fact("certificate_chain"));
        }
        let _ = write!(text, "\n{indent}valid until {}", fact("certificate_expires"));
        let _ = write!(text, "\n{indent}SHA-256 {}", fact("certificate_sha256"));
        text
    }

    /// `TLS 1.3, pinned`.
    fn tls_and_trust(&self) -> String {
        let trust = self.fact("tls_trust").replace('_', " ");
        [self.fact("tls"), &trust].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
    }

    /// Whether a vCenter tells what changes, in one word.
    fn hints(&self) -> &'static str {
        match self.fact("hints") {
            "" => "",
            "off" => "off",
            hints if hints.starts_with("none") => "no",
            hints if hints.contains("no events") => "hosts",
            _ => "yes",
        }
    }

    /// The times of these steps in milliseconds; a dash for those that it did not come to.
    fn times(&self, steps: &[&str]) -> Vec<String> {
        let took = |name| self.steps.iter().rfind(|row| row.name == name).map(|row| row.seconds);
        steps.iter().map(|name| took(*name).map_or_else(|| "–".to_owned(), milliseconds)).collect()
    }

    /// Step by step, for a few.
    fn in_detail(&self) -> String {
        let mut text = format!("{}{}\n", self.address, site(&self.site));
        for step in &self.steps {
            let end = step.reason.map_or_else(|| self.learned(step.name), str::to_owned);
            let line =
                format!("  {:13} {:>6} ms  {end}", step.name.replace('_', " "), milliseconds(step.seconds));
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for (service, state) in &self.services {
            let _ = writeln!(text, "    {service:24} {state}");
        }
        text
    }

    /// What a step brought to light.
    fn learned(&self, step: &str) -> String {
        let facts: &[&str] = match step {
            "tcp" => &["address"],
            "key_exchange" => {
                let standing = self.fact("host_key");
                let (key, print) = (self.fact("host_key_algorithm"), self.fact("host_key_fingerprint"));
                let algorithms =
                    [self.fact("key_exchange"), self.fact("cipher"), self.fact("mac")].join(", ");
                let indent = " ".repeat(27);
                return format!("{algorithms}\n{indent}host key {standing}: {key}\n{indent}{print}");
            }
            "methods" => &["methods"],
            "login" => &["method"],
            "sessions" => match self.fact("sessions_allowed") {
                "" => return "not found out how many at a time".to_owned(),
                allowed => return format!("{allowed} at a time"),
            },
            "connect" => {
                return self.tls_and_api();
            }
            "read" => {
                return format!("{} hosts, pages of objects: {}", self.fact("hosts"), self.pages());
            }
            "hints" => &["hints"],
            _ => &[],
        };
        facts.iter().map(|name| self.fact(name)).collect::<Vec<_>>().join(", ")
    }
}

impl Connections {
    /// How many failed.
    pub(super) fn failed(&self) -> usize {
        self.all().filter(|connection| !connection.outcome.up).count()
    }

    fn all(&self) -> impl Iterator<Item = &Connection> {
        self.hosts.iter().chain(&self.vcenters)
    }

    /// For people: a table of each kind, what all have in common, every failure in one line.
    pub(super) fn to_text(&self, ssh: &SshConfig) -> String {
        let mut text = String::new();
        if self.hosts.len() + self.vcenters.len() <= IN_DETAIL {
            for connection in self.all() {
                let _ = writeln!(text, "{}", connection.in_detail());
            }
        } else {
            // Failures by the same words as in metrics; what they mean is told below.
            for table in [self.host_table(), self.vcenter_table()].into_iter().flatten() {
                let _ = writeln!(text, "{table}");
            }
            text.push_str(&self.in_common());
        }
        let new = self.hosts.iter().filter(|host| host.fact("host_key") == "new").count();
        if new > 0 {
            let path = ssh.known_hosts.display();
            let (new, are) = (count(new, "host key"), if new == 1 { "is" } else { "are" });
            let _ = writeln!(text, "{new} {are} new: the agent would accept and record them in {path}");
        }
        for vcenter in &self.vcenters {
            for warning in doubts(vcenter) {
                let _ = writeln!(text, "{}: {warning}", vcenter.address);
            }
        }
        if self.failed() > 0 {
            text.push('\n');
        }
        for message in self.all().filter_map(|connection| connection.outcome.message.as_ref()) {
            let _ = writeln!(text, "{message}");
        }
        let (hosts, vcenters) = (count(self.hosts.len(), "host"), count(self.vcenters.len(), "vCenter"));
        let _ = writeln!(text, "{hosts} and {vcenters} checked, {} failed", self.failed());
        text
    }

    fn host_table(&self) -> Option<Table> {
        const STEPS: [&str; 5] = ["name", "tcp", "key_exchange", "login", "command"];
        let names = self.hosts.iter().any(|host| !host.ip().is_empty());
        let mut table = dense_table();
        let times = "ms: name, tcp, kex, login, ask";
        table.set_header(["host", "address", "host key", "sessions", "running", "result", times]);
        for host in &self.hosts {
            let (running, times) = (host.running(), host.times(&STEPS).join(" "));
            let (key, sessions) = (host.fact("host_key"), host.fact("sessions_allowed"));
            let cells = [&host.address, host.ip(), key, sessions, &running, host.outcome.word()];
            table.add_row(cells.into_iter().chain([times.as_str()]).map(str::to_owned));
        }
        if let Some(column) = table.column_mut(1).filter(|_| !names) {
            column.set_constraint(comfy_table::ColumnConstraint::Hidden);
        }
        fit(&mut table);
        (!self.hosts.is_empty()).then_some(table)
    }

    fn vcenter_table(&self) -> Option<Table> {
        const STEPS: [&str; 4] = ["connect", "login", "read", "logout"];
        let mut table = dense_table();
        let times = "ms: connect, login, read, logout";
        table.set_header(["vCenter", "TLS", "API", "hosts", "pages", "hints", "result", times]);
        for vcenter in &self.vcenters {
            let (pages, times) = (vcenter.pages(), vcenter.times(&STEPS).join(" "));
            let (tls, hints) = (vcenter.tls_and_trust(), vcenter.hints());
            let facts = ["api_version", "hosts"].map(|name| vcenter.fact(name));
            let cells = [&*vcenter.address, tls.as_str()].into_iter().chain(facts);
            let cells = cells.chain([pages.as_str(), hints, vcenter.outcome.word(), times.as_str()]);
            table.add_row(cells.map(str::to_owned));
        }
        fit(&mut table);
        (!self.vcenters.is_empty()).then_some(table)
    }

    /// Algorithms, methods and proxies, each with the number of those that it is for.
    fn in_common(&self) -> String {
        let algorithms = |host: &Connection| {
            ["key_exchange", "cipher", "host_key_algorithm"].map(|n| host.fact(n)).join(", ")
        };
        let offered = |host: &Connection| host.fact("methods").to_owned();
        let used = |host: &Connection| host.login().to_owned();
        let proxy = |vcenter: &Connection| vcenter.fact("proxy").to_owned();
        let hosts = || self.hosts.iter();
        [
            counted("algorithms", hosts().map(algorithms), "host"),
            counted("offered", hosts().map(offered), "host"),
            counted("logged in by", hosts().map(used), "host"),
            counted("by the proxy", self.vcenters.iter().map(proxy), "vCenter"),
        ]
        .concat()
    }
}

/// Days before the end of a certificate from which on that is told.
const EXPIRES_SOON: i64 = 30;
/// Seconds between two clocks that are worth a word.
const CLOCKS_DIFFER: f64 = 30.0;

/// What is no failure, but seldom meant.
fn doubts(vcenter: &Connection) -> Vec<String> {
    let fact = |name| vcenter.fact(name);
    let mut doubts = Vec::new();
    if fact("hosts") == "0" {
        doubts
            .push("the account sees no host: it needs the role Read-only at the root, propagated".to_owned());
    }
    if !matches!(fact("hosts_not_readable"), "" | "0") {
        let (hosts, what) = (fact("hosts_not_readable"), fact("not_readable"));
        doubts.push(format!("the account may not read all properties of some hosts: {hosts} hosts, {what}"));
    }
    if !fact("unknown_properties").is_empty() {
        let unknown = fact("unknown_properties");
        doubts.push(format!("its version has no {unknown}: the series that come of them are left out"));
    }
    if !fact("properties_unknown").is_empty() {
        doubts.push(format!("which properties can be read is not known: {}", fact("properties_unknown")));
    }
    if !fact("privileges_missing").is_empty() {
        let missing = fact("privileges_missing");
        doubts.push(format!("the account lacks {missing} at the root: the role Read-only has it"));
    }
    if !fact("privileges_unknown").is_empty() {
        doubts.push(format!("the account's privileges are not known: {}", fact("privileges_unknown")));
    }
    if fact("hints").starts_with("none") || fact("hints").contains("no events") {
        let hints = fact("hints");
        doubts.push(format!("polls alone find some changes, since of hints there are: {hints}"));
    }
    if let Some(days) = fact("certificate_days_left").parse::<i64>().ok().filter(|days| *days < EXPIRES_SOON)
    {
        let at = fact("certificate_expires");
        doubts.push(format!("its certificate expires at {at} ({days} days)"));
    }
    let ahead = fact("clock_ahead_seconds").parse::<f64>().unwrap_or_default();
    if ahead.abs() >= CLOCKS_DIFFER {
        let where_to = if ahead > 0.0 { "ahead of" } else { "behind" };
        doubts.push(format!("its clock is {:.0} s {where_to} ours", ahead.abs()));
    }
    doubts
}

fn counted(what: &str, values: impl Iterator<Item = String>, whose: &str) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for value in values.filter(|value| value.chars().any(char::is_alphanumeric)) {
        *counts.entry(value).or_default() += 1;
    }
    counts.iter().map(|(value, number)| format!("{what}: {value} ({})\n", count(*number, whose))).collect()
}

/// Fits the table into the terminal, or into 120 columns.
fn fit(table: &mut Table) {
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        table.set_width(WIDTH);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.0}", seconds * 1000.0)
}

fn site(site: &str) -> String {
    if site.is_empty() { String::new() } else { format!("  ({site})") }
}

/// Counts and seconds are numbers, and truth is no text.
fn with_numbers<S: Serializer>(facts: &BTreeMap<&'static str, String>, to: S) -> Result<S::Ok, S::Error> {
    use serde_json::Value;
    let value = |text: &String| match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) => Value::from(number),
        (_, Ok(truth)) => Value::from(truth),
        _ => Value::from(text.as_str()),
    };
    let seconds = |name: &str, text: &str| text.parse::<f64>().ok().filter(|_| name.ends_with("_seconds"));
    to.collect_map(
        facts.iter().map(|(name, text)| (name, seconds(name, text).map_or_else(|| value(text), Value::from))),
    )
}
