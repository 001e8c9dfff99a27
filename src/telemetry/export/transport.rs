//! One call of OTLP's metrics service with bytes that are encoded already, so that what was kept is sent
//! again as it was, with its own times.

use super::addresses::Addresses;
use super::follow::{changed, renewed};
use super::peer::Peer;
use crate::config::Compression;
use bytes::{Buf, BufMut, Bytes};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceResponse,
};
use prost::Message;
use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

const EXPORT: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// What tonic says of an answer with the status OK and no message.
const NO_ANSWER: &str = "Missing response message.";
/// Largest answer that is read, bytes. Another number than the usual limits of servers, so that gRPC's complaint about
/// it is not taken for theirs.
pub(super) const LARGEST_ANSWER: usize = (4 << 20) + 7;

/// Why a call brought nothing.
#[derive(Debug)]
pub enum CallError {
    /// The peer's answer, or gRPC's word for a broken connection.
    Status(Box<Status>),
    /// No answer within this time.
    TimedOut(Duration),
}

/// Sends one request. A trait so that the sender's rules can be tested without a network.
pub trait Transport: Send {
    /// Name of the Collector that was called last, or will be called first.
    fn peer(&self) -> &str;

    /// Sends once. Returns within its limit.
    fn send(
        &mut self,
        bytes: Bytes,
        compression: Compression,
    ) -> impl Future<Output = Result<Option<ExportMetricsPartialSuccess>, CallError>> + Send;

    /// Whether the next call goes to somewhere else; if so, with which compression.
    fn renew(&mut self) -> Option<Compression> {
        None
    }

    /// Waits until [`Transport::renew`] has something to say.
    fn changed(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Where to send, and how.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The Collector.
    pub peer: Peer,
    /// Until it turns out not to know that.
    pub compression: Compression,
}

/// gRPC over the peer's channel.
#[derive(Debug)]
pub struct GrpcTransport {
    peer: Peer,
    channel: Channel,
    destinations: watch::Receiver<Destination>,
    addresses: Addresses,
}

impl GrpcTransport {
    /// Connects at the first call; to another destination from the first call on after it was named. To be
    /// made inside a runtime.
    pub fn new(mut destinations: watch::Receiver<Destination>) -> Self {
        let peer = destinations.borrow_and_update().peer.clone();
        let (channel, addresses) = (peer.channel(), Addresses::of(&peer));
        Self { peer, channel, destinations, addresses }
    }

    /// To one destination for ever.
    pub fn to(peer: Peer) -> Self {
        let compression = Compression::None;
        Self::new(watch::channel(Destination { peer, compression }).1)
    }
}

impl Transport for GrpcTransport {
    fn peer(&self) -> &str {
        self.peer.name()
    }

    fn renew(&mut self) -> Option<Compression> {
        let Destination { peer, compression } = renewed(&mut self.destinations)?;
        (self.channel, self.addresses, self.peer) = (peer.channel(), Addresses::of(&peer), peer);
        Some(compression)
    }

    async fn changed(&mut self) {
        let mut destinations = self.destinations.clone();
        changed(&mut destinations).await;
    }

    async fn send(
        &mut self,
        bytes: Bytes,
        compression: Compression,
    ) -> Result<Option<ExportMetricsPartialSuccess>, CallError> {
        let limit = self.peer.limit();
        if self.addresses.have_changed() {
            self.channel = self.peer.channel();
        }
        // Compression belongs to a `Grpc` value, hence a new one each time; it is cheap. Servers made with grpc-go
        // compress their answer as the request was, also for a client that does not say that it accepts that.
        let mut grpc = Grpc::new(self.channel.clone())
            .max_decoding_message_size(LARGEST_ANSWER)
            .accept_compressed(CompressionEncoding::Zstd)
            .accept_compressed(CompressionEncoding::Gzip);
        if let Some(encoding) = encoding(compression) {
            grpc = grpc.send_compressed(encoding);
        }
        let mut request = Request::new(bytes);
        *request.metadata_mut() = self.peer.metadata().clone();
        let call = async {
            grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            grpc.unary(request, PathAndQuery::from_static(EXPORT), RawCodec).await
        };
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner().partial_success),
            // The server has said OK, and nothing else.
            Ok(Err(status)) if status.message() == NO_ANSWER => Ok(None),
            Ok(Err(status)) => Err(CallError::Status(Box::new(status))),
            Err(_) => {
                // A connection into a black hole would be used until TCP gives it up, after minutes.
                self.channel = self.peer.channel();
                Err(CallError::TimedOut(limit))
            }
        }
    }
}

fn encoding(compression: Compression) -> Option<CompressionEncoding> {
    match compression {
        Compression::Zstd => Some(CompressionEncoding::Zstd),
        Compression::Gzip => Some(CompressionEncoding::Gzip),
        Compression::None => None,
    }
}

/// Writes bytes as they are; reads the service's response.
#[derive(Debug, Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = ExportMetricsServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = ExportMetricsServiceResponse;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = source.copy_to_bytes(source.remaining());
        let response = ExportMetricsServiceResponse::decode(bytes);
        // With its source: as the connection's failure, not as the Collector's word.
        response.map(Some).map_err(|error| Status::from_error(Box::new(error)))
    }
}
