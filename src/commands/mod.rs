//! commands
pub mod simulate;
