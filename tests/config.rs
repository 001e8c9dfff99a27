//! What a configuration file, the environment and flags make of each other.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

#[path = "config/accounts.rs"]
mod accounts;

use esxi_otel_agent::accounts::{KeySource, Proof, SecretSource};
use esxi_otel_agent::config::{
    Compression, Config, ConfigError, HostKeyPolicy, Loaded, NotInstalled, Origin, Sources,
};
use esxi_otel_agent::inventory::{Discover, DiscoveredAddress, SdAuth, Vcenter};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

const FIXTURES: &str = "tests/fixtures/config";
const ACCOUNTS: [(&str, &str); 4] = [
    ("VCENTER_USER", "ro@vsphere.local"),
    ("VCENTER_PASSWORD", "hunter2"),
    ("ESXI_USER", "monitor"),
    ("ESXI_PASSWORD", "hunter3"),
];
const STATE: (&str, &str) = ("STATE_DIRECTORY", "/state");

fn env<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, OsString> {
    variables.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

/// Accounts and a state folder, no file.
fn sources() -> Sources {
    let env = env(ACCOUNTS.into_iter().chain([STATE]));
    Sources { env, host_name: "agent-1".to_owned(), ..Sources::default() }
}

fn with_env<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Sources {
    let mut sources = sources();
    sources.env.extend(env(variables));
    sources
}

/// Loads a file with this text, and one target if the text names none.
fn load_text(text: &str, mut sources: Sources) -> Result<Loaded, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let targets = if text.contains("inventory") { "" } else { "inventory: {hosts: [{address: esx1}]}\n" };
    fs::write(&path, format!("{text}\n{targets}")).unwrap();
    sources.config = Some(path);
    Config::load(&sources)
}

fn ok(text: &str) -> Config {
    load_text(text, sources()).unwrap().config
}

fn problems(sources: &Sources) -> String {
    Config::load(sources).unwrap_err().to_string()
}

fn origin(loaded: &Loaded, key: &str) -> (String, String) {
    let found: Vec<_> = loaded.origins.iter().filter(|setting| setting.key == key).collect();
    assert_eq!(found.len(), 1, "{key}: {found:?}");
    (found[0].value.clone(), found[0].origin.to_string())
}

/// Each bad file has its report beside it. `UPDATE_EXPECTED=1` writes the reports anew.
#[test]
fn every_bad_file_has_its_report() {
    let folder = Path::new(FIXTURES).join("bad");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    assert!(files.len() > 20);
    for path in files {
        let report = problems(&Sources { config: Some(path.clone()), ..sources() });
        let report = report.replace(&format!("{}/", folder.display()), "") + "\n";
        let expected = path.with_extension("txt");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&expected, &report).unwrap();
        }
        assert_eq!(report, fs::read_to_string(&expected).unwrap(), "{}", path.display());
    }
}

#[test]
fn a_file_that_is_no_file_is_named() {
    let report = problems(&Sources { config: Some("/nowhere/config.yaml".into()), ..sources() });
    assert_eq!(report, "/nowhere/config.yaml: cannot be read: No such file or directory (os error 2)");
    let report = problems(&with_env([("CONFIG_FILE", FIXTURES)]));
    assert_eq!(report, "tests/fixtures/config: is a directory; a YAML file is needed");
}

#[test]
fn the_python_exporters_file_means_the_same() {
    let path = Path::new(FIXTURES).join("python-exporter.yaml");
    let sources = Sources { config: Some(path), ..with_env([("ATLAS_FILE", "atlas.json")]) };
    let Loaded { config, notes, .. } = Config::load(&sources).unwrap();

    assert_eq!(config.inventory.atlas.as_deref(), Some(Path::new("atlas.json")));
    assert_eq!(config.prometheus.unwrap().listen.to_string(), "0.0.0.0:9666");
    assert!(!config.vcenter.verify_tls);
    assert!(config.overall_state.is_some());
    let critical = config.critical_service.unwrap();
    assert_eq!(critical.max_in_flight, 10);
    let names: Vec<_> = critical.services.iter().map(|s| (&*s.name, &*s.reported_as)).collect();
    assert_eq!(
        names,
        [
            ("hostd", "hostd"),
            ("nsx-opsagent", "opsAgent"),
            ("nsx-proxy", "nsx-proxy"),
            ("nsxa", "nsxa"),
            ("ntpd", "ntpd"),
            ("vpxa", "vpxa"),
            ("vvold", "vvold"),
        ]
    );
    assert_eq!(
        notes,
        ["ssl_verify (tests/fixtures/config/python-exporter.yaml:2:1): \
          TLS verification of vCenters is off: anybody may read the password"]
    );
}

