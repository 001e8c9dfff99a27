//! What a source is that is looked at again and again.

use super::atlas::Atlas;
use super::origin::Origin;
use std::time::Duration;

/// The largest content that is read: about 60,000 rows.
pub(super) const CONTENT_LIMIT: u64 = 50_000_000;

/// A good look at a source.
pub(super) struct Found {
    pub(super) atlas: Atlas,
    /// What to keep for the next start.
    pub(super) content: Option<Vec<u8>>,
}

/// A source that is looked at.
pub(super) trait Look: Send + 'static {
    fn origin(&self) -> Origin;
    /// Pause between two looks.
    fn pace(&self) -> Duration;
    /// The how-manieth bad look in a row is told.
    fn patience(&self) -> u32;
    /// What is there; `None`: the same as at the last good look. The error is one line that names it.
    fn look(&mut self) -> impl Future<Output = Result<Option<Found>, String>> + Send;
}
