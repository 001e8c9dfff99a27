//! The Master Password algorithm, version 3, type "long": each vCenter's own password, derived from a
//! user, a master password and the vCenter's name.
//!
//! Strings are UTF-8, and their lengths count bytes.

use super::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

const SCOPE: &[u8] = b"com.lyndir.masterpassword";

/// The first password of a site. Sites whose password is changed would count up; ours never are.
const COUNTER: u32 = 1;

const TEMPLATES: [&str; 21] = [
    "CvcvnoCvcvCvcv",
    "CvcvCvcvnoCvcv",
    "CvcvCvcvCvcvno",
    "CvccnoCvcvCvcv",
    "CvccCvcvnoCvcv",
    "CvccCvcvCvcvno",
    "CvcvnoCvccCvcv",
    "CvcvCvccnoCvcv",
    "CvcvCvccCvcvno",
    "CvcvnoCvcvCvcc",
    "CvcvCvcvnoCvcc",
    "CvcvCvcvCvccno",
    "CvccnoCvccCvcv",
    "CvccCvccnoCvcv",
    "CvccCvccCvcvno",
    "CvcvnoCvccCvcc",
    "CvcvCvccnoCvcc",
    "CvcvCvccCvccno",
    "CvccnoCvcvCvcc",
    "CvccCvcvnoCvcc",
    "CvccCvcvCvccno",
];

/// The key of a user and master password, from which the passwords of all sites follow.
pub struct MasterKey(Zeroizing<[u8; 64]>);

impl MasterKey {
    /// Derives the key with scrypt: about 160 ms of CPU and 32 MiB, so not on an async thread.
    pub fn derive(user: &str, master: &Secret) -> Self {
        #[expect(clippy::expect_used, reason = "constants within scrypt's limits; the tests run them")]
        let params = scrypt::Params::new(15, 8, 2).expect("N = 2^15, r = 8, p = 2 are valid");
        let mut key = Zeroizing::new([0; 64]);
        #[expect(clippy::expect_used, reason = "64 bytes are within scrypt's limits; the tests run it")]
        scrypt::scrypt(master.expose().as_bytes(), &salt(user), &params, &mut *key)
            .expect("64 is a valid length of a key");
        Self(key)
    }

    /// The password of a site, as the algorithm says.
    pub fn site_password(&self, site: &str) -> Secret {
        let mut mac = keyed(&*self.0);
        mac.update(&salt(site));
        mac.update(&COUNTER.to_be_bytes());
        let seed = Zeroizing::new(<[u8; 32]>::from(mac.finalize().into_bytes()));
        let (first, rest) = seed.split_first().unwrap_or((&0, &[]));
        let template = pick(&TEMPLATES, *first).copied().unwrap_or_default();
        let password = template.bytes().zip(rest).filter_map(|(class, byte)| pick(class_of(class), *byte));
        Secret::new(password.map(|&c| char::from(c)).collect::<String>())
    }

    /// The password of a vCenter: that of the site of its name, without slashes, since that is what the
    /// accounts were made with.
    pub fn vcenter_password(&self, name: &str) -> Secret {
        Secret::new(self.site_password(name).expose().replace('/', ""))
    }
}

/// HMAC-SHA-256 under `key`.
pub(super) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length (RFC 2104, section 3)")]
    Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn salt(name: &str) -> Vec<u8> {
    // No name of the inventory or environment comes near 4 GiB.
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    [SCOPE, &length.to_be_bytes(), name.as_bytes()].concat()
}

fn pick<T>(from: &[T], byte: u8) -> Option<&T> {
    from.get(usize::from(byte).checked_rem(from.len())?)
}

fn class_of(class: u8) -> &'static [u8] {
    match class {
        b'C' => b"BCDFGHJKLMNPQRSTVWXYZ",
        b'c' => b"bcdfghjklmnpqrstvwxyz",
        b'v' => b"aeiou",
        b'n' => b"0123456789",
        _ => b"@&%?,=[]_:-+*$#!'^~;()/.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, master: &str, site: &str) -> String {
        MasterKey::derive(user, &Secret::new(master)).site_password(site).expose().to_owned()
    }

    #[test]
    fn passwords_are_those_that_the_accounts_were_made_with() {
        for (user, master, site, expected) in [
            ("user", "password", "site.example", "RaneYacoXemf0("),
            (
                "administrator@vsphere.local",
                "correct horse battery staple",
                "vc-a-0.cc.qa-de-1.cloud.sap",
                "VakiGeqcLufa4]",
            ),
            ("Robert Lee Mitchell", "banana colored duckling", "masterpasswordapp.com", "Jejr5[RepuSosp"),
            ("a", "b", "c", "ZesdVonm8?Doha"),
            ("user", "password", "", "BuleFovuTudq6!"),
            ("user", "password", "vc45.example.org", "SoblDonoDulu4/"),
        ] {
            assert_eq!(password(user, master, site), expected, "{user} at {site}");
        }
    }

    #[test]
    fn a_vcenters_password_has_no_slash() {
        let key = MasterKey::derive("user", &Secret::new("password"));
        assert_eq!(key.vcenter_password("vc45.example.org").expose(), "SoblDonoDulu4");
    }
}
