//! The guard's own time.
//!
//! Waits have to be measured across restarts, and a wall clock that somebody sets must not shorten them. So
//! the journal says once a boot by how much the guard's time is ahead of the time since that boot
//! (`CLOCK_BOOTTIME`, which nobody can set and which all processes share). At the first start within a new
//! boot the guard's time is the wall clock's, but never before the last moment that the journal knows: a
//! clock that was set back makes nobody wait less, and nobody wait for it to catch up.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Add;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// A moment of the guard's time: milliseconds, from about 1970 on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Moment(pub(super) u64);

impl Moment {
    /// The time from `earlier` to here; zero if it is not earlier.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, pause: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)))
    }
}

type Reader = Box<dyn Fn() -> u64 + Send + Sync>;

/// Where the time comes from. All in milliseconds.
pub(super) struct Clock {
    /// Tells one boot of the machine from another.
    pub(super) boot: String,
    since_boot: Reader,
    wall: Reader,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("boot", &self.boot).finish_non_exhaustive()
    }
}

impl Clock {
    /// This machine's.
    pub(super) fn of_machine() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        // A time namespace moves CLOCK_BOOTTIME (time_namespaces(7)).
        let namespace = std::fs::read_link("/proc/self/ns/time");
        let boot = match boot {
            Ok(boot) => format!("{} {}", boot.trim(), namespace.unwrap_or_default().display()),
            Err(_) => format!("process {:016x}", rand::random::<u64>()),
        };
        Self { boot: boot.trim_end().to_owned(), since_boot: Box::new(boottime), wall: Box::new(wall) }
    }

    /// Of this process alone, for a memory that ends with it.
    pub(super) fn of_process() -> Self {
        let start = Instant::now();
        let since_start = move || u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Self { boot: String::new(), since_boot: Box::new(since_start), wall: Box::new(wall) }
    }

    #[cfg(test)]
    pub(super) fn made_up(boot: &str, since_boot: Reader, wall: Reader) -> Self {
        Self { boot: boot.to_owned(), since_boot, wall }
    }

    /// By how much the guard's time is ahead of the time since boot, from now on within this boot.
    pub(super) fn offset(&self, last: Moment) -> i64 {
        let now = (self.wall)().max(last.0);
        i64::try_from(now).unwrap_or(i64::MAX).saturating_sub_unsigned((self.since_boot)())
    }

    /// Now, with that offset.
    pub(super) fn now(&self, offset: i64) -> Moment {
        Moment((self.since_boot)().saturating_add_signed(offset))
    }
}

fn boottime() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

fn wall() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
