//! Agents whose vCenters list the hosts: found, visited, joined with what the vCenter says of them, and gone when the
//! vCenter does not list them any more.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod harness;

use esxi_otel_agent::agent::{Agent, AgentHandle};
use esxi_otel_agent::config::{Config, Loaded, Sources};
use esxi_otel_agent::simulator::vcenter::{HostSpec, VcenterFault, VcenterHandle};
use harness::estate::Estate;
use harness::{until, until_equal};
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An estate whose agent has no inventory file; its vCenters know the hosts by names that nobody can look up.
struct Unlisted {
    estate: Estate,
}

struct Running {
    handle: AgentHandle,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        harness::in_time("the end of the agent", self.task).await.unwrap();
    }

    fn up(&self) -> Vec<String> {
        let samples = self.handle.readings.snapshot();
        let up = samples.samples().filter(|s| s.def.name == "esxi.host.ssh.up" && s.value == 1.0);
        let mut up: Vec<_> = up.map(|s| s.attributes.get("hostsystem").unwrap().to_owned()).collect();
        up.sort();
        up
    }
}

impl Unlisted {
    async fn new(hosts: usize, vcenters: usize) -> Self {
        let estate = Estate::new(hosts, vcenters).await;
        for vcenter in &estate.vcenters {
            for host in 0..hosts {
                vcenter.rename(&estate.host(host), &name(host));
                vcenter.set_management_address(&name(host), &estate.fleet.ip(host).to_string());
            }
        }
        std::fs::remove_file(estate.folder.path().join("atlas.json")).unwrap();
        Self { estate }
    }

    fn vcenter(&self) -> &VcenterHandle {
        &self.estate.vcenters[0]
    }

    fn config(&self, changes: &[(&str, &str)]) -> Config {
        self.config_by("discover_hosts: {address: management}", changes)
    }

    /// The same, with this said of hosts.
    fn config_by(&self, hosts: &str, changes: &[(&str, &str)]) -> Config {
        let (file, env) = self.estate.write_config();
        let text = std::fs::read_to_string(&file).unwrap();
        let (_, inventory) = text.split_once("vcenters: ").unwrap();
        std::fs::write(&file, format!("inventory: {{{hosts}, vcenters: {inventory}")).unwrap();
        let mut sources =
            Sources { config: Some(file), env, host_name: "test".to_owned(), ..Sources::default() };
        for (key, value) in changes {
            sources.overrides.set(key, "test", value);
        }
        let Loaded { config, .. } = Config::load(&sources).unwrap_or_else(|error| panic!("{error}"));
        config
    }

    async fn agent(&self, changes: &[(&str, &str)]) -> Running {
        self.agent_by("discover_hosts: {address: management}", changes).await
    }

    async fn agent_by(&self, hosts: &str, changes: &[(&str, &str)]) -> Running {
        let agent = Agent::build(Arc::new(self.config_by(hosts, changes)), vec![], None).await.unwrap();
        let (handle, stop) = (agent.handle(), CancellationToken::new());
        let task = tokio::spawn(agent.run(stop.clone()));
        Running { handle, stop, task }
    }

