//! The section `vcenter`: how vCenters are reached and what is believed of them.

use super::file::Value;
use super::proxy::{ProxyConfig, proxy};
use super::section::{At, By, Section};
use super::values::{SECOND, boolean, duration, integer, parsed};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How vCenters are polled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcenterConfig {
    /// Verify the server's certificate, where no thumbprint is given for it.
    pub verify_tls: bool,
    /// PEM file, or a folder of such files, with the roots to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The one certificate that is right, by the vCenter's address or host name in lower case. It needs no
    /// chain, no name and no root then.
    pub thumbprints: BTreeMap<String, Thumbprint>,
    /// What stands between; `None`: nothing, whatever variables say.
    pub proxy: Option<ProxyConfig>,
    /// Objects a page to ask for; 0 = the server decides.
    pub page_size: u32,
    /// Read everything in one answer, by the method of API 4.0, instead of page by page.
    pub unpaged: bool,
    /// Let the vCenter tell what changes, so that it is read at once.
    pub hints: bool,
    /// Limit of name look-up, TCP connect and TLS handshake.
    pub connect_timeout: Duration,
    /// Limit of one SOAP call.
    pub call_timeout: Duration,
}

impl Default for VcenterConfig {
    fn default() -> Self {
        Self {
            verify_tls: true,
            ca_file: None,
            thumbprints: BTreeMap::new(),
            proxy: None,
            page_size: 0,
            unpaged: false,
            hints: true,
            connect_timeout: SECOND * 10,
            call_timeout: SECOND * 60,
        }
    }
}

impl VcenterConfig {
    /// The thumbprint for a vCenter: that of its address as the inventory has it, or of its host name.
    pub fn thumbprint_of(&self, address: &str, host: &str) -> Option<Thumbprint> {
        [address, host].iter().find_map(|name| self.thumbprints.get(&name.to_ascii_lowercase())).copied()
    }

    /// The files that decide how a vCenter is reached and believed, as they are now. Blocks while it lists a
    /// folder.
    pub fn files(&self) -> Vec<PathBuf> {
        let roots = self.ca_file.as_deref().map(|path| root_files(path).unwrap_or_default());
        let auth = self.proxy.as_ref().and_then(|proxy| proxy.auth.as_ref());
        roots.into_iter().flatten().chain(auth.map(|auth| auth.password_file.clone())).collect()
    }
}

/// SHA-256 of a certificate, as browsers and vCenter's own pages show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Thumbprint([u8; 32]);

impl Thumbprint {
    /// That of a certificate in DER form.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Thumbprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WRITE: &str =
            "write the SHA-256 of the certificate: 64 hexadecimal digits, with or without colons";
        let digits: String = text.chars().filter(|c| !matches!(c, ':' | ' ')).collect();
        if !digits.is_ascii() || digits.chars().any(|c| !c.is_ascii_hexdigit()) {
            return Err(format!("is no thumbprint; {WRITE}"));
        }
        let mut bytes = [0; 32];
        match digits.len() {
            64 => {}
            40 => return Err(format!("is a SHA-1 thumbprint, which can be forged; {WRITE}")),
            other => return Err(format!("has {other} digits; {WRITE}")),
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            let pair = digits.get(at * 2..at * 2 + 2).unwrap_or_default();
            *byte = u8::from_str_radix(pair, 16).map_err(|error| error.to_string())?;
        }
        Ok(Self(bytes))
    }
}

/// All the certificates of a PEM file or of the PEM files of a folder: the roots of a vCenter come as
/// several, packed together with revocation lists, which are left aside.
///
/// # Errors
/// When nothing can be read, a certificate is damaged, or there is none.
pub fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let mut roots = Vec::new();
    for file in root_files(path).map_err(unreadable)? {
        let text = std::fs::read(&file).map_err(unreadable)?;
        let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        roots.extend(certificates.map_err(|error| format!("holds no certificate in PEM form: {error}"))?);
    }
    if roots.is_empty() { Err("holds no certificate in PEM form".to_owned()) } else { Ok(roots) }
}

/// The files of [`read_roots`], sorted: those of a folder, not of the folders in it, or this one.
///
/// # Errors
/// When a folder can't be read.
fn root_files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