#[test]
fn without_a_file_the_defaults_hold() {
    let Loaded { config, notes, .. } = Config::load(&with_env([("ATLAS_FILE", "a.json")])).unwrap();
    let second = Duration::from_secs(1);
    assert_eq!(notes, Vec::<String>::new());
    let overall = config.overall_state.unwrap();
    assert_eq!((overall.interval, overall.stale_after), (second * 30, second * 90));
    let critical = config.critical_service.unwrap();
    assert_eq!((critical.interval, critical.stale_after), (second * 60, second * 180));
    assert_eq!((critical.max_in_flight, critical.not_installed), (512, NotInstalled::Stopped));
    let names: Vec<_> = critical.services.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["hostd", "vpxa", "ntpd"]);
    assert_eq!(config.inventory.host_address.to_string(), "{name}.cc.{region}.cloud.sap");
    assert_eq!(config.state_dir, Path::new("/state"));
    assert_eq!(config.ssh.known_hosts, Path::new("/state/known_hosts"));
    assert_eq!(config.ssh.host_key_policy, HostKeyPolicy::AcceptNew);
    let timeouts = (config.ssh.connect_timeout, config.ssh.login_timeout, config.ssh.command_timeout);
    assert_eq!(timeouts, (second * 10, second * 20, second * 20));
    assert!(config.vcenter.verify_tls);
    assert_eq!((config.lockout.wait, config.lockout.unproven_tries), (second * 1000, 3));
    let otlp = config.otlp.unwrap();
    assert_eq!((&*otlp.endpoint, otlp.compression), ("http://localhost:4317", Compression::Zstd));
    assert_eq!((otlp.interval, otlp.timeout, otlp.max_points), (second * 60, second * 10, 8000));
    let spool = otlp.spool.unwrap();
    assert_eq!(spool.path, Path::new("/state/spool"));
    assert_eq!((spool.max_bytes, spool.max_age), (1 << 30, second * 86_400));
    let resource: Vec<_> = otlp.resource.iter().map(|(k, v)| (&**k, &**v)).collect();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        resource,
        [
            ("service.instance.id", "agent-1"),
            ("service.name", "esxi-otel-agent"),
            ("service.version", version)
        ]
    );
    assert!(otlp.metrics && otlp.events && !otlp.logs && otlp.traces.is_some());
    assert_eq!(config.prometheus.unwrap().listen.to_string(), "0.0.0.0:9666");
}

#[test]
fn the_projects_own_file_runs_as_it_is() {
    let sources = Sources { config: Some("config.yaml".into()), ..with_env([("ATLAS_FILE", "a.json")]) };
    let with_file = Config::load(&sources).unwrap();
    assert_eq!(with_file.notes, Vec::<String>::new());
    assert!(with_file.config.overall_state.is_some() && with_file.config.critical_service.is_some());
}

