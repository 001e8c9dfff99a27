//! The segments: appended at one end, read at the other. Blocking.

use super::entry::{EntryHead, Packer, SegmentHead, Sequence, Unreadable, next_entry};
use super::folder::{Folder, SpoolError, io_error, private};
use crate::telemetry::export::encode::Batch;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A segment that is larger gets no more entries.
const SEGMENT: u64 = 8 << 20;
/// A spool has at least so many segments when it is full: it is emptied a segment at a time.
const SEGMENTS: u64 = 16;
/// Bytes behind damage among which the next entry is sought.
const SOUGHT: u64 = 64 << 20;
/// Room on the disk that is left to others: the guard's journal may lie there, and without it nobody logs in.
const LEFT_FREE: u64 = 64 << 20;

/// The spool of one process.
#[derive(Debug)]
pub struct Spool {
    folder: Folder,
    packer: Packer,
    segments: VecDeque<Segment>,
    /// The last segment, while it may be appended to.
    open: Option<File>,
    segment_size: u64,
    next: Sequence,
    cursor: Sequence,
    damaged: u64,
    /// Reading fails for now, which was said.
    cannot_read: bool,
}

/// A request that was kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Its place in the order.
    pub sequence: Sequence,
    /// The request.
    pub batch: Batch,
    /// When its points were collected, by the wall clock of the process that did.
    pub collected: SystemTime,
}

/// What was read.
#[derive(Debug, Default, PartialEq)]
pub struct Loaded {
    /// In the order in which they were appended.
    pub entries: Vec<Kept>,
    /// Points of entries that can't be read any more.
    pub damaged_points: usize,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    /// Bytes that count: those behind them were never written to their end.
    length: u64,
    /// After its last entry.
    end: Sequence,
    newest: SystemTime,
    unread: Unread,
    damaged: bool,
}

/// What of a segment was not loaded yet.
#[derive(Debug, Clone, Copy)]
struct Unread {
    offset: u64,
    first: Sequence,
    points: usize,
    oldest: Option<SystemTime>,
}

impl Spool {
    /// Takes the folder and looks at what is there. Reads the heads of all entries: a second or two for
    /// 100,000 segments.
    ///
    /// # Errors
    /// When the folder is not usable, or not ours.
    pub fn open(path: &Path, max_bytes: u64) -> Result<Self, SpoolError> {
        let folder = Folder::take(path)?;
        let known = folder.cursor()?;
        let cursor = known.unwrap_or(0);
        let packer = Packer::new().map_err(io_error("written", path))?;
        let segment_size = SEGMENT.min(max_bytes / SEGMENTS);
        let (segments, next) = (VecDeque::new(), cursor);
        let (open, damaged, cannot_read) = (None, 0, false);
        let mut spool =
            Self { folder, packer, segments, open, segment_size, next, cursor, damaged, cannot_read };
        let found = spool.folder.segments()?;
        match known {
            Some(_) => {}
            // Once there is one, a folder without it has lost it.
            None if found.is_empty() => spool.folder.write_cursor(cursor)?,
            None => tracing::warn!(
                "OTLP: the spool does not say how far it was sent; all of it is sent: {}",
                path.display()
            ),
        }
        let last = found.len().saturating_sub(1);
        for (number, (first, path)) in found.into_iter().enumerate() {
            spool.take_in(first, path, number == last)?;
        }
        Ok(spool)
    }

    fn take_in(&mut self, first: Sequence, path: PathBuf, is_last: bool) -> Result<(), SpoolError> {
        match scan(&path, first, self.cursor) {
            Ok((mut segment, torn)) => {
                if torn && is_last {
                    tracing::info!(
                        "OTLP: the spool's last entry was not written to its end, and never counted"
                    );
                    // Behind a later segment it would look like damage.
                    let cut = private().open(&segment.path).and_then(|file| file.set_len(segment.length));
                    segment.damaged |= cut.is_err();
                } else {
                    segment.damaged |= torn;
                }
                self.next = self.next.max(segment.end);
                self.segments.push_back(segment);
                Ok(())
            }
            Err(Unreadable::Version(found)) => {
                Err(SpoolError::Version { path: self.folder.path().to_owned(), found })
            }
            Err(Unreadable::ForNow(error)) => Err(io_error("read", &path)(error)),
            Err(Unreadable::Damaged) => {
                self.next = self.next.max(first.saturating_add(1));
                self.put_aside(&path);
                Ok(())
            }
        }
    }

