//! poller

pub mod pool;
pub mod visit;
