//! The guard's memory on disk: the folder `guard` in the state folder.
//!
//! | file | |
//! |---|---|
//! | `journal` | the entries, one a line; replaced as a whole when it has grown |
//! | `key` | the key of the credentials' ids: random, without it nobody can try passwords on them |
//! | `lock` | held exclusively by whoever reads and appends (flock(2)) |
//! | `live/<instance>` | held by every process for as long as it lives: its tries are under way |
//!
//! Whoever wants to try takes the lock, reads what others have appended, decides, appends, syncs, and lets
//! go. So the decisions of all processes are in one order, and each knows all that came before.

use super::credential::{CredentialKey, Key, fingerprint};
use super::entry::Entry;
use super::rules::Instance;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// How long other processes may hold the lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// A journal is replaced when it is larger than this, and four times as large as after the last time.
const LARGE: u64 = 1 << 20;

const VERSION: u32 = 1;

/// Why the guard's memory can't be used. One line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file can't be read or written.
    #[error("the guard's memory can't be {what}: {path}: {source}")]
    Io {
        /// `read` or `written`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process does not let go of the lock.
    #[error("the guard's memory is locked by another process for more than 5 s: {0}")]
    Busy(PathBuf),
    /// It is not what was written.
    #[error(
        "the guard's memory is damaged ({path}: {why}): see to it that no account is about to be locked, \
         then run `esxi-otel-agent guard release --all`"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// This process has the key of another journal.
    #[error("the guard's memory was begun anew with another key ({0}): restart the agent")]
    OtherKey(PathBuf),
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { what, path, source }
}

/// The folder, and how far its journal was read.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    lock: File,
    read_only: bool,
    key: Option<Key>,
    open: Option<Open>,
    /// Size after the last time that it was replaced, or when it was opened.
    compacted: u64,
    /// How often it was synced.
    pub(super) syncs: u64,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: (u64, u64),
    /// What was read and is sound.
    length: u64,
    lines: u64,
}

/// What others have written.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The entries are all that there are: what was known before does not count.
    pub(super) anew: bool,
    pub(super) entries: Vec<Entry>,
}

impl Journal {
    /// The folder in `state_dir`, which is made where it is missing. Nothing is read yet.
    pub(super) fn prepare(state_dir: &Path) -> Result<Self, JournalError> {
        let folder = state_dir.join("guard");
        let live = folder.join("live");
        DirBuilder::new().recursive(true).mode(0o700).create(&live).map_err(io_error("written", &live))?;
        let path = folder.join("lock");
        let lock = private().create(true).open(&path).map_err(io_error("written", &path))?;
        Ok(Self::of(folder, lock, false))
    }

    /// The folder in `state_dir`, for reading alone; `None`: there is none.
    pub(super) fn existing(state_dir: &Path) -> Result<Option<Self>, JournalError> {
        let folder = state_dir.join("guard");
        let path = folder.join("lock");
        match File::open(&path) {
            Ok(lock) => Ok(Some(Self::of(folder, lock, true))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    fn of(folder: PathBuf, lock: File, read_only: bool) -> Self {
        Self { folder, lock, read_only, key: None, open: None, compacted: 0, syncs: 0 }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("journal")
    }

    fn damaged(&self, why: impl Into<String>) -> JournalError {
        JournalError::Damaged { path: self.path(), why: why.into() }
    }

    /// Takes the lock. Other threads of the process wait as other processes do.
    pub(super) fn lock(&mut self) -> Result<Locked<'_>, JournalError> {
        let deadline = Instant::now() + LOCK_WAIT;
        let path = self.folder.join("lock");
        loop {
            match self.lock.try_lock() {
                Ok(()) => {
                    let held = self.lock.metadata().map_err(io_error("read", &path))?;
                    if fs::metadata(&path).is_ok_and(|now| identity(&now) == identity(&held)) {
                        return Ok(Locked(self));
                    }
                    // Somebody has removed it: others hold another one.
                    let own = !self.read_only;
                    let opened = OpenOptions::new().read(true).write(own).create(own).mode(0o600).open(&path);
                    self.lock = opened.map_err(io_error("read", &path))?;
                }
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
                Err(TryLockError::WouldBlock) => return Err(JournalError::Busy(path)),
                Err(TryLockError::Error(error)) => return Err(io_error("written", &path)(error)),
            }
        }
    }

    /// Whether there may be news. Takes no lock.
    pub(super) fn has_changed(&self) -> bool {
        let Some(open) = &self.open else { return true };
        fs::metadata(self.path())
            .map_or(true, |now| identity(&now) != open.identity || now.len() != open.length)
    }
}

/// The journal while its lock is held.
#[derive(Debug)]
pub(super) struct Locked<'j>(&'j mut Journal);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = self.0.lock.unlock();
    }
}