#[test]
fn a_collector_is_on_unless_the_file_says_otherwise() {
    let on = |text: &str| {
        let config = ok(text);
        (config.overall_state.is_some(), config.critical_service.is_some())
    };
    assert_eq!(on(""), (true, true));
    assert_eq!(on("collectors:"), (true, true));
    assert_eq!(on("collectors: {overall_state_collector: {}}"), (true, false));
    assert_eq!(on("collectors: {critical_service_collector: {max_threads: 3}}"), (false, true));
    assert_eq!(on("collectors: {critical_service_collector: {enabled: off}}"), (false, false));
    let both = "collectors: {overall_state_collector: {enabled: no}, critical_service_collector: }";
    assert_eq!(on(both), (false, true));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let text = "otlp: {endpoint: 'http://file:1', interval: 10s}\nport: 1\ninventory: {atlas: file.json}";
    let from_file = load_text(text, sources()).unwrap();
    assert_eq!(from_file.config.otlp.as_ref().unwrap().endpoint, "http://file:1");
    let folder = from_file.file.as_ref().unwrap().parent().unwrap();
    assert_eq!(from_file.config.inventory.atlas, Some(folder.join("file.json")), "relative to the file");
    let file = from_file.file.as_ref().unwrap().display();
    assert_eq!(origin(&from_file, "otlp.endpoint"), ("http://file:1".to_owned(), format!("{file}:1:8")));

    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:2"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://metrics:3"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
        ("ATLAS_FILE", "env.json"),
    ];
    let from_env = load_text(text, with_env(variables)).unwrap();
    let otlp = from_env.config.otlp.as_ref().unwrap();
    assert_eq!((&*otlp.endpoint, otlp.interval), ("http://metrics:3", Duration::from_secs(5)));
    assert_eq!(from_env.config.inventory.atlas.as_deref(), Some(Path::new("env.json")));
    let place = ("http://metrics:3".to_owned(), "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT".to_owned());
    assert_eq!(origin(&from_env, "otlp.endpoint"), place);

    let mut flags = with_env(variables);
    flags.atlas = Some("flag.json".into());
    flags.overrides.set("otlp.endpoint", "--otlp-endpoint", "http://flag:4");
    flags.overrides.set("prometheus.listen", "--listen", "127.0.0.1:0");
    let from_flags = load_text(text, flags).unwrap();
    assert_eq!(from_flags.config.otlp.as_ref().unwrap().endpoint, "http://flag:4");
    assert_eq!(from_flags.config.inventory.atlas.as_deref(), Some(Path::new("flag.json")));
    assert_eq!(from_flags.config.prometheus.as_ref().unwrap().listen.to_string(), "127.0.0.1:0");
    assert_eq!(origin(&from_flags, "inventory.atlas"), ("flag.json".to_owned(), "--atlas".to_owned()));
    assert_eq!(origin(&from_flags, "ssh.port"), ("22".to_owned(), "default".to_owned()));
}

#[test]
fn a_flag_for_a_setting_that_does_not_exist_is_reported() {
    let mut flags = with_env([("ATLAS_FILE", "a.json")]);
    flags.overrides.set("prometheus.lisen", "--listen", "127.0.0.1:0");
    assert_eq!(problems(&flags), "--listen: there is no setting prometheus.lisen");
}

#[test]
fn a_flag_does_not_contradict_the_file() {
    let mut flags = sources();
    flags.overrides.set("vcenter.verify_tls", "--verify-tls", "true");
    flags.overrides.set("prometheus.listen", "--listen", "[::1]:0");
    let config = load_text("ssl_verify: false\nport: 9666", flags).unwrap().config;
    assert!(config.vcenter.verify_tls);
    assert_eq!(config.prometheus.unwrap().listen.to_string(), "[::1]:0");
}

#[test]
fn thousands_of_hosts_by_hand_load_and_thousands_of_problems_stay_readable() {
    let hosts = |entry: fn(usize) -> String| {
        let hosts: String = (0..10_000).map(|n| format!("    - {}\n", entry(n))).collect();
        format!("inventory:\n  hosts:\n{hosts}")
    };
    let good = load_text(&hosts(|n| format!("{{address: esx{n}, site: eu}}")), sources()).unwrap();
    assert_eq!(good.config.inventory.hosts.len(), 10_000);
    let bad = load_text(&hosts(|n| format!("{{address: 'esx {n}'}}")), sources()).unwrap_err();
    assert_eq!(bad.problems().len(), 51);
    assert_eq!(bad.problems()[50].to_string(), "and 9950 more problems");
}

#[test]
fn the_state_folder_is_the_files_before_the_services() {
    assert_eq!(ok("state_dir: /file").state_dir, Path::new("/file"));
    let of_systemd = with_env([("STATE_DIRECTORY", "/one:/two")]);
    assert_eq!(load_text("", of_systemd).unwrap().config.state_dir, Path::new("/one"));
}

#[test]
fn short_intervals_shorten_the_time_outs_that_nobody_set() {
    let ssh = ok("collectors: {critical_service_collector: {interval: 10s}}").ssh;
    let timeouts = [ssh.connect_timeout, ssh.login_timeout, ssh.command_timeout];
    assert_eq!(timeouts, [2, 4, 8].map(Duration::from_secs));
}

#[test]
fn kept_sessions_are_refreshed_when_somebody_wants_it() {
    assert_eq!(ok("").ssh.refresh_sessions, None);
    assert_eq!(ok("ssh: {refresh_sessions: 0s}").ssh.refresh_sessions, None);
    assert_eq!(ok("ssh: {refresh_sessions: 12h}").ssh.refresh_sessions, Some(Duration::from_secs(12 * 3600)));
}

