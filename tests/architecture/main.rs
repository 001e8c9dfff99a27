//! The rules of ARCHITECTURE.md that a program can check, on the text of `src/`. Each rule is a function
//! from sources to violations, and each is shown to be able to fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod source;

use source::Source;
use std::collections::{BTreeMap, BTreeSet};

/// Longest file.
const MOST_LINES: usize = 600;
/// Modules that may be known to everybody, and know only each other.
const LEAVES: &[&str] = &["metric", "outcome", "span", "stats", "steps", "target", "accounts::secret"];

type Rule = fn(&[Source]) -> Vec<String>;

fn holds(rule: Rule) {
    let violations = rule(&Source::all());
    assert!(violations.is_empty(), "\n  {}\n", violations.join("\n  "));
}

/// The rule finds exactly the files whose made-up text is marked as wrong.
fn tells(rule: Rule, right: &[(&str, &str)], wrong: &[(&str, &str)]) {
    let sources = |files: &[(&str, &str)]| files.iter().map(|(p, t)| Source::new(p, t)).collect::<Vec<_>>();
    assert_eq!(rule(&sources(right)), Vec::<String>::new());
    for file in wrong {
        let found = rule(&sources(&[*file]));
        assert!(
            found.iter().any(|violation| violation.contains(file.0)),
            "{file:?} was not found: {found:?}"
        );
    }
}

/// `why`, wherever one of `words` occurs in the files that `of` picks.
fn forbid(sources: &[Source], of: impl Fn(&Source) -> bool, words: &[&str], why: &str) -> Vec<String> {
    let picked = sources.iter().filter(|source| of(source));
    let each = |source: &Source| {
        let found = words.iter().flat_map(|word| source.find(word).into_iter().map(move |at| (at, *word)));
        found.map(|(at, word)| format!("{at}: `{word}`: {why}")).collect::<Vec<_>>()
    };
    picked.flat_map(each).collect()
}

fn only_verbs_know_the_simulator(sources: &[Source]) -> Vec<String> {
    let may = |path: &str| {
        matches!(path, "main.rs" | "lib.rs" | "commands/demo.rs" | "commands/simulate.rs")
            || path.starts_with("commands/demo/")
    };
    let others =
        sources.iter().filter(|s| !s.is_in("simulator") && !may(&s.path) && s.rooms().contains("simulator"));
    others
        .map(|s| format!("{}: only the verbs demo and simulate may use `crate::simulator`", s.path))
        .collect()
}

#[test]
fn the_agent_does_not_know_the_simulator() {
    holds(only_verbs_know_the_simulator);
    let text = "use crate::simulator::host::HostFleet;";
    tells(
        only_verbs_know_the_simulator,
        &[
            ("commands/simulate.rs", text),
            ("simulator/lab.rs", text),
            ("cli.rs", "use crate::commands::simulate;"),
        ],
        &[
            ("poller/visit.rs", text),
            ("cli.rs", "use crate::{config, simulator};"),
            ("commands/run.rs", text),
        ],
    );
}

fn collectors_do_no_io(sources: &[Source]) -> Vec<String> {
    let words = [
        "tokio::net",
        "tokio::fs",
        "tokio::process",
        "tokio::spawn",
        "russh",
        "reqwest",
        "std::fs",
        "std::process",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "crate::ssh",
        "crate::vim::client",
    ];
    forbid(
        sources,
        |s| s.is_in("collectors"),
        &words,
        "a collector does no I/O: it is a question and a parser",
    )
}

#[test]
fn a_collector_is_a_question_and_a_parser() {
    holds(collectors_do_no_io);
    tells(
        collectors_do_no_io,
        &[
            ("collectors/a.rs", "use std::net::IpAddr; // not russh"),
            ("ssh/session.rs", "use russh::client;"),
        ],
        &[
            ("collectors/a.rs", "use tokio::net::TcpStream;"),
            ("collectors/b/c.rs", "fn f() { std::fs::read(p) }"),
            ("collectors/d.rs", "use crate::ssh::Session;"),
        ],
    );
}

fn readings_are_plain_data(sources: &[Source]) -> Vec<String> {
    let words = [
        "opentelemetry",
        "opentelemetry_sdk",
        "opentelemetry_proto",
        "opentelemetry_otlp",
        "russh",
        "reqwest",
        "crate::ssh",
        "crate::vim",
        "crate::telemetry",
    ];
    forbid(sources, |s| s.is_in("readings"), &words, "readings know neither SSH, nor SOAP, nor OpenTelemetry")
}

#[test]
fn readings_know_no_protocol() {
    holds(readings_are_plain_data);
    tells(
        readings_are_plain_data,
        &[("readings/mod.rs", "use crate::metric::Sample;")],
        &[
            ("readings/mod.rs", "use opentelemetry::KeyValue;"),
            ("readings/store.rs", "use crate::ssh::Session;"),
        ],
    );
}

fn nobody_knows_the_top(sources: &[Source]) -> Vec<String> {
    let top = ["agent", "commands"];
    let may = |s: &Source| s.room() == "commands" || matches!(s.path.as_str(), "main.rs" | "lib.rs");
    let named =
        |s: &Source| s.rooms().into_iter().filter(|room| top.contains(&room.as_str())).collect::<Vec<_>>();
    let others =
        sources.iter().filter(|s| !may(s)).flat_map(|s| named(s).into_iter().map(move |room| (s, room)));
    others
        .map(|(s, room)| format!("{}: a part must not know what it is a part of: `crate::{room}`", s.path))
        .collect()
}

