//! Lists of hosts that vCenters have, and the inventory that comes of them and of all other sources.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use esxi_otel_agent::config::{InventoryConfig, StaticTarget};
use esxi_otel_agent::inventory::{
    Allow, Connection, Discover, DiscoverConfig, DiscoveredAddress, Discovery, FoundHost, FoundHosts,
    Inventory, InventoryWatch,
};
use esxi_otel_agent::outcome::{Failure, FailureReason};
use esxi_otel_agent::stats::Stats;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// An inventory whose vCenters list their hosts.
struct Lists {
    watch: InventoryWatch,
    discovery: Discovery,
    stats: Arc<Stats>,
}

impl Lists {
    async fn of(config: &InventoryConfig) -> Self {
        let stats = Stats::new();
        let watch =
            InventoryWatch::start(config, Arc::clone(&stats), CancellationToken::new()).await.unwrap();
        Self { discovery: watch.discovery(), watch, stats }
    }

    fn inventory(&self) -> Arc<Inventory> {
        self.watch.subscribe().borrow().clone()
    }

    async fn found(&self, vcenter: usize, hosts: &[FoundHost]) -> Arc<Inventory> {
        let inventory = self.inventory();
        self.discovery.found(&inventory.vcenters_of_all_shards()[vcenter], verified(hosts)).await
    }

    async fn failed(&self, vcenter: usize) {
        let failure = Failure::new(FailureReason::VcenterUnavailable, "vCenter vc1: HTTP 503");
        let inventory = self.inventory();
        self.discovery.failed(&inventory.vcenters_of_all_shards()[vcenter], &failure).await;
    }

    fn metric(&self, name: &str) -> Vec<(String, f64)> {
        let samples = self.stats.samples();
        let of = samples.iter().filter(|sample| sample.def.name == name);
        let mut values: Vec<_> = of
            .map(|sample| (sample.attributes.get("vcenter").unwrap_or_default().to_owned(), sample.value))
            .collect();
        values.sort_by(|a, b| a.0.cmp(&b.0));
        values
    }
}

fn config(discover: Discover) -> InventoryConfig {
    let vcenter = |address: &str, site: &str| StaticTarget {
        address: address.to_owned(),
        site: site.to_owned(),
        labels: BTreeMap::new(),
    };
    InventoryConfig {
        vcenters: vec![vcenter("vc1", "eu-1"), vcenter("vc2", "eu-2")],
        discover: DiscoverConfig { others: Some(discover), ..DiscoverConfig::default() },
        ..InventoryConfig::default()
    }
}

fn host(name: &str) -> FoundHost {
    FoundHost {
        id: format!("host-{name}").into(),
        name: name.into(),
        management_address: None,
        connection: Connection::Connected,
        in_maintenance: false,
        cluster: Some("c1".into()),
        datacenter: Some("dc1".into()),
    }
}

fn verified(hosts: &[FoundHost]) -> FoundHosts {
    FoundHosts { hosts: hosts.to_vec(), is_verified: true }
}

fn at(name: &str, address: &str) -> FoundHost {
    FoundHost { management_address: Some(address.parse().unwrap()), ..host(name) }
}

fn addresses(inventory: &Inventory) -> Vec<&str> {
    inventory.hosts.iter().map(|host| &*host.address).collect()
}

#[tokio::test]
async fn listed_hosts_have_the_site_of_their_vcenter_and_labels_to_choose_accounts_by() {
    let lists = Lists::of(&config(Discover::default())).await;
    assert_eq!(addresses(&lists.inventory()), Vec::<&str>::new());
    let inventory = lists.found(0, &[host("esx2.example.org"), host("esx1.example.org")]).await;
    assert_eq!(addresses(&inventory), ["esx1.example.org", "esx2.example.org"]);
    let first = &inventory.hosts[0];
    assert_eq!(&*first.site, "eu-1");
    let labels: Vec<_> = first.labels.iter().map(|(name, value)| (&**name, &**value)).collect();
    let expected =
        [("cluster", "c1"), ("datacenter", "dc1"), ("name", "esx1.example.org"), ("vcenter", "vc1")];
    assert_eq!(labels, expected);
    let inventory = lists.found(1, &[host("esx9.example.org")]).await;
    assert_eq!(addresses(&inventory), ["esx1.example.org", "esx2.example.org", "esx9.example.org"]);
    let inventory = lists.found(0, &[host("esx1.example.org")]).await;
    assert_eq!(addresses(&inventory), ["esx1.example.org", "esx9.example.org"], "who has left is gone");
    let inventory = lists.found(1, &[host("rack/9"), host("esx9.example.org")]).await;
    assert_eq!(addresses(&inventory), ["esx1.example.org", "esx9.example.org"]);
    let note = "inventory: hosts of vCenter vc2 that can't be visited: 1 × the name is no address (as in \"rack/9\")";
    assert_eq!(lists.watch.notes(), [note]);
}

