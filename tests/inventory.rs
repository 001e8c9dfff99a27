//! What the inventory makes of the atlas file and of the targets in the configuration.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

#[path = "harness/said.rs"]
mod said;

use esxi_otel_agent::config::{InventoryConfig, StaticTarget};
use esxi_otel_agent::inventory::{Endpoint, Host, Inventory, InventoryError, InventoryWatch, Shard};
use esxi_otel_agent::stats::Stats;
use said::Said;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

/// A folder with an atlas file, and the agent's statistics.
struct Site {
    folder: tempfile::TempDir,
    config: InventoryConfig,
    stats: Arc<Stats>,
    cancel: CancellationToken,
}

impl Site {
    fn new(rows: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let atlas = Some(folder.path().join("atlas.json"));
        let config = InventoryConfig { atlas, ..InventoryConfig::default() };
        let site = Self { folder, config, stats: Stats::new(), cancel: CancellationToken::new() };
        site.write(&rows.to_string());
        site
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("atlas.json")
    }

    fn write(&self, content: &str) {
        fs::write(self.path(), content).unwrap();
    }

    async fn start(&self) -> Result<InventoryWatch, InventoryError> {
        InventoryWatch::start(&self.config, Arc::clone(&self.stats), self.cancel.clone()).await
    }

    async fn inventory(&self) -> Arc<Inventory> {
        let watch = self.start().await.unwrap();
        watch.subscribe().borrow().clone()
    }

    /// Why it does not start, with the folder's name cut off.
    async fn refusal(&self) -> String {
        let folder = format!("{}/", self.folder.path().display());
        self.start().await.unwrap_err().to_string().replace(&folder, "")
    }

