//! The spool's folder: whose it is, what lies in it, and how far it was sent.

use super::entry::{Sequence, VERSION};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Damaged segments that are kept for whoever wants to look at them, the newest.
const KEPT_ASIDE: usize = 2;

/// Why a spool can't be used. One line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file can't be read or written.
    #[error("the spool can't be {what}: {path}: {source}")]
    Io {
        /// `read` or `written`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the spool is in use by another process: {0}: give each agent an otlp.spool.path of its own")]
    Busy(PathBuf),
    /// Something else lies there.
    #[error("{path} is no spool, {name:?} lies in it: name an empty folder in otlp.spool.path")]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What lies there.
        name: String,
    },
    /// Another version's.
    #[error(
        "the spool has format {found}, this version knows {VERSION} ({path}): let the version that made it send \
         what is in there, or remove the folder"
    )]
    Version {
        /// The folder.
        path: PathBuf,
        /// The format that stands there.
        found: u32,
    },
    /// Another user's: what this process writes that one could not remove.
    #[error(
        "the spool belongs to user {theirs}, this process runs as user {ours} ({path}): chown -R it, or name another folder"
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        theirs: u32,
        /// Who asks.
        ours: u32,
    },
}

pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { what, path, source }
}

const FORMAT: &str = "format";
const LOCK: &str = "lock";
const CURSOR: &str = "cursor";
const SEGMENT: &str = "segment";
const DAMAGED: &str = "damaged";
const NEW: &str = "new";

/// The folder, for as long as this process has it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Damaged segments, the oldest first.
    aside: VecDeque<PathBuf>,
    _lock: File,
}

impl Folder {
    /// Takes the folder, which is made where it is missing.
    pub(super) fn take(path: &Path) -> Result<Self, SpoolError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("written", path))?;
        let is_known = check_format(path)?;
        if !is_known {
            check_empty(path)?;
        }
        let lock_path = path.join(LOCK);
        let lock = private().create(true).open(&lock_path).map_err(io_error("written", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SpoolError::Busy(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io_error("written", &lock_path)(error)),
        }
        let folder = Self { path: path.to_owned(), aside: VecDeque::new(), _lock: lock };
        if !is_known {
            folder.replace(FORMAT, format!("esxi-otel-agent spool {VERSION}\n").as_bytes())?;
            let above = path.parent().unwrap_or(path);
            File::open(above).and_then(|above| above.sync_all()).map_err(io_error("written", above))?;
        }
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn segment(&self, first: Sequence) -> PathBuf {
        self.path.join(format!("{first:020}.{SEGMENT}"))
    }

    /// The segments in their order. Tidies up what was never finished, and old damaged ones.
    pub(super) fn segments(&mut self) -> Result<Vec<(Sequence, PathBuf)>, SpoolError> {
        let (mut segments, mut damaged) = (vec![], vec![]);
        for file in fs::read_dir(&self.path).map_err(io_error("read", &self.path))? {
            let path = file.map_err(io_error("read", &self.path))?.path();
            let first = path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.parse().ok());
            match (first, path.extension().and_then(OsStr::to_str)) {
                (Some(first), Some(SEGMENT)) => segments.push((first, path)),
                (Some(_), Some(DAMAGED)) => damaged.push(path),
                (_, Some(NEW)) => {
                    let _ = fs::remove_file(path);
                }
                _ => {}
            }
        }
        segments.sort_unstable();
        damaged.sort_unstable();
        self.aside = damaged.into();
        self.tidy();
        Ok(segments)
    }

    /// Puts a segment aside, for whoever wants to look at it.
    pub(super) fn put_aside(&mut self, segment: &Path) -> Result<PathBuf, SpoolError> {
        let aside = segment.with_extension(DAMAGED);
        fs::rename(segment, &aside).map_err(io_error("written", segment))?;
        self.aside.push_back(aside.clone());
        self.tidy();
        Ok(aside)
    }

    /// Damaged segments are outside of all caps: only the newest are kept.
    fn tidy(&mut self) {
        let too_many = self.aside.len().saturating_sub(KEPT_ASIDE);
        for old in self.aside.drain(..too_many) {
            let _ = fs::remove_file(old);
        }
    }

    /// Everything before this was sent, or given up. `None`: that is not known.
    pub(super) fn cursor(&self) -> Result<Option<Sequence>, SpoolError> {
        let path = self.path.join(CURSOR);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(64).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        }
        let sound = text
            .trim_end()
            .split_once(' ')
            .filter(|(sum, number)| u32::from_str_radix(sum, 16) == Ok(crc32fast::hash(number.as_bytes())));
        Ok(sound.and_then(|(_, number)| number.parse().ok()))
    }

    pub(super) fn write_cursor(&self, cursor: Sequence) -> Result<(), SpoolError> {
        let number = cursor.to_string();
        let line = format!("{:08x} {number}\n", crc32fast::hash(number.as_bytes()));
        self.replace(CURSOR, line.as_bytes()).map(drop)
    }

    /// A file at whose place there is either the old content or the new one, whatever happens.
    pub(super) fn replace(&self, name: &str, content: &[u8]) -> Result<File, SpoolError> {
        let (path, beside) = (self.path.join(name), self.path.join(format!("{name}.{NEW}")));
        let write = || {
            let mut file = private().create(true).truncate(true).open(&beside)?;
            file.write_all(content)?;
            file.sync_data()?;
            fs::rename(&beside, &path)?;
            File::open(&self.path)?.sync_all()?;
            Ok(file)
        };
        write().map_err(|error| {
            // On a full disk nothing half-written may take up room.
            let _ = fs::remove_file(&beside);
            io_error("written", &path)(error)
        })
    }
}

/// Whether the folder says that it is a spool that this version and this user can use.
fn check_format(path: &Path) -> Result<bool, SpoolError> {
    let file = path.join(FORMAT);
    let (mut text, ours) = (String::new(), rustix::process::geteuid().as_raw());
    let theirs = match File::open(&file).and_then(|file| {
        let theirs = file.metadata()?.uid();
        file.take(64).read_to_string(&mut text).map(|_| theirs)
    }) {
        Ok(theirs) => theirs,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => ours,
        Err(error) => return Err(io_error("read", &file)(error)),
    };
    let found = text.strip_prefix("esxi-otel-agent spool ").and_then(|rest| rest.trim_end().parse().ok());
    match found {
        Some(VERSION) if theirs == ours => Ok(true),
        Some(VERSION) => Err(SpoolError::Owner { path: path.to_owned(), theirs, ours }),
        Some(found) => Err(SpoolError::Version { path: path.to_owned(), found }),
        None => Err(SpoolError::Foreign { path: path.to_owned(), name: FORMAT.to_owned() }),
    }
}

/// A folder that does not say what it is has to be a new one. `lost+found` makes a file system of its own.
fn check_empty(path: &Path) -> Result<(), SpoolError> {
    for file in fs::read_dir(path).map_err(io_error("read", path))? {
        let name = file.map_err(io_error("read", path))?.file_name().to_string_lossy().into_owned();
        let unfinished = format!("{FORMAT}.{NEW}");
        if name != LOCK && name != unfinished && name != "lost+found" && !name.starts_with('.') {
            return Err(SpoolError::Foreign { path: path.to_owned(), name });
        }
    }
    Ok(())
}

pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}
