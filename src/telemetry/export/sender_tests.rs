use super::*;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Sample, Unit};
use crate::telemetry::export::encode::{Encoder, Limits, Times};
use crate::telemetry::export::queue::Caps;
use crate::telemetry::export::split::points_of;
use crate::telemetry::export::{METRICS, POINTS};
use crate::telemetry::metrics::Instruments;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use prost::Message;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::SystemTime;
use tokio::time::Instant;
use tonic_types::ErrorDetails;

static STATE: MetricDef = MetricDef {
    name: "t.state",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "A state.",
    attributes: &["host"],
};

type Reply = Result<Option<ExportMetricsPartialSuccess>, CallError>;

type Rule = dyn Fn(&[String], Compression) -> Reply + Send + Sync;
/// When, and the hosts of the request.
type Try = (Duration, Vec<String>);

/// A Collector that answers by a rule, and remembers what it took.
#[derive(Clone)]
struct Scripted {
    rule: Arc<Rule>,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    tries: Arc<Mutex<Vec<Try>>>,
    taken: Arc<Mutex<Vec<String>>>,
    born: Instant,
}

impl Scripted {
    fn new(rule: impl Fn(&[String], Compression) -> Reply + Send + Sync + 'static) -> Self {
        Self {
            rule: Arc::new(rule),
            replies: Arc::default(),
            tries: Arc::default(),
            taken: Arc::default(),
            born: Instant::now(),
        }
    }

    /// Takes everything once these replies are used up.
    fn after(replies: impl IntoIterator<Item = Reply>) -> Self {
        let scripted = Self::new(|_, _| Ok(None));
        scripted.replies.lock().expect("no panic").extend(replies);
        scripted
    }

    fn taken(&self) -> Vec<String> {
        self.taken.lock().expect("no panic").clone()
    }

    fn tries(&self) -> Vec<Try> {
        self.tries.lock().expect("no panic").clone()
    }
}

impl Transport for Scripted {
    fn peer(&self) -> &'static str {
        "test"
    }

    async fn send(&mut self, bytes: Bytes, compression: Compression) -> Reply {
        let hosts = hosts(&bytes);
        self.tries.lock().expect("no panic").push((self.born.elapsed(), hosts.clone()));
        let scripted = self.replies.lock().expect("no panic").pop_front();
        let reply = scripted.unwrap_or_else(|| (self.rule)(&hosts, compression));
        if reply.is_ok() {
            self.taken.lock().expect("no panic").extend(hosts);
        }
        reply
    }
}

