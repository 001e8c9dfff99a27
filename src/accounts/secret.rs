//! Leaf: a secret that can't be printed by accident, and how it is read from a file.

use std::fmt;
use std::io::Read;
use std::path::Path;
use zeroize::Zeroizing;

/// The largest file that can hold a password, a private key or a certificate.
const SECRET_FILE_LIMIT: u64 = 64 * 1024;

/// A password, passphrase, header value or anything else that must not be seen. Prints `***`, is not
/// serializable, and is wiped from memory when dropped. Comparison is for finding out whether a secret
/// changed on disk, never for authentication.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes over `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself. Every call site is a place to review.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is the empty string, which is never a usable secret.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

pub(super) fn cannot_read(path: &Path, why: &dyn fmt::Display) -> String {
    format!("cannot read {}: {why}", path.display())
}

/// Reads a file that holds one secret; one newline at its end does not count. Errors name the file.
pub(crate) fn read_secret_file(path: &Path) -> Result<Secret, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(|e| cannot_read(path, &e))?;
    file.take(SECRET_FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(|e| cannot_read(path, &e))?;
    if bytes.len() as u64 > SECRET_FILE_LIMIT {
        return Err(format!("{} is larger than {SECRET_FILE_LIMIT} bytes: no secret", path.display()));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{} is no UTF-8 text", path.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_stars_in_every_way() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {secret:#?} {:?}", Some(&secret)), "*** *** *** Some(***)");
    }
}