#[test]
fn nothing_configured_at_all_says_what_to_do() {
    assert_eq!(
        problems(&sources()),
        "there is nobody to visit: name a vCenter that lists its hosts \
         (inventory: {vcenters: [{address: vc1.example.org, discover_hosts: true}]}), an inventory file \
         (--atlas, ATLAS_FILE or inventory.atlas), inventory.http_sd, or hosts under inventory.hosts"
    );
}

#[test]
fn a_shard_is_part_of_the_instances_name() {
    let instance = |text: &str, flag: Option<&str>| {
        let mut sources = Sources { host_name: "agent-2".to_owned(), ..sources() };
        if let Some(flag) = flag {
            sources.overrides.set("inventory.shard", "--shard", flag);
        }
        let loaded = load_text(text, sources)?;
        let resource: BTreeMap<_, _> = loaded.config.otlp.unwrap().resource.into_iter().collect();
        let shard = loaded.config.inventory.shard.to_string();
        Ok::<_, ConfigError>((shard, resource["service.instance.id"].clone()))
    };
    let is = |shard: &str, instance: &str| (shard.to_owned(), instance.to_owned());
    let file = "inventory: {shard: 1/3, hosts: [{address: esx1}]}";
    assert_eq!(instance("", None).unwrap(), is("0/1", "agent-2"));
    assert_eq!(instance(file, None).unwrap(), is("1/3", "agent-2-1/3"));
    assert_eq!(instance(file, Some("auto/4")).unwrap(), is("2/4", "agent-2-2/4"));
    assert_eq!(
        instance(file, Some("auto/2")).unwrap_err().to_string(),
        "--shard: the host name \"agent-2\" stands for shard 2; with 2 shards they are 0 to 1"
    );
}

#[test]
fn variables_are_held_to_the_same_rules() {
    let path = Path::new(FIXTURES).join("ca.pem");
    let mut sources = with_env([
        ("ATLAS_FILE", "a.json"),
        ("ESXI_KEY_FILE", path.to_str().unwrap()),
        ("VCENTER_MPW_FILE", "/nowhere/mpw"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "10"),
        ("OTEL_LOGS_EXPORTER", "console"),
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_RESOURCE_ATTRIBUTES", "env=%ff"),
    ]);
    sources.env.insert("VCENTER_USER".to_owned(), OsString::from_vec(vec![0xff]));
    let expected = fs::read_to_string(Path::new(FIXTURES).join("variables.txt")).unwrap();
    assert_eq!(problems(&sources) + "\n", expected);
}

#[test]
fn opentelemetrys_variables_are_honoured() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.pem");
    fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let (ca, key) = (format!("{FIXTURES}/ca.pem"), key.display().to_string());
    let sources = with_env([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317/"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20hunter2,x-tenant=one"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &ca),
        ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", &key),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://elsewhere:4317"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=a%2Cb,service.name=x,service.instance.id=7",
        ),
        ("OTEL_SERVICE_NAME", "esxi"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_LOGS_EXPORTER", "none"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_SDK_DISABLED", "false"),
    ]);
    let loaded = load_text("", sources).unwrap();
    let otlp = loaded.config.otlp.as_ref().unwrap();
    assert_eq!((&*otlp.endpoint, otlp.compression), ("https://collector:4317", Compression::Gzip));
    let headers: Vec<_> = otlp.headers.iter().map(|(name, value)| (&**name, value.expose())).collect();
    assert_eq!(headers, [("authorization", "Bearer hunter2"), ("x-tenant", "one")]);
    assert_eq!(origin(&loaded, "otlp.headers").0, "authorization=***,x-tenant=***");
    let files =
        [&otlp.ca_file, &otlp.cert_file, &otlp.key_file].map(|f| f.as_ref().unwrap().to_str().unwrap());
    assert_eq!(files, [&*ca, &*ca, &*key]);
    assert_eq!(otlp.timeout, Duration::from_millis(2500));
    assert_eq!(otlp.traces.as_ref().unwrap().ratio, 0.25);
    assert!(otlp.metrics && !otlp.logs);
    let resource: BTreeMap<_, _> = otlp.resource.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(resource["service.name"], "esxi");
    assert_eq!(resource["service.instance.id"], "7");
    assert_eq!(resource["deployment.environment.name"], "a,b");
    let line =
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is not honoured: metrics, traces and logs share one connection";
    assert_eq!(loaded.notes, [line]);

    let off = load_text("otlp: {enabled: true}", with_env([("OTEL_SDK_DISABLED", "true")])).unwrap();
    assert!(off.config.otlp.is_none());
}

