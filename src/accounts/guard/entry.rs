//! The journal's lines: a CRC-32 in hexadecimal, a space, one JSON object.

use super::clock::Moment;
use super::credential::CredentialId;
use super::rules::{Credential, Instance, Outcome, Scope, Target};
use crate::target::{TargetId, TargetKind};
use serde::{Deserialize, Serialize};

/// What is written down. The state is what follows from all of them, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Entry {
    /// The first line of every journal: the format's version, and with which key its ids were made.
    Journal { version: u32, key: String },
    /// Within this boot the guard's time is so many milliseconds ahead of the time since boot.
    Clock { boot: String, offset: i64, at: Moment },
    /// A try was granted. Its verdict follows, unless the process ends before.
    Try {
        at: Moment,
        by: Instance,
        #[serde(with = "target")]
        target: TargetId,
        credential: CredentialId,
        /// For people; with the first try of a credential.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        probe: bool,
    },
    /// How it ended.
    End {
        at: Moment,
        by: Instance,
        #[serde(with = "target")]
        target: TargetId,
        credential: CredentialId,
        outcome: Outcome,
    },
    /// Somebody opened by hand.
    Release { at: Moment, what: Scope },
    /// What compaction kept of a credential.
    Credential {
        id: CredentialId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        state: Credential,
    },
    /// What compaction kept of a target.
    Target {
        #[serde(with = "target")]
        target: TargetId,
        state: Target,
    },
}

impl Entry {
    /// The line, with its end.
    pub(super) fn to_line(&self) -> Result<String, serde_json::Error> {
        let text = serde_json::to_string(self)?;
        Ok(format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes())))
    }

    /// Reads a line without its end.
    pub(super) fn of_line(line: &[u8]) -> Result<Self, String> {
        let wrong = "its checksum is wrong";
        let (sum, text) = line.split_at_checked(9).ok_or(wrong)?;
        let sum = std::str::from_utf8(sum).ok().and_then(|sum| sum.strip_suffix(' ')).ok_or(wrong)?;
        if u32::from_str_radix(sum, 16) != Ok(crc32fast::hash(text)) {
            return Err(wrong.to_owned());
        }
        serde_json::from_slice(text).map_err(|error| format!("not understood: {error}"))
    }
}

fn target_of(text: &str) -> Option<TargetId> {
    let (kind, address) = text.split_once(' ')?;
    match [TargetKind::Host, TargetKind::Vcenter].into_iter().find(|known| known.word() == kind)? {
        TargetKind::Host => Some(TargetId::host(address)),
        TargetKind::Vcenter => Some(TargetId::vcenter(address)),
    }
}

/// A target as `host esx1`.
mod target {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(target: &TargetId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{} {}", target.kind.word(), target.address))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<TargetId, D::Error> {
        let text = String::deserialize(from)?;
        target_of(&text).ok_or_else(|| serde::de::Error::custom("no target"))
    }
}

/// The same, where there may be none.
pub(super) mod target_or_none {
    use super::*;

    pub(in super::super) fn serialize<S: serde::Serializer>(
        target: &Option<TargetId>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match target {
            Some(target) => super::target::serialize(target, to),
            None => to.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        from: D,
    ) -> Result<Option<TargetId>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| target_of(&text).ok_or_else(|| serde::de::Error::custom("no target"))).transpose()
    }
}
