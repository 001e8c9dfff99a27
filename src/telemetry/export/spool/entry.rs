//! The bytes of a segment: a head, then entries.
//!
//! ```text
//! head:   "otlpspl\n"  u32 version  u64 sequence of its first entry  u32 CRC of the head up to here
//! entry:  "\xffOe\n"  u32 CRC of the rest of the head
//!         u64 sequence  u64 collected (ms of unix time)  u32 points  u32 bytes of the request
//!         u32 bytes as stored  u32 CRC as stored
//!         the `ExportMetricsServiceRequest`, compressed with zstd
//! ```
//!
//! All numbers are little-endian, all sums CRC-32. An entry can be told from the head alone, so that a folder is
//! counted without reading all of it; and found again behind damage by its mark.

use crate::telemetry::export::encode::Batch;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Of the format. A change of the format gets the next number.
pub(super) const VERSION: u32 = 1;

const MARK: [u8; 8] = *b"otlpspl\n";
const ENTRY: [u8; 4] = *b"\xffOe\n";
/// The fastest: what waits has to be cheap, not small at any price.
const LEVEL: i32 = 1;
/// Most bytes of a request that is read back. None is written that is larger than what a Collector takes, but
/// for single points with absurd attributes.
const LARGEST: usize = 64 << 20;

/// Where an entry stands in the order of all. Counts up over restarts.
pub type Sequence = u64;

/// The head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub(super) first: Sequence,
}

/// What can't be made sense of.
#[derive(Debug)]
pub(super) enum Unreadable {
    Damaged,
    Version(u32),
    /// It may well be sound.
    ForNow(io::Error),
}

impl SegmentHead {
    pub(super) const LENGTH: usize = 24;

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MARK.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.first.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut reader = Reader(bytes);
        let read =
            |reader: &mut Reader<'_>| Some((reader.take()?, reader.u32()?, reader.u64()?, reader.u32()?));
        let (mark, version, first, sum) = read(&mut reader).ok_or(Unreadable::Damaged)?;
        let summed = bytes.get(..Self::LENGTH - 4).map(crc32fast::hash);
        match (mark == MARK && summed == Some(sum), version) {
            (true, VERSION) => Ok(Self { first }),
            (true, other) => Err(Unreadable::Version(other)),
            (false, _) => Err(Unreadable::Damaged),
        }
    }
}

/// The head of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryHead {
    pub(super) sequence: Sequence,
    pub(super) collected: SystemTime,
    pub(super) points: u32,
    raw: u32,
    pub(super) stored: u32,
    sum: u32,
}

impl EntryHead {
    pub(super) const LENGTH: usize = 40;

    pub(super) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let (mark, head_sum): ([u8; 4], u32) = (reader.take()?, reader.u32()?);
        let rest = bytes.get(8..Self::LENGTH)?;
        if mark != ENTRY || head_sum != crc32fast::hash(rest) {
            return None;
        }
        let (sequence, collected) = (reader.u64()?, reader.u64()?);
        let collected = UNIX_EPOCH.checked_add(Duration::from_millis(collected))?;
        let (points, raw, stored, sum) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
        Some(Self { sequence, collected, points, raw, stored, sum })
    }

    /// Bytes of the whole entry.
    pub(super) fn length(&self) -> u64 {
        Self::LENGTH as u64 + u64::from(self.stored)
    }

    /// The request. `None`: the bytes are not those that were written.
    pub(super) fn open(&self, stored: &[u8]) -> Option<Batch> {
        let raw = usize::try_from(self.raw).ok().filter(|raw| *raw <= LARGEST)?;
        if crc32fast::hash(stored) != self.sum {
            return None;
        }
        let bytes = zstd::bulk::decompress(stored, raw).ok()?;
        let points = usize::try_from(self.points).ok()?;
        (bytes.len() == raw).then(|| Batch { bytes: bytes.into(), points })
    }
}

/// Compresses requests; keeps what that needs.
pub(super) struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(zstd::bulk::Compressor::new(LEVEL)?))
    }

    /// Appends an entry to `to`.
    pub(super) fn pack(
        &mut self,
        to: &mut Vec<u8>,
        sequence: Sequence,
        batch: &Batch,
        collected: SystemTime,
    ) -> io::Result<()> {
        let stored = self.0.compress(&batch.bytes)?;
        let since = collected.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut head = Vec::with_capacity(EntryHead::LENGTH);
        head.extend(sequence.to_le_bytes());
        head.extend(u64::try_from(since.as_millis()).unwrap_or(u64::MAX).to_le_bytes());
        for number in [batch.points, batch.bytes.len(), stored.len()] {
            head.extend(u32::try_from(number).map_err(io::Error::other)?.to_le_bytes());
        }
        head.extend(crc32fast::hash(&stored).to_le_bytes());
        to.extend(ENTRY);
        to.extend(crc32fast::hash(&head).to_le_bytes());
        to.extend(head);
        to.extend(stored);
        Ok(())
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

/// Where the next sound head of an entry begins, in bytes among which there is damage.
pub(super) fn next_entry(bytes: &[u8]) -> Option<usize> {
    let places = bytes.windows(EntryHead::LENGTH).enumerate();
    places
        .filter(|(_, window)| window.starts_with(&ENTRY))
        .find_map(|(at, window)| EntryHead::of_bytes(window).map(|_| at))
}

struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Vec<u8> {
        let batch = Batch { bytes: text.to_owned().into(), points: 3 };
        let mut bytes = vec![];
        Packer::new().unwrap().pack(&mut bytes, 7, &batch, UNIX_EPOCH + Duration::from_secs(9)).unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = entry("points");
        let head = EntryHead::of_bytes(&bytes).expect("sound");
        assert_eq!((head.sequence, head.points, head.length()), (7, 3, bytes.len() as u64));
        assert_eq!(head.collected, UNIX_EPOCH + Duration::from_secs(9));
        let batch = head.open(&bytes[EntryHead::LENGTH..]).expect("sound");
        assert_eq!((&batch.bytes[..], batch.points), (&b"points"[..], 3));
        let head = SegmentHead { first: 5 };
        assert_eq!(head.to_bytes().len(), SegmentHead::LENGTH);
        assert_eq!(SegmentHead::of_bytes(&head.to_bytes()).expect("sound"), head);
    }

    #[test]
    fn no_byte_can_change_without_being_noticed() {
        let whole = entry("points");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let read = EntryHead::of_bytes(&bytes).and_then(|head| head.open(&bytes[EntryHead::LENGTH..]));
            assert!(read.is_none(), "byte {at}");
            assert!(EntryHead::of_bytes(&whole[..at]).is_none_or(|_| at >= EntryHead::LENGTH), "cut at {at}");
        }
        let head = SegmentHead { first: 5 }.to_bytes();
        for at in 0..head.len() {
            let mut bytes = head.clone();
            bytes[at] ^= 0x10;
            assert!(matches!(SegmentHead::of_bytes(&bytes), Err(Unreadable::Damaged)), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = SegmentHead { first: 5 }.to_bytes();
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..20]).to_le_bytes();
        bytes[20..].copy_from_slice(&sum);
        assert!(matches!(SegmentHead::of_bytes(&bytes), Err(Unreadable::Version(2))));
    }

    #[test]
    fn behind_damage_the_next_entry_is_found() {
        let mut bytes = b"\xffOe\nnot one, only its mark, and more behind it".to_vec();
        let at = bytes.len();
        bytes.extend(entry("points"));
        assert_eq!(next_entry(&bytes), Some(at));
        assert_eq!(next_entry(&bytes[..at]), None);
    }
}
