//! Reading what a vCenter of this version has, and may tell.

use super::{ALWAYS, VcenterPoller};
use crate::inventory::Vcenter;
use crate::vim::VimClient;
use crate::vim::client::VimError;
use crate::vim::model::ManagedObject;
use crate::vim::property::Query;
use crate::vim::soap::FaultKind;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Instant;

/// What a vCenter's version does not know of hosts, and which version that is.
#[derive(Default)]
pub(super) struct Unknown {
    pub properties: BTreeSet<String>,
    api_version: String,
}

impl VcenterPoller {
    /// Asks for properties of these hosts or of all in the tree, without those that the vCenter turns out
    /// not to know.
    pub(super) async fn read_known_properties(
        &mut self,
        hosts: Option<&[Arc<str>]>,
        wanted: &BTreeSet<&str>,
        deadline: Instant,
    ) -> Result<Vec<ManagedObject>, VimError> {
        // The client stays in its place while it is used: a cancelled poll must not lose the session.
        let client = match &mut self.client {
            Some(client) => client,
            empty => empty.insert(VimClient::new(
                &self.config,
                Arc::clone(&self.vcenter),
                self.access.clone(),
                Arc::clone(&self.stats),
            )?),
        };
        loop {
            let asked: Vec<&str> = wanted
                .iter()
                .copied()
                .filter(|property| !self.unknown.properties.contains(*property))
                .collect();
            if asked.is_empty() {
                return Ok(Vec::new());
            }
            let query = match hosts {
                Some(ids) => Query::Objects { kind: "HostSystem", ids, properties: &asked },
                None => Query::Tree(&asked),
            };
            let result = client.retrieve(&query, deadline).await;
            if let Some(service) = client.service()
                && service.api_version != self.unknown.api_version
            {
                let api_version = service.api_version.clone();
                self.unknown = Unknown { api_version, ..Unknown::default() };
            }
            let error = match result {
                Ok(objects) => return Ok(objects),
                Err(error) => error,
            };
            let named = error.fault.as_ref().filter(|fault| fault.kind == FaultKind::InvalidProperty);
            let named = named.and_then(|fault| fault.subject.as_deref());
            match named.filter(|named| asked.contains(named) && !ALWAYS.contains(named)) {
                Some(named) => self.unknown.add(&self.vcenter, named),
                None => return Err(error),
            }
        }
    }

    /// Newer simulators, and maybe servers, tell of an unknown property host by host.
    pub(super) fn look_at_missing(&mut self, objects: &[ManagedObject]) {
        let (mut denied, mut example) = (0, None);
        for (path, fault) in objects.iter().flat_map(|object| &object.missing) {
            match fault.kind {
                FaultKind::InvalidProperty
                    if !ALWAYS.contains(&&**path) && !self.unknown.properties.contains(&**path) =>
                {
                    self.unknown.add(&self.vcenter, path);
                }
                FaultKind::NoPermission => {
                    denied += 1;
                    example.get_or_insert((path, fault));
                }
                _ => {}
            }
        }
        if let Some((path, fault)) = example
            && !std::mem::replace(&mut self.said_unreadable, true)
        {
            tracing::warn!(
                vcenter = %self.vcenter.address,
                "{denied} properties can't be read, {path} by {fault}: the account lacks the role Read-only on some \
                 objects"
            );
        }
        self.said_unreadable = denied > 0;
    }
}

impl Unknown {
    fn add(&mut self, vcenter: &Vcenter, property: &str) {
        tracing::warn!(
            vcenter = %vcenter.address,
            "API version {} has no property {property} of HostSystem: its series are left out",
            self.api_version
        );
        self.properties.insert(property.to_owned());
    }
}
