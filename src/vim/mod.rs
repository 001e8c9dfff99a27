//! SOAP to vCenters (vim25).

pub mod model;
