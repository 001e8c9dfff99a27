//! Managed objects as plain data.

/// One managed object with the properties that the server returned.
#[derive(Debug, Clone, PartialEq)]
pub struct ManagedObject {
    /// Type, e.g. `HostSystem`.
    pub kind: String,
    /// Reference, e.g. `host-15`.
    pub id: String,
}
