//! The inventory file as a source: read when it has changed.

use super::InventoryConfig;
use super::atlas::{self, AddressTemplate};
use super::look::{CONTENT_LIMIT, Found, Look};
use super::origin::Origin;
use crate::file_stamp::FileStamp;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Pause between two looks at the file. Polled, not notified: that works with swapped symbolic links,
/// network file systems and files that are replaced, alike.
const PACE: Duration = Duration::from_secs(2);
/// A file system that does not answer for this long counts as an error.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The atlas file.
pub(super) struct AtlasFile {
    path: PathBuf,
    template: AddressTemplate,
    only: BTreeMap<String, Vec<String>>,
    /// Of the content that was good last.
    stamp: Option<FileStamp>,
    /// A read that has not come back within its time-out. No second one is started beside it.
    reading: Option<JoinHandle<ReadResult>>,
}

/// What reading brought; `None`: it has not changed.
type ReadResult = Result<Option<(FileStamp, Result<atlas::Atlas, atlas::Unreadable>)>, String>;

impl AtlasFile {
    pub(super) fn new(path: PathBuf, config: &InventoryConfig) -> Self {
        let (template, only) = (config.host_address.clone(), config.only.clone());
        Self { path, template, only, stamp: None, reading: None }
    }
}

impl Look for AtlasFile {
    fn origin(&self) -> Origin {
        Origin::Atlas
    }

    fn pace(&self) -> Duration {
        PACE
    }

    /// A file that is not written atomically may be met half-way.
    fn patience(&self) -> u32 {
        2
    }

    /// Reads the file if it has changed since it was last good. A content that was bad is read anew at each
    /// look.
    async fn look(&mut self) -> Result<Option<Found>, String> {
        let mut reading = self.reading.take().unwrap_or_else(|| {
            let (path, known) = (self.path.clone(), self.stamp.clone());
            let (template, only) = (self.template.clone(), self.only.clone());
            tokio::task::spawn_blocking(move || {
                let read = read_if_changed(&path, known.as_ref())?;
                Ok(read.map(|(stamp, content)| (stamp, atlas::parse(&content, &template, &only))))
            })
        });
        let read = match tokio::time::timeout(READ_TIMEOUT, &mut reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(e)) => Err(format!("reading was cut short: {e}")),
            Err(_) => {
                self.reading = Some(reading);
                Err(format!("the file system did not answer within {READ_TIMEOUT:?}"))
            }
        };
        let name = self.path.display();
        let Some((stamp, parsed)) = read.map_err(|why| format!("{name}: {why}"))? else { return Ok(None) };
        let atlas = parsed.map_err(|place| format!("{name}{place}"))?;
        let atlas = atlas.with_targets().map_err(|why| format!("{name}: {why}"))?;
        self.stamp = Some(stamp);
        Ok(Some(Found { atlas, content: None }))
    }
}

fn read_if_changed(path: &Path, known: Option<&FileStamp>) -> Result<Option<(FileStamp, Vec<u8>)>, String> {
    let cannot = |e: std::io::Error| format!("cannot be read: {e}");
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if known.is_some_and(|known| known.is_still(&metadata)) {
        return Ok(None);
    }
    if metadata.is_dir() {
        return Err("is a directory; a JSON file is needed".to_owned());
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(CONTENT_LIMIT + 1).read_to_end(&mut content).map_err(cannot)?;
    if content.len() as u64 > CONTENT_LIMIT {
        let limit = CONTENT_LIMIT / 1_000_000;
        return Err(format!("is larger than {limit} MB, the limit of an inventory file"));
    }
    Ok(Some((FileStamp::of(&metadata), content)))
}
