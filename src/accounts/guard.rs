//! The guard: may a login be tried? The worst thing that this agent can do is to lock an account out.

/// Identity of a credential: a keyed hash of user and secret's content. The key lives as long as the
/// process, so the hash tells nothing to whoever reads a dump or a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialId(pub [u8; 16]);
