//! The Master Password algorithm (`VCENTER_MPW`).