    /// Appends requests, all or none; they are on the disk when this returns. Returns the place of the
    /// first one. With `loaded` they count as read.
    ///
    /// # Errors
    /// When there is no room, or the disk does not take it.
    pub fn append<'b>(
        &mut self,
        entries: impl IntoIterator<Item = (&'b Batch, SystemTime)>,
        loaded: bool,
    ) -> Result<Sequence, SpoolError> {
        let (first, mut bytes, mut points) = (self.next, vec![], 0);
        let (mut next, mut oldest, mut newest) = (first, None, SystemTime::UNIX_EPOCH);
        for (batch, collected) in entries {
            let packed = self.packer.pack(&mut bytes, next, batch, collected);
            packed.map_err(io_error("written", self.folder.path()))?;
            (next, points, newest) = (next + 1, points + batch.points, newest.max(collected));
            oldest = oldest.or(Some(collected));
        }
        if bytes.is_empty() {
            return Ok(first);
        }
        self.check_room(bytes.len() as u64)?;
        if self.open.is_none() || self.segments.back().is_none_or(|last| last.length >= self.segment_size) {
            self.begin_segment(first)?;
        }
        let (Some(file), Some(segment)) = (&mut self.open, self.segments.back_mut()) else {
            return Ok(first);
        };
        if let Err(error) = file.write_all_at(&bytes, segment.length).and_then(|()| file.sync_data()) {
            // Whatever reached the disk of it is cut off, and nothing more is written to a file whose sync has
            // failed: what it says of its pages is not to be trusted.
            let _ = file.set_len(segment.length);
            self.open = None;
            return Err(io_error("written", &segment.path)(error));
        }
        let has_unread = segment.unread.offset < segment.length;
        segment.length += bytes.len() as u64;
        segment.end = next;
        segment.newest = segment.newest.max(newest);
        if loaded && !has_unread {
            segment.unread = Unread { offset: segment.length, first: next, points: 0, oldest: None };
        } else {
            segment.unread.points += points;
            segment.unread.oldest = segment.unread.oldest.or(oldest);
        }
        self.next = next;
        Ok(first)
    }

    fn begin_segment(&mut self, first: Sequence) -> Result<(), SpoolError> {
        self.open = None;
        let (path, head) = (self.folder.segment(first), SegmentHead { first }.to_bytes());
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let file = self.folder.replace(&name, &head)?;
        let length = head.len() as u64;
        let unread = Unread { offset: length, first, points: 0, oldest: None };
        let newest = SystemTime::UNIX_EPOCH;
        // One of the same name has nothing in it that counts: its first write failed.
        if self.segments.back().is_some_and(|last| last.path == path) {
            self.segments.pop_back();
        }
        self.segments.push_back(Segment { path, length, end: first, newest, unread, damaged: false });
        self.open = Some(file);
        Ok(())
    }

