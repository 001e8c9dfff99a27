//! `check`: configuration and inventory, without visiting anybody; with `--connect` one login everywhere.

mod connect;
mod connections;
mod vcenter;

use super::{VerbError, output};
use crate::accounts::Chosen;
use crate::agent::StartError;
use crate::cli::{CheckArgs, CheckFormat};
use crate::config::Loaded;
use crate::inventory::{Endpoint, Inventory, InventoryWatch, Vcenter};
use crate::stats::Stats;
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[derive(Serialize)]
struct Checked<'a> {
    settings: Vec<Setting<'a>>,
    notes: Vec<String>,
    shard: Part,
    hosts: Vec<Target<'a>>,
    vcenters: Vec<Target<'a>>,
}

#[derive(Serialize)]
struct Setting<'a> {
    key: &'a str,
    value: &'a str,
    origin: String,
}

/// Which part of the fleet is this agent's, and how large the whole is.
#[derive(Serialize)]
struct Part {
    part: String,
    #[serde(skip)]
    whole: bool,
    of_hosts: usize,
    of_vcenters: usize,
}

#[derive(Serialize)]
struct Target<'a> {
    address: &'a str,
    site: &'a str,
    /// By `inventory.allow`, as far as its address alone can tell.
    allowed: bool,
    /// As whom, never with which secret; `null`: nobody.
    account: Option<String>,
}

/// Says where each setting came from and who would be visited. Exit code 0 when the agent would start; with
/// `--connect` instead what logging in everywhere once came to, and exit code 1 when anything failed.
///
/// # Errors
/// When the inventory or the host keys can't be read, `--host` names nobody, or the output can't be written.
pub async fn check(
    loaded: &Loaded,
    args: &CheckArgs,
    stop: CancellationToken,
) -> Result<ExitCode, VerbError> {
    let read = CancellationToken::new();
    let watch = InventoryWatch::start(&loaded.config.inventory, Stats::new(), read.clone()).await;
    let watch = watch.map_err(StartError::from)?;
    let inventory = watch.subscribe().borrow().clone();
    let mut notes = loaded.notes.clone();
    notes.extend(watch.notes());
    if args.connect {
        let connected = connected(loaded, &watch, args, stop).await;
        read.cancel();
        watch.stopped().await;
        return connected;
    }
    let discovery = watch.discovery();
    let lists = |vcenter: &&Arc<Vcenter>| discovery.of(vcenter).is_some();
    let lists = inventory.vcenters_of_all_shards().iter().filter(lists).count();
    if lists > 0 {
        notes.push(format!(
            "{} by `discover_hosts`; these hosts are not among those above, as nobody was asked: `check --connect` asks",
            if lists == 1 { "1 vCenter lists its hosts".to_owned() } else { format!("{lists} vCenters list their hosts") }
        ));
    }
    read.cancel();
    let text = match args.format {
        CheckFormat::Text => as_text(&checked(loaded, &notes, &inventory)),
        CheckFormat::Json => {
            let mut text = serde_json::to_string_pretty(&checked(loaded, &notes, &inventory))
                .map_err(|error| VerbError::Output(error.into()))?;
            text.push('\n');
            text
        }
    };
    let _ = output::print(text)?;
    // As `once` does: a pipeline that asks must not let an inventory pass that nobody has seen.
    Ok(if watch.sources_in_trouble() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn connected(
    loaded: &Loaded,
    watch: &InventoryWatch,
    args: &CheckArgs,
    stop: CancellationToken,
) -> Result<ExitCode, VerbError> {
    let found = connect::connect(&loaded.config, watch, &args.host, &stop).await?;
    let text = match args.format {
        CheckFormat::Text => found.to_text(&loaded.config.ssh),
        CheckFormat::Json => {
            serde_json::to_string_pretty(&found).map_err(|error| VerbError::Output(error.into()))? + "\n"
        }
    };
    let _ = output::print(text)?;
    Ok(if found.failed() == 0 && !stop.is_cancelled() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn checked<'a>(loaded: &'a Loaded, notes: &[String], inventory: &'a Inventory) -> Checked<'a> {
    let settings = loaded.origins.iter().map(|origin| Setting {
        key: &origin.key,
        value: &origin.value,
        origin: origin.origin.to_string(),
    });
    let (config, accounts) = (&loaded.config, &loaded.config.accounts);
    let target = |address: &'a str, site: &'a str, endpoint: &Endpoint, account: Option<Chosen<'_>>| Target {
        address,
        site,
        allowed: config.inventory.allow.may_hold(&endpoint.host),
        account: account.map(|account| account.to_string()),
    };
    let hosts = inventory.hosts.iter();
    let hosts = hosts.map(|host| target(&host.address, &host.site, &host.endpoint, accounts.of_host(host)));
    let vcenters = inventory.vcenters.iter();
    let vcenters = vcenters.map(|vc| target(&vc.address, &vc.site, &vc.endpoint, accounts.of_vcenter(vc)));
    let (hosts, vcenters): (Vec<_>, Vec<_>) = (hosts.collect(), vcenters.collect());
    let mut notes = notes.to_vec();
    for (what, targets, asked) in [
        ("hosts", &hosts, config.critical_service.is_some()),
        ("vCenters", &vcenters, config.overall_state.is_some()),
    ] {
        let without = targets.iter().filter(|target| asked && target.account.is_none()).count();
        if without > 0 {
            notes.push(format!("{what} without an account, which fail with no_credentials: {without}"));
        }
    }
    let (of_hosts, of_vcenters) = inventory.of_all_shards();
    let shard = config.inventory.shard;
    let shard = Part { part: shard.to_string(), whole: shard.is_whole(), of_hosts, of_vcenters };
    Checked { settings: settings.collect(), notes, shard, hosts, vcenters }
}

/// Most targets of one kind that are listed for people; the rest is counted.
const LISTED: usize = 20;

fn as_text(checked: &Checked<'_>) -> String {
    let mut text = String::from("settings\n");
    let width = |of: fn(&Setting<'_>) -> usize| checked.settings.iter().map(of).max().unwrap_or(0);
    let (keys, values) = (width(|s| s.key.len()), width(|s| s.value.len()).min(48));
    for setting in &checked.settings {
        let _ = writeln!(text, "  {:keys$}  {:values$}  {}", setting.key, setting.value, setting.origin);
    }
    let Part { part, whole, of_hosts, of_vcenters } = &checked.shard;
    for (what, targets, of) in
        [("hosts", &checked.hosts, of_hosts), ("vCenters", &checked.vcenters, of_vcenters)]
    {
        let of = if *whole { String::new() } else { format!(" of {of} (shard {part})") };
        let _ = writeln!(text, "{what}: {}{of}", targets.len());
        let refused = targets.iter().filter(|target| !target.allowed).count();
        if refused > 0 {
            let _ = writeln!(text, "  {refused} of them not in inventory.allow: they get no connection");
        }
        for target in targets.iter().take(LISTED) {
            let refused = if target.allowed { "" } else { "  (not in inventory.allow)" };
            let account = target.account.as_deref().unwrap_or("no account");
            let _ = writeln!(text, "  {}  {}  {account}{refused}", target.address, target.site);
        }
        if targets.len() > LISTED {
            let _ = writeln!(text, "  … and {} more (--format json lists all)", targets.len() - LISTED);
        }
    }
    for note in &checked.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text.push_str("the configuration is valid\n");
    text
}
