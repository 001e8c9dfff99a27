//! Which part of a fleet is this agent's, without anybody to ask.
//!
//! Rendezvous hashing: of the shards 0 to n-1 a target belongs to the one with the largest
//! SHA-256(address ‖ 0 ‖ shard). So every agent that is told n knows the same answer, and from n to n + 1
//! only the targets of the new shard move. The address counts in lower case, the shard as four bytes, the
//! most significant one first. All this is for ever: a release that hashed otherwise would ask the fleet
//! twice while it is rolled out.

use sha2::{Digest, Sha256};
use std::fmt;

/// Most shards. Each target is hashed once for each of them whenever the inventory changes.
const MOST: u32 = 1000;

/// One of n parts of the fleet. The default is all of it, shard 0 of 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    count: u32,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl Shard {
    /// Reads `i/n` (shard i of n, from 0), or `auto/n`, where `host_name` ends in `-i`, as the names of
    /// the pods of a StatefulSet do.
    ///
    /// # Errors
    /// One line: what was found and what is allowed.
    pub fn parse(text: &str, host_name: &str) -> Result<Self, String> {
        let no_shard =
            || format!("{text:?} is no shard; write 0/3 for the first of three, or auto/3 in a StatefulSet");
        let (index, count) = text.split_once('/').ok_or_else(no_shard)?;
        let count: u32 = number(count).ok_or_else(no_shard)?;
        if !(1..=MOST).contains(&count) {
            return Err(format!("{text:?} is no shard; allowed are 1 to {MOST} shards"));
        }
        let (index, of) = if index == "auto" {
            // With `setHostnameAsFQDN` a domain follows.
            let pod = host_name.split('.').next().unwrap_or_default();
            let ordinal = pod.rsplit_once('-').and_then(|(_, ordinal)| number(ordinal));
            let ordinal = ordinal.ok_or_else(|| {
                format!(
                    "{text:?} takes the shard from the host name, which is {host_name:?} and does not end \
                     in -0, -1, … as in a StatefulSet; write 0/{count}, 1/{count}, … instead"
                )
            })?;
            (ordinal, format!("the host name {host_name:?} stands for shard {ordinal}"))
        } else {
            (number(index).ok_or_else(no_shard)?, format!("{text:?} is no shard"))
        };
        if index >= count {
            return Err(format!("{of}; with {count} shards they are 0 to {}", count - 1));
        }
        Ok(Self { index, count })
    }

    /// Whether it is the whole fleet.
    pub const fn is_whole(self) -> bool {
        self.count == 1
    }

    /// Whether the target with this address is this shard's. Of all shards of n exactly one says yes.
    pub fn owns(self, address: &str) -> bool {
        if self.is_whole() {
            return true;
        }
        let mut prefix = Sha256::new_with_prefix(address.to_ascii_lowercase());
        prefix.update([0]);
        let score = |shard: u32| prefix.clone().chain_update(shard.to_be_bytes()).finalize();
        (0..self.count).max_by_key(|shard| score(*shard)) == Some(self.index)
    }
}

/// Digits and nothing else: `+1` is no number here.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(address: &str, count: u32) -> u32 {
        let owners: Vec<u32> = (0..count).filter(|&index| Shard { index, count }.owns(address)).collect();
        assert_eq!(owners.len(), 1, "{address} belongs to the shards {owners:?} of {count}");
        owners[0]
    }

    fn fleet(size: usize) -> Vec<String> {
        (0..size).map(|i| format!("node{i:05}.cc.eu-de-1.example.org")).collect()
    }

    proptest! {
        #[test]
        fn every_address_belongs_to_one_shard_and_moves_to_a_new_one_only(
            address in "[A-Za-z0-9.:\\[\\]-]{1,40}",
            count in 1..40u32,
        ) {
            let (before, after) = (owner(&address, count), owner(&address, count + 1));
            prop_assert!(after == before || after == count, "from {before} of {count} to {after}");
            prop_assert_eq!(owner(&address.to_ascii_uppercase(), count), before);
        }

        #[test]
        fn what_is_written_is_read_again(index in 0..MOST, more in 1..MOST) {
            let count = (index + more).min(MOST);
            let text = format!("{index}/{count}");
            prop_assert_eq!(Shard::parse(&text, "").map(|shard| shard.to_string()), Ok(text.clone()));
            let auto = Shard::parse(&format!("auto/{count}"), &format!("agent-{index}"));
            prop_assert_eq!(auto.map(|shard| shard.to_string()), Ok(text));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a-z0-9/+-]{0,12}", host_name in "\\PC{0,12}") {
            let _ = Shard::parse(&text, &host_name);
        }
    }

    #[test]
    fn a_new_shard_takes_its_part_and_nothing_else_moves() {
        let fleet = fleet(4000);
        for count in 1..8u32 {
            let moved = fleet.iter().filter(|a| owner(a, count) != owner(a, count + 1)).count();
            let part = fleet.len() / (count as usize + 1);
            assert!(moved.abs_diff(part) < part / 5, "{moved} moved to shard {count}, not about {part}");
        }
    }

    #[test]
    fn shards_are_about_equal() {
        let fleet = fleet(4000);
        for index in 0..4 {
            let mine = fleet.iter().filter(|a| Shard { index, count: 4 }.owns(a)).count();
            assert!((900..1100).contains(&mine), "{mine}");
        }
    }

    /// These never change: see the module's documentation.
    #[test]
    fn a_target_stays_in_its_shard_from_release_to_release() {
        let owners = |address| [2, 3, 4, 7, 16].map(|count| owner(address, count));
        assert_eq!(owners("esx1.example.org"), [1, 2, 2, 2, 2]);
        assert_eq!(owners("node001-bb091.cc.eu-de-1.cloud.sap"), [1, 2, 2, 2, 2]);
        assert_eq!(owners("[2001:db8::1]:22"), [0, 0, 3, 3, 3]);
        assert_eq!(owners("vc-a-0.cc.eu-de-1.cloud.sap"), [1, 2, 2, 4, 8]);
    }

    #[test]
    fn what_is_no_shard_says_what_would_be() {
        let no_shard = |text: &str| {
            format!("{text:?} is no shard; write 0/3 for the first of three, or auto/3 in a StatefulSet")
        };
        for text in ["", "3", "/3", "1/", "a/3", "-1/3", "+1/3", "1/3/4", "Auto/3", "1 / 3"] {
            assert_eq!(Shard::parse(text, "agent-0"), Err(no_shard(text)));
        }
        for (text, problem) in [
            ("0/0", r#""0/0" is no shard; allowed are 1 to 1000 shards"#),
            ("0/1001", r#""0/1001" is no shard; allowed are 1 to 1000 shards"#),
            ("3/3", r#""3/3" is no shard; with 3 shards they are 0 to 2"#),
            ("auto/3", r#"the host name "agent-3" stands for shard 3; with 3 shards they are 0 to 2"#),
        ] {
            assert_eq!(Shard::parse(text, "agent-3"), Err(problem.to_owned()));
        }
        assert_eq!(Shard::parse("auto/3", "agent-1.ns.svc"), Ok(Shard { index: 1, count: 3 }));
        for host_name in ["", "agent", "agent-", "agent-x1", "agent.example-1"] {
            let problem = Shard::parse("auto/3", host_name).unwrap_err();
            assert!(problem.contains(&format!("{host_name:?}")) && problem.contains("1/3"), "{problem}");
        }
    }
}
