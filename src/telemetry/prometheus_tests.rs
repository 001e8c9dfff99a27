use super::*;
use crate::metric::{Attributes, Cadence, Unit};

static UP: MetricDef = MetricDef {
    name: "esxi.host.ssh.up",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "1 if \"the last\" visit succeeded\\0 if not.",
    attributes: &["hostsystem", "site"],
};
static TOOK: MetricDef = MetricDef {
    name: "esxi.host.ssh.visit.duration",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "Duration of the last visit.",
    attributes: &["hostsystem", "site"],
};
static BYTES: MetricDef = MetricDef {
    name: "esxi.agent.soap.bytes",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    cadence: Cadence::Periodic,
    help: "Bytes of SOAP.",
    attributes: &[],
};

fn host(def: &'static MetricDef, name: &str, value: f64) -> Sample {
    Sample::new(def, Attributes::new([("site", "eu-1"), ("hostsystem", name)]), value)
}

fn page(format: Format) -> String {
    // Two hosts whose families are interleaved, as parts are.
    let parts: Vec<Arc<[Sample]>> = vec![
        vec![host(&UP, "esx2", 0.0), host(&TOOK, "esx2", 10.0)].into(),
        vec![host(&UP, "esx1 \"a\\b\"\n", 1.0), host(&TOOK, "esx1", 0.125)].into(),
    ];
    let own = vec![Sample::new(&BYTES, Attributes::new::<&str, &str>([]), 123_456_789_012.0)];
    render(Page::of(format, &[&UP, &TOOK, &BYTES], Snapshot { parts }, own))
}

fn render(page: Page) -> String {
    page.map(|chunk| String::from_utf8(chunk.to_vec()).expect("UTF-8")).collect()
}

#[test]
fn the_page_in_text_format() {
    assert_eq!(page(Format::Text), include_str!("../../tests/fixtures/telemetry/page-0.0.4.txt"));
}

#[test]
fn the_page_in_openmetrics() {
    assert_eq!(
        page(Format::OpenMetrics),
        include_str!("../../tests/fixtures/telemetry/page-openmetrics.txt")
    );
}

#[test]
fn an_empty_page_is_valid_in_both_formats() {
    let empty = |format| render(Page::of(format, &[&UP], Snapshot::default(), vec![]));
    assert_eq!(empty(Format::Text), "");
    assert_eq!(empty(Format::OpenMetrics), "# EOF\n");
}

#[test]
fn a_large_page_comes_in_chunks_with_each_family_in_one_piece() {
    let fleet = |def| (0..5_000).map(|i| host(def, &format!("esx{i}"), 1.0)).collect::<Vec<_>>();
    let parts: Vec<Arc<[Sample]>> = vec![fleet(&UP).into(), fleet(&TOOK).into(), fleet(&UP).into()];
    let chunks: Vec<_> = Page::of(Format::Text, &[&UP, &TOOK], Snapshot { parts }, vec![]).collect();
    assert!(chunks.len() > 5, "{}", chunks.len());
    assert!(chunks.iter().all(|chunk| chunk.len() < CHUNK + 1_024));
    let text: String = chunks.iter().map(|chunk| String::from_utf8_lossy(chunk)).collect();
    let mut families: Vec<_> = text.lines().map(|line| line.split('{').next().unwrap_or(line)).collect();
    families.dedup();
    families.retain(|line| !line.starts_with('#'));
    assert_eq!(families, ["esxi_host_ssh_up", "esxi_host_ssh_visit_duration_seconds"]);
    assert_eq!(text.lines().count(), 15_000 + 4);
}

#[test]
fn the_scraper_chooses_the_format() {
    let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
        application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,\
        text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
    for (accept, format) in [
        ("", Format::Text),
        ("*/*", Format::Text),
        ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Text),
        (prometheus_3, Format::OpenMetrics),
        ("application/openmetrics-text", Format::OpenMetrics),
        ("application/openmetrics-text; version=0.0.1", Format::Text),
        ("application/openmetrics-text;q=0.1, text/plain;version=0.0.4;q=0.9", Format::Text),
        ("application/openmetrics-text;q=0", Format::Text),
        ("application/openmetrics-text;q=nonsense", Format::Text),
    ] {
        assert_eq!(Format::negotiate(accept), format, "{accept}");
    }
}

#[test]
fn what_is_no_number_is_written_as_prometheus_reads_it() {
    let mut text = String::new();
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1_700_000_000.25] {
        write_value(&mut text, value);
        text.push(' ');
    }
    assert_eq!(text, "NaN +Inf -Inf -1 1700000000.25 ");
}
