//! What sources that may be away listed last, kept in the state folder: an agent that is restarted during an
//! outage goes on with it.

use super::look::CONTENT_LIMIT;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A disk that does not answer for this long holds nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// One file a source, readable for its owner alone, replaced as a whole.
#[derive(Debug, Default)]
pub(super) struct Memory {
    folder: Option<PathBuf>,
    /// What is to be written: of each file the last content.
    waiting: Mutex<HashMap<PathBuf, Vec<u8>>>,
    news: Notify,
}

impl Memory {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, ..Self::default() }
    }

    /// The file of a source: by its kind and by what it is told apart from others of its kind.
    pub(super) fn file(&self, kind: &str, key: &str) -> Option<PathBuf> {
        let digest = Sha256::digest(key.as_bytes());
        let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Some(self.folder.as_ref()?.join(format!("{kind}-{hash}.json")))
    }

    /// The content of a file, if there is one that can be read.
    pub(super) async fn read(&self, file: &Path) -> Option<Vec<u8>> {
        let path = file.to_owned();
        let reading = tokio::task::spawn_blocking(move || {
            let mut content = Vec::new();
            std::fs::File::open(&path)?.take(CONTENT_LIMIT).read_to_end(&mut content)?;
            io::Result::Ok(content)
        });
        match tokio::time::timeout(READ_TIMEOUT, reading).await {
            Ok(Ok(Ok(content))) => Some(content),
            Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::NotFound => None,
            Ok(Ok(Err(error))) => {
                tracing::warn!("inventory: {} can't be read: {error}", file.display());
                None
            }
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Has this content written soon.
    pub(super) fn keep(&self, file: PathBuf, content: Vec<u8>) {
        self.lock().insert(file, content);
        self.news.notify_one();
    }

    /// Writes what is to be kept until `cancel`, and what there is then.
    pub(super) async fn run(&self, cancel: CancellationToken) {
        let mut told = false;
        loop {
            let ends = tokio::select! {
                () = cancel.cancelled() => true,
                () = self.news.notified() => false,
            };
            let waiting = std::mem::take(&mut *self.lock());
            let writing = tokio::task::spawn_blocking(move || {
                waiting.iter().try_for_each(|(file, content)| {
                    write(file, content).map_err(|error| format!("{}: {error}", file.display()))
                })
            });
            let written = writing.await.unwrap_or_else(|error| Err(error.to_string()));
            match written {
                Ok(()) => told = false,
                Err(why) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(
                        "inventory: what is listed can't be kept for the next start, should a source be away then: {why}"
                    );
                }
                Err(_) => {}
            }
            if ends {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Vec<u8>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes beside the file's place and moves it there. A temporary file is its owner's alone from the start.
fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut beside = tempfile::NamedTempFile::new_in(folder)?;
    beside.write_all(content)?;
    beside.as_file().sync_all()?;
    beside.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn what_is_kept_is_read_again_and_nobody_else_may() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(Some(folder.path().join("state/inventory")));
        let file = memory.file("http_sd", "https://sd.example.org/").unwrap();
        assert_eq!(memory.read(&file).await, None);
        memory.keep(file.clone(), b"old".to_vec());
        memory.keep(file.clone(), b"new".to_vec());
        let ended = CancellationToken::new();
        ended.cancel();
        memory.run(ended).await;
        assert_eq!(memory.read(&file).await.as_deref(), Some(&b"new"[..]));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn each_source_has_a_file_of_its_own() {
        let memory = Memory::new(Some("/state".into()));
        assert_ne!(memory.file("vcenter", "vc1"), memory.file("vcenter", "vc2"));
        assert_ne!(memory.file("vcenter", "vc1"), memory.file("http_sd", "vc1"));
        assert_eq!(Memory::default().file("vcenter", "vc1"), None);
    }
}