    /// What a verb answers by the configuration that was written last: exit code, output, errors.
    async fn verb(&self, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
        let file = self.estate.folder.path().join("config.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        let (_, env) = self.estate.write_config();
        std::fs::write(&file, text).unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_esxi-otel-agent"));
        let state = ["HOME", "PATH"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        command
            .env_clear()
            .envs(state)
            .envs(&env)
            .envs(environment.iter().copied())
            .arg("--config")
            .arg(&file)
            .args(arguments);
        let output = harness::in_time("the verb", command.output()).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text, String::from_utf8(output.stderr).unwrap())
    }

    fn addresses(&self, hosts: &[usize]) -> Vec<String> {
        let mut all: Vec<_> = hosts.iter().map(|host| self.estate.host(*host)).collect();
        all.sort();
        all
    }
}

fn name(host: usize) -> String {
    format!("esx{host}.example.org")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_vcenter_is_all_that_an_agent_has_to_know() {
    let mut site = Unlisted::new(3, 1).await;
    let agent = site.agent(&[]).await;
    until_equal("visits", site.addresses(&[0, 1, 2]), || agent.up()).await;
    let address = site.estate.host(1);
    let joined = [("address", &*address), ("hostsystem", "esx1.example.org")];
    site.estate.arrives("esxi.host.info", &joined, 1.0).await;
    assert_eq!(site.vcenter().logins(), 1, "the list comes with the poll");
    assert_eq!(site.vcenter().open_sessions(), 1);

    site.vcenter().remove_host("esx1.example.org");
    agent.handle.now.everybody();
    until_equal("the end of the series", site.addresses(&[0, 2]), || agent.up()).await;

    let new = HostSpec { name: name(1), datacenter: "dc".into(), cluster: None };
    site.vcenter().add_host(&new);
    site.vcenter().set_management_address(&name(1), &site.estate.fleet.ip(1).to_string());
    until("the new host's address", || {
        agent.handle.now.everybody();
        (agent.up().len() == 3).then_some(())
    })
    .await;

    site.estate.vcenters.remove(0).stop().await;
    agent.handle.now.everybody();
    let in_trouble = || {
        let samples = agent.handle.stats.samples();
        let of_lists = samples.iter().find(|s| s.def.name == "esxi.agent.inventory.error")?;
        (of_lists.value == 1.0).then_some(())
    };
    until("the trouble", in_trouble).await;
    assert_eq!(agent.up(), site.addresses(&[0, 1, 2]), "its hosts are visited as before");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_listed_by_its_address_is_the_one_that_the_vcenter_lists_by_name() {
    let site = Unlisted::new(1, 1).await;
    let address = site.estate.host(0);
    let hosts = format!("discover_hosts: true, hosts: [{{address: '{address}'}}]");
    let agent = site.agent_by(&hosts, &[]).await;
    site.estate.arrives("esxi.host.info", &[("address", &*address), ("hostsystem", &name(0))], 1.0).await;
    let list = || {
        let samples = agent.handle.stats.samples();
        let of = |source: &str| samples.iter().any(|s| s.attributes.get("source") == Some(source));
        of("vcenter").then_some(())
    };
    until("the list", list).await;
    agent.handle.now.everybody();
    until_equal("visits", vec![address.clone()], || agent.up()).await;
    let visited = agent.handle.readings.snapshot();
    let visited = visited.samples().filter(|sample| sample.def.name == "esxi.host.ssh.up");
    assert_eq!(visited.count(), 1, "and not once more by its name");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_of_a_vcenter_is_tried_once_by_check_and_told() {
    let site = Unlisted::new(1, 1).await;
    site.config(&[]);
    let (code, text, said) = site.verb(&["check", "--connect"], &[("VCENTER_PASSWORD", "wrong")]).await;
    assert_eq!(code, Some(1), "{text}{said}");
    assert!(text.contains("auth_failed") && !text.contains("auth_guarded"), "{text}{said}");
    assert_eq!(site.vcenter().failed_logins(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_and_agents_without_polls_read_lists_by_themselves_and_log_out() {
    let site = Unlisted::new(6, 1).await;
    let agents =
        [site.agent(&[("inventory.shard", "0/2")]).await, site.agent(&[("inventory.shard", "1/2")]).await];
    let both = || {
        let mut all = [agents[0].up(), agents[1].up()].concat();
        all.sort();
        all
    };
    until_equal("visits of both", site.addresses(&[0, 1, 2, 3, 4, 5]), both).await;
    assert!(agents.iter().all(|agent| !agent.up().is_empty()));
    until_equal("sessions", 1, || site.vcenter().open_sessions()).await;
    assert_eq!(site.vcenter().logins(), 2, "one polls, the other one reads the list");
    for agent in agents {
        agent.stop().await;
    }

    let agent = site.agent(&[("collectors.overall_state_collector.enabled", "false")]).await;
    until_equal("visits", site.addresses(&[0, 1, 2, 3, 4, 5]), || agent.up()).await;
    until_equal("sessions", 0, || site.vcenter().open_sessions()).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_and_check_ask_the_vcenter_first() {
    let site = Unlisted::new(2, 1).await;
    site.config(&[]);
    let run = async |arguments: &[&str]| site.verb(arguments, &[]).await;
    let (code, page, said) = run(&["once", "--format", "prometheus"]).await;
    assert_eq!(code, Some(0), "{page}{said}");
    for host in 0..2 {
        let address = site.estate.host(host);
        assert!(
            page.contains(&format!("esxi_host_ssh_up{{hostsystem=\"{address}\",site=\"eu-de-1a\"}} 1")),
            "{page}"
        );
        let joined = format!("address=\"{address}\",");
        let info = page.lines().find(|line| line.starts_with("esxi_host_info") && line.contains(&name(host)));
        assert!(info.unwrap().contains(&joined), "{info:?}");
    }
    assert_eq!((site.vcenter().logins(), site.vcenter().open_sessions()), (1, 0));

    let (code, text, _) = run(&["check"]).await;
    assert_eq!(code, Some(0));
    assert!(text.contains("hosts: 0\n") && text.contains("`check --connect` asks"), "{text}");
    assert_eq!(site.vcenter().logins(), 1, "nobody was asked");
    let (code, text, said) = run(&["check", "--connect", "--host", &site.estate.host(1)]).await;
    assert_eq!(code, Some(0), "{text}{said}");
    assert!(text.contains(&site.estate.host(1)) && !text.contains(&site.estate.host(0)), "{text}");
    assert_eq!(site.vcenter().open_sessions(), 0);

    site.vcenter().fail_next(VcenterFault::Http503Text);
    let (code, page, said) = run(&["once", "--format", "prometheus"]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("its last good list stands (targets: 2)"), "{said}");
    assert_eq!(page.matches("esxi_host_ssh_up{").count(), 2, "what it listed last is visited");
}
