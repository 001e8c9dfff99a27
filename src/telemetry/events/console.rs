//! How much of one kind of event the console is told: what happens to a whole fleet at once is one message for a
//! person, and not ten thousand lines in the system's log.

use super::catalog::Severity;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Lines of one kind within [`MINUTE`].
pub(super) const LINES: u64 = 100;
/// The time that they are counted over.
const MINUTE: Duration = Duration::from_secs(60);

/// Events of one name that are equally bad.
type Kind = (&'static str, Severity);

/// What was said lately.
#[derive(Debug, Default)]
pub(super) struct Console {
    kinds: HashMap<Kind, Said>,
}

#[derive(Debug)]
struct Said {
    since: Instant,
    events: u64,
}

impl Console {
    /// Whether one more gets a line.
    pub(super) fn takes(&mut self, kind: Kind, now: Instant) -> bool {
        let said = self.kinds.entry(kind).or_insert(Said { since: now, events: 0 });
        said.events += 1;
        said.events <= LINES
    }

    /// The kinds of which a minute is over, each with the number of events that got no line.
    pub(super) fn held_back(&mut self, now: Instant) -> Vec<(Kind, u64)> {
        let over = self.kinds.extract_if(|_, said| now.duration_since(said.since) >= MINUTE);
        let held_back = over.map(|(kind, said)| (kind, said.events.saturating_sub(LINES)));
        held_back.filter(|(_, events)| *events > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YELLOW: Kind = ("esxi.host.status_changed", Severity::Warn);
    const RED: Kind = ("esxi.host.status_changed", Severity::Error);

    #[test]
    fn a_storm_gets_its_first_lines_and_their_number_after_a_minute() {
        let (mut console, start) = (Console::default(), Instant::now());
        let lines = (0..1_000).filter(|_| console.takes(YELLOW, start)).count();
        assert_eq!(lines as u64, LINES);
        assert!(console.takes(RED, start), "what is worse is not hidden behind it");
        assert_eq!(console.held_back(start + MINUTE / 2), []);
        assert_eq!(console.held_back(start + MINUTE), [(YELLOW, 1_000 - LINES)]);
        assert!(console.takes(YELLOW, start + MINUTE), "it begins anew");
        assert_eq!(console.held_back(start + MINUTE * 3), []);
    }
}
