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

/// What a command printed, also when it did not end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// Lines of its standard output and when they came, counted from the start of the command. Invalid
    /// UTF-8 is replaced, the end of line cut off.
    pub lines: Vec<(Duration, String)>,
    /// Its exit status, if the host told it.
    pub exit: Option<u32>,
    /// Why there are no more lines.
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

/// Cuts the output into lines.
pub(super) struct Lines {
    start: Instant,
    /// Those that ended so far.
    pub(super) lines: Vec<(Duration, String)>,
    rest: Vec<u8>,
    bytes: usize,
    max_bytes: usize,
}

impl Lines {
    pub(super) fn new(start: Instant, max_bytes: usize) -> Self {
        Self { start, lines: Vec::new(), rest: Vec::new(), bytes: 0, max_bytes }
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
        let mut parts = data.get(..room).unwrap_or_default().split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            self.rest.extend_from_slice(part);
            if parts.peek().is_some() && self.end_line(until) {
                return true;
            }
        }
        false
    }

    pub(super) fn finish(&mut self, until: &mut impl FnMut(Duration, &str) -> bool) {
        if !self.rest.is_empty() {
            self.end_line(until);
        }
    }

    fn end_line(&mut self, until: &mut impl FnMut(Duration, &str) -> bool) -> bool {
        let rest = std::mem::take(&mut self.rest);
        let line = String::from_utf8_lossy(rest.strip_suffix(b"\r").unwrap_or(&rest)).into_owned();
        let elapsed = self.start.elapsed();
        let enough = until(elapsed, &line);
        self.lines.push((elapsed, line));
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_into_lines(parts: &[&[u8]], max_bytes: usize) -> Vec<String> {
        let mut lines = Lines::new(Instant::now(), max_bytes);
        for part in parts {
            lines.take(part, &mut |_, _| false);
        }
        lines.finish(&mut |_, _| false);
        lines.lines.into_iter().map(|(_, line)| line).collect()
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
        let mut lines = Lines::new(Instant::now(), 100);
        assert!(lines.take(b"a\nlast\nmore\n", &mut |_, line| line == "last"));
        assert_eq!(lines.lines.len(), 2);
    }
}
