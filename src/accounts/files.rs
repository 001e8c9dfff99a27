//! Secrets in files, read again when the file changes.

use super::secret::cannot_read;
pub(crate) use super::secret::read_secret_file;
use super::{Secret, SecretSource, no_credentials};
use crate::file_stamp::FileStamp;
use crate::outcome::Failure;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The files that were read, with their content of then. As many as the configuration names.
#[derive(Default)]
pub(super) struct SecretFiles(Mutex<HashMap<PathBuf, KnownFile>>);

struct KnownFile {
    stamp: FileStamp,
    content: Secret,
}

impl SecretFiles {
    /// The secret's content of now.
    pub(super) async fn secret(&self, source: &SecretSource) -> Result<Secret, Failure> {
        match source {
            SecretSource::Value(secret) => Ok(secret.clone()),
            SecretSource::File(path) => self.read(path).await,
        }
    }

    /// The content of a file; an empty one is an error, too.
    pub(super) async fn read(&self, path: &Path) -> Result<Secret, Failure> {
        let metadata = tokio::fs::metadata(path).await;
        let metadata = metadata.map_err(|e| no_credentials(cannot_read(path, &e)))?;
        if let Some(known) = self.lock().get(path)
            && known.stamp.is_still(&metadata)
        {
            return Ok(known.content.clone());
        }
        let stamp = FileStamp::of(&metadata);
        let owned = path.to_owned();
        let content = tokio::task::spawn_blocking(move || read_secret_file(&owned))
            .await
            .map_err(|e| no_credentials(format!("reading {} was cut short: {e}", path.display())))?
            .map_err(no_credentials)?;
        self.lock().insert(path.to_owned(), KnownFile { stamp, content: content.clone() });
        Ok(content)
    }

    /// The same for a file that need not be there.
    pub(super) async fn read_if_there(&self, path: &Path) -> Result<Option<Secret>, Failure> {
        match tokio::fs::try_exists(path).await {
            Ok(false) => Ok(None),
            _ => self.read(path).await.map(Some),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, KnownFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
