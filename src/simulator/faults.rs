//! What can be wrong with a simulated host, and with one service of it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Something that is wrong with a host as a whole. One at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostFault {
    /// Nobody listens: the connection is refused. In a fleet that shares one socket
    /// ([`super::host::Sockets::Shared`]) the connection is accepted and reset at once instead.
    RefuseConnection,
    /// The connection is never established: its SYN is dropped, as by a full backlog or a firewall.
    HangAtConnect,
    /// Speaks HTTP instead of SSH.
    NotSsh,
    /// Sends its identification and then nothing.
    HangAtKex,
    /// Offers only algorithms that were given up long ago.
    NoCommonAlgorithm,
    /// Presents another host key than before.
    HostKeyChanged,
    /// Takes the password and never answers.
    HangAtAuth,
    /// Takes the password and drops the connection.
    DropAtAuth,
    /// Rejects every login, as after a change of the password.
    WrongPassword,
    /// Opens no channel, as when its sessions are used up.
    ChannelRefused,
    /// Opens the channel and refuses the command.
    CommandRefused,
    /// Takes the command and never answers.
    HangAtCommand,
    /// Drops the connection in the middle of the answer.
    KillSession,
    /// Answers every command with so many bytes of nothing.
    Flood(u64),
    /// Answers every command with bytes that are no text.
    Binary,
    /// Answers every command with a message of its own instead of running it.
    NoMarkers,
    /// Everything takes so much longer.
    Slow(Duration),
}

impl HostFault {
    /// Every fault by its name, with the measure that [`FaultShare`] gives to those that have one.
    pub const ALL: &'static [(&'static str, HostFault)] = &[
        ("refuse-connection", HostFault::RefuseConnection),
        ("hang-at-connect", HostFault::HangAtConnect),
        ("not-ssh", HostFault::NotSsh),
        ("hang-at-kex", HostFault::HangAtKex),
        ("no-common-algorithm", HostFault::NoCommonAlgorithm),
        ("host-key-changed", HostFault::HostKeyChanged),
        ("hang-at-auth", HostFault::HangAtAuth),
        ("drop-at-auth", HostFault::DropAtAuth),
        ("wrong-password", HostFault::WrongPassword),
        ("channel-refused", HostFault::ChannelRefused),
        ("command-refused", HostFault::CommandRefused),
        ("hang-at-command", HostFault::HangAtCommand),
        ("kill-session", HostFault::KillSession),
        ("flood", HostFault::Flood(50_000_000)),
        ("binary", HostFault::Binary),
        ("no-markers", HostFault::NoMarkers),
        ("slow", HostFault::Slow(Duration::from_secs(3))),
    ];
}

/// What a service's init script does when it is asked for the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceState {
    /// Says that it runs.
    Running,
    /// Says that it does not run.
    Stopped,
    /// There is no such script.
    Missing,
    /// The script may not be executed.
    NotExecutable,
    /// Never answers; ends on SIGTERM.
    Hung,
    /// Never answers and ignores every signal that can be ignored; a child of it keeps the output open.
    Stubborn,
    /// Runs, but answers only after this time. Times below 100 ms are not told from the machine's own.
    Slow(Duration),
    /// Runs, and prints other lines before.
    Noisy,
    /// Prints something that tells nothing.
    Unreadable,
    /// Prints so many bytes before it says that it runs.
    Flood(u64),
}

impl ServiceState {
    /// The states that are worth a fault, by name.
    pub const FAULTS: &'static [(&'static str, ServiceState)] = &[
        ("service-stopped", ServiceState::Stopped),
        ("service-missing", ServiceState::Missing),
        ("service-not-executable", ServiceState::NotExecutable),
        ("service-hung", ServiceState::Hung),
        ("service-stubborn", ServiceState::Stubborn),
        ("service-slow", ServiceState::Slow(Duration::from_secs(2))),
        ("service-noisy", ServiceState::Noisy),
        ("service-unreadable", ServiceState::Unreadable),
        ("service-flood", ServiceState::Flood(10_000_000)),
    ];
}

/// A fault of a host, or of one of its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The host as a whole.
    Host(HostFault),
    /// One service; which one is drawn from the seed.
    Service(ServiceState),
}

/// Which share of the hosts has a fault: `wrong-password=0.01`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultShare {
    /// The fault.
    pub fault: Fault,
    /// 0 to 1.
    pub share: f64,
}

/// A fault's name or share that can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// Not `name=share`.
    #[error("`{0}` is not of the form NAME=SHARE, such as `wrong-password=0.01`")]
    Form(String),
    /// No such fault.
    #[error("there is no fault `{name}`; there are: {known}", known = FaultShare::names().join(", "))]
    Unknown {
        /// What was written.
        name: String,
    },
    /// Not a number from 0 to 1.
    #[error("the share of `{name}` has to be a number from 0 to 1, not `{share}`")]
    Share {
        /// The fault.
        name: String,
        /// What was written.
        share: String,
    },
}

impl FaultShare {
    /// The names of all faults.
    pub fn names() -> Vec<&'static str> {
        let hosts = HostFault::ALL.iter().map(|(name, _)| *name);
        hosts.chain(ServiceState::FAULTS.iter().map(|(name, _)| *name)).collect()
    }
}

impl FromStr for FaultShare {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (name, share) = text.split_once('=').ok_or_else(|| FaultError::Form(text.to_owned()))?;
        let host = HostFault::ALL.iter().find(|(n, _)| *n == name).map(|(_, f)| Fault::Host(*f));
        let service =
            || ServiceState::FAULTS.iter().find(|(n, _)| *n == name).map(|(_, s)| Fault::Service(*s));
        let fault = host.or_else(service).ok_or_else(|| FaultError::Unknown { name: name.to_owned() })?;
        let valid = share.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
        let share =
            valid.ok_or_else(|| FaultError::Share { name: name.to_owned(), share: share.to_owned() })?;
        Ok(Self { fault, share })
    }
}

impl fmt::Display for FaultShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            Fault::Host(fault) => write!(f, "{fault:?}={}", self.share),
            Fault::Service(state) => write!(f, "service {state:?}={}", self.share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_names_its_fault() {
        let share: FaultShare = "wrong-password=0.01".parse().unwrap();
        assert_eq!(share, FaultShare { fault: Fault::Host(HostFault::WrongPassword), share: 0.01 });
        let share: FaultShare = "service-hung=1".parse().unwrap();
        assert_eq!(share.fault, Fault::Service(ServiceState::Hung));
    }

    #[test]
    fn what_is_wrong_with_a_share_is_said() {
        let error = |text: &str| text.parse::<FaultShare>().unwrap_err().to_string();
        assert!(error("wrong-password").contains("NAME=SHARE"));
        assert!(error("wrong-pasword=0.1").contains("wrong-password"), "the known names are listed");
        assert_eq!(error("slow=2"), "the share of `slow` has to be a number from 0 to 1, not `2`");
        assert!(error("slow=NaN").contains("NaN"));
    }
}
