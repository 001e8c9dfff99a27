//! poller

pub mod poll;
