use super::*;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A folder of stand-ins for init scripts.
struct InitD(tempfile::TempDir);

/// With `hangs` a script says that it hangs from here on, once its keeper listens to a SIGTERM: one that came
/// sooner would end the keeper, and nobody would kill the script.
const HANGS: &str = r#"hangs(){
until grep -q '^SigCgt.*[4-7c-f]...$' /proc/$PPID/status; do sleep 0.01; done
read _ _ _ k _ </proc/$PPID/stat
: >"${0%/*}/hung.$k"
}"#;

impl InitD {
    fn new(scripts: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in scripts {
            folder.write(name, text, 0o755);
        }
        folder
    }

    /// By a process of its own: what another test starts meanwhile would inherit the open file from this one, and
    /// until it has let go of it nobody can execute the script (ETXTBSY).
    fn write(&self, name: &str, text: &str, mode: u32) {
        let mut writer = Command::new("/bin/sh")
            .args(["-c", r#"cat >"$0" && chmod "$1" "$0""#])
            .arg(self.path().join(name))
            .arg(format!("{mode:o}"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        write!(writer.stdin.take().unwrap(), "#!/bin/sh\n{HANGS}\n{text}\n").unwrap();
        assert!(writer.wait().unwrap().success());
    }

    /// Put before a command: its watchdogs sleep for their time, and on until their scripts say that they hang.
    /// So none bites a script that is merely slow, however long this machine may stall.
    fn patience(&self) -> String {
        format!(
            "sleep(){{\ncommand sleep \"$1\"\nread _ _ _ k _ </proc/self/stat\n\
             until [ -e '{}/hung.'$k ]; do command sleep 0.02; done\n}}\n",
            self.path().display()
        )
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn questions(&self, services: &[&str]) -> Vec<Question> {
        let script =
            |service: &str| format!("exec {} status", quote(&self.path().join(service).to_string_lossy()));
        services.iter().map(|&s| Question { id: s.into(), script: script(s) }).collect()
    }
}

/// The shells at hand: the system's, and ESXi's where it is installed.
fn shells() -> Vec<Vec<PathBuf>> {
    let mut shells = vec![vec![PathBuf::from("/bin/sh")]];
    if let Some(busybox) =
        ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|p| p.exists())
    {
        shells.push(vec![busybox, "ash".into()]);
    }
    shells
}

/// Runs `command` as sshd would. Returns its output, once the shell has ended.
fn run(shell: &[PathBuf], command: &str, before: &str) -> String {
    let mut child = Command::new(&shell[0])
        .args(&shell[1..])
        .arg("-c")
        .arg(format!("{before}{command}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = Vec::new();
    std::io::Read::read_to_end(child.stdout.as_mut().unwrap(), &mut out).unwrap();
    child.wait().unwrap();
    String::from_utf8_lossy(&out).into_owned()
}

/// Nothing hung before.
fn anew(questions: &[Question]) -> impl Iterator<Item = Asked<'_>> {
    questions.iter().map(|question| (question, None))
}

fn ask(shell: &[PathBuf], questions: &[Question], limit: Duration, before: &str) -> Vec<Answer> {
    let marker = new_marker();
    let output = run(shell, &compose(anew(questions), &marker, limit), before);
    read(questions, &marker, &output, Ending::Complete)
}

fn read(questions: &[Question], marker: &str, output: &str, ending: Ending) -> Vec<Answer> {
    let mut reader = Reader::new(questions, marker);
    output.lines().any(|line| reader.line(Duration::ZERO, line));
    reader.finish(ending, Duration::ZERO)
}

fn reply(answer: &Answer) -> (String, i32) {
    let reply = answer.result.as_ref().unwrap_or_else(|reason| panic!("{}: {reason}", answer.question));
    (reply.lines.join("|"), reply.exit)
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_secs(1);
/// Half of the shortest `sleep` that nothing here may wait for.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn every_question_gets_its_own_answer_and_exit_status() {
    let init = InitD::new(&[
        ("hostd", "echo hostd is running."),
        ("vpxa", "echo vpxa is not running; exit 3"),
        ("both", "echo out; echo err >&2; cat"),
        ("mute", "exit 0"),
        ("open-end", "printf 'no end of line'"),
        ("quotes", r#"printf '%s\n' "it's \$HOME %s \\n $1""#),
    ]);
    for shell in shells() {
        let services = ["hostd", "vpxa", "both", "mute", "open-end", "quotes"];
        let answers = ask(&shell, &init.questions(&services), LONG, "");
        let replies: Vec<_> = answers.iter().map(reply).collect();
        assert_eq!(replies[0], ("hostd is running.".into(), 0), "{shell:?}");
        assert_eq!(replies[1], ("vpxa is not running".into(), 3));
        assert_eq!(
            replies[2],
            ("out|err".into(), 0),
            "standard error belongs to it, standard input is empty"
        );
        assert_eq!(replies[3], (String::new(), 0));
        assert_eq!(replies[4], ("no end of line".into(), 0));
        assert_eq!(replies[5], ("it's $HOME %s \\n status".into(), 0));
    }
}

#[test]
fn a_script_that_is_missing_or_not_executable_says_so_by_its_exit_status() {
    let init = InitD::new(&[]);
    init.write("locked", "echo never", 0o644);
    for shell in shells() {
        let answers = ask(&shell, &init.questions(&["gone", "locked"]), LONG, "");
        assert_eq!(reply(&answers[0]).1, 127);
        assert!(reply(&answers[0]).0.contains("not found"));
        assert_eq!(reply(&answers[1]).1, 126);
        assert!(reply(&answers[1]).0.contains("Permission denied"));
    }
}

#[test]
fn a_hung_script_costs_its_own_answer_only_and_nothing_is_left_behind() {
    let tag = new_marker();
    let init = InitD::new(&[
        ("hung", &format!("hangs; exec sh -c 'while :; do sleep 1; done' {tag}")),
        ("deaf", "trap '' HUP INT TERM; echo checking; hangs; while :; do sleep 1; done"),
        ("well", "sleep 0.1; echo well is running"),
    ]);
    for shell in shells() {
        let start = Instant::now();
        let answers = ask(&shell, &init.questions(&["hung", "deaf", "well"]), SHORT, &init.patience());
        assert_eq!(answers[0].result, Err(FailureReason::CommandTimeout), "{shell:?}");
        assert_eq!(answers[1].result, Err(FailureReason::CommandTimeout));
        assert_eq!(reply(&answers[2]).0, "well is running");
        assert!(start.elapsed() >= SHORT, "{shell:?}: they had their time");
        assert!(start.elapsed() < PATIENCE, "the shell itself has ended");
        assert!(gone(&tag), "the script was killed");
    }
}

/// Asks one question as the poller does: whom the host killed is told to it the next time.
fn ask_again(
    shell: &[PathBuf],
    question: &Question,
    former: &mut Option<Former>,
    (limit, before): (Duration, &str),
) -> Result<Reply, FailureReason> {
    let (marker, asked) = (new_marker(), std::slice::from_ref(question));
    let command = compose([(question, *former)], &marker, limit);
    let mut reader = Reader::new(asked, &marker);
    run(shell, &command, before).lines().any(|line| reader.line(Duration::ZERO, line));
    *former = reader.killed(0).or(*former);
    reader.finish(Ending::Complete, Duration::ZERO).remove(0).result
}

#[test]
fn what_a_hung_script_has_started_goes_with_it() {
    for shell in shells() {
        let tag = new_marker();
        let family = format!(
            "trap '' HUP INT TERM; (sh -c 'trap \"\" TERM; while :; do sleep 1; done' {tag} &)\n\
             sh -c 'sleep 60 & wait' {tag} & hangs; sh -c 'while :; do sleep 1; done' {tag}; :"
        );
        let init = InitD::new(&[("hung", &family)]);
        let question = init.questions(&["hung"]).remove(0);
        let mut former = None;
        for round in 0..2 {
            let result = ask_when_gone(&shell, &question, &mut former, (SHORT, &init.patience()));
            assert_eq!(result, Err(FailureReason::CommandTimeout), "{shell:?}");
            assert!(former.is_some(), "{shell:?}: the host says whom it killed");
            assert!(gone(&tag), "{shell:?}: something is left after round {round}");
        }
    }
}

/// Asks until nobody stands any more whom the host killed.
fn ask_when_gone(
    shell: &[PathBuf],
    question: &Question,
    former: &mut Option<Former>,
    how: (Duration, &str),
) -> Result<Reply, FailureReason> {
    let start = Instant::now();
    loop {
        let result = ask_again(shell, question, former, how);
        if result != Err(FailureReason::SkippedHung) {
            return result;
        }
        assert!(start.elapsed() < PATIENCE, "{former:?} still stands");
        // Orphans stand until process 1 has taken notice of their end. In a container it may never do so: then
        // zombies are all that is left, and nobody needs to be told of them.
        if start.elapsed() > Duration::from_secs(3) {
            *former = former.filter(|killed| lives(*killed));
        }
    }
}

/// Whether any process of the group is more than a zombie.
fn lives(group: Former) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // Behind the name, which may hold anything: state, parent, group.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        matches!(fields[..], [state, _, of, ..] if state != "Z" && format!("-{of}") == group.to_string())
    })
}

#[test]
fn a_script_is_not_run_while_the_former_one_stands() {
    for shell in shells() {
        let init = InitD::new(&[("hung", "sleep 60"), ("well", "echo well is running")]);
        // As a script that waits for a device: whatever is done to it, it stays for now.
        let mut device =
            std::os::unix::process::CommandExt::process_group(Command::new("sleep").arg("60"), 0)
                .spawn()
                .unwrap();
        let mut former = Former::parse(&format!("-{}", device.id()));
        let question = init.questions(&["well"]).remove(0);
        for _ in 0..3 {
            let result = ask_again(&shell, &question, &mut former, (LONG, ""));
            assert_eq!(result, Err(FailureReason::SkippedHung));
        }
        device.kill().unwrap();
        device.wait().unwrap();
        let reply = ask_again(&shell, &question, &mut former, (LONG, "")).unwrap();
        assert_eq!(reply.lines, ["well is running"], "{shell:?}");
    }
}

#[test]
fn where_there_is_no_setsid_the_script_alone_is_killed() {
    for shell in shells() {
        let tag = new_marker();
        let init = InitD::new(&[("hung", &format!("hangs; exec sh -c 'while :; do sleep 1; done' {tag}"))]);
        let (marker, questions) = (new_marker(), init.questions(&["hung"]));
        let command = compose(anew(&questions), &marker, SHORT).replace("setsid", "sets1d");
        let mut reader = Reader::new(&questions, &marker);
        run(&shell, &command, &init.patience()).lines().any(|line| reader.line(Duration::ZERO, line));
        assert!(reader.killed(0).is_some_and(|former| former.to_string().parse::<u32>().is_ok()));
        assert_eq!(
            reader.finish(Ending::Complete, Duration::ZERO)[0].result,
            Err(FailureReason::CommandTimeout)
        );
        assert!(gone(&tag), "{shell:?}");
    }
}

#[test]
fn nothing_but_the_number_of_a_process_comes_back_into_a_command() {
    for (text, number) in [
        ("-4711", Some("-4711")),
        ("4711", Some("4711")),
        ("1", None),
        ("-1", None),
        ("0", None),
        ("", None),
        ("12 34", None),
        ("$(reboot)", None),
        ("-2147483649", None),
    ] {
        assert_eq!(Former::parse(text).map(|former| former.to_string()).as_deref(), number, "{text}");
    }
}

/// Whether nothing runs any more that has `word` in its arguments, or will soon: who was killed runs until
/// the system gets round to it.
fn gone(word: &str) -> bool {
    let start = Instant::now();
    while runs(word) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    !runs(word)
}

/// Whether a process has `word` in its arguments. A zombie has no arguments.
fn runs(word: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        fs::read(process.path().join("cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(word))
    })
}

#[test]
fn no_watchdog_outlives_the_scripts() {
    let init = InitD::new(&[("hostd", "echo hostd is running.")]);
    for shell in shells() {
        // A limit that nobody else uses as the argument of a `sleep`.
        let limit = 70_000 + std::process::id();
        ask(&shell, &init.questions(&["hostd", "hostd2"]), Duration::from_secs(limit.into()), "");
        assert!(gone(&limit.to_string()), "{shell:?}: a sleep of {limit} s is still there");
    }
}

#[test]
fn a_child_that_keeps_the_output_open_keeps_nobody_waiting() {
    let init = InitD::new(&[
        ("forker", "sleep 60 & echo forker is running"),
        ("hung", "sleep 60 & hangs; sleep 60"),
    ]);
    for shell in shells() {
        let start = Instant::now();
        let answers = ask(&shell, &init.questions(&["forker", "hung"]), SHORT, &init.patience());
        assert_eq!(reply(&answers[0]).0, "forker is running", "{shell:?}");
        assert_eq!(answers[1].result, Err(FailureReason::CommandTimeout));
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn an_endless_answer_is_cut_on_the_host() {
    let init = InitD::new(&[
        ("lines", "while :; do echo more and more; done"),
        ("block", "head -c 5000000 /dev/zero | tr '\\0' x"),
        ("well", "echo well is running"),
    ]);
    for shell in shells() {
        let questions = init.questions(&["lines", "block", "well"]);
        let marker = new_marker();
        let output = run(&shell, &compose(anew(&questions), &marker, LONG), "");
        assert!(output.len() < max_output(3), "{shell:?}: {}", output.len());
        let answers = read(&questions, &marker, &output, Ending::Complete);
        assert_eq!(answers[0].result, Err(FailureReason::AnswerTooLarge));
        assert_eq!(answers[1].result, Err(FailureReason::AnswerTooLarge));
        assert_eq!(reply(&answers[2]).0, "well is running");
    }
}

#[test]
fn answers_are_never_mixed_however_many_come_at_once() {
    let line = "x".repeat(60);
    let text =
        format!("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo $0 {line}; done");
    let names: Vec<String> = (0..24).map(|i| format!("s{i}")).collect();
    let init = InitD::new(&names.iter().map(|n| (n.as_str(), text.as_str())).collect::<Vec<_>>());
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for shell in shells() {
        for answer in ask(&shell, &init.questions(&names), LONG, "") {
            let reply = answer.result.unwrap_or_else(|reason| panic!("{}: {reason}", answer.question));
            assert_eq!(reply.lines.len(), 20);
            assert!(reply.lines.iter().all(|l| l.ends_with(&format!("/{} {line}", answer.question))));
        }
    }
}

#[test]
fn noise_around_the_answers_is_nobodys_answer() {
    let init = InitD::new(&[("hostd", "echo hostd is running.")]);
    let questions = init.questions(&["hostd"]);
    let marker = new_marker();
    for shell in shells() {
        let output = run(
            &shell,
            &compose(anew(&questions), &marker, LONG),
            "echo vpxa is running; printf 'Welcome> ';",
        );
        let answers = read(&questions, &marker, &output, Ending::Complete);
        assert_eq!(reply(&answers[0]).0, "hostd is running.");
    }
}

#[test]
fn no_binary_garbage_stops_the_other_answers() {
    let init = InitD::new(&[("bin", r"printf '\001\377\000\200%s'"), ("well", "echo well")]);
    for shell in shells() {
        let answers = ask(&shell, &init.questions(&["bin", "well"]), LONG, "");
        assert_eq!(reply(&answers[1]).0, "well");
        assert_eq!(answers[0].result.as_ref().map(|reply| reply.exit), Ok(0), "{shell:?}");
    }
}

fn two() -> [Question; 2] {
    ["a", "b"].map(|id| Question { id: id.into(), script: String::new() })
}

#[test]
fn frames_with_another_marker_or_an_unknown_name_count_for_nothing() {
    let output = "bad<a\nforged\nbad>a 0\nM<c\nx\nM>c 0\nM<a\nreal\nbad>a 1\nM>b 1\n";
    let answers = read(&two(), "M", output, Ending::Complete);
    assert_eq!(answers[0].result, Err(FailureReason::AnswerUnreadable), "its end names another question");
    let answers = read(&two(), "M", "M<a\nreal\nbad>a 1\nM>a 0\nM<a\nlater\nM>a 0\n", Ending::Complete);
    assert_eq!(reply(&answers[0]), ("real|bad>a 1".into(), 0), "the first whole answer counts");
}

#[test]
fn what_did_not_come_is_a_failure_by_the_way_the_output_ended() {
    let cut = "M<a\nall of it\nM>a 0\n\nM<b\nhalf of";
    for (ending, reason) in [
        (Ending::TimedOut, FailureReason::CommandTimeout),
        (Ending::TooLarge, FailureReason::AnswerTooLarge),
        (Ending::Complete, FailureReason::AnswerUnreadable),
        (Ending::Lost, FailureReason::AnswerUnreadable),
    ] {
        let answers = read(&two(), "M", cut, ending);
        assert_eq!(reply(&answers[0]).0, "all of it");
        assert_eq!(answers[1].result, Err(reason));
    }
}

#[test]
fn the_reader_is_done_at_the_last_answer() {
    let mut reader = Reader::new(&two(), "M");
    let lines = ["M<b", "M>b 1", "M<a", "M>a lost"];
    let done: Vec<bool> = lines.iter().map(|line| reader.line(Duration::from_secs(1), line)).collect();
    assert_eq!(done, [false, false, false, true]);
    let answers = reader.finish(Ending::Complete, Duration::from_secs(9));
    assert_eq!(answers[0].result, Err(FailureReason::AnswerUnreadable));
    assert_eq!(answers[1].elapsed, Duration::from_secs(1));
}

#[test]
fn the_documented_command_is_the_one_that_is_sent() {
    let question = |service: &str| Question {
        id: format!("0.{service}").into(),
        script: format!("exec /etc/init.d/{service} status"),
    };
    let questions = ["hostd", "vpxa"].map(question);
    let sent = compose(anew(&questions), "6f1ed002ab5595859014ebf0951522d9", Duration::from_secs(17));
    let page = include_str!("../../../docs/ssh-command.md");
    assert!(page.contains(&format!("```sh\n{sent}```\n")), "docs/ssh-command.md should show\n{sent}");
}

proptest::proptest! {
    #[test]
    fn no_output_whatsoever_can_make_the_reader_fail(
        lines in proptest::collection::vec("(M[<>]?)?[ab]? ?(0|timeout|large|-?[0-9]{0,12}|.{0,9})", 0..40)
    ) {
        let mut reader = Reader::new(&two(), "M");
        for line in &lines {
            reader.line(Duration::ZERO, line);
        }
        assert_eq!(reader.finish(Ending::Complete, Duration::ZERO).len(), 2);
    }

    #[test]
    fn quoting_survives_the_shell(text in "[ -~\n]{0,40}") {
        let mut child = Command::new("/bin/sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        write!(child.stdin.take().unwrap(), "printf %s {}", quote(&text)).unwrap();
        assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), text);
    }
}
