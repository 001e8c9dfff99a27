//! What can go wrong with a call before its body is read, by the closed list of reasons.

use crate::outcome::{Failure, FailureReason, chain};
use crate::vim::resolver::NotAllowed;
use crate::vim::tls::refusal;
use reqwest::StatusCode;
use reqwest::header::HeaderValue;

/// Whether status and content type are those of a SOAP answer. A fault comes with status 500.
pub(super) fn check_head(status: StatusCode, content_type: Option<&HeaderValue>) -> Result<(), Failure> {
    match status.as_u16() {
        200 | 500 => {}
        502..=504 => {
            let line = format!("HTTP {status}: the vCenter is down or starting");
            return Err(Failure::new(FailureReason::VcenterUnavailable, line));
        }
        300..=399 => {
            let line = format!("HTTP {status}: a redirect, which is not followed: is this a vCenter?");
            return Err(Failure::new(FailureReason::ProtocolError, line));
        }
        _ => {
            let line = format!("HTTP {status}: is this a vCenter?");
            return Err(Failure::new(FailureReason::ProtocolError, line));
        }
    }
    let kind = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind: String = kind.split(';').next().unwrap_or_default().trim().chars().take(40).collect();
    let kind = kind.to_ascii_lowercase();
    match kind.as_str() {
        "" | "text/xml" | "application/xml" | "application/soap+xml" => Ok(()),
        other => {
            let line = format!("HTTP {status} with content type {other:?} instead of text/xml");
            Err(Failure::new(FailureReason::AnswerUnreadable, line))
        }
    }
}

/// The reason for a request that got no response.
pub(super) fn classify(error: &reqwest::Error) -> Failure {
    if causes(error).any(|cause| cause.is::<NotAllowed>()) {
        return Failure::new(FailureReason::AddressNotAllowed, chain(error));
    }
    if let Some(line) = causes(error).find_map(|cause| refusal(cause.downcast_ref()?)) {
        return Failure::new(FailureReason::Tls, line);
    }
    let reason = if error.is_timeout() {
        FailureReason::ConnectTimeout
    } else if error.is_dns() {
        FailureReason::Dns
    } else {
        causes(error).find_map(by_cause).unwrap_or(if error.is_connect() {
            FailureReason::Unreachable
        } else {
            FailureReason::ConnectionLost
        })
    };
    Failure::new(reason, chain(error))
}

pub(super) fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        // An I/O error that wraps another one has no source of its own, but that of what it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match wrapped {
            Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        }
    })
}

pub(super) fn is_about_the_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref().is_some_and(|error| refusal(error).is_some())
}

fn by_cause(error: &(dyn std::error::Error + 'static)) -> Option<FailureReason> {
    use std::io::ErrorKind;
    if error.is::<rustls::Error>() {
        return Some(FailureReason::Tls);
    }
    match error.downcast_ref::<std::io::Error>()?.kind() {
        ErrorKind::ConnectionRefused => Some(FailureReason::ConnectRefused),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Some(FailureReason::Unreachable),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            Some(FailureReason::ConnectionLost)
        }
        ErrorKind::TimedOut => Some(FailureReason::ConnectTimeout),
        _ => None,
    }
}