#[tokio::test]
async fn the_same_list_again_is_no_news() {
    let lists = Lists::of(&config(Discover::default())).await;
    lists.found(0, &[host("esx1"), host("esx2")]).await;
    let mut inventory = lists.watch.subscribe();
    inventory.mark_unchanged();
    lists.found(0, &[host("esx1"), host("esx2")]).await;
    lists.found(0, &[host("esx2"), host("esx1")]).await;
    assert!(!inventory.has_changed().unwrap());
}

#[tokio::test]
async fn whoever_is_in_maintenance_or_disconnected_is_visited_by_choice() {
    let maintained = FoundHost { in_maintenance: true, ..host("maintained") };
    let of = |name: &str, connection| FoundHost { connection, ..host(name) };
    let (off, lost) = (of("off", Connection::Disconnected), of("lost", Connection::NotResponding));
    let all = [host("fine"), maintained, off, lost];
    for (maintenance, disconnected, expected) in [
        (true, false, vec!["fine", "lost", "maintained"]),
        (false, false, vec!["fine", "lost"]),
        (false, true, vec!["fine", "lost", "off"]),
    ] {
        let discover = Discover { maintenance, disconnected, ..Discover::default() };
        let lists = Lists::of(&config(discover)).await;
        assert_eq!(addresses(&*lists.found(0, &all).await), expected);
        assert!(lists.metric("esxi.agent.inventory.listed").contains(&("vc1".to_owned(), 4.0)));
    }
}

#[tokio::test]
async fn a_management_address_is_the_address_and_the_join_goes_by_the_name() {
    let discover = Discover { address: DiscoveredAddress::Management, ..Discover::default() };
    let lists = Lists::of(&config(discover)).await;
    let inventory =
        lists.found(0, &[at("esx1.lab", "10.0.0.1"), at("esx2", "2001:db8::2"), host("esx3")]).await;
    assert_eq!(addresses(&inventory), ["10.0.0.1", "2001:db8::2"]);
    let joined = |name: &str, site: &str| inventory.match_host(name, site, None).map(|host| &*host.address);
    assert_eq!(joined("ESX1.lab", "eu-1"), Some("10.0.0.1"));
    assert_eq!(joined("esx2", "eu-1"), Some("2001:db8::2"));
    assert_eq!(joined("esx1.lab", "eu-2"), None, "that is another vCenter's host");
    let note =
        "inventory: hosts of vCenter vc1 that can't be visited: 1 × no management address (as in \"esx3\")";
    assert_eq!(lists.watch.notes(), [note]);

    // An answer without addresses, as between two readings of them, or of a host that is not connected.
    let inventory = lists.found(0, &[host("esx1.lab"), host("esx3")]).await;
    assert_eq!(addresses(&inventory), ["10.0.0.1"]);
    let renamed = FoundHost { id: "host-esx1.lab".into(), ..host("esx1.other") };
    assert_eq!(addresses(&*lists.found(0, &[renamed]).await), ["10.0.0.1"], "a renamed host is the same");
}

