//! Leaf: how many files, sockets included, the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Everything but the sessions with hosts: listeners, exports, vCenters, look-ups, files that are read.
const OTHERS: u64 = 256;

/// Raises the limit as far as it may be raised without privileges. Best effort: what is missing is said by
/// [`shortage`].
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// One line for people if the limit is too low for `sessions` at a time.
pub fn shortage(sessions: usize) -> Option<String> {
    shortage_of(getrlimit(Resource::Nofile).current, sessions)
}

fn shortage_of(limit: Option<u64>, sessions: usize) -> Option<String> {
    let needed = u64::try_from(sessions).unwrap_or(u64::MAX).saturating_add(OTHERS);
    let limit = limit.filter(|limit| *limit < needed)?;
    Some(format!(
        "the process may have {limit} files open, but {sessions} SSH sessions and the rest need {needed}: \
         raise its limit (LimitNOFILE of the service, ulimit -n), or switch ssh.reuse_sessions off"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_is_told_with_both_numbers() {
        let line = shortage_of(Some(1024), 10_000).unwrap();
        assert!(line.contains("1024 files") && line.contains("10256"), "{line}");
        assert_eq!(shortage_of(Some(10_256), 10_000), None);
        assert_eq!(shortage_of(None, 10_000), None, "without a limit there is no shortage");
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_one() {
        raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
