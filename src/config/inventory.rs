//! The section `inventory`: where the targets come from.

use super::file::Value;
use super::section::{By, Context, Element, Section};
use super::values::{Show, boolean, duration, one_of, parsed, text, texts};
use super::{InventoryConfig, StaticTarget, VcenterConfig};
use crate::accounts::read_secret_file;
use crate::inventory::{
    AddressTemplate, Allow, AllowRule, Discover, DiscoverConfig, DiscoveredAddress, Endpoint, HttpSdConfig,
    SdAuth, SdUrl, Shard,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Where the file says what [`check`] looks at, once the rest of the configuration is known.
#[derive(Default)]
pub(super) struct Places {
    /// vCenters that list their hosts: place, key, and which one it is, where it is only one.
    discovering: Vec<(By, String, Option<String>)>,
    http_sd: Option<By>,
    /// Whether `allow` names who may be given a password.
    allows: bool,
}

pub(super) fn resolve(root: &mut Section<'_>, host_name: &str) -> (InventoryConfig, Places) {
    let context = root.context;
    let before = context.problem_count();
    let mut places = Places::default();
    let mut section = root.section("inventory");
    let path = |value: &_| context.path(value);
    let atlas = section.setting("atlas", path).env("ATLAS_FILE", path).optional();
    let http_sd = http_sd(&mut section, &mut places);
    let mut discover = DiscoverConfig::default();
    let vcenters = static_targets(&mut section, "vcenters", |target, section| {
        if let Some(choice) = discover_hosts(section, &mut places, Some(target)) {
            discover.explicit.insert(target.to_ascii_lowercase(), choice);
        }
        BTreeMap::new()
    });
    discover.others = discover_hosts(&mut section, &mut places, None).flatten();
    let pace = section.setting("discovery_interval", duration(MINUTE / 2..=HOUR));
    discover.interval = pace.or(discover.interval).value;
    let hosts = static_targets(&mut section, "hosts", |_, section| labels(section.map("labels")));
    let host_address = section.setting("host_address", parsed).or(AddressTemplate::default()).value;
    let mut only = BTreeMap::new();
    for (label, values) in section.map("only") {
        only.extend(values.parse(texts).map(|values| (label.to_owned(), values)));
    }
    let allow = allow(&mut section);
    places.allows = section.names("allow");
    let shard = section.setting("shard", |value| Shard::parse(&text(value)?, host_name));
    let shard = shard.or(Shard::default()).value;
    let nobody = atlas.is_none() && http_sd.is_none() && vcenters.is_empty() && hosts.is_empty();
    if nobody && context.problem_count() == before {
        context.problem(
            By::Nobody,
            "",
            "there is nobody to visit: name a vCenter that lists its hosts \
             (inventory: {vcenters: [{address: vc1.example.org, discover_hosts: true}]}), an inventory file \
             (--atlas, ATLAS_FILE or inventory.atlas), inventory.http_sd, or hosts under inventory.hosts",
        );
    }
    let atlas = atlas.map(|atlas| atlas.value);
    let config = InventoryConfig {
        atlas,
        http_sd,
        discover,
        memory: None,
        host_address,
        only,
        allow,
        vcenters,
        hosts,
        shard,
    };
    (config, places)
}

/// What depends on more than this section. A source that anybody can stand in for must not send a password
/// wherever it likes.
pub(super) fn check(
    context: &Context<'_>,
    inventory: &InventoryConfig,
    places: &Places,
    vcenter: &VcenterConfig,
    visits: bool,
) {
    if !places.allows {
        let remedy = "name the addresses that may be given a password in inventory.allow";
        if !vcenter.verify_tls {
            let is_pinned = |address: &String| {
                let endpoint: Option<Endpoint> = address.parse().ok();
                endpoint.is_some_and(|at| vcenter.thumbprint_of(address, &at.host).is_some())
            };
            let open = |vcenter: &Option<String>| !vcenter.as_ref().is_some_and(is_pinned);
            for (place, key, _) in places.discovering.iter().filter(|(.., vcenter)| open(vcenter)) {
                let risk = "TLS verification of vCenters is off, so anybody can name hosts, which would be given \
                            the password: verify it, or";
                context.problem(place.clone(), key, format!("{risk} {remedy}"));
            }
        }
        if let Some((place, server)) = places.http_sd.as_ref().zip(inventory.http_sd.as_ref())
            && !server.url.is_authenticated()
        {
            let risk = "is plain http, so anybody can name targets, which would be given the password: use https, or";
            context.problem(place.clone(), "inventory.http_sd.url", format!("{risk} {remedy}"));
        }
    }
    let hosts_come = inventory.atlas.is_some()
        || inventory.http_sd.is_some()
        || !inventory.hosts.is_empty()
        || inventory.discover.is_on();
    if visits && !hosts_come {
        context.note(
            "no source names hosts, so nobody is visited: discover_hosts: true beside a vCenter takes those \
             that it lists",
        );
    }
}

/// `true`, `false`, or what is made of the list, of this vCenter or of all others. `None`: nobody said anything.
fn discover_hosts(
    section: &mut Section<'_>,
    places: &mut Places,
    vcenter: Option<&str>,
) -> Option<Option<Discover>> {
    const ADDRESSES: &[(&str, DiscoveredAddress)] =
        &[("name", DiscoveredAddress::Name), ("management", DiscoveredAddress::Management)];
    const KEY: &str = "discover_hosts";
    let context = section.context;
    let (place, path) = (section.place_of(KEY), format!("{}.{KEY}", section.path));
    let chosen = if section.is_section(KEY) {
        let mut choices = section.section(KEY);
        let mut discover = Discover::default();
        if let Some(address) = choices.setting("address", one_of(ADDRESSES)).unrecorded() {
            discover.address = address.value;
        }
        if let Some(maintenance) = choices.setting("maintenance", boolean).unrecorded() {
            discover.maintenance = maintenance.value;
        }
        if let Some(disconnected) = choices.setting("disconnected", boolean).unrecorded() {
            discover.disconnected = disconnected.value;
        }
        Some(discover)
    } else {
        let on = section.setting(KEY, boolean).unrecorded();
        match on {
            Some(on) => on.value.then(Discover::default),
            None if vcenter.is_none() => {
                context.record(&path, false.show(), By::Nobody);
                return None;
            }
            None => return None,
        }
    };
    if chosen.is_some() {
        places.discovering.push((place.clone(), path.clone(), vcenter.map(str::to_owned)));
    }
    let shown = match chosen {
        None => "false".to_owned(),
        Some(Discover { address, maintenance, disconnected }) => {
            let word = ADDRESSES.iter().find(|(_, known)| *known == address).map_or("", |(word, _)| word);
            format!("{{address: {word}, maintenance: {maintenance}, disconnected: {disconnected}}}")
        }
    };
    context.record(&path, shown, place);
    Some(chosen)
}

fn http_sd(inventory: &mut Section<'_>, places: &mut Places) -> Option<HttpSdConfig> {
    let context = inventory.context;
    let place = inventory.place_of("http_sd");
    let mut section = inventory.section("http_sd");
    let path = |value: &_| context.path(value);
    let url = section.setting("url", parsed::<SdUrl>).optional();
    let interval = section.setting("interval", duration(Duration::from_secs(5)..=HOUR));
    let interval = if url.is_some() { interval.or(MINUTE).value } else { MINUTE };
    let ca_file = section.setting("ca_file", path).optional();
    if let Some(ca_file) = &ca_file {
        let read = match ca_file.value.is_dir() {
            true => Err("is a folder, name a PEM file".to_owned()),
            false => super::vcenter::read_roots(&ca_file.value).map(drop),
        };
        if let Err(problem) = read {
            context.problem_at(ca_file, format!("{}: {problem}", ca_file.value.display()));
        }
    }
    let token = section.setting("bearer_token_file", path).optional();
    let has_basic = section.names("basic_auth");
    let mut basic = section.section("basic_auth");
    let username = basic.setting("username", text).optional();
    let password = basic.setting("password_file", path).optional();
    drop(basic);
    for file in token.iter().chain(&password) {
        if let Err(why) = read_secret_file(&file.value) {
            context.problem_at(file, why);
        }
    }
    let place_of_auth = section.place_of("basic_auth");
    let auth = match (token, username, password) {
        (Some(_), _, _) if has_basic => {
            context.problem(place_of_auth, "inventory.http_sd.basic_auth", "contradicts bearer_token_file");
            SdAuth::None
        }
        (Some(token), _, _) => SdAuth::Bearer(token.value),
        (None, Some(username), Some(password)) => {
            SdAuth::Basic { username: username.value, password_file: password.value }
        }
        (None, None, None) => SdAuth::None,
        (None, _, _) => {
            let needs = "needs both username and password_file";
            context.problem(place_of_auth, "inventory.http_sd.basic_auth", needs);
            SdAuth::None
        }
    };
    if place == By::Nobody && url.is_none() {
        return None;
    }
    if !section.names("url") && url.is_none() {
        context.problem(place, "inventory.http_sd", "has no url");
    }
    let url = url?;
    places.http_sd = Some(url.by.clone());
    Some(HttpSdConfig {
        url: url.value,
        interval,
        ca_file: ca_file.map(|file: super::section::At<PathBuf>| file.value),
        auth,
    })
}

/// Absent: everybody.
fn allow(inventory: &mut Section<'_>) -> Allow {
    let (by, before) = (inventory.place_of("allow"), inventory.context.problem_count());
    let elements = inventory.list("allow").unwrap_or_default();
    if by == By::Nobody || inventory.context.problem_count() > before {
        return Allow::EVERYBODY;
    }
    if elements.is_empty() {
        let message = "is empty, so nobody may be visited: name networks and names, or leave it out";
        inventory.context.problem(by.clone(), "inventory.allow", message);
    }
    let rules: Vec<AllowRule> = elements.iter().filter_map(|element| element.parse(parsed)).collect();
    let shown: Vec<String> = rules.iter().map(AllowRule::to_string).collect();
    inventory.context.record("inventory.allow", shown.join(", "), by);
    Allow::only(rules)
}

/// `more` reads what only one kind of targets has: of hosts the labels.
fn static_targets(
    inventory: &mut Section<'_>,
    key: &'static str,
    mut more: impl FnMut(&str, &mut Section<'_>) -> BTreeMap<String, String>,
) -> Vec<StaticTarget> {
    let mut targets: BTreeMap<String, StaticTarget> = BTreeMap::new();
    for element in inventory.list(key).unwrap_or_default() {
        let mut section = element.section();
        let address = section.setting("address", |value| {
            let address = text(value)?;
            address.parse::<Endpoint>().map_err(|e| e.to_string())?;
            Ok(address)
        });
        let address = address.unrecorded().map(|address| address.value);
        let site = section.setting("site", text).unrecorded().map(|site| site.value).unwrap_or_default();
        let labels = more(address.as_deref().unwrap_or_default(), &mut section);
        let Some(address) = address else {
            if !section.names("address") && matches!(element.value, Value::Map(_)) {
                element.problem("has no address");
            }
            continue;
        };
        let target = StaticTarget { address: address.clone(), site, labels };
        if targets.insert(address.to_ascii_lowercase(), target).is_some() {
            element.problem(format!("{address} is named twice"));
        }
    }
    targets.into_values().collect()
}

fn labels(elements: Vec<(&str, Element<'_>)>) -> BTreeMap<String, String> {
    let label = |(name, value): (&str, Element<'_>)| Some((name.to_owned(), value.parse(text)?));
    elements.into_iter().filter_map(label).collect()
}
