//! The known_hosts file: read whole, appended to and replaced under a lock.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long another process may hold the file's lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// The largest file that is read: a hundred thousand hosts with all their keys.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The whole text. What is no UTF-8 is replaced, and so becomes a broken line.
pub(super) fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens the file to append to it and waits for its lock, which goes with the file. Makes it, and its
/// folder, if there is none.
pub(super) fn open_to_append(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    open_locked(path, OpenOptions::new().read(true).append(true).create(true).mode(0o600))
}

/// Appends a line in one write, so that a reader never meets half of it.
pub(super) fn append(file: &mut File, line: &str) -> io::Result<()> {
    let begin = if ends_with_newline(file)? { "" } else { "\n" };
    file.write_all(format!("{begin}{line}\n").as_bytes())
}

/// Changes the text by `edit`, under the lock, by a new file that takes the place of the old one at once
/// and has its owner and permissions. `edit` says `None` where nothing is to change.
pub(super) fn replace(path: &Path, edit: impl FnOnce(&str) -> Option<String>) -> io::Result<()> {
    // The file itself is replaced, not a link to it.
    let path = path.canonicalize()?;
    let mut old = open_locked(&path, OpenOptions::new().read(true).write(true))?;
    let Some(text) = edit(&read(&mut old)?) else { return Ok(()) };
    let metadata = old.metadata()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(metadata.permissions())?;
    let ours = new.as_file().metadata()?;
    if (ours.uid(), ours.gid()) != (metadata.uid(), metadata.gid()) {
        std::os::unix::fs::fchown(new.as_file(), Some(metadata.uid()), Some(metadata.gid()))?;
    }
    new.as_file().sync_all()?;
    new.persist(&path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// Opens the file and waits for its lock, but not for ever. Whoever had the lock before may have put
/// another file in its place.
fn open_locked(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let start = Instant::now();
    loop {
        let file = options.open(path)?;
        lock(&file, start)?;
        let (locked, present) = (file.metadata()?, fs::metadata(path));
        if present.is_ok_and(|present| (present.dev(), present.ino()) == (locked.dev(), locked.ino())) {
            return Ok(file);
        }
        if start.elapsed() > LOCK_WAIT {
            return Err(io::Error::other("it is replaced again and again"));
        }
    }
}

fn lock(file: &File, start: Instant) -> io::Result<()> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if start.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process keeps it locked"));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn ends_with_newline(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