    fn check_room(&self, needed: u64) -> Result<(), SpoolError> {
        let Ok(disk) = rustix::fs::statvfs(self.folder.path()) else { return Ok(()) };
        let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
        if free < needed + LEFT_FREE.min(all / 10) {
            return Err(io_error("written", self.folder.path())(io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }

    /// Reads on, about as many bytes of requests. Nothing where that fails for a reason that may pass: it is to be
    /// called again.
    pub fn load(&mut self, bytes: usize) -> Loaded {
        let (mut loaded, mut size) = (Loaded::default(), 0);
        for segment in self.segments.iter_mut().filter(|segment| segment.has_unread()) {
            if size >= bytes {
                break;
            }
            let read = segment.load(bytes, &mut size, &mut loaded);
            let could_not_read = std::mem::replace(&mut self.cannot_read, false);
            let Err(error) = read else { continue };
            let path = segment.path.display();
            if may_pass(&error) {
                self.cannot_read = true;
                if !could_not_read {
                    tracing::warn!(
                        "OTLP: the spool can't be read for now, it is tried again: {path}: {error}"
                    );
                }
                break;
            }
            tracing::warn!("OTLP: the spool can't be read, a part is lost: {path}: {error}");
            loaded.damaged_points += segment.give_up();
        }
        loaded
    }

    /// Writes down how far it is: everything before `oldest` was dealt with, everything that was loaded if
    /// there is none. Removes what is not needed any more.
    pub fn settle(&mut self, oldest: Option<Sequence>) -> Result<(), SpoolError> {
        let done = oldest.unwrap_or_else(|| self.next_unread());
        if done > self.cursor {
            self.folder.write_cursor(done)?;
            self.cursor = done;
        }
        while self.segments.front().is_some_and(|segment| !segment.has_unread() && segment.end <= done) {
            self.remove_front();
        }
        Ok(())
    }

    /// Gives up the oldest segment. Returns the points that were not loaded, and before which entry nothing is on the
    /// disk any more: those that were loaded are nowhere else now.
    pub fn drop_oldest(&mut self) -> (usize, Sequence) {
        let front = self.segments.front();
        let dropped = front.map_or((0, 0), |segment| (segment.unread.points, segment.end));
        self.remove_front();
        dropped
    }

    fn remove_front(&mut self) {
        let Some(segment) = self.segments.pop_front() else { return };
        if self.segments.is_empty() {
            self.open = None;
        }
        if segment.damaged {
            self.put_aside(&segment.path);
        } else if let Err(error) = fs::remove_file(&segment.path) {
            // The cursor says, too, that it was dealt with.
            tracing::debug!("{}: {error}", segment.path.display());
        }
    }

    fn put_aside(&mut self, path: &Path) {
        self.damaged += 1;
        match self.folder.put_aside(path) {
            Ok(aside) => tracing::warn!("OTLP: damage in the spool, kept aside: {}", aside.display()),
            Err(error) => tracing::warn!("OTLP: damage in the spool: {error}"),
        }
    }

    /// Bytes on the disk.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// Points that were not loaded.
    pub fn unread_points(&self) -> usize {
        self.segments.iter().map(|segment| segment.unread.points).sum()
    }

    /// Whether there is something to load.
    pub fn has_unread(&self) -> bool {
        self.segments.iter().any(Segment::has_unread)
    }

    /// The oldest of what was not loaded, and when it was collected.
    pub fn oldest_unread(&self) -> Option<(Sequence, SystemTime)> {
        let oldest = |segment: &Segment| segment.unread.oldest.map(|at| (segment.unread.first, at));
        self.segments.iter().find_map(oldest)
    }

    /// The newest of the oldest segment, and when it was collected.
    pub fn oldest_segment(&self) -> Option<(Sequence, SystemTime)> {
        self.segments.front().map(|segment| (segment.end.saturating_sub(1), segment.newest))
    }

    /// Segments with damage that were found so far.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    fn next_unread(&self) -> Sequence {
        self.segments
            .iter()
            .find(|segment| segment.has_unread())
            .map_or(self.next, |segment| segment.unread.first)
    }
}

impl Segment {
    fn has_unread(&self) -> bool {
        self.unread.offset < self.length
    }

    fn load(&mut self, bytes: usize, size: &mut usize, loaded: &mut Loaded) -> io::Result<()> {
        let file = File::open(&self.path)?;
        while self.has_unread() && *size < bytes {
            let Step { found, damage } = step(&file, self.unread.offset, self.length)?;
            self.damaged |= damage;
            let Some((offset, head)) = found else {
                loaded.damaged_points += self.give_up();
                break;
            };
            let mut stored = vec![0; usize::try_from(head.stored).map_err(io::Error::other)?];
            file.read_exact_at(&mut stored, offset + EntryHead::LENGTH as u64)?;
            let points = usize::try_from(head.points).unwrap_or(0);
            match head.open(&stored) {
                Some(batch) => {
                    *size += batch.bytes.len();
                    let (sequence, collected) = (head.sequence, head.collected);
                    loaded.entries.push(Kept { sequence, batch, collected });
                }
                None => {
                    self.damaged = true;
                    loaded.damaged_points += points;
                }
            }
            self.unread = Unread {
                offset: offset + head.length(),
                first: head.sequence + 1,
                points: self.unread.points.saturating_sub(points),
                // The next one is hardly younger.
                oldest: Some(head.collected),
            };
        }
        if !self.has_unread() {
            // Whatever was counted when it was written, or found, and not met now.
            loaded.damaged_points += self.unread.points;
            self.unread = Unread { points: 0, oldest: None, ..self.unread };
        }
        Ok(())
    }

    /// Whatever was not loaded is lost. Returns its points.
    fn give_up(&mut self) -> usize {
        self.damaged = true;
        let points = self.unread.points;
        self.unread = Unread { offset: self.length, first: self.end, points: 0, oldest: None };
        points
    }
}

/// Looks at a segment's heads. What lies before `cursor` was dealt with. Also says whether there is something
/// at its end that is no entry.
fn scan(path: &Path, first: Sequence, cursor: Sequence) -> Result<(Segment, bool), Unreadable> {
    let damaged = |error| if may_pass(&error) { Unreadable::ForNow(error) } else { Unreadable::Damaged };
    let file = File::open(path).map_err(damaged)?;
    let length = file.metadata().map_err(damaged)?.len();
    let mut head = [0; SegmentHead::LENGTH];
    file.read_exact_at(&mut head, 0).map_err(damaged)?;
    if SegmentHead::of_bytes(&head)?.first != first {
        return Err(Unreadable::Damaged);
    }
    let begin = SegmentHead::LENGTH as u64;
    let unread = Unread { offset: begin, first, points: 0, oldest: None };
    let newest = SystemTime::UNIX_EPOCH;
    let mut segment =
        Segment { path: path.to_owned(), length: begin, end: first, newest, unread, damaged: false };
    loop {
        let Step { found, damage } = step(&file, segment.length, length).map_err(damaged)?;
        let Some((offset, head)) = found else { return Ok((segment, damage)) };
        segment.damaged |= damage;
        segment.length = offset + head.length();
        segment.end = head.sequence.saturating_add(1);
        segment.newest = segment.newest.max(head.collected);
        if head.sequence < cursor {
            segment.unread.offset = segment.length;
            segment.unread.first = segment.end;
        } else {
            segment.unread.points += usize::try_from(head.points).unwrap_or(0);
            segment.unread.oldest = segment.unread.oldest.or(Some(head.collected));
        }
    }
}

/// Whether the same may be read later: this process has too many open files, say, or a server is away. A disk's own
/// errors are damage: whoever waited for those would never go on.
fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, OutOfMemory, StaleNetworkFileHandle, TimedOut, WouldBlock};
    let too_many = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    matches!(error.kind(), Interrupted | OutOfMemory | StaleNetworkFileHandle | TimedOut | WouldBlock)
        || error.raw_os_error().is_some_and(|code| too_many.contains(&code))
}

/// The next entry of a segment, and whether there was something else before it.
struct Step {
    found: Option<(u64, EntryHead)>,
    damage: bool,
}

fn step(file: &File, offset: u64, length: u64) -> io::Result<Step> {
    let sound = |at: u64, bytes: &[u8]| {
        EntryHead::of_bytes(bytes).filter(|head| at + head.length() <= length).map(|head| (at, head))
    };
    if offset >= length {
        return Ok(Step { found: None, damage: false });
    }
    let mut head = [0; EntryHead::LENGTH];
    if offset + EntryHead::LENGTH as u64 <= length {
        file.read_exact_at(&mut head, offset)?;
        if let Some(found) = sound(offset, &head) {
            return Ok(Step { found: Some(found), damage: false });
        }
    }
    let rest = (length - offset).min(SOUGHT);
    let mut bytes = vec![0; usize::try_from(rest).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, offset)?;
    let behind = next_entry(&bytes);
    let found = behind.and_then(|at| sound(offset + at as u64, bytes.get(at..)?));
    Ok(Step { found, damage: true })
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
