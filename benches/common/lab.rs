//! A simulated estate in a process of its own, and the configuration for it.

use esxi_otel_agent::config::{Config, Sources};
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The simulated estate. Ends with this.
pub struct Simulator(Child);

impl Simulator {
    /// `esxi-otel-agent simulate` with `flags`, whose files are in `lab`. Returns when it is up.
    pub fn start(lab: &Path, flags: &[&str]) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esxi-otel-agent"));
        command.arg("simulate").args(flags).arg("--out").arg(lab).stdout(Stdio::null());
        let mut simulator = Self(command.spawn()?);
        let until = Instant::now() + Duration::from_secs(120);
        while !lab.join("env").exists() {
            if let Some(status) = simulator.0.try_wait()? {
                return Err(format!("the simulator ended: {status}").into());
            }
            if Instant::now() > until {
                return Err("the simulator did not come up within 120 s".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(simulator)
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The configuration that the simulator wrote, with its accounts and with `more` variables.
pub fn config(lab: &Path, more: &[(&str, &str)]) -> Result<Config, Box<dyn Error>> {
    let text = std::fs::read_to_string(lab.join("env"))?;
    let plain = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), OsString::from(value.trim_matches('\''))))
    };
    let mut env: BTreeMap<String, OsString> = text.lines().filter_map(plain).collect();
    env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))));
    let sources = Sources { config: Some(lab.join("config.yaml")), env, ..Sources::default() };
    Ok(Config::load(&sources)?.config)
}