impl Locked<'_> {
    /// The key, once the journal was read.
    pub(super) fn key(&self) -> Option<&Key> {
        self.0.key.as_ref()
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.0.folder.clone()
    }

    /// The key; made together with the first journal.
    fn read_key(&mut self, make: bool) -> Result<Key, JournalError> {
        let path = self.0.folder.join("key");
        let mut key: Key = Zeroizing::new([0; CredentialKey::LENGTH]);
        match File::open(&path) {
            Ok(mut file) => {
                let mut more = [0; 1];
                let whole = file
                    .read_exact(&mut *key)
                    .and_then(|()| file.read(&mut more))
                    .is_ok_and(|more| more == 0);
                let why = "it is no key".to_owned();
                if whole { Ok(key) } else { Err(JournalError::Damaged { path, why }) }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
                *key = rand::random();
                self.replace("key", &*key)?;
                Ok(key)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(JournalError::Damaged { path, why: "the key is missing".to_owned() })
            }
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// What was appended since the last call. Whatever has no end of line at the end of the file was not
    /// written to its end: whoever wanted to write it has not tried.
    ///
    /// Where there is no journal one is begun, if it `may_begin`: a process that has seen one does not take a
    /// journal that is gone for one in which nothing stands.
    pub(super) fn read(&mut self, may_begin: bool) -> Result<News, JournalError> {
        let path = self.0.path();
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_begin && !self.0.read_only => {
                let key = self.read_key(true)?;
                let entry = Entry::Journal { version: VERSION, key: fingerprint(&key) };
                let line = to_lines(&[entry]).map_err(io_error("written", &path))?;
                self.replace("journal", line.as_bytes())?;
                // The folder is new, too.
                let above = self.0.folder.parent().unwrap_or(&self.0.folder);
                File::open(above).and_then(|above| above.sync_all()).map_err(io_error("written", above))?;
                fs::metadata(&path).map_err(io_error("read", &path))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.0.damaged("it is gone"));
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        if !metadata.is_file() {
            return Err(self.0.damaged("it is no file"));
        }
        let mut open = match self.0.open.take() {
            Some(open) if open.identity == identity(&metadata) => open,
            _ => {
                let file = OpenOptions::new().read(true).write(!self.0.read_only).open(&path);
                let file =
                    file.map_err(io_error(if self.0.read_only { "read" } else { "written" }, &path))?;
                Open { file, identity: identity(&metadata), length: 0, lines: 0 }
            }
        };
        let anew = open.length == 0;
        if metadata.len() < open.length {
            return Err(self.0.damaged("it has become shorter"));
        }
        if anew {
            self.0.compacted = metadata.len();
        }
        let mut bytes = Vec::new();
        let reading = open.file.seek(SeekFrom::Start(open.length));
        reading.and_then(|_| open.file.read_to_end(&mut bytes)).map_err(io_error("read", &path))?;
        let mut entries = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(whole) = line.strip_suffix(b"\n") else { break };
            let number = open.lines + 1;
            let entry =
                Entry::of_line(whole).map_err(|why| self.0.damaged(format!("line {number}: {why}")))?;
            if number == 1 {
                let key = self.read_key(false)?;
                let made_with = Entry::Journal { version: VERSION, key: fingerprint(&key) };
                match (&entry, entry == made_with) {
                    (_, true) => {}
                    (Entry::Journal { version: VERSION, .. }, _) => {
                        return Err(self.0.damaged("it was made with another key"));
                    }
                    _ => return Err(self.0.damaged("it has no first line that this version knows")),
                }
                self.0.key = Some(key);
            }
            entries.push(entry);
            open.length += line.len() as u64;
            open.lines = number;
        }
        if open.lines == 0 {
            return Err(self.0.damaged("it has no first line"));
        }
        self.0.open = Some(open);
        Ok(News { anew, entries })
    }

    /// Appends what was decided. With `sync` it is on the disk when this returns.
    pub(super) fn append(&mut self, entries: &[Entry], sync: bool) -> Result<(), JournalError> {
        let path = self.0.path();
        let failed = |error| io_error("written", &path)(error);
        let lines = to_lines(entries).map_err(failed)?;
        let Some(open) = &mut self.0.open else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        let mut write = || {
            // Cuts off what somebody did not write to its end.
            if open.file.metadata()?.len() > open.length {
                open.file.set_len(open.length)?;
            }
            open.file.seek(SeekFrom::Start(open.length))?;
            open.file.write_all(lines.as_bytes())?;
            if sync { open.file.sync_data() } else { Ok(()) }
        };
        if let Err(error) = write() {
            // The next one who reads must not take it for written; if that fails, too, it is cut off above,
            // or counts as tried.
            let _ = open.file.set_len(open.length);
            return Err(failed(error));
        }
        open.length += lines.len() as u64;
        open.lines += entries.len() as u64;
        self.0.syncs += u64::from(sync);
        Ok(())
    }

    pub(super) fn is_large(&self) -> bool {
        let length = self.0.open.as_ref().map_or(0, |open| open.length);
        length > LARGE && length / 4 > self.0.compacted
    }

    /// Replaces the journal by one from which the same follows.
    pub(super) fn compact(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let key = self.read_key(false)?;
        let first = Entry::Journal { version: VERSION, key: fingerprint(&key) };
        let lines = to_lines(std::slice::from_ref(&first)).and_then(|first| Ok(first + &to_lines(entries)?));
        let lines = lines.map_err(io_error("written", &self.0.path()))?;
        // Whether it works or not, the next try is made at four times the size.
        self.0.compacted = lines.len() as u64;
        let file = self.replace("journal", lines.as_bytes())?;
        let metadata = file.metadata().map_err(io_error("read", &self.0.path()))?;
        self.0.open = Some(Open {
            file,
            identity: identity(&metadata),
            length: lines.len() as u64,
            lines: entries.len() as u64 + 1,
        });
        Ok(())
    }

    /// Puts a file that can't be used aside, for whoever wants to look at it, so that it can begin anew.
    pub(super) fn put_aside(&mut self, name: &str) -> Result<(), JournalError> {
        let path = self.0.folder.join(name);
        self.0.open = None;
        self.0.key = None;
        match fs::rename(&path, self.0.folder.join(format!("{name}.damaged"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("written", &path)(error)),
            _ => Ok(()),
        }
    }

    /// A file in whose place there is either the old content or the new one, whatever happens.
    fn replace(&self, name: &str, content: &[u8]) -> Result<File, JournalError> {
        let (path, beside) = (self.0.folder.join(name), self.0.folder.join(format!("{name}.new")));
        let write = || {
            let mut file = private().create(true).truncate(true).open(&beside)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.0.folder)?.sync_all()?;
            Ok(file)
        };
        write().map_err(io_error("written", &path))
    }

    /// Says that this process lives, until the file is dropped.
    pub(super) fn live(&self, instance: Instance) -> Result<Alive, JournalError> {
        let path = live_path(&self.0.folder, instance);
        let file = private().create(true).open(&path).map_err(io_error("written", &path))?;
        file.try_lock().map_err(|error| io_error("written", &path)(error.into()))?;
        Ok(Alive { path, _file: file })
    }

    /// Whether that process has ended, in whatever way. Tidies up behind it.
    pub(super) fn has_ended(&self, instance: Instance) -> bool {
        let path = live_path(&self.0.folder, instance);
        match File::open(&path) {
            Ok(file) => {
                let ended = file.try_lock().is_ok();
                if ended {
                    let _ = fs::remove_file(&path);
                }
                ended
            }
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Tidies up behind all that have ended.
    pub(super) fn sweep(&self) {
        let files = fs::read_dir(self.0.folder.join("live")).into_iter().flatten().flatten();
        for name in files.filter_map(|file| file.file_name().into_string().ok()) {
            if let Ok(instance) = u64::from_str_radix(&name, 16) {
                self.has_ended(Instance(instance));
            }
        }
    }
}

/// Tells others that the tries of this process are under way.
#[derive(Debug)]
pub(super) struct Alive {
    path: PathBuf,
    _file: File,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn live_path(folder: &Path, instance: Instance) -> PathBuf {
    folder.join("live").join(format!("{:016x}", instance.0))
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn to_lines(entries: &[Entry]) -> io::Result<String> {
    entries.iter().map(|entry| entry.to_line().map_err(io::Error::from)).collect()
}
