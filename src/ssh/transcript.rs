//! What a command printed, line by line.

use crate::outcome::{Failure, FailureReason};
use std::time::Duration;
use tokio::time::Instant;

/// Why reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The command ended, or the caller had seen enough.
    Complete,
    /// The time limit.
    TimedOut,
    /// The limit of bytes.
    TooLarge,
    /// The connection ended.
    Lost,
}

/// How a command ended, well or not. Its lines went to whoever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// Its exit status, if the host told it.
    pub exit: Option<u32>,
    /// Why no more lines came.
    pub end: End,
    /// How long it took.
    pub elapsed: Duration,
}

impl Transcript {
    /// Why it is not whole, if so.
    pub fn failure(&self) -> Option<Failure> {
        let (reason, message) = match self.end {
            End::Complete => return None,
            End::TimedOut => {
                (FailureReason::CommandTimeout, format!("command: no end within {:.1?}", self.elapsed))
            }
            End::TooLarge => (FailureReason::AnswerTooLarge, "command: more output than is read".to_owned()),
            End::Lost => (FailureReason::ConnectionLost, "command: the connection ended".to_owned()),
        };
        Some(Failure::new(reason, message))
    }
}

/// Cuts the output into lines, for `until`: when each came, counted from the start of the command, and its
/// text, invalid UTF-8 replaced and the end of line cut off.
pub(super) struct Lines {
    start: Instant,
    /// The begin of a line whose end has not come.
    rest: Vec<u8>,
    bytes: usize,
    max_bytes: usize,
}

impl Lines {
    pub(super) fn new(start: Instant, max_bytes: usize) -> Self {
        Self { start, rest: Vec::new(), bytes: 0, max_bytes }
    }

    pub(super) fn count(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn too_many(&self) -> bool {
        self.bytes > self.max_bytes
    }

    /// Takes bytes as they came, cut anywhere. Returns whether `until` was satisfied.
    pub(super) fn take(&mut self, data: &[u8], until: &mut impl FnMut(Duration, &str) -> bool) -> bool {
        let room = self.max_bytes.saturating_sub(self.bytes).min(data.len());
        self.count(data.len());
        for piece in data.get(..room).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            let Some(line) = piece.strip_suffix(b"\n") else {
                self.rest.extend_from_slice(piece);
                break;
            };
            let enough = if self.rest.is_empty() {
                self.line(line, until)
            } else {
                self.rest.extend_from_slice(line);
                self.finish(until)
            };
            if enough {
                return true;
            }
        }
        false
    }

    /// The last line may have no end.
    pub(super) fn finish(&mut self, until: &mut impl FnMut(Duration, &str) -> bool) -> bool {
        let rest = std::mem::take(&mut self.rest);
        !rest.is_empty() && self.line(&rest, until)
    }

    fn line(&self, line: &[u8], until: &mut impl FnMut(Duration, &str) -> bool) -> bool {
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        until(self.start.elapsed(), &line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_into_lines(parts: &[&[u8]], max_bytes: usize) -> Vec<String> {
        let (mut lines, mut seen) = (Lines::new(Instant::now(), max_bytes), Vec::new());
        let mut until = |_, line: &str| {
            seen.push(line.to_owned());
            false
        };
        for part in parts {
            lines.take(part, &mut until);
        }
        lines.finish(&mut until);
        seen
    }

    proptest::proptest! {
        #[test]
        fn it_does_not_matter_where_the_output_is_cut(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            cuts in proptest::collection::vec(0..200_usize, 0..10),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            assert_eq!(cut_into_lines(&parts, 1_000), cut_into_lines(&[&bytes], 1_000));
        }
    }

    #[test]
    fn no_more_is_kept_than_the_limit_allows() {
        assert_eq!(cut_into_lines(&[b"abc\ndef", b"ghi\n"], 5), ["abc", "d"]);
    }

    #[test]
    fn nothing_is_read_beyond_the_last_line_of_interest() {
        let (mut lines, mut seen) = (Lines::new(Instant::now(), 100), 0);
        let mut until = |_, line: &str| {
            seen += 1;
            line == "last"
        };
        assert!(lines.take(b"a\nlast\nmore\n", &mut until));
        assert_eq!(seen, 2);
    }
}
