//! Stand-ins for `/etc/init.d/<service>`: shell scripts that print what a host in a given state prints.

use super::faults::ServiceState;
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

/// The states of all services of a host, by the name of the init script.
pub type Services = BTreeMap<Arc<str>, ServiceState>;

/// A service as ESXi has it: the script's name is neither always the name that is printed, nor does
/// every line end with a full stop. The exit status of a stopped service differs on purpose, as no rule
/// for it is known.
struct Known {
    script: &'static str,
    running: &'static str,
    stopped: &'static str,
    stopped_exit: u8,
}

const KNOWN: &[Known] = &[
    known("hostd", "hostd is running.", "hostd is not running.", 3),
    known("vpxa", "vpxa is running", "vpxa is not running", 3),
    known("ntpd", "ntpd is running", "ntpd is not running", 1),
    known("vvold", "vvold is running.", "vvold is not running.", 3),
    known("vsanperfsvc", "vsanperfsvc is running.", "vsanperfsvc is not running.", 3),
    known("nsx-opsagent", "opsAgent is running", "opsAgent is not running", 1),
    known("nsx-proxy", "nsx-proxy is running", "nsx-proxy is not running", 0),
    known("nsxa", "nsxa is running", "nsxa is not running", 0),
    known("nsx-mpa", "nsx-mpa is running", "nsx-mpa is not running", 0),
    known("lbtd", "net-lbt is running", "net-lbt is not running", 1),
    known("wsman", "openwsmand is running", "openwsmand is not running", 1),
    known("sfcbd-watchdog", "sfcbd is running", "sfcbd is not running", 0),
];

const fn known(
    script: &'static str,
    running: &'static str,
    stopped: &'static str,
    stopped_exit: u8,
) -> Known {
    Known { script, running, stopped, stopped_exit }
}

/// The services of a host where all is well: those above running, but for the two that newer NSX
/// releases no longer have.
pub fn healthy() -> Services {
    let state = |name| match name {
        "nsxa" | "nsx-mpa" => ServiceState::Missing,
        _ => ServiceState::Running,
    };
    KNOWN.iter().map(|known| (Arc::from(known.script), state(known.script))).collect()
}

/// Writes one script a service into `folder`, which must not exist.
pub fn write(folder: &Path, services: &Services) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(folder)?;
    for (name, state) in services {
        let Some(text) = script(name, *state) else { continue };
        let mode = if *state == ServiceState::NotExecutable { 0o600 } else { 0o700 };
        let mut options = std::fs::OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(folder.join(&**name))?
            .write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Not for longer than who runs it: a client may put it into a group of its own, which the end of the
/// simulator does not reach.
const HANGS: &str = "while kill -0 $PPID 2>/dev/null; do sleep 1; done";

/// The script, or `None` if there is none.
fn script(name: &str, state: ServiceState) -> Option<String> {
    let own = KNOWN.iter().find(|known| known.script == name);
    let running = own.map_or_else(|| format!("{name} is running"), |k| k.running.to_owned());
    let stopped = own.map_or_else(|| format!("{name} is not running"), |k| k.stopped.to_owned());
    let stopped_exit = own.map_or(3, |k| k.stopped_exit);
    let status = match state {
        ServiceState::Missing => return None,
        ServiceState::Running | ServiceState::NotExecutable => format!("echo '{running}'"),
        ServiceState::Stopped => format!("echo '{stopped}'; exit {stopped_exit}"),
        ServiceState::Hung => HANGS.to_owned(),
        ServiceState::Stubborn => format!("trap '' HUP INT QUIT TERM; ({HANGS}) & {HANGS}; wait"),
        ServiceState::Slow(time) => format!("sleep {}; echo '{running}'", time.as_secs_f64()),
        ServiceState::Noisy => format!(
            "echo 'watchdog-{name}: PID file /var/run/vmware/watchdog-{name}.PID does not exist' >&2; \
             echo; echo 'ramdisk root: 31 of 32 MiB used'; echo '{running}'"
        ),
        ServiceState::Unreadable => "echo 'Errors:'; echo 'Cannot open volume:'; exit 1".to_owned(),
        ServiceState::Flood(bytes) => {
            format!("head -c {bytes} /dev/zero | tr '\\000' x; echo; echo '{running}'")
        }
    };
    Some(format!(
        "#!/bin/sh\ncase \"$1\" in\nstatus) {status} ;;\n\
         *) echo \"Usage: $0 {{start|stop|restart|status}}\"; exit 1 ;;\nesac\n"
    ))
}