#[test]
fn parts_do_not_know_the_whole() {
    holds(nobody_knows_the_top);
    tells(
        nobody_knows_the_top,
        &[("commands/run.rs", "use crate::agent::Agent;"), ("agent.rs", "use crate::{config, ssh, vim};")],
        &[
            ("agent.rs", "use crate::commands::report::Report;"),
            ("poller/mod.rs", "use crate::agent::Agent;"),
            ("config/mod.rs", "use crate::cli::Flags;"),
        ],
    );
}

fn leaves_know_leaves(sources: &[Source]) -> Vec<String> {
    let is_leaf = |s: &Source| LEAVES.contains(&s.room()) || s.path == "accounts/secret.rs";
    let beyond = |s: &Source| {
        s.rooms().into_iter().filter(|room| !LEAVES.contains(&room.as_str())).collect::<Vec<_>>()
    };
    let all =
        sources.iter().filter(|s| is_leaf(s)).flat_map(|s| beyond(s).into_iter().map(move |room| (s, room)));
    all.map(|(s, room)| format!("{}: a leaf knows nobody but leaves, not `crate::{room}`", s.path)).collect()
}

#[test]
fn leaves_are_leaves() {
    holds(leaves_know_leaves);
    tells(
        leaves_know_leaves,
        &[("stats.rs", "use crate::metric::MetricDef;"), ("config/mod.rs", "use crate::accounts;")],
        &[("outcome.rs", "use crate::ssh::Error;"), ("accounts/secret.rs", "use crate::config::Config;")],
    );
}

fn nothing_panics(sources: &[Source]) -> Vec<String> {
    let words = [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!(", "unreachable!(", "dbg!("];
    forbid(
        sources,
        |s| !s.is_in("simulator"),
        &words,
        "whatever a peer or a file sends may be wrong: return an error",
    )
}

#[test]
fn bad_input_never_panics() {
    holds(nothing_panics);
    tells(
        nothing_panics,
        &[
            (
                "ssh/session.rs",
                "fn f() { x.unwrap_or_default(); g(\"panic!(\") } #[cfg(test)] mod t { fn g() { x.unwrap() } }",
            ),
            ("ssh/session_tests.rs", "fn f() { x.unwrap() }"),
            ("simulator/host.rs", "fn f() { x.unwrap() }"),
            ("ssh/lint.rs", "#[expect(clippy::unwrap_used, reason = \"…\")] fn f() {}"),
        ],
        &[
            ("ssh/session.rs", "fn f() { x.unwrap() }"),
            ("a.rs", "fn f() { todo!() }"),
            ("b.rs", "fn f() { x.expect(\"…\") }"),
        ],
    );
}

fn files_are_short(sources: &[Source]) -> Vec<String> {
    let long = sources.iter().filter(|source| source.lines > MOST_LINES);
    long.map(|s| format!("{}: {} lines, more than {MOST_LINES}: it wants to be two", s.path, s.lines))
        .collect()
}

#[test]
fn no_file_is_too_long() {
    holds(files_are_short);
    let (fits, long) = ("\n".repeat(MOST_LINES), "\n".repeat(MOST_LINES + 1));
    tells(files_are_short, &[("a.rs", &fits)], &[("a.rs", &long)]);
}

/// Rooms and the rooms that they name. Leaves can have no part in a cycle, and lib.rs and main.rs only
/// name the rooms.
fn graph(sources: &[Source]) -> BTreeMap<&str, BTreeSet<String>> {
    let mut graph: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in sources.iter().filter(|s| !matches!(s.path.as_str(), "lib.rs" | "main.rs")) {
        let rooms = source.rooms().into_iter().filter(|room| !LEAVES.contains(&room.as_str()));
        graph.entry(source.room()).or_default().extend(rooms);
    }
    graph
}

fn rooms_have_an_order(sources: &[Source]) -> Vec<String> {
    let graph = graph(sources);
    let reach = |from: &str| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<String> = graph.get(from).into_iter().flatten().cloned().collect();
        while let Some(room) = next.pop() {
            if seen.insert(room.clone()) {
                next.extend(graph.get(room.as_str()).into_iter().flatten().cloned());
            }
        }
        seen
    };
    // The edges between two rooms that reach each other: one of them has to go.
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| graph.contains_key(s.room())) {
        for room in source.rooms() {
            if !LEAVES.contains(&room.as_str()) && reach(&room).contains(source.room()) {
                found.push(format!(
                    "{}: names `crate::{room}`, which leads back to `{}`",
                    source.path,
                    source.room()
                ));
            }
        }
    }
    found
}

#[test]
fn there_is_no_cycle_between_rooms() {
    holds(rooms_have_an_order);
    let (there, back) = (("a/mod.rs", "use crate::b::X;"), ("b/mod.rs", "use crate::c::Y;"));
    let leaf = ("c/mod.rs", "use crate::outcome::Failure;");
    tells(rooms_have_an_order, &[there, back, leaf, ("outcome.rs", "")], &[]);
    let sources: Vec<_> =
        [there, back, ("c/mod.rs", "use crate::a::Z;")].iter().map(|(p, t)| Source::new(p, t)).collect();
    assert_eq!(rooms_have_an_order(&sources).len(), 3, "every file of the cycle is named");
}
