//! simulator

pub mod vcenter;
mod vcenter_calls;
mod vcenter_request;
mod vcenter_server;
mod vcenter_spec;
mod vcenter_state;
mod vcenter_tree;
pub mod sink;
