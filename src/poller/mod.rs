//! poller

pub mod poll;
pub mod pool;
pub mod visit;
