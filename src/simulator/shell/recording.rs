//! What a run printed, with its times, and its playing to clients with markers of their own.

use bytes::{Bytes, BytesMut};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pauses below this are the machine's own. Also how long part of a line waits for the rest of it.
pub(super) const NOISE: Duration = Duration::from_millis(100);

/// One step of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// The shell has ended. Output of processes that it left behind may follow.
    Exit(u32),
    /// Nobody holds the output any longer.
    End,
}

/// What a run printed, and when.
#[derive(Debug, Default)]
pub(super) struct Recording {
    events: Vec<(Duration, Event)>,
    pub(super) bytes: usize,
    /// Time of the last event as it was, and as it will be played.
    last: (Duration, Duration),
    pub(super) done: bool,
    /// The nonces of the command that was run.
    nonces: Vec<String>,
}

impl Recording {
    pub(super) fn of(nonces: &[String]) -> Self {
        Self { nonces: nonces.to_vec(), ..Self::default() }
    }
}

pub(super) struct Recorder<'a> {
    pub(super) recorder: &'a watch::Sender<Recording>,
    pub(super) started: Instant,
}

impl Recorder<'_> {
    pub(super) fn push(&self, event: Event) {
        let now = self.started.elapsed();
        self.recorder.send_modify(|recording| {
            let (before, played) = recording.last;
            let pause = now.saturating_sub(before);
            let at = if pause < NOISE { played } else { played + pause };
            recording.last = (now, at);
            if let Event::Stdout(bytes) | Event::Stderr(bytes) = &event {
                recording.bytes += bytes.len();
            }
            recording.events.push((at, event));
        });
    }

    pub(super) fn bytes(&self) -> usize {
        self.recorder.borrow().bytes
    }
}

/// The answer to one command, step by step, at the time of each.
#[derive(Debug)]
pub struct Answer {
    recording: watch::Receiver<Recording>,
    started: Instant,
    next: usize,
    nonces: Vec<String>,
}

impl Answer {
    pub(super) fn new(recording: watch::Receiver<Recording>, nonces: Vec<String>) -> Self {
        Self { recording, started: Instant::now(), next: 0, nonces }
    }

    /// The next step; waits until its time has come. `None` after [`Event::End`], or without one when
    /// the run met a limit: such a command hangs.
    pub async fn next(&mut self) -> Option<Event> {
        let (at, event, from) = {
            let position = self.next;
            let state = self.recording.wait_for(|r| r.done || r.events.len() > position).await.ok()?;
            let (at, first) = state.events.get(position)?;
            let mut event = first.clone();
            let mut taken = 1;
            // Output of one moment goes out in one piece.
            while let (Event::Stdout(bytes), Some((time, Event::Stdout(more)))) =
                (&event, state.events.get(position + taken))
                && time == at
            {
                event = Event::Stdout([&bytes[..], &more[..]].concat().into());
                taken += 1;
            }
            self.next += taken;
            (*at, event, if state.nonces == self.nonces { None } else { Some(state.nonces.clone()) })
        };
        tokio::time::sleep_until(self.started + at).await;
        let own = |bytes: Bytes| match &from {
            None => bytes,
            Some(from) => replace(bytes, from, &self.nonces),
        };
        Some(match event {
            Event::Stdout(bytes) => Event::Stdout(own(bytes)),
            Event::Stderr(bytes) => Event::Stderr(own(bytes)),
            other => other,
        })
    }
}

/// The command with its nonces replaced by their number and length, and the nonces.
pub(super) fn normalise(command: &str) -> (String, Vec<String>) {
    let mut shape = String::with_capacity(command.len());
    let mut nonces: Vec<String> = Vec::new();
    let mut rest = command;
    while !rest.is_empty() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(word.max(rest.chars().next().map_or(1, char::len_utf8)));
        if is_nonce(head) {
            let number = nonces.iter().position(|nonce| nonce == head).unwrap_or_else(|| {
                nonces.push(head.to_owned());
                nonces.len() - 1
            });
            // A NUL can't stand in a command.
            shape.push_str(&format!("\0{number}:{}\0", head.len()));
        } else {
            shape.push_str(head);
        }
        rest = tail;
    }
    (shape, nonces)
}

fn is_nonce(word: &str) -> bool {
    let all = |of: fn(u8) -> bool| word.bytes().all(of);
    let hexadecimal = all(|b| b.is_ascii_hexdigit());
    let base32 =
        all(|b| matches!(b, b'A'..=b'Z' | b'2'..=b'7')) || all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'));
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    word.len() >= 16 && (hexadecimal || base32) && digits >= 2 && digits < word.len()
}

/// Puts the nonces `to` in the places of those of `from`; both have the same lengths.
fn replace(bytes: Bytes, from: &[String], to: &[String]) -> Bytes {
    let mut out = BytesMut::from(&bytes[..]);
    for (from, to) in from.iter().zip(to) {
        let mut rest = &mut out[..];
        while let Some(at) = rest.windows(from.len()).position(|window| window == from.as_bytes()) {
            let (found, after) = rest.split_at_mut(at + from.len());
            if let Some(place) = found.get_mut(at..) {
                place.copy_from_slice(to.as_bytes());
            }
            rest = after;
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_count_by_place_and_length() {
        let (one, _) = normalise("echo aa112233445566778899 a; echo aa112233445566778899");
        let (two, nonces) = normalise("echo ff112233445566778899 a; echo ff112233445566778899");
        assert_eq!(one, two);
        assert_eq!(nonces, ["ff112233445566778899"]);
        let shape = |command| normalise(command).0;
        assert_ne!(shape("echo 00112233445566778899ff"), shape("echo 00112233445566778899ffff"));
        assert_ne!(
            shape("echo aa112233445566778899 bb112233445566778899"),
            shape("echo aa112233445566778899 aa112233445566778899")
        );
        let plain = "/etc/init.d/sfcbd-watchdog status; averylongservicename; sleep 1000000000000000; ünï";
        assert_eq!(normalise(plain), (plain.to_owned(), vec![]));
    }
}
