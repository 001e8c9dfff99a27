//! File, environment and flags become one [`Config`].

use super::file::File;
use super::report::{ConfigError, Origin, Problem, SettingOrigin};
use super::section::{By, Context, Section};
use super::values::{DAY, SECOND, boolean, duration, integer, listen, one_of};
use super::{Config, HostKeyPolicy, LockoutConfig, PrometheusConfig, SshConfig};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFAULT_STATE_DIR: &str = "/var/lib/esxi-otel-agent";
const DEFAULT_PORT: u16 = 9666;
/// ESXi and vCenter keep an account locked for this long unless they were told otherwise
/// (`Security.AccountUnlockTime`).
const USUAL_LOCK: Duration = Duration::from_secs(900);

/// What a configuration is made of. The process's own environment comes in through
/// [`Sources::of_process`] alone.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file, `--config`. Without it the variable `CONFIG_FILE` names the file.
    pub config: Option<PathBuf>,
    /// The inventory file, `--atlas`.
    pub atlas: Option<PathBuf>,
    /// Further flags.
    pub overrides: Overrides,
    /// The environment.
    pub env: BTreeMap<String, OsString>,
    /// This machine's name: with the shard `service.instance.id`, unless somebody says otherwise.
    pub host_name: String,
}

/// Settings that were given as flags.
#[derive(Debug, Clone, Default)]
pub struct Overrides(pub(super) BTreeMap<String, (String, String)>);

impl Overrides {
    /// Sets the setting with this key path (`prometheus.listen`), as the `flag` (`--listen`) says.
    pub fn set(&mut self, key: &str, flag: &str, value: &str) {
        self.0.insert(key.to_owned(), (flag.to_owned(), value.to_owned()));
    }
}

impl fmt::Debug for Sources {
    /// Without the values of variables, of which some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("config", &self.config)
            .field("overrides", &self.overrides)
            .field("env", &self.env.keys())
            .field("host_name", &self.host_name)
            .finish()
    }
}

impl Sources {
    /// The environment and name of this process and machine, no flags.
    pub fn of_process() -> Self {
        let variable = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { env: std::env::vars_os().filter_map(variable).collect(), host_name, ..Self::default() }
    }
}

/// A configuration, and what there is to say about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What should be said once at the start, such as that TLS verification is off.
    pub notes: Vec<String>,
    /// Each setting with its value and who said so, in the order of the schema.
    pub origins: Vec<SettingOrigin>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

impl Config {
    /// Merges file, environment and flags. Flags win over the environment, the environment over the
    /// file. Paths in the file are relative to its folder, all others to the working directory.
    ///
    /// Blocking: reads a few small files.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
        let mut sources = sources.clone();
        if let Some(atlas) = &sources.atlas {
            sources.overrides.set("inventory.atlas", "--atlas", &atlas.to_string_lossy());
        }
        let variable = sources.env.get("CONFIG_FILE").filter(|path| !path.is_empty());
        let path = sources.config.clone().or_else(|| variable.map(PathBuf::from));
        let file = path.as_deref().map(read_file).transpose()?;
        let context = Context::new(&sources, file.as_ref());
        let config = resolve(&context, &sources.host_name);
        let (notes, origins) = context.finish()?;
        Ok(Loaded { config, notes, origins, file: path })
    }
}

fn read_file(path: &Path) -> Result<File, ConfigError> {
    File::read(path).map_err(|(place, message)| {
        let origin = Origin::File { name: path.display().to_string().into(), place };
        ConfigError::new(vec![Problem { origin, key: String::new(), message }])
    })
}

/// The whole schema, from top to bottom. Problems are left in the context.
fn resolve(context: &Context<'_>, host_name: &str) -> Config {
    let mut root = context.root();
    let (mut inventory, places) = super::inventory::resolve(&mut root, host_name);
    let instance = match inventory.shard {
        shard if shard.is_whole() => host_name.to_owned(),
        shard => format!("{host_name}-{shard}"),
    };
    let (overall_state, critical_service) = super::collectors::resolve(&mut root);
    let state_dir = state_dir(&mut root);
    let visits_every = critical_service.as_ref().map(|on| on.value.interval);
    let rules = super::credentials::resolve(&mut root);
    let collectors = (overall_state.as_ref(), critical_service.as_ref());
    let vcenter = super::vcenter::vcenter(&mut root);
    super::inventory::check(context, &inventory, &places, &vcenter, critical_service.is_some());
    inventory.memory = Some(state_dir.join("inventory"));
    let accounts = super::accounts::resolve(context, rules, collectors);
    Config {
        inventory,
        accounts,
        ssh: ssh(&mut root, &state_dir, visits_every),
        overall_state: overall_state.map(|on| on.value),
        critical_service: critical_service.map(|on| on.value),
        state_dir: state_dir.clone(),
        lockout: lockout(&mut root),
        vcenter,
        otlp: super::otlp::resolve(&mut root, &instance, &state_dir),
        prometheus: prometheus(&mut root),
    }
}

