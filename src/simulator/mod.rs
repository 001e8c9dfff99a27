//! simulator

pub mod sink;
