//! Writes a spool as an agent leaves it behind whose Collector was away: one request a minute, each with the time at
//! which it was due. For trying what an outage does to a pipeline, without waiting for one:
//!
//! ```text
//! cargo run --example fill_spool -- /var/tmp/state/spool 100 180
//! STATE_DIRECTORY=/var/tmp/state esxi-otel-agent run …
//! ```
//!
//! The arguments: folder, hosts (a series each, `example.state`), minutes. The value of a point is its minute.

use esxi_otel_agent::metric::{Attributes, Cadence, Kind, MetricDef, Sample, Unit};
use esxi_otel_agent::telemetry::export::encode::{Encoder, Limits, Times};
use esxi_otel_agent::telemetry::export::spool::Spool;
use esxi_otel_agent::telemetry::metrics::Instruments;
use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

static STATE: MetricDef = MetricDef {
    name: "example.state",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "The minute of the outage.",
    attributes: &["host"],
};

const MINUTE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or(format!("missing: {what}"));
    let folder = PathBuf::from(next("the folder")?);
    let (hosts, minutes) = (next("hosts")?.parse::<u32>()?, next("minutes")?.parse::<u32>()?);
    let began = SystemTime::now() - MINUTE * minutes;
    let resource = opentelemetry_sdk::Resource::builder_empty().with_service_name("fill-spool").build();
    let instruments = Instruments::new(resource);
    let limits = Limits { points: 8_000, bytes: Limits::BYTES };
    let mut spool = Spool::open(&folder, 1 << 30)?;
    for minute in 0..minutes {
        let sample = |host: u32| {
            let attributes = Attributes::new([("host", format!("esx{host}"))]);
            Sample::new(&STATE, attributes, f64::from(minute))
        };
        let collected = began + MINUTE * minute;
        let mut encoder = Encoder::new(instruments.resource(), Times { started: began, collected }, limits);
        for portion in instruments.collect(&STATE, (0..hosts).map(sample).collect()) {
            encoder.live(&portion?);
        }
        let batches = encoder.finish();
        spool.append(batches.iter().map(|batch| (batch, collected)), false)?;
    }
    println!("{} points, {} bytes", spool.unread_points(), spool.bytes());
    Ok(())
}
