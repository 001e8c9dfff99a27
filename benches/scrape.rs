//! What one scrape of a large fleet costs, and what slow scrapers hold up: `cargo bench --bench scrape`, or with
//! other sizes `HOSTS=3000 cargo bench --bench scrape`.
//!
//! Method. The readings are made by the agent's own collectors. The page is asked for over HTTP, by a process of
//! its own, so that the reader's share is not counted. Each line: CPU time of all threads of the agent's process
//! (`CLOCK_PROCESS_CPUTIME_ID`), the time that passed, and the peak of resident memory above what was resident
//! before (`VmHWM`, set back before each step).

#[allow(dead_code, reason = "the benchmark of exports uses all of it")]
#[path = "export/fleet.rs"]
mod fleet;
#[path = "common/measure.rs"]
mod measure;

use esxi_otel_agent::config::PrometheusConfig;
use esxi_otel_agent::readings::Readings;
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::telemetry::catalog;
use esxi_otel_agent::web::{Shown, Web};
use fleet::Fleet;
use measure::measure;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const AS_SCRAPER: &str = "BENCH_AS_SCRAPER";

/// The agent's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(address) = std::env::var(AS_SCRAPER) {
        println!("{}", scrape(address.parse()?)?);
        return Ok(());
    }
    // Without --bench it is run as a test: small then.
    let default = if std::env::args().any(|arg| arg == "--bench") { 10_000 } else { 50 };
    let hosts = std::env::var("HOSTS").ok().and_then(|hosts| hosts.parse().ok()).unwrap_or(default);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let fleet = Fleet::new(hosts);
    let readings = Readings::new();
    fleet.round(&readings, 0);
    println!("{hosts} hosts, {} series", readings.snapshot().len());

    let cancel = CancellationToken::new();
    let web = runtime.block_on(Web::bind(&PrometheusConfig { listen: "127.0.0.1:0".parse()? }))?;
    let address = web.address();
    let shown = Shown {
        defs: catalog::all().into(),
        readings: Arc::clone(&readings),
        stats: Stats::new(),
        ready: watch::channel(true).1,
    };
    let served = runtime.spawn(web.serve(shown, cancel.clone()));

    for _ in 0..3 {
        let bytes = measure("a scrape", || wait(vec![spawn(address)?]))?;
        println!("  {:.1} MB", bytes as f64 / 1e6);
    }
    measure("4 scrapes at a time", || {
        let scrapers: std::io::Result<Vec<_>> = (0..4).map(|_| spawn(address)).collect();
        wait(scrapers?)
    })?;
    let stalled: std::io::Result<Vec<_>> = (0..3).map(|_| ask(address)).collect();
    let stalled = stalled?;
    measure("a scrape beside 3 that stall", || wait(vec![spawn(address)?]))?;
    let began = Instant::now();
    fleet.round(&readings, 1);
    let round = began.elapsed();
    let began = Instant::now();
    let series = readings.snapshot().len();
    println!(
        "beside them: a round's readings {round:.1?}, a snapshot of {series} series {:.1?}",
        began.elapsed()
    );
    drop(stalled);
    cancel.cancel();
    runtime.block_on(served)?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

fn ask(address: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    Ok(stream)
}

fn scrape(address: SocketAddr) -> std::io::Result<usize> {
    let (mut stream, mut buffer, mut bytes) = (ask(address)?, vec![0; 1 << 20], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(bytes),
            read => bytes += read,
        }
    }
}

fn spawn(address: SocketAddr) -> std::io::Result<Child> {
    let program = std::env::current_exe()?;
    Command::new(program).env(AS_SCRAPER, address.to_string()).stdout(Stdio::piped()).spawn()
}

/// The bytes that all of them read.
fn wait(scrapers: Vec<Child>) -> Result<usize, Box<dyn Error>> {
    let mut bytes = 0;
    for scraper in scrapers {
        let output = scraper.wait_with_output()?;
        bytes += String::from_utf8(output.stdout)?.trim().parse::<usize>()?;
    }
    Ok(bytes)
}
