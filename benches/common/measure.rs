//! CPU time, time and memory of one step, on one line.

#![allow(dead_code, reason = "no benchmark takes all of it")]

use std::time::{Duration, Instant};

/// Does `work`, and says what it cost.
pub fn measure<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let before = memory("VmRSS:");
    // 5 sets the high-water mark back to what is resident now (proc(5)).
    let is_reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let (wall, cpu) = (Instant::now(), cpu_time());
    let result = work();
    let (wall, cpu) = (wall.elapsed(), cpu_time() - cpu);
    let peak = match is_reset {
        true => format!("{:>6.1} MB", memory("VmHWM:").saturating_sub(before) as f64 / 1e6),
        false => "unknown".into(),
    };
    println!("{what:<28} {:>8.1} ms CPU {:>8.1} ms {peak:>10}", millis(cpu), millis(wall));
    result
}

/// CPU time of this process so far, of all its threads.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Bytes, from a line (`VmRSS:`) of `/proc/self/status`; 0 where there is no such file.
pub fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_default();
    kilobytes.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}