fn hosts(bytes: &Bytes) -> Vec<String> {
    let request = ExportMetricsServiceRequest::decode(bytes.clone()).expect("protobuf");
    let text = format!("{request:?}");
    let hosts = text.split("StringValue(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let hosts: Vec<_> = hosts.map(str::to_owned).collect();
    assert_eq!(hosts.len(), points_of(&request));
    hosts
}

fn batch(hosts: &[&str]) -> Batch {
    let instruments = Instruments::new(opentelemetry_sdk::Resource::builder_empty().build());
    let sample = |host: &&str| Sample::new(&STATE, Attributes::new([("host", *host)]), 1.0);
    let times = Times { started: SystemTime::now(), collected: SystemTime::now() };
    let limits = Limits { points: 8_000, bytes: Limits::BYTES };
    let mut encoder = Encoder::new(instruments.resource(), times, limits);
    for portion in instruments.collect(&STATE, hosts.iter().map(sample).collect()) {
        encoder.live(&portion.expect("collected"));
    }
    encoder.finish().remove(0)
}

fn refused(code: Code) -> Reply {
    Err(CallError::Status(Box::new(Status::new(code, "no"))))
}

/// Sends the batches and returns what the agent counted once all have been dealt with.
async fn send(collector: &Scripted, batches: &[&[&str]]) -> Vec<(&'static str, f64)> {
    let queue = Arc::new(Queue::new(Caps { bytes: 1 << 20, age: Duration::from_secs(3_600) }));
    let stats = Stats::new();
    for hosts in batches {
        let dropped = queue.push(batch(hosts), queue.now(), queue.now());
        assert_eq!(dropped.points(), 0);
    }
    let presence = Arc::new(Presence::new("test"));
    let sender =
        Sender::new(collector.clone(), Arc::clone(&queue), presence, Arc::clone(&stats), Compression::Zstd);
    let (_closing, closes) = watch::channel(Closing::No);
    let sending = tokio::spawn(sender.run(closes));
    let limit = Duration::from_secs(3_600);
    tokio::time::timeout(limit, queue.wait_empty()).await.expect("everything is dealt with in an hour");
    sending.abort();
    assert!(METRICS.contains(&&POINTS));
    let count = |outcome: &str| {
        let of = |s: &&Sample| s.attributes.get("outcome") == Some(outcome);
        stats.samples().iter().find(of).map_or(0.0, |s| s.value)
    };
    ["exported", "rejected", "dropped"].into_iter().map(|word| (word, count(word))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_was_away_gets_everything_in_order() {
    let away = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Aborted, Code::DataLoss];
    let collector =
        Scripted::after(away.map(refused).into_iter().chain([Err(CallError::TimedOut(Duration::ZERO))]));
    let counted = send(&collector, &[&["a"], &["b"], &["c"]]).await;
    assert_eq!(collector.taken(), ["a", "b", "c"]);
    assert_eq!(counted, [("exported", 3.0), ("rejected", 0.0), ("dropped", 0.0)]);
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_up_to_half_a_minute_and_start_anew_after_a_success() {
    let away = |n| std::iter::repeat_with(|| refused(Code::Unavailable)).take(n);
    let collector = Scripted::after(away(9).chain([Ok(None)]).chain(away(1)));
    send(&collector, &[&["a"], &["b"]]).await;
    let times: Vec<_> = collector.tries().into_iter().map(|(at, _)| at.as_secs_f64()).collect();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (pause, most) in pauses.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0, 0.01, 1.0]) {
        assert!(*pause <= most + 0.01 && (*pause >= most / 2.0 || most < 0.1), "{pauses:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_asks_for_a_pause_gets_it() {
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(42)));
    let busy = Status::with_error_details(Code::ResourceExhausted, "busy", details);
    let collector = Scripted::after([Err(CallError::Status(Box::new(busy)))]);
    send(&collector, &[&["a"]]).await;
    let tries = collector.tries();
    assert_eq!(tries.len(), 2);
    assert_eq!(tries[1].0.as_secs(), 42);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_goes_in_halves_and_a_poison_point_is_given_up_alone() {
    let too_large = || {
        let text = "grpc: received message after decompression larger than max (5000000 vs. 4194304)";
        Err(CallError::Status(Box::new(Status::resource_exhausted(text))))
    };
    let collector = Scripted::new(move |hosts, _| match hosts {
        hosts if hosts.len() > 3 || hosts.iter().any(|host| host == "poison") => too_large(),
        _ => Ok(None),
    });
    let counted = send(&collector, &[&["a", "b", "poison", "d", "e", "f", "g"], &["h"]]).await;
    let mut taken = collector.taken();
    assert_eq!(taken.last().map(String::as_str), Some("h"), "what came later stays behind");
    taken.sort();
    assert_eq!(taken, ["a", "b", "d", "e", "f", "g", "h"]);
    assert_eq!(counted, [("exported", 7.0), ("rejected", 1.0), ("dropped", 0.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_out_of_quota_is_not_asked_point_by_point() {
    let collector = Scripted::new(|_, _| refused(Code::ResourceExhausted));
    let fleet: Vec<_> = (0..4_000).map(|i| format!("esx{i}")).collect();
    let fleet: Vec<_> = fleet.iter().map(String::as_str).collect();
    let counted = send(&collector, &[&fleet]).await;
    assert!(collector.tries().len() < 20, "{}", collector.tries().len());
    assert_eq!(counted, [("exported", 0.0), ("rejected", 4_000.0), ("dropped", 0.0)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_counted_and_holds_up_nobody() {
    let codes = [Code::InvalidArgument, Code::Internal, Code::NotFound, Code::FailedPrecondition];
    let collector = Scripted::after(codes.map(refused));
    let counted = send(&collector, &[&["a"], &["b"], &["c"], &["d"], &["e"]]).await;
    assert_eq!(collector.taken(), ["e"]);
    assert_eq!(collector.tries().last().map(|(at, _)| at.as_secs()), Some(0), "without a pause");
    assert_eq!(counted, [("exported", 1.0), ("rejected", 4.0), ("dropped", 0.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_expired_costs_a_request_a_try_and_not_all_that_waits() {
    for code in [Code::Unauthenticated, Code::PermissionDenied, Code::Unimplemented] {
        // Without a service each kind of compression is tried.
        let tries = if code == Code::Unimplemented { 3 } else { 1 };
        let collector = Scripted::after(std::iter::repeat_with(|| refused(code)).take(8 * tries));
        let waiting: Vec<_> = (0..20).map(|host| format!("esx{host}")).collect();
        let waiting: Vec<[&str; 1]> = waiting.iter().map(|host| [&**host]).collect();
        let waiting: Vec<&[&str]> = waiting.iter().map(|hosts| &hosts[..]).collect();
        let counted = send(&collector, &waiting).await;
        assert_eq!(counted, [("exported", 12.0), ("rejected", 8.0), ("dropped", 0.0)], "{code:?}");
        let (mended, _) = collector.tries()[8 * tries].clone();
        assert!(mended > Duration::from_secs(60), "{code:?}: ever longer pauses: {mended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn points_that_were_rejected_of_a_request_that_was_taken_are_counted() {
    let partial = ExportMetricsPartialSuccess { rejected_data_points: 2, error_message: "two".into() };
    let collector = Scripted::after([Ok(Some(partial))]);
    let counted = send(&collector, &[&["a", "b", "c"]]).await;
    assert_eq!(counted, [("exported", 1.0), ("rejected", 2.0), ("dropped", 0.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_does_not_know_zstd_gets_gzip() {
    let collector = Scripted::new(|_, compression| match compression {
        Compression::Zstd => refused(Code::Unimplemented),
        _ => Ok(None),
    });
    let counted = send(&collector, &[&["a"], &["b"]]).await;
    assert_eq!(collector.tries().len(), 3, "asked once, not with each request");
    assert_eq!(counted[0], ("exported", 2.0));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_there_refuses_and_compression_is_tried_again_later() {
    let collector = Scripted::after([Code::Unimplemented; 3].map(refused));
    let counted = send(&collector, &[&["a"], &["b"]]).await;
    assert_eq!(collector.taken(), ["b"]);
    assert_eq!(counted, [("exported", 1.0), ("rejected", 1.0), ("dropped", 0.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_proxy_whose_collector_is_away_is_no_collector_that_refuses() {
    let proxy = |code, text: &str| Err(CallError::Status(Box::new(Status::new(code, text))));
    let collector = Scripted::after([
        proxy(Code::Unimplemented, "grpc-status header missing, mapped from HTTP status code 404"),
        proxy(Code::Unknown, "grpc-status header missing, mapped from HTTP status code 302"),
        proxy(Code::Unknown, "protocol error: missing grpc-status trailer, stream was terminated"),
        proxy(Code::Internal, "Error decompressing: corrupt, while receiving response with status: 200 OK"),
        proxy(
            Code::OutOfRange,
            "Error, decoded message length too large: found 9, the limit is: 4194311 bytes",
        ),
    ]);
    let counted = send(&collector, &[&["a"], &["b"]]).await;
    assert_eq!(collector.taken(), ["a", "b"]);
    assert_eq!(counted, [("exported", 2.0), ("rejected", 0.0), ("dropped", 0.0)]);
}

#[tokio::test(start_paused = true)]
async fn every_code_is_either_tried_again_or_costs_one_request() {
    for code in (1..=16).map(Code::from_i32) {
        let collector = Scripted::after([refused(code)]);
        let counted = send(&collector, &[&["a"], &["b"]]).await;
        let again = matches!(
            code,
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
                | Code::OutOfRange
                | Code::Unavailable
                | Code::DataLoss
                | Code::Unimplemented
        );
        let exported = if again { 2.0 } else { 1.0 };
        assert_eq!(
            counted,
            [("exported", exported), ("rejected", 2.0 - exported), ("dropped", 0.0)],
            "{code:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn more_rejections_than_points_are_as_many_as_points() {
    for rejected in [4, i64::MAX, -1] {
        let partial =
            ExportMetricsPartialSuccess { rejected_data_points: rejected, error_message: "x".into() };
        let collector = Scripted::after([Ok(Some(partial))]);
        let counted = send(&collector, &[&["a", "b", "c"]]).await;
        let rejected = if rejected < 0 { 0.0 } else { 3.0 };
        assert_eq!(counted, [("exported", 3.0 - rejected), ("rejected", rejected), ("dropped", 0.0)]);
    }
}