#[tokio::test]
async fn a_host_that_another_source_lists_is_not_visited_twice() {
    let by_hand = |address: &str, site: &str, labels: &[(&str, &str)]| StaticTarget {
        address: address.to_owned(),
        site: site.to_owned(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    let mut config = config(Discover::default());
    config.hosts = vec![
        by_hand("ESX1.example.org", "by-hand", &[("rack", "r1"), ("cluster", "mine")]),
        by_hand("10.0.0.2", "", &[]),
    ];
    let lists = Lists::of(&config).await;
    let inventory =
        lists.found(0, &[host("esx1.example.org"), at("esx2.example.org", "10.0.0.2"), host("esx3")]).await;
    assert_eq!(addresses(&inventory), ["10.0.0.2", "ESX1.example.org", "esx3"]);
    let [by_address, by_name, _] = &inventory.hosts[..] else { panic!("{inventory:?}") };
    assert_eq!(
        by_address.labels.get("name").map(|name| &**name),
        Some("esx2.example.org"),
        "labels are joined"
    );
    assert_eq!(&*by_address.site, "eu-1", "what nobody said before is taken over");
    assert_eq!(
        by_name.labels.get("cluster").map(|name| &**name),
        Some("mine"),
        "the configuration goes first"
    );
    assert_eq!(&*by_name.site, "by-hand");
    assert_eq!(
        lists.watch.notes(),
        [
            "inventory: host ESX1.example.org is in site \"by-hand\" by the configuration and in \"eu-1\" by vCenter vc1: \
          \"by-hand\" stands"
        ]
    );
    let joined = inventory.match_host("esx2.example.org", "eu-1", None).map(|host| &*host.address);
    assert_eq!(joined, Some("10.0.0.2"));
}

#[tokio::test]
async fn a_host_that_only_resembles_another_one_is_not_lost() {
    let by_hand = |address: &str| StaticTarget {
        address: address.to_owned(),
        site: "eu-1".to_owned(),
        labels: BTreeMap::new(),
    };
    let mut config = config(Discover::default());
    config.hosts = ["esx1.a.example.org", "esx2", "esx3.mgmt.example.org", "10.0.0.4", "esx4.b.example.org"]
        .map(by_hand)
        .to_vec();
    let lists = Lists::of(&config).await;
    let found = [
        host("esx1.a.example.org"),
        host("esx1.b.example.org"),
        host("esx2.a.example.org"),
        host("esx2.b.example.org"),
        host("esx3.example.org"),
        at("esx4.a.example.org", "10.0.0.4"),
    ];
    let inventory = lists.found(0, &found).await;
    let expected = [
        "10.0.0.4",
        "esx1.a.example.org",
        "esx1.b.example.org",
        "esx2",
        "esx2.a.example.org",
        "esx2.b.example.org",
        "esx3.mgmt.example.org",
        "esx4.b.example.org",
    ];
    assert_eq!(addresses(&inventory), expected);
    let note = "inventory: vCenter vc1 lists esx3.example.org, which is taken for esx3.mgmt.example.org (first label and \
                site are equal), and maybe others like that: a host that is another one has to be listed by its own \
                name, too";
    assert_eq!(lists.watch.notes(), [note]);
    let joined = |name: &str| inventory.match_host(name, "eu-1", None).map(|host| &*host.address);
    assert_eq!(joined("esx1.b.example.org"), Some("esx1.b.example.org"));
    assert_eq!(joined("esx3.example.org"), Some("esx3.mgmt.example.org"));
    assert_eq!(joined("esx4.a.example.org"), Some("10.0.0.4"));
}

#[tokio::test]
async fn who_is_left_out_by_choice_is_not_taken_for_one_that_resembles_it() {
    let mut config = config(Discover { maintenance: false, ..Discover::default() });
    config.hosts = vec![StaticTarget {
        address: "esx1.a.example.org".to_owned(),
        site: "eu-1".to_owned(),
        labels: BTreeMap::new(),
    }];
    let lists = Lists::of(&config).await;
    let both = |connection, in_maintenance| {
        let first = FoundHost { connection, in_maintenance, ..host("esx1.a.example.org") };
        [first, host("esx1.b.example.org")]
    };
    for (connection, in_maintenance) in
        [(Connection::Connected, false), (Connection::Disconnected, false), (Connection::Connected, true)]
    {
        let inventory = lists.found(0, &both(connection, in_maintenance)).await;
        assert_eq!(addresses(&inventory), ["esx1.a.example.org", "esx1.b.example.org"], "{connection:?}");
    }

    // A host of the inventory that goes by another name in the vCenter is known by it in maintenance, too.
    config.hosts = vec![StaticTarget {
        address: "10.0.0.7".to_owned(),
        site: "eu-1".to_owned(),
        labels: BTreeMap::new(),
    }];
    let lists = Lists::of(&config).await;
    let inventory = lists.found(0, &[FoundHost { in_maintenance: true, ..at("esx7", "10.0.0.7") }]).await;
    assert_eq!(addresses(&inventory), ["10.0.0.7"]);
    let joined = inventory.match_host("esx7", "eu-1", None).map(|host| &*host.address);
    assert_eq!(joined, Some("10.0.0.7"));
}

#[tokio::test]
async fn a_host_that_moves_between_vcenters_is_where_it_is_connected() {
    let lists = Lists::of(&config(Discover { disconnected: true, ..Discover::default() })).await;
    lists.found(0, &[FoundHost { connection: Connection::Disconnected, ..host("esx1") }, host("esx2")]).await;
    let inventory = lists.found(1, &[host("esx1")]).await;
    assert_eq!(addresses(&inventory), ["esx1", "esx2"]);
    assert_eq!(&*inventory.hosts[0].site, "eu-2");
}

#[tokio::test]
async fn a_vcenter_that_is_away_or_empty_keeps_its_hosts_and_that_is_told() {
    let lists = Lists::of(&config(Discover::default())).await;
    lists.found(0, &[host("esx1")]).await;
    lists.failed(0).await;
    lists.failed(0).await;
    assert_eq!(addresses(&lists.inventory()), ["esx1"]);
    let line = "inventory: vCenter vc1: HTTP 503; its last good list stands (targets: 1)";
    assert_eq!(lists.watch.notes(), [line]);
    assert_eq!(lists.metric("esxi.agent.inventory.error"), [("vc1".to_owned(), 1.0)]);
    lists.found(0, &[host("esx1")]).await;
    assert_eq!(lists.watch.notes(), Vec::<String>::new());

    assert_eq!(addresses(&*lists.found(0, &[]).await), ["esx1"]);
    assert_eq!(
        lists.watch.notes(),
        ["inventory: vCenter vc1 lists no host any more; its last good list stands (targets: 1)"]
    );
    assert_eq!(addresses(&*lists.found(1, &[]).await), ["esx1"], "one that never had any is fine");
    assert_eq!(lists.watch.sources_in_trouble(), 1);
}

#[tokio::test]
async fn what_was_listed_before_a_restart_counts_while_the_vcenter_is_away() {
    let state = tempfile::tempdir().unwrap();
    let memory = Some(state.path().join("inventory"));
    let config = InventoryConfig { memory, ..config(Discover::default()) };
    let stop = CancellationToken::new();
    let watch = InventoryWatch::start(&config, Stats::new(), stop.clone()).await.unwrap();
    let vcenter = watch.subscribe().borrow().vcenters[0].clone();
    watch.discovery().found(&vcenter, verified(&[host("esx1")])).await;
    stop.cancel();
    watch.stopped().await;

    let lists = Lists::of(&config).await;
    assert_eq!(addresses(&lists.inventory()), Vec::<&str>::new(), "the vCenter has the first word");
    lists.failed(1).await;
    assert_eq!(addresses(&lists.inventory()), Vec::<&str>::new(), "the other vCenter was never read");
    lists.failed(0).await;
    assert_eq!(addresses(&lists.inventory()), ["esx1"]);
    assert_eq!(addresses(&*lists.found(0, &[host("esx2")]).await), ["esx2"]);
}

#[tokio::test]
async fn management_addresses_of_before_a_restart_hold_until_the_vcenter_says_another_one() {
    let state = tempfile::tempdir().unwrap();
    let discover = Discover { address: DiscoveredAddress::Management, ..Discover::default() };
    let config = InventoryConfig { memory: Some(state.path().join("inventory")), ..config(discover) };
    let stop = CancellationToken::new();
    let watch = InventoryWatch::start(&config, Stats::new(), stop.clone()).await.unwrap();
    let vcenter = watch.subscribe().borrow().vcenters[0].clone();
    let found = verified(&[at("esx1", "10.0.0.1"), at("esx2", "10.0.0.2")]);
    watch.discovery().found(&vcenter, found).await;
    stop.cancel();
    watch.stopped().await;

    let lists = Lists::of(&config).await;
    let renamed = FoundHost { id: "host-esx2".into(), ..host("another") };
    let inventory = lists.found(0, &[host("esx1"), renamed]).await;
    assert_eq!(
        addresses(&inventory),
        ["10.0.0.1"],
        "and not that of whoever has the other one's identity now"
    );
    assert_eq!(addresses(&*lists.found(0, &[at("esx1", "10.0.0.9")]).await), ["10.0.0.9"]);

    // The same where the vCenter does not answer at first.
    let lists = Lists::of(&config).await;
    lists.failed(0).await;
    let renamed = FoundHost { id: "host-esx1".into(), ..host("another") };
    assert_eq!(addresses(&*lists.found(0, &[renamed]).await), Vec::<&str>::new());
}

#[tokio::test]
async fn a_list_that_anybody_may_have_sent_is_nothing_without_a_list_of_who_may_be_given_a_password() {
    let state = tempfile::tempdir().unwrap();
    let open = InventoryConfig { memory: Some(state.path().join("i")), ..config(Discover::default()) };
    let harmless =
        InventoryConfig { allow: Allow::only(vec!["10.0.0.0/8".parse().unwrap()]), ..open.clone() };
    let stop = CancellationToken::new();
    let mut watch = InventoryWatch::start(&harmless, Stats::new(), stop.clone()).await.unwrap();
    let vcenters = watch.subscribe().borrow().vcenters.clone();
    let [first, second] = &vcenters[..] else { panic!("{vcenters:?}") };
    let unverified = FoundHosts { is_verified: false, ..verified(&[host("evil.example.net")]) };
    watch.discovery().found(first, unverified).await;
    watch.discovery().found(second, verified(&[host("esx2")])).await;
    let hosts = |watch: &InventoryWatch| addresses(&watch.subscribe().borrow()).join(" ");
    assert_eq!(hosts(&watch), "esx2 evil.example.net", "who will not be connected to");
    watch.reconfigure(&open).await.unwrap();
    assert_eq!(hosts(&watch), "esx2");
    stop.cancel();
    watch.stopped().await;

    let lists = Lists::of(&open).await;
    lists.failed(0).await;
    let note = "inventory: vCenter vc1: HTTP 503; nobody of it is known until it answers";
    assert_eq!(lists.watch.notes(), [note]);
    lists.failed(1).await;
    assert_eq!(addresses(&lists.inventory()), ["esx2"], "nor after a restart");
    assert_eq!(addresses(&*lists.found(0, &[host("esx1")]).await), ["esx1", "esx2"]);
}

#[tokio::test]
async fn a_vcenter_that_leaves_takes_its_hosts_along() {
    let folder = tempfile::tempdir().unwrap();
    let atlas = folder.path().join("atlas.json");
    let rows = |names: &[&str]| {
        let row = |name| serde_json::json!({"labels": {"job": "vcenter", "server_name": name}});
        std::fs::write(&atlas, serde_json::Value::from_iter(names.iter().map(row)).to_string()).unwrap();
    };
    rows(&["vc8", "vc9"]);
    let config =
        InventoryConfig { atlas: Some(atlas.clone()), vcenters: vec![], ..config(Discover::default()) };
    let lists = Lists::of(&config).await;
    lists.found(0, &[host("esx8")]).await;
    lists.found(1, &[host("esx9")]).await;
    assert_eq!(addresses(&lists.inventory()), ["esx8", "esx9"]);
    rows(&["vc8"]);
    lists.watch.poll_now().await;
    assert_eq!(addresses(&lists.inventory()), ["esx8"]);
    let known: Vec<_> = lists.metric("esxi.agent.inventory.error").into_iter().map(|(vc, _)| vc).collect();
    assert_eq!(known, ["", "vc8"], "the atlas, and the vCenter that is left");
}
