//! One command for all that is due on a host, and the way back from its output to the answers.
//!
//! All questions run at the same time on the host, each with an output and a time limit of its own, and
//! each answer is printed whole between two lines that begin with the session's *marker*, a random word
//! that nothing on the host can know beforehand. So an answer belongs to its question whatever it says,
//! and noise around it (banners, profile scripts) is nobody's answer.
//!
//! ```text
//! <marker><hostd          begin of the answer to question `hostd`
//! hostd is running.
//! <marker>>hostd 0        its end, and the exit status; or `timeout -123`, `stands`, `large`, `lost`
//! ```
//!
//! The command needs a POSIX shell such as busybox's ash, `dd`, `sleep`, makes use of `setsid` where there is
//! one, and of nothing else: no `timeout`, no job control, no file on the host. docs/ssh-command.md goes through it line by line.

use super::{Answer, Question, Reply};
use crate::outcome::FailureReason;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of one answer. With its frame it stays below `PIPE_BUF` (4,096), up to which one write to
/// a pipe is never mixed with others'.
pub const MAX_ANSWER: usize = 3_000;

/// Bytes that the answers to `questions` questions can have at most, and some for banners.
pub const fn max_output(questions: usize) -> usize {
    64 * 1024 + questions * 4_096
}

/// A new marker, for one session.
pub fn new_marker() -> String {
    let random: [u8; 16] = rand::random();
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs one question: `k SCRIPT [FORMER] | r ID &`.
///
/// `k` (keep) runs the script as a job of its own, beside a `sleep`. Whoever ends first ends the other: the
/// script's keeper stops the `sleep` and writes the trailer (marker, exit status), in this order, since
/// nobody may be reading any more; if the `sleep` ends by itself the keeper is told to kill the script, and
/// the trailer says so, and whom it killed. With `setsid` the script leads a process group of its own, so
/// that what it has started is killed with it; without, it alone is. Only processes that are not yet waited
/// for are killed, so that no stranger with a reused id can be hit. The `sleep` holds none of the pipes.
///
/// FORMER is whom an earlier command killed for this question: as long as that still stands the script is not
/// run.
///
/// `r` (read) reads up to the trailer, not to the end of the stream: what the script left behind, or can't be
/// killed, may hold its end of the pipe for ever. `dd` returns after one read, where `head -c` would wait for
/// more.
const FUNCTIONS: &str = r#"s='setsid sh -c' g=-
command -v setsid >/dev/null 2>&1 || s=eval g=
k(){
[ -z "$2" ] || ! kill -0 "$2" || { printf '\n%s:stands.' "$m"; return; }
sleep "$t" </dev/null >/dev/null 2>&1 & z=$!
(
($s "$1") </dev/null 2>&1 & p=$!
trap 'kill -9 $g$p $p; printf "\n%s:timeout %s." "$m" "$g$p"; wait $p; exit' TERM
wait $p; e=$?
kill $z
printf '\n%s:%s.' "$m" "$e"
) & k=$!
wait $z && kill $k
} 2>/dev/null
r(){
o= e=lost
while c=$(dd bs=4096 count=1 2>/dev/null; echo .); [ "$c" != . ]; do
o=$o${c%.}
case $o in *"$m":*.*) e=${o##*"$m":}; e=${e%%.*}; o=${o%"$m":*}; break; esac
[ ${#o} -le $l ] || break
done
[ ${#o} -le $l ] || { o=; e=large; }
printf '\n%s<%s\n%s\n%s>%s %s\n' "$m" "$1" "$o" "$m" "$1" "$e"
}
"#;

/// Whom the host killed when a script hung: a process group (negative, as `kill` takes it), or a process
/// where it has no `setsid`. A number and nothing else, since it goes back into a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Former(i32);

impl Former {
    /// Nobody else than a process or a group can be meant: 1 and -1 are everybody.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|id: &i32| id.unsigned_abs() > 1).map(Self)
    }
}

impl fmt::Display for Former {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A question and whom the host killed for it the last time.
pub type Asked<'a> = (&'a Question, Option<Former>);

/// The command that asks `questions`, for [`Reader::new`] with the same questions and marker. A script
/// that takes longer than `limit` (rounded up to seconds) is killed. Ends when all are answered, at the
/// latest soon after `limit`. A question whose former script still stands is not asked: `skipped_hung`.
pub fn compose<'a>(questions: impl IntoIterator<Item = Asked<'a>>, marker: &str, limit: Duration) -> String {
    let seconds = limit.as_secs() + u64::from(limit.subsec_nanos() > 0);
    let mut command = format!("m={marker}\nt={}\nl={MAX_ANSWER}\n{FUNCTIONS}", seconds.max(1));
    for (question, former) in questions {
        let former = former.map(|former| format!(" {former}")).unwrap_or_default();
        let (script, id) = (quote(&question.script), quote(&question.id));
        command.push_str(&format!("k {script}{former} | r {id} &\n"));
    }
    command.push_str("wait\n");
    command
}

/// `text` as one word of a shell command, whatever it holds.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// How the output as a whole ended, for the answers that are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The command ended, or all answers had come.
    Complete,
    /// The time limit was reached.
    TimedOut,
    /// The limit of bytes was reached.
    TooLarge,
    /// The connection ended.
    Lost,
}

/// Reads the output line by line.
#[derive(Debug)]
pub struct Reader {
    marker: String,
    slots: Vec<Slot>,
    /// The answer that is being read: which, and its lines so far.
    open: Option<(usize, Vec<String>)>,
}

#[derive(Debug)]
struct Slot {
    id: Arc<str>,
    answer: Option<(Result<Reply, FailureReason>, Duration)>,
    /// Whom the host killed for it now.
    killed: Option<Former>,
}

impl Reader {
    /// For the answers to `questions`, framed with `marker`.
    pub fn new<'a>(questions: impl IntoIterator<Item = &'a Question>, marker: &str) -> Self {
        let slots =
            questions.into_iter().map(|q| Slot { id: q.id.clone(), answer: None, killed: None }).collect();
        Self { marker: marker.to_owned(), slots, open: None }
    }

    /// Takes one line, which came `elapsed` after the start of the command. Returns whether every
    /// question is answered, so that nothing more needs to be read.
    pub fn line(&mut self, elapsed: Duration, line: &str) -> bool {
        let frame = match line.strip_prefix(self.marker.as_str()) {
            // What a banner without an end of line left in front of the marker is noise.
            None if line.len() > self.marker.len() => {
                line.split_once(self.marker.as_str()).map(|(_, frame)| frame)
            }
            frame => frame,
        };
        match frame.and_then(|frame| frame.split_at_checked(1)) {
            Some(("<", id)) => self.open = self.slot(id).map(|slot| (slot, Vec::new())),
            Some((">", end)) => self.end(elapsed, end),
            _ => {
                if let Some((_, lines)) = &mut self.open {
                    lines.push(line.to_owned());
                }
            }
        }
        self.slots.iter().all(|slot| slot.answer.is_some())
    }

    /// How many questions have been answered so far, each in its frame.
    pub fn answered(&self) -> usize {
        self.slots.iter().filter(|slot| slot.answer.is_some()).count()
    }

    /// Whom the host killed for the question in this place, if its script hung and the host said so.
    pub fn killed(&self, place: usize) -> Option<Former> {
        self.slots.get(place).and_then(|slot| slot.killed)
    }

    fn slot(&self, id: &str) -> Option<usize> {
        self.slots.iter().position(|slot| &*slot.id == id)
    }

    fn end(&mut self, elapsed: Duration, end: &str) {
        let Some((open, mut lines)) = self.open.take() else { return };
        let Some(slot) = self.slots.get_mut(open) else { return };
        let Some((id, status)) = end.split_once(' ') else { return };
        if id != &*slot.id || slot.answer.is_some() {
            return;
        }
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        let result = match status {
            "stands" => Err(FailureReason::SkippedHung),
            "large" => Err(FailureReason::AnswerTooLarge),
            _ if status.starts_with("timeout") => {
                slot.killed = status.strip_prefix("timeout ").and_then(Former::parse);
                Err(FailureReason::CommandTimeout)
            }
            _ => {
                status.parse().map(|exit| Reply { lines, exit }).map_err(|_| FailureReason::AnswerUnreadable)
            }
        };
        slot.answer = Some((result, elapsed));
    }

    /// The answers to all questions, in their order. Those that did not come whole are failures, by the
    /// way in which the output ended after `elapsed`.
    pub fn finish(self, ending: Ending, elapsed: Duration) -> Vec<Answer> {
        let missing = match ending {
            Ending::TimedOut => FailureReason::CommandTimeout,
            Ending::TooLarge => FailureReason::AnswerTooLarge,
            Ending::Complete | Ending::Lost => FailureReason::AnswerUnreadable,
        };
        let answer = |slot: Slot| {
            let (result, elapsed) = slot.answer.unwrap_or((Err(missing), elapsed));
            Answer { question: slot.id, result, elapsed }
        };
        self.slots.into_iter().map(answer).collect()
    }
}

#[cfg(test)]
mod tests;
