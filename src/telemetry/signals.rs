//! What spans and log records have in common: they are sent by the SDK's exporters, and fail in their words.

use super::export::peer::with_hint;
use super::export::transport::Destination;
use crate::config::Compression;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::error::OTelSdkError;

/// An exporter that sends to `destination`.
///
/// The SDK's exporters can't find out at run time what the peer knows: they use gzip, which every gRPC server
/// has, where metrics use zstd.
pub(super) fn along<B: WithExportConfig + WithTonicConfig>(destination: &Destination, builder: B) -> B {
    let builder = builder
        .with_channel(destination.peer.limited_channel())
        .with_metadata(destination.peer.metadata().clone())
        .with_timeout(destination.peer.limit());
    match destination.compression {
        Compression::Zstd | Compression::Gzip => {
            builder.with_compression(opentelemetry_otlp::Compression::Gzip)
        }
        Compression::None => builder,
    }
}

/// Whether the same may succeed later.
pub(super) fn is_passing(error: &OTelSdkError) -> bool {
    const PASSING: [&str; 6] =
        ["Unavailable", "DeadlineExceeded", "Cancelled", "Aborted", "DataLoss", "Unknown"];
    match error {
        OTelSdkError::Timeout(_) => true,
        OTelSdkError::InternalFailure(_) => {
            let is_passing = |text: &str| {
                // A cause behind the code is none of the Collector's: the connection broke.
                text.contains(": ") || PASSING.iter().any(|passing| text.starts_with(passing))
            };
            grpc(error).is_some_and(is_passing)
        }
        OTelSdkError::AlreadyShutdown => false,
    }
}

/// Whether it is said of the sender, and not of what was sent: a token has expired, say. UNIMPLEMENTED is not of these:
/// many Collectors have no pipeline for traces or logs, and never will; nothing is to pile up for that.
pub(super) fn is_about_sender(error: &OTelSdkError) -> bool {
    const CODES: [&str; 2] = ["Unauthenticated", "PermissionDenied"];
    grpc(error).is_some_and(|text| CODES.contains(&text))
}

/// Whether fewer at a time may succeed, or the same later. Servers made with tonic say OUT_OF_RANGE where others say
/// RESOURCE_EXHAUSTED, which may mean a quota, too: what it is stands in a message that the SDK keeps to itself.
pub(super) fn is_too_much(error: &OTelSdkError) -> bool {
    const CODES: [&str; 2] = ["ResourceExhausted", "OutOfRange"];
    grpc(error).is_some_and(|text| CODES.contains(&text))
}

/// The failure in the words that the sender of metrics uses, too: gRPC's code, and why the connection failed.
pub(super) fn explain(error: &OTelSdkError) -> String {
    match error {
        OTelSdkError::Timeout(limit) => format!("no answer within {limit:?}"),
        _ => {
            let text = grpc(error).map_or_else(|| error.to_string(), str::to_owned);
            // The SDK tells some causes twice, so that the same failure would look like another reason.
            let mut links: Vec<_> = text.split(": ").collect();
            links.dedup();
            with_hint(links.join(": "))
        }
    }
}

/// The exporters tell code and cause in their error's text only.
fn grpc(error: &OTelSdkError) -> Option<&str> {
    match error {
        OTelSdkError::InternalFailure(text) => text.split_once("gRPC code: ").map(|(_, text)| text),
        OTelSdkError::Timeout(_) | OTelSdkError::AlreadyShutdown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_failure_is_told_in_the_words_of_grpc() {
        let text = "TonicTracesClient export failed with gRPC code: Unavailable: connection refused";
        let away = OTelSdkError::InternalFailure(text.into());
        assert_eq!((is_passing(&away), &*explain(&away)), (true, "Unavailable: connection refused"));
        let text =
            "TonicTracesClient export failed with gRPC code: Unavailable: tcp error: tcp error: refused";
        assert_eq!(explain(&OTelSdkError::InternalFailure(text.into())), "Unavailable: tcp error: refused");
        let text = "TonicLogsClient export failed with gRPC code: PermissionDenied";
        let refused = OTelSdkError::InternalFailure(text.into());
        assert_eq!((is_passing(&refused), &*explain(&refused)), (false, "PermissionDenied"));
        let text = "TonicLogsClient export failed with gRPC code: Internal: h2 protocol error: stream reset";
        let broken = OTelSdkError::InternalFailure(text.into());
        assert!(is_passing(&broken), "the Collector has said nothing");
        let late = OTelSdkError::Timeout(Duration::from_secs(10));
        assert_eq!((is_passing(&late), &*explain(&late)), (true, "no answer within 10s"));
        let other = OTelSdkError::InternalFailure("no memory".into());
        assert_eq!((is_passing(&other), &*explain(&other)), (false, "Operation failed: no memory"));
    }
}