#[test]
fn what_is_dangerous_is_said() {
    let text = "ssh: {host_key_policy: insecure}\nlockout: {wait: 10s, volatile: true}\nverify_ssl: no";
    let loaded = load_text(text, sources()).unwrap();
    assert_eq!(loaded.notes.len(), 4, "{:?}", loaded.notes);
}

#[test]
fn nothing_that_is_secret_is_printed() {
    let text = "otlp: {headers: {authorization: hunter4}}";
    let sources = with_env([("VCENTER_MPW", "hunter1"), ("ATLAS_FILE", "a.json")]);
    let printed = format!("{sources:?} {:#?}", load_text(text, sources.clone()).unwrap());
    assert!(printed.contains("monitor") && !printed.contains("hunter"), "{printed}");
}

#[test]
fn problems_can_be_told_apart_by_their_origin() {
    let error = load_text("ssh: {port: 0}", with_env([("OTEL_EXPORTER_OTLP_TIMEOUT", "x")])).unwrap_err();
    let [variable, file] = error.problems() else { panic!("{error}") };
    assert_eq!(variable.origin, Origin::Environment("OTEL_EXPORTER_OTLP_TIMEOUT".to_owned()));
    assert!(matches!(&file.origin, Origin::File { place: Some((1, 7)), .. }), "{file:?}");
    assert_eq!(file.key, "ssh.port");
}

#[test]
fn vcenters_list_their_hosts_by_choice_and_explicit_ones_go_first() {
    let text = "inventory:
  vcenters:
    - {address: VC1, discover_hosts: {address: management, maintenance: false}}
    - {address: vc2, discover_hosts: no}
    - {address: vc3}
  discover_hosts: yes
";
    let loaded = load_text(text, sources()).unwrap();
    let inventory = &loaded.config.inventory;
    let of = |address: &str| {
        let (endpoint, site, labels) = (address.parse().unwrap(), "".into(), BTreeMap::new());
        inventory.discover.of(&Vcenter { address: address.into(), endpoint, site, labels })
    };
    let management =
        Discover { address: DiscoveredAddress::Management, maintenance: false, disconnected: false };
    assert_eq!(of("vc1"), Some(management));
    assert_eq!(of("vc2"), None);
    assert_eq!(of("vc3"), Some(Discover::default()));
    assert_eq!(of("vc-of-the-atlas"), Some(Discover::default()));
    assert_eq!(inventory.memory.as_deref(), Some(Path::new("/state/inventory")));
    let (value, _) = origin(&loaded, "inventory.vcenters[0].discover_hosts");
    assert_eq!(value, "{address: management, maintenance: false, disconnected: false}");
    assert_eq!(loaded.notes, Vec::<String>::new());

    let none = load_text("inventory: {vcenters: [{address: vc1}]}", sources()).unwrap();
    assert_eq!(none.notes.len(), 1);
    assert!(none.notes[0].contains("discover_hosts: true"), "{:?}", none.notes);
    let (value, origin) = origin(&none, "inventory.discover_hosts");
    assert_eq!((&*value, &*origin), ("false", "default"));
}

#[test]
fn who_names_hosts_without_proving_himself_needs_a_list_of_who_may_be_named() {
    for text in [
        "ssl_verify: false\ninventory: {vcenters: [{address: vc1}], discover_hosts: true, allow: [10.0.0.0/8]}",
        "ssl_verify: false\ninventory: {vcenters: [{address: vc1}], hosts: [{address: esx1}]}",
        "inventory: {http_sd: {url: 'http://sd.example.org/'}, allow: [.example.org]}",
        "inventory: {http_sd: {url: 'http://localhost:8000/'}}",
        "inventory: {http_sd: {url: 'https://sd.example.org/'}}",
    ] {
        ok(text);
    }
    let config = ok("inventory: {http_sd: {url: 'https://sd.example.org/t?k=v', interval: 5m}}");
    let http_sd = config.inventory.http_sd.unwrap();
    assert_eq!(http_sd.url.to_string(), "https://sd.example.org/t?…");
    assert_eq!((http_sd.interval, http_sd.auth), (Duration::from_secs(300), SdAuth::None));
}
