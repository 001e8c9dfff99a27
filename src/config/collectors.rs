//! The section `collectors`.

use super::section::{At, By, Element, Section};
use super::values::{DAY, SECOND, boolean, duration, integer, one_of, text};
use super::{CriticalServiceConfig, HostReport, NotInstalled, OverallStateConfig, Service};
use crate::config::file::Value;
use std::time::Duration;

const OVERALL_STATE: &str = "overall_state_collector";
const CRITICAL_SERVICE: &str = "critical_service_collector";
const DEFAULT_SERVICES: [&str; 3] = ["hostd", "vpxa", "ntpd"];
/// All services are asked in one command: its length and the visit's time have their limits.
const MOST_SERVICES: usize = 100;
const MOST_IN_FLIGHT: usize = 65_536;

type Collectors = (Option<At<OverallStateConfig>>, Option<At<CriticalServiceConfig>>);

/// Which collectors are on, and how. Where the file names none, both are on; where it names one, the
/// other one is off.
pub(super) fn resolve(root: &mut Section<'_>) -> Collectors {
    let mut section = root.section("collectors");
    let none_named = !section.names(OVERALL_STATE) && !section.names(CRITICAL_SERVICE);
    let overall_on = none_named || section.names(OVERALL_STATE);
    let critical_on = none_named || section.names(CRITICAL_SERVICE);
    let overall = overall_state(section.section(OVERALL_STATE), overall_on);
    let critical = critical_service(section.section(CRITICAL_SERVICE), critical_on);
    if overall.is_none() && critical.is_none() {
        section.context.note("both collectors are switched off: nothing is collected");
    }
    (overall, critical)
}

fn overall_state(mut section: Section<'_>, on_by_default: bool) -> Option<At<OverallStateConfig>> {
    let enabled = section.setting("enabled", boolean).or(on_by_default);
    let (interval, stale_after) = pace(&mut section, Duration::from_secs(30));
    let report = host_report(section.section("report"));
    switched(enabled, OverallStateConfig { interval, stale_after, report })
}

fn host_report(mut section: Section<'_>) -> HostReport {
    let default = HostReport::default();
    HostReport {
        services: section.setting("services", boolean).or(default.services).value,
        hardware: section.setting("hardware", boolean).or(default.hardware).value,
        sensors: section.setting("sensors", boolean).or(default.sensors).value,
    }
}

fn critical_service(mut section: Section<'_>, on_by_default: bool) -> Option<At<CriticalServiceConfig>> {
    const NOT_INSTALLED: &[(&str, NotInstalled)] =
        &[("stopped", NotInstalled::Stopped), ("absent", NotInstalled::Absent)];
    let enabled = section.setting("enabled", boolean).or(on_by_default);
    let (interval, stale_after) = pace(&mut section, Duration::from_secs(60));
    let threads = section.setting("max_threads", integer(1..=MOST_IN_FLIGHT)).unrecorded();
    let most = section.setting("max_in_flight", integer(1..=MOST_IN_FLIGHT));
    let default = threads.as_ref().map_or(512, |threads| threads.value);
    let most = most.or(default);
    if let Some(threads) = threads.filter(|threads| most.is_given() && threads.value != most.value) {
        section.context.problem_at(&threads, format!("contradicts {}: {}", most.key, most.value));
    }
    let services = services(&mut section);
    let not_installed =
        section.setting("not_installed", one_of(NOT_INSTALLED)).or(NotInstalled::Stopped).value;
    let max_in_flight = most.value;
    switched(enabled, CriticalServiceConfig { interval, stale_after, max_in_flight, services, not_installed })
}

fn switched<T>(enabled: At<bool>, value: T) -> Option<At<T>> {
    let At { value: on, key, by, bad } = enabled;
    let key = key.trim_end_matches(".enabled").to_owned();
    on.then_some(At { value, key, by, bad })
}

fn pace(section: &mut Section<'_>, default: Duration) -> (Duration, Duration) {
    let interval = section.setting("interval", duration(SECOND..=DAY)).or(default);
    let stale_after = section.setting("stale_after", duration(SECOND..=DAY * 7)).or(interval.value * 3);
    if stale_after.is_given() && !interval.bad && stale_after.value < interval.value {
        let message = "is shorter than interval: readings would come and go";
        section.context.problem_at(&stale_after, message);
    }
    (interval.value, stale_after.value)
}

fn services(section: &mut Section<'_>) -> Vec<Service> {
    let context = section.context;
    let key = format!("{}.services", section.path);
    let by = section.place_of("services");
    let Some(elements) = section.list("services") else {
        context.record(&key, DEFAULT_SERVICES.join(", "), By::Nobody);
        return DEFAULT_SERVICES.map(plain).into();
    };
    if elements.is_empty() {
        let default = DEFAULT_SERVICES.join(", ");
        context.problem(by.clone(), &key, format!("must not be empty; leave it out for {default}"));
    }
    if elements.len() > MOST_SERVICES {
        let message = format!("{} services are too many; at most {MOST_SERVICES}", elements.len());
        context.problem(by.clone(), &key, message);
    }
    let mut services: Vec<Service> = Vec::new();
    for element in elements {
        let Some(service) = service(&element) else { continue };
        if services.iter().any(|known| known.name == service.name) {
            element.problem(format!("{} is named twice", service.name));
        } else if services.iter().any(|known| known.reported_as == service.reported_as) {
            element.problem(format!("another service is reported as {}, too", service.reported_as));
        }
        services.push(service);
    }
    let names: Vec<_> = services.iter().map(|service| &*service.name).collect();
    context.record(&key, names.join(", "), by);
    services
}

fn service(element: &Element<'_>) -> Option<Service> {
    if !matches!(element.value, Value::Map(_)) {
        return element.parse(script_name).map(|name| plain(&name));
    }
    let mut section = element.section();
    let name = section.setting("name", script_name).unrecorded();
    let reported_as = section.setting("reported_as", text).unrecorded();
    if name.is_none() && !section.names("name") {
        element.problem("has no name");
    }
    let name = name?.value;
    let reported_as = reported_as.map_or_else(|| plain(&name).reported_as, |given| given.value.into());
    Some(Service { name: name.into(), reported_as })
}

/// A service without a name of its own for reports. The Python exporter reported `nsx-opsagent` as
/// `opsAgent`, and dashboards hold that name.
fn plain(name: &str) -> Service {
    let reported_as = if name == "nsx-opsagent" { "opsAgent" } else { name };
    Service { name: name.into(), reported_as: reported_as.into() }
}

/// The name becomes a part of a shell command on the host.
fn script_name(value: &Value) -> Result<String, String> {
    let name = text(value)?;
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.len() <= 64 && name.bytes().all(ok) && !name.starts_with(['.', '-']) {
        Ok(name)
    } else {
        let name: String = name.chars().take(80).collect();
        Err(format!(
            "{name:?} is no name of a script in /etc/init.d: letters, digits, '.', '_' and '-', at most 64"
        ))
    }
}