    fn metric(&self, name: &str) -> Vec<f64> {
        let mut samples = self.stats.samples();
        samples.sort_by(|a, b| a.attributes.cmp(&b.attributes));
        samples.iter().filter(|sample| sample.def.name == name).map(|sample| sample.value).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn esxi(name: &str, site: &str) -> Value {
    json!({"labels": {"job": "vmware-esxi", "name": name, "server_name": name, "status": "Active", "site": site}})
}

fn vcenter(server_name: &str) -> Value {
    json!({"targets": ["10.9.9.9"], "labels": {"job": "vcenter", "server_name": server_name, "state": "Active"}})
}

fn addresses(inventory: &Inventory) -> (Vec<&str>, Vec<&str>) {
    let hosts = inventory.hosts.iter().map(|host| &*host.address).collect();
    (hosts, inventory.vcenters.iter().map(|vcenter| &*vcenter.address).collect())
}

#[tokio::test]
async fn rows_become_hosts_and_vcenters_as_in_the_python_exporter() {
    let site = Site::new(&json!([
        {"targets": ["10.1.2.3"], "labels": {
            "job": "vmware-esxi", "module": "vmware-esxi", "name": "node001-bb091", "server_name": "node001-bb091",
            "server_id": "1234", "status": "Active", "site": "eu-de-1a", "cluster": "prod"}},
        vcenter("vc-a-0.cc.eu-de-1.cloud.sap"),
        vcenter("vcenter.example.org"),
        {"targets": ["10.5.5.5"], "labels": {"job": "snmp", "name": "switch"}},
    ]));
    let inventory = site.inventory().await;
    assert_eq!(
        addresses(&inventory),
        (
            vec!["node001-bb091.cc.eu-de-1.cloud.sap"],
            vec!["vc-a-0.cc.eu-de-1.cloud.sap", "vcenter.example.org"]
        )
    );
    assert_eq!(&*inventory.hosts[0].site, "eu-de-1a");
    assert_eq!(inventory.hosts[0].labels.get("cluster").map(|label| &**label), Some("prod"));
    let sites: Vec<_> = inventory.vcenters.iter().map(|vcenter| &*vcenter.site).collect();
    assert_eq!(sites, ["eu-de-1a", ""]);
    assert_eq!(site.metric("esxi.agent.targets"), [1.0, 2.0]);
    assert_eq!(site.metric("esxi.agent.inventory.error"), [0.0]);
}

#[tokio::test]
async fn a_sites_case_is_kept_and_twins_share_their_labels() {
    let shouted = json!({"labels": {"job": "vmware-esxi", "name": "n1", "site": "EU-DE-1A", "rack": "r1"}});
    let twin = json!({"labels": {"job": "vmware-esxi", "name": "N1", "site": "EU-DE-1A", "row": "x"}});
    let inventory = Site::new(&json!([twin, shouted])).inventory().await;
    let [host] = &inventory.hosts[..] else { panic!("{inventory:?}") };
    assert_eq!((&*host.site, &*host.address), ("EU-DE-1A", "N1.cc.EU-DE-1.cloud.sap"));
    let label = |name: &str| host.labels.get(name).map(|value| &**value);
    assert_eq!((label("rack"), label("row")), (Some("r1"), Some("x")));
}

#[tokio::test]
async fn shards_share_the_targets_and_name_them_alike() {
    let rows: Vec<Value> = (0..30).map(|i| esxi(&format!("node{i:03}"), "eu-de-1a")).collect();
    let vcenters = ["a", "b", "c"].map(|letter| vcenter(&format!("vc-{letter}-0.cc.eu-de-1.cloud.sap")));
    let everything = json!([rows, vcenters.to_vec()].concat());
    let whole = Site::new(&everything).inventory().await;
    let (mut hosts, mut asked) = (Vec::new(), Vec::new());
    for shard in ["0/3", "1/3", "2/3"] {
        let mut site = Site::new(&everything);
        site.config.shard = Shard::parse(shard, "").unwrap();
        let mine = site.inventory().await;
        let (own_hosts, own_vcenters) = addresses(&mine);
        assert_eq!(site.metric("esxi.agent.targets"), [own_hosts.len() as f64, own_vcenters.len() as f64]);
        assert!(own_hosts.len() < 30);
        assert_eq!(mine.of_all_shards(), (30, 3));
        hosts.extend(own_hosts.iter().map(|address| (*address).to_owned()));
        asked.extend(own_vcenters.iter().map(|address| (*address).to_owned()));
        // Whoever polls the vCenter: its hosts have the same address.
        for host in &whole.hosts {
            let found = mine.match_host(&host.address, "", None).map(|host| host.id());
            assert_eq!(found, Some(host.id()));
        }
    }
    hosts.sort();
    asked.sort();
    let (all_hosts, all_vcenters) = addresses(&whole);
    assert_eq!(hosts, all_hosts);
    assert_eq!(asked, all_vcenters);
}

#[tokio::test]
async fn rows_that_lack_labels_are_skipped_and_the_others_stay() {
    let mut rows = vec![esxi("good", "qa-de-1b"), json!(null), json!(7), json!("text"), json!([]), json!({})];
    rows.push(json!({"labels": null}));
    rows.push(json!({"labels": {"job": 7, "name": ["x"]}}));
    rows.push(json!({"labels": {"job": "vmware-esxi"}}));
    rows.push(json!({"labels": {"job": "vmware-esxi", "name": "nowhere"}}));
    rows.push(json!({"labels": {"job": "vmware-esxi", "name": "n", "site": "moon"}, "targets": [1]}));
    rows.push(json!({"labels": {"job": "vmware-esxi", "name": "a b; reboot", "site": "eu-de-1a"}}));
    rows.push(json!({"labels": {"job": "vcenter"}}));
    rows.push(json!({"labels": {"job": "vcenter", "server_name": "https://vc/"}}));
    let site = Site::new(&json!(rows));
    let said = Said::default();
    let inventory = site.inventory().with_subscriber(said.clone()).await;
    assert_eq!(addresses(&inventory).0, ["good.cc.qa-de-1.cloud.sap"]);
    assert_eq!(
        said.lines(),
        ["inventory: rows of the atlas that can't be used: \
          1 × labels make no address (as in row 12, \"a b; reboot\"); \
          1 × no label name (as in row 9); \
          1 × no label server_name (as in row 13); \
          1 × no label site (as in row 10, \"nowhere\"); \
          6 × row is no object with labels (as in row 2); \
          1 × server_name is no address (as in row 14, \"https://vc/\"); \
          1 × site names no region (as in row 11, \"n\")"]
    );
}

#[tokio::test]
async fn only_what_is_wanted_is_visited_and_vcenters_need_not_have_the_label() {
    let mut planned = esxi("planned", "eu-de-1a");
    planned["labels"]["status"] = "Planned".into();
    let mut unknown = esxi("unknown", "eu-de-1a");
    unknown["labels"].as_object_mut().unwrap().remove("status");
    let mut off = vcenter("vc-b-0.cc.eu-de-1.cloud.sap");
    off["labels"]["status"] = "Planned".into();
    let vc = vcenter("vc-a-0.cc.eu-de-1.cloud.sap");
    let mut site = Site::new(&json!([planned, unknown, off, vc, esxi("active", "eu-de-1a")]));
    site.config.only =
        BTreeMap::from([("status".to_owned(), vec!["Active".to_owned(), "Staged".to_owned()])]);
    let inventory = site.inventory().await;
    let expected = (vec!["active.cc.eu-de-1.cloud.sap"], vec!["vc-a-0.cc.eu-de-1.cloud.sap"]);
    assert_eq!(addresses(&inventory), expected);
}

#[tokio::test]
async fn the_template_may_take_the_target_or_any_label() {
    let row = json!({"targets": ["10.1.2.3"], "labels": {"job": "vmware-esxi", "cluster": "c1"}});
    for (template, address) in [("{target}:2222", "10.1.2.3:2222"), ("x.{cluster}.example", "x.c1.example")] {
        let mut site = Site::new(&json!([row]));
        site.config.host_address = template.parse().unwrap();
        let inventory = site.inventory().await;
        assert_eq!(addresses(&inventory).0, [address]);
    }
}

#[tokio::test]
async fn one_address_is_one_target_and_the_configuration_goes_first() {
    let mut twin = esxi("node1", "eu-de-1a");
    twin["targets"] = json!(["10.0.0.2"]);
    let mut site = Site::new(&json!([esxi("node1", "eu-de-1a"), twin, esxi("node2", "eu-de-1a")]));
    let by_hand = |address: &str| StaticTarget {
        address: address.to_owned(),
        site: "by-hand".to_owned(),
        labels: BTreeMap::from([("rack".to_owned(), "r1".to_owned())]),
    };
    site.config.hosts = vec![by_hand("NODE2.cc.eu-de-1.cloud.sap"), by_hand("[2001:db8::1]:22")];
    site.config.vcenters = vec![by_hand("vc.example.org:8443")];
    let inventory = site.inventory().await;
    let hosts = ["NODE2.cc.eu-de-1.cloud.sap", "[2001:db8::1]:22", "node1.cc.eu-de-1.cloud.sap"];
    assert_eq!(addresses(&inventory), (hosts.to_vec(), vec!["vc.example.org:8443"]));
    assert_eq!(inventory.hosts[1].endpoint, Endpoint { host: "2001:db8::1".into(), port: Some(22) });
    assert_eq!(&*inventory.hosts[0].site, "by-hand");
}

#[tokio::test]
async fn a_bad_file_at_the_start_is_refused_with_the_place() {
    let site = Site::new(&json!([]));
    let empty =
        "inventory: atlas.json: holds no target (no row with the job vmware-esxi or vcenter that is wanted)";
    assert_eq!(site.refusal().await, empty);

    site.write("[\n {\"labels\": {\"job\": \"vcen");
    let cut = "inventory: atlas.json:2:25: ends in the middle: EOF while parsing a string";
    assert_eq!(site.refusal().await, cut);

    site.write("{\"labels\": {}}");
    let map = "inventory: atlas.json:1:1: is no array of targets: invalid type: map, expected a sequence";
    assert_eq!(site.refusal().await, map);

    fs::File::create(site.path()).unwrap().set_len(50_000_001).unwrap();
    assert_eq!(
        site.refusal().await,
        "inventory: atlas.json: is larger than 50 MB, the limit of an inventory file"
    );

    fs::remove_file(site.path()).unwrap();
    let gone = "inventory: atlas.json: cannot be read: No such file or directory (os error 2)";
    assert_eq!(site.refusal().await, gone);

    fs::create_dir(site.path()).unwrap();
    assert_eq!(site.refusal().await, "inventory: atlas.json: is a directory; a JSON file is needed");
}

#[tokio::test]
async fn another_order_is_no_change_but_another_row_is() {
    let (one, two, three) = (esxi("n1", "eu-de-1a"), esxi("n2", "eu-de-1a"), esxi("n3", "eu-de-1a"));
    let mut twin = esxi("n1", "eu-de-1a");
    twin["labels"]["cluster"] = "another".into();
    let site = Site::new(&json!([one, twin, two]));
    let watch = site.start().await.unwrap();
    let mut inventory = watch.subscribe();
    inventory.mark_unchanged();

    site.write(&json!([two, twin, one, {"labels": {"job": "snmp"}}]).to_string());
    watch.poll_now().await;
    assert!(!inventory.has_changed().unwrap());

    site.write(&json!([two, three, one]).to_string());
    watch.poll_now().await;
    assert!(inventory.has_changed().unwrap());
    assert_eq!(inventory.borrow().hosts.len(), 3);
    assert_eq!(site.metric("esxi.agent.targets"), [3.0, 0.0]);
}

#[tokio::test]
async fn a_swapped_config_map_is_seen() {
    let site = Site::new(&json!([]));
    fs::remove_file(site.path()).unwrap();
    let version = |name: &str, rows: Value| {
        let folder = site.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("atlas.json"), rows.to_string()).unwrap();
        let new = site.folder.path().join("..new");
        std::os::unix::fs::symlink(&folder, &new).unwrap();
        fs::rename(&new, site.folder.path().join("..data")).unwrap();
    };
    version("v1", json!([esxi("n1", "eu-de-1a")]));
    std::os::unix::fs::symlink("..data/atlas.json", site.path()).unwrap();
    let watch = site.start().await.unwrap();
    version("v2", json!([esxi("n2", "eu-de-1a")]));
    watch.poll_now().await;
    assert_eq!(addresses(&watch.subscribe().borrow()).0, ["n2.cc.eu-de-1.cloud.sap"]);
}

// Time does not pass by itself: nobody but the story looks at the file.
#[tokio::test(start_paused = true)]
async fn a_bad_file_keeps_the_last_good_inventory_and_is_said_once() {
    let good = json!([esxi("n1", "eu-de-1a")]).to_string();
    let site = Site::new(&serde_json::from_str(&good).unwrap());
    let said = Said::default();
    let watch = site.start().with_subscriber(said.clone()).await.unwrap();

    // Half-written, and whole at the next look: not worth a word.
    site.write(&good[..good.len() / 2]);
    watch.poll_now().await;
    site.write(&good);
    watch.poll_now().await;
    assert_eq!(said.lines(), Vec::<String>::new());
    assert_eq!(site.metric("esxi.agent.inventory.error"), [0.0]);

    for bad in ["[]", "[]", "[", ""] {
        site.write(bad);
        watch.poll_now().await;
        assert_eq!(addresses(&watch.subscribe().borrow()).0, ["n1.cc.eu-de-1.cloud.sap"]);
    }
    assert_eq!(site.metric("esxi.agent.inventory.error"), [1.0]);
    let said_once = said.lines();
    assert_eq!(said_once.len(), 1, "{said_once:?}");
    assert!(
        said_once[0].contains("holds no target")
            && said_once[0].ends_with("; the last good inventory stands")
    );

    site.write(&good);
    watch.poll_now().await;
    assert_eq!(site.metric("esxi.agent.inventory.error"), [0.0]);
    assert_eq!(said.lines().last().unwrap(), "inventory: the file is good again");
}

#[tokio::test(start_paused = true)]
async fn the_file_is_looked_at_without_being_asked() {
    let site = Site::new(&json!([esxi("n1", "eu-de-1a")]));
    let watch = site.start().await.unwrap();
    let mut inventory = watch.subscribe();
    site.write(&json!([esxi("n2", "eu-de-1a")]).to_string());
    inventory.changed().await.unwrap();
    assert_eq!(addresses(&inventory.borrow()).0, ["n2.cc.eu-de-1.cloud.sap"]);
}

#[tokio::test]
async fn the_watcher_ends_when_it_is_cancelled() {
    let site = Site::new(&json!([esxi("n1", "eu-de-1a")]));
    let watch = site.start().await.unwrap();
    site.cancel.cancel();
    watch.poll_now().await;
    watch.stopped().await;
}

fn fleet(hosts: &[(&str, &str)]) -> Inventory {
    let host = |(address, site): &(&str, &str)| {
        let (endpoint, address) = (address.parse().unwrap(), Arc::from(*address));
        Host { address, endpoint, site: Arc::from(*site), labels: BTreeMap::new() }
    };
    Inventory::new(hosts.iter().map(host).collect(), Vec::new())
}

#[test]
fn a_vcenters_name_for_a_host_is_joined_with_its_address() {
    let inventory = fleet(&[
        ("node1.cc.eu-de-1.cloud.sap", "eu-de-1a"),
        ("node1.cc.eu-de-2.cloud.sap", "eu-de-2a"),
        ("node2.example.org:2222", "eu-de-1a"),
        ("twin.a.example.org", "eu-de-1a"),
        ("twin.b.example.org", "eu-de-1a"),
        ("10.0.0.1", "eu-de-1a"),
        ("[2001:db8::1]:22", "eu-de-1a"),
    ]);
    for (name, site, management, expected) in [
        ("node1.cc.eu-de-1.cloud.sap", "elsewhere", None, Some("node1.cc.eu-de-1.cloud.sap")),
        ("NODE1.cc.eu-de-2.cloud.sap.", "", None, Some("node1.cc.eu-de-2.cloud.sap")),
        ("node1", "eu-de-1a", None, Some("node1.cc.eu-de-1.cloud.sap")),
        ("node1.other.name", "eu-de-2a", None, Some("node1.cc.eu-de-2.cloud.sap")),
        ("node1", "eu-de-3a", None, None),
        ("node2.example.org", "", None, Some("node2.example.org:2222")),
        ("twin", "eu-de-1a", None, None),
        ("twin", "eu-de-1a", Some("10.0.0.1"), None),
        ("localhost", "eu-de-1a", Some("10.0.0.1"), Some("10.0.0.1")),
        ("10.0.0.9", "eu-de-1a", None, None),
        ("x", "eu-de-1a", Some("2001:DB8:0::1"), Some("[2001:db8::1]:22")),
        ("", "eu-de-1a", None, None),
    ] {
        let found = inventory.match_host(name, site, management).map(|host| &*host.address);
        assert_eq!(found, expected, "{name} at {site}, {management:?}");
    }
}