/// What somebody said, else `$STATE_DIRECTORY` as systemd sets it, else the usual folder where it can be written, else the
/// user's folder by the XDG rules.
fn state_dir(root: &mut Section<'_>) -> PathBuf {
    let context = root.context;
    if let Some(given) = root.setting("state_dir", |value| context.path(value)).optional() {
        return given.value;
    }
    // systemd separates several folders by colons; ours is the first one.
    let service = context.variable("STATE_DIRECTORY");
    if let Some(folder) = service.as_ref().and_then(|folders| folders.split(':').next()) {
        context.record("state_dir", folder.to_owned(), By::Variable("STATE_DIRECTORY".to_owned()));
        return folder.into();
    }
    let usual = PathBuf::from(DEFAULT_STATE_DIR);
    let default = if is_writable(&usual) {
        usual
    } else {
        let xdg = context.variable("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || Some(PathBuf::from(context.variable("HOME")?).join(".local/state"));
        match xdg.or_else(home) {
            Some(folder) => folder.join("esxi-otel-agent"),
            None => {
                let why = "can't be written, and neither XDG_STATE_HOME nor HOME is set: name a folder";
                context.problem(By::Nobody, "state_dir", format!("{DEFAULT_STATE_DIR} {why}"));
                usual
            }
        }
    };
    context.record("state_dir", default.display().to_string(), By::Nobody);
    default
}

fn is_writable(folder: &Path) -> bool {
    let access = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    if folder.exists() { folder.is_dir() && access(folder) } else { folder.parent().is_some_and(access) }
}

fn ssh(root: &mut Section<'_>, state_dir: &Path, interval: Option<Duration>) -> SshConfig {
    const POLICIES: &[(&str, HostKeyPolicy)] = &[
        ("accept-new", HostKeyPolicy::AcceptNew),
        ("strict", HostKeyPolicy::Strict),
        ("insecure", HostKeyPolicy::Insecure),
    ];
    let context = root.context;
    let mut section = root.section("ssh");
    let port = section.setting("port", integer(1..=u16::MAX)).or(22).value;
    let known_hosts = section.setting("known_hosts", |value| context.path(value));
    let known_hosts = known_hosts.or(state_dir.join("known_hosts")).value;
    let policy = section.setting("host_key_policy", one_of(POLICIES)).or(HostKeyPolicy::AcceptNew);
    if policy.value == HostKeyPolicy::Insecure {
        context.note(format!("{}: host keys are not verified: anybody may read the password", policy.key));
    }
    let reuse_sessions = section.setting("reuse_sessions", boolean).or(true).value;
    let refresh_sessions = section.setting("refresh_sessions", duration(Duration::ZERO..=DAY * 30));
    let refresh_sessions = Some(refresh_sessions.or(Duration::ZERO).value).filter(|every| !every.is_zero());

    let mut timeouts = section.section("timeouts");
    // A visit is cut before its interval ends, whatever its steps may take. A short interval shortens the
    // defaults of the steps, so that it is the slow step that is blamed and not the visit as a whole.
    let fifth = interval.map_or(Duration::MAX, |interval| interval / 5);
    let mut timeout = |key, default: Duration, fifths: u32| {
        timeouts
            .setting(key, duration(Duration::from_millis(100)..=SECOND * 600))
            .or(default.min(fifth.saturating_mul(fifths)))
    };
    let all = [
        timeout("connect", SECOND * 10, 1),
        timeout("login", SECOND * 20, 2),
        timeout("command", SECOND * 20, 4),
    ];
    let sum: Duration = all.iter().filter(|timeout| timeout.is_given()).map(|timeout| timeout.value).sum();
    if let Some(longest) = all.iter().filter(|timeout| timeout.is_given()).max_by_key(|timeout| timeout.value)
        && let Some(interval) = interval.filter(|interval| sum > *interval)
    {
        use super::values::Show;
        let message = format!(
            "connect, login and command together may take {}, longer than the visits' interval of {}",
            sum.show(),
            interval.show(),
        );
        context.problem_at(longest, message);
    }
    let [connect_timeout, login_timeout, command_timeout] = all.map(|timeout| timeout.value);
    SshConfig {
        port,
        known_hosts,
        host_key_policy: policy.value,
        reuse_sessions,
        refresh_sessions,
        connect_timeout,
        login_timeout,
        command_timeout,
    }
}

fn lockout(root: &mut Section<'_>) -> LockoutConfig {
    let mut section = root.section("lockout");
    let wait = section.setting("wait", duration(SECOND..=DAY)).or(SECOND * 1000);
    let max_wait = section.setting("max_wait", duration(SECOND..=DAY * 30)).or(DAY.max(wait.value));
    let unproven_tries = section.setting("unproven_tries", integer(1..=100)).or(3).value;
    if max_wait.is_given() && !wait.bad && max_wait.value < wait.value {
        section.context.problem_at(&max_wait, "is shorter than lockout.wait");
    }
    if wait.value < USUAL_LOCK {
        section.context.note("lockout.wait is shorter than the 900 s for which hosts lock an account");
    }
    let volatile = section.setting("volatile", boolean).or(false);
    if volatile.value {
        section.context.note(format!(
            "{}: a restart forgets rejected logins: a crash loop with a wrong password can lock the account",
            volatile.key
        ));
    }
    LockoutConfig { wait: wait.value, max_wait: max_wait.value, unproven_tries, volatile: volatile.value }
}

fn prometheus(root: &mut Section<'_>) -> Option<PrometheusConfig> {
    let port = root.setting("port", integer(1..=u16::MAX)).optional();
    let mut section = root.section("prometheus");
    let enabled = section.setting("enabled", boolean).or(true).value;
    let default = port.as_ref().map_or(DEFAULT_PORT, |port| port.value);
    let listen = section.setting("listen", listen).or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, default)));
    if let Some(port) = port
        && matches!((&port.by, &listen.by), (By::Node(_), By::Node(_)))
        && !listen.bad
        && listen.value.port() != port.value
    {
        let place = section.context.origin(&port.by);
        section.context.problem_at(&listen, format!("contradicts port: {} ({place})", port.value));
    }
    enabled.then_some(PrometheusConfig { listen: listen.value })
}
