//! What the agent's own process is and uses.

use crate::metric::{Attributes, Cadence, Kind, MetricDef, Sample, Unit};

/// Which version runs.
pub static BUILD_INFO: MetricDef = MetricDef {
    name: "esxi.agent.build_info",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Always 1: which version of the agent runs.",
    attributes: &["version"],
};

/// CPU time.
pub static CPU_TIME: MetricDef = MetricDef {
    name: "esxi.agent.process.cpu.time",
    kind: Kind::Counter,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "CPU time that the agent has used, user and system together.",
    attributes: &[],
};

/// Resident memory.
pub static MEMORY: MetricDef = MetricDef {
    name: "esxi.agent.process.memory.resident",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    cadence: Cadence::Periodic,
    help: "Memory of the agent that is resident.",
    attributes: &[],
};

/// The metrics of this module.
pub static METRICS: &[&MetricDef] = &[&BUILD_INFO, &CPU_TIME, &MEMORY];

/// The process at this moment. What the system does not tell is left out.
pub fn samples() -> Vec<Sample> {
    let none = Attributes::new::<&str, &str>([]);
    let version = Attributes::new([("version", env!("CARGO_PKG_VERSION"))]);
    let mut samples = vec![Sample::new(&BUILD_INFO, version, 1.0)];
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    samples.push(Sample::new(&CPU_TIME, none.clone(), seconds));
    samples.extend(resident_bytes().map(|bytes| Sample::new(&MEMORY, none, bytes)));
    samples
}

/// `VmRSS` of proc(5), which is given in kB whatever the size of a page.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_its_version_its_cpu_time_and_its_memory() {
        let samples = samples();
        let value = |def| samples.iter().find(|s| s.def == def).map(|s| s.value);
        assert_eq!(value(&BUILD_INFO), Some(1.0));
        assert!(value(&CPU_TIME).is_some_and(|seconds| seconds > 0.0));
        assert!(value(&MEMORY).is_some_and(|bytes| bytes > 1e6), "{:?}", value(&MEMORY));
    }
}
