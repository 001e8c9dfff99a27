//! Leaf: has a file changed? Told by meta-data alone, for files that are looked at again and again.

use sha2::{Digest as _, Sha256};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// A file modified less than this before it was read may be modified once more without its stamp
/// changing: file systems keep times at their own grain, up to 2 s.
const GRAIN: Duration = Duration::from_secs(3);

/// What meta-data say of a file's content. Follows symbolic links, so that a ConfigMap or Secret of
/// Kubernetes, whose links are swapped as a whole, is seen as another file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    settled: bool,
}

impl FileStamp {
    /// The stamp of meta-data that were read **before** the content was.
    pub fn of(metadata: &Metadata) -> Self {
        let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            settled: age.is_some_and(|age| age > GRAIN),
        }
    }

    /// Whether the content is surely the one that was read when `self` was taken.
    pub fn is_still(&self, now: &Metadata) -> bool {
        self.settled && self.resembles(now)
    }

    /// Whether the meta-data are the same. Misses a change of equal length right after the content was
    /// read: for whoever looks again by [`Self::is_still`] where that matters.
    pub fn resembles(&self, now: &Metadata) -> bool {
        *self == Self { settled: self.settled, ..Self::of(now) }
    }
}

/// What stands in files, as far as one has to tell whether it is still the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of all the files, in this order; one that can't be read counts as empty. Reads 1 MiB of each at most, and
    /// blocks for that time.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut all = Sha256::new();
        for file in files {
            let mut content = Zeroizing::new(Vec::new());
            let read = File::open(file).and_then(|open| open.take(1 << 20).read_to_end(&mut content));
            all.update(Sha256::digest(read.map_or(&[][..], |_| &content)));
        }
        Self(all.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_that_was_just_written_is_never_taken_for_unchanged() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamp = FileStamp::of(&file.as_file().metadata().unwrap());
        assert!(!stamp.is_still(&file.as_file().metadata().unwrap()));
    }

    #[test]
    fn an_old_file_stays_until_it_is_written_or_swapped() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| folder.path().join(name));
        let old = SystemTime::now() - Duration::from_secs(60);
        for path in [&a, &b] {
            fs::write(path, "same").unwrap();
            fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
        }
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let stamp = FileStamp::of(&fs::metadata(&link).unwrap());
        assert!(stamp.is_still(&fs::metadata(&link).unwrap()));

        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&b, &link).unwrap();
        assert!(!stamp.is_still(&fs::metadata(&link).unwrap()));

        fs::write(&a, "other").unwrap();
        assert!(!stamp.is_still(&fs::metadata(&a).unwrap()));
    }
}
