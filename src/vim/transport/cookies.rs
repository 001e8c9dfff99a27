//! The cookies of a connection, of which one is the session.

use reqwest::cookie::{CookieStore, Jar};
use reqwest::header::HeaderValue;
use std::sync::{PoisonError, RwLock};

/// A cookie jar that can be emptied. A real jar, since proxies before a vCenter add cookies of their own;
/// the quotes around a vCenter's session cookie are part of its value.
#[derive(Debug)]
pub(super) enum Cookies {
    Jar(RwLock<Jar>),
    /// What a jar held at some time.
    Fixed(Option<HeaderValue>),
}

impl Default for Cookies {
    fn default() -> Self {
        Self::Jar(RwLock::default())
    }
}

impl Cookies {
    pub fn clear(&self) {
        if let Self::Jar(jar) = self {
            *jar.write().unwrap_or_else(PoisonError::into_inner) = Jar::default();
        }
    }
}

impl CookieStore for Cookies {
    fn set_cookies(&self, headers: &mut dyn Iterator<Item = &HeaderValue>, url: &url::Url) {
        if let Self::Jar(jar) = self {
            jar.read().unwrap_or_else(PoisonError::into_inner).set_cookies(headers, url);
        }
    }

    fn cookies(&self, url: &url::Url) -> Option<HeaderValue> {
        let mut cookies = match self {
            Self::Jar(jar) => jar.read().unwrap_or_else(PoisonError::into_inner).cookies(url)?,
            Self::Fixed(cookies) => cookies.clone()?,
        };
        cookies.set_sensitive(true);
        Some(cookies)
    }
}