pub(super) fn vcenter(root: &mut Section<'_>) -> VcenterConfig {
    let context = root.context;
    // The Python exporter's sample file says ssl_verify, its code reads verify_ssl.
    let old = ["ssl_verify", "verify_ssl"].map(|key| root.setting(key, boolean).unrecorded());
    let mut section = root.section("vcenter");
    let new = section.setting("verify_tls", boolean);
    let ca_file = section.setting("ca_file", |value| context.path(value)).optional();
    let new = new.unrecorded();
    let given: Vec<&At<bool>> = old.iter().chain([&new]).flatten().collect();
    let chosen = given.iter().min_by_key(|at| &at.by);
    if let Some(At { value: verify, key, by, .. }) = chosen {
        context.record("vcenter.verify_tls", verify.to_string(), by.clone());
        let place = context.origin(by);
        // A flag does not contradict the file, it wins.
        let others = given.iter().filter(|other| matches!((by, &other.by), (By::Node(_), By::Node(_))));
        for other in others.filter(|other| other.value != *verify) {
            context.problem_at(other, format!("contradicts {key} ({place})"));
        }
        if !verify {
            let risk = "TLS verification of vCenters is off: anybody may read the password";
            context.note(format!("{key} ({place}): {risk}"));
        }
    } else {
        context.record("vcenter.verify_tls", true.to_string(), By::Nobody);
    }
    let verify_tls = chosen.is_none_or(|chosen| chosen.value);
    if let Some(ca_file) = &ca_file
        && let Err(problem) = read_roots(&ca_file.value)
    {
        context.problem_at(ca_file, format!("{}: {problem}", ca_file.value.display()));
    }
    let thumbprints = thumbprints(&mut section);
    let proxy = proxy(&mut section);
    let page_size = section.setting("page_size", integer(0..=100_000)).or(0);
    let unpaged = section.setting("unpaged", boolean).or(false).value;
    if unpaged && page_size.is_given() && page_size.value > 0 {
        context.problem_at(&page_size, "has no effect with vcenter.unpaged: true");
    }
    let page_size = page_size.value;
    let hints = section.setting("hints", boolean).or(true).value;
    let mut timeouts = section.section("timeouts");
    let limit = || duration(Duration::from_millis(100)..=SECOND * 600);
    let connect_timeout = timeouts.setting("connect", limit()).or(SECOND * 10).value;
    let call_timeout = timeouts.setting("call", limit()).or(SECOND * 60).value;
    let ca_file = ca_file.map(|ca_file| ca_file.value);
    VcenterConfig {
        verify_tls,
        ca_file,
        thumbprints,
        proxy,
        page_size,
        unpaged,
        hints,
        connect_timeout,
        call_timeout,
    }
}

fn thumbprints(section: &mut Section<'_>) -> BTreeMap<String, Thumbprint> {
    let context = section.context;
    let mut thumbprints = BTreeMap::new();
    for (host, element) in section.map("thumbprints") {
        let Some(thumbprint) = element.parse(thumbprint) else { continue };
        context.record(&element.path, thumbprint.to_string(), element.place());
        thumbprints.insert(host.to_ascii_lowercase(), thumbprint);
    }
    thumbprints
}

fn thumbprint(value: &Value) -> Result<Thumbprint, String> {
    parsed(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbprint_is_64_digits_however_they_are_written() {
        let plain = "0aFF".repeat(16);
        let colons: Vec<String> = ["0A", "ff"].repeat(16).into_iter().map(str::to_owned).collect();
        let thumbprint: Thumbprint = plain.parse().unwrap();
        assert_eq!(colons.join(":").parse(), Ok(thumbprint));
        assert_eq!(thumbprint.to_string(), ["0A", "FF"].repeat(16).join(":"));
        for (text, problem) in [
            ("0a".repeat(20), "is a SHA-1 thumbprint"),
            ("0a".repeat(31), "has 62 digits"),
            ("zz".repeat(32), "is no thumbprint"),
            ("ä".repeat(32), "is no thumbprint"),
            (String::new(), "has 0 digits"),
        ] {
            let error = text.parse::<Thumbprint>().unwrap_err();
            assert!(error.starts_with(problem) && error.contains("64 hexadecimal digits"), "{text}: {error}");
        }
    }

    #[test]
    fn a_folder_of_roots_may_hold_other_things_but_not_only_those() {
        let folder = tempfile::tempdir().unwrap();
        let root =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/config/ca.pem")).unwrap();
        std::fs::write(
            folder.path().join("list.r0"),
            "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        )
        .unwrap();
        assert!(read_roots(folder.path()).unwrap_err().contains("holds no certificate"));
        std::fs::write(folder.path().join("a.0"), &root).unwrap();
        std::fs::write(folder.path().join("b.0"), [root.as_slice(), b"\n", root.as_slice()].concat())
            .unwrap();
        assert_eq!(read_roots(folder.path()).unwrap().len(), 3);
        std::fs::write(folder.path().join("c.0"), b"-----BEGIN CERTIFICATE-----\nAA").unwrap();
        assert!(read_roots(folder.path()).is_err());
    }
}
