//! The inventory ("atlas"): Prometheus `file_sd` or `http_sd` JSON that holds every job of a site. Which rows
//! are ours, and what they mean.
//!
//! - `job` = `vcenter`: the address is `server_name`; the site is the region and letter in a name of the
//!   form `vc-<letter>-<n>.cc.<region>.…` (`vc-a-0.cc.eu-de-1.cloud.sap` is `eu-de-1a`), else the label
//!   `site`.
//! - `job` = `vmware-esxi`: the address is made by a template from the row's labels. `targets` is not
//!   looked at unless the template says so: it may be the out-of-band management.

use super::{Endpoint, Host, Vcenter};
use regex::Regex;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::error::Category;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, LazyLock};

/// The rows of one file that are ours.
#[derive(Debug, Default)]
pub(super) struct Atlas {
    pub(super) hosts: Vec<Host>,
    pub(super) vcenters: Vec<Vcenter>,
    pub(super) skipped: Skipped,
}

impl Atlas {
    /// Itself if there is anybody in it: a list without a target of ours is suspicious, and no news.
    pub(super) fn with_targets(self) -> Result<Self, String> {
        if !self.hosts.is_empty() || !self.vcenters.is_empty() {
            return Ok(self);
        }
        let skipped = if self.skipped.is_empty() { "" } else { "; skipped: " };
        Err(format!(
            "holds no target (no row with the job vmware-esxi or vcenter that is wanted){skipped}{}",
            self.skipped
        ))
    }
}

/// Rows that should have been ours but can't be used: by reason, how many, and one of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Skipped(BTreeMap<String, (usize, String)>);

impl Skipped {
    pub(super) fn add(&mut self, reason: String, example: impl FnOnce() -> String) {
        self.0.entry(reason).or_insert_with(|| (0, example())).0 += 1;
    }

    /// Takes out and counts those whose address stands there already, but with another site. (Rows that
    /// agree are one target, and nothing to be told.)
    fn contradictions<T>(&mut self, sorted: &mut Vec<T>, of: impl Fn(&T) -> (&Arc<str>, &Arc<str>)) {
        let mut sites: HashMap<String, Arc<str>> = HashMap::new();
        sorted.retain(|target| {
            let (address, site) = of(target);
            let known = sites.entry(address.to_ascii_lowercase()).or_insert_with(|| Arc::clone(site));
            let agrees = known == site;
            if !agrees {
                let example = || format!("{address}, {site:?} beside {known:?}");
                self.add("address of another row, with another site".to_owned(), example);
            }
            agrees
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (reason, (count, example))) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{count} × {reason} (as in {example})")?;
        }
        Ok(())
    }
}

/// How the address of a host is made from the labels of its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressTemplate(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Placeholder(String),
}

impl Default for AddressTemplate {
    /// `{name}.cc.{region}.cloud.sap`, as in the Python exporter.
    fn default() -> Self {
        let text = |text: &str| Piece::Text(text.to_owned());
        let placeholder = |name: &str| Piece::Placeholder(name.to_owned());
        Self(vec![placeholder("name"), text(".cc."), placeholder("region"), text(".cloud.sap")])
    }
}

impl fmt::Display for AddressTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(text)?,
                Piece::Placeholder(name) => write!(f, "{{{name}}}")?,
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for AddressTemplate {
    type Err = String;

    /// Reads `{label}` placeholders between literal text. The error says what is wrong, as one sentence.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else {
                return Err(format!("{text:?} has a {{ without its }}"));
            };
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(format!("{text:?} has a placeholder {{{name}}} that can't be a label's name"));
            }
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Placeholder(name.to_owned()));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        if pieces.iter().any(|piece| matches!(piece, Piece::Text(text) if text.contains('}'))) {
            return Err(format!("{text:?} has a }} without its {{"));
        }
        if pieces.len() == 1 {
            return Err(format!(
                "{text:?} has no placeholder such as {{name}}, so all hosts would have one address"
            ));
        }
        Ok(Self(pieces))
    }
}

impl AddressTemplate {
    fn fill(&self, row: &Row) -> Result<String, String> {
        let mut address = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => address.push_str(text),
                Piece::Placeholder(name) => address.push_str(row.value(name)?),
            }
        }
        Ok(address)
    }
}

/// Reads a file's content. Rows of other jobs are passed over in silence.
///
/// # Errors
/// What the content is instead of a JSON array.
pub(super) fn parse(
    content: &[u8],
    template: &AddressTemplate,
    only: &BTreeMap<String, Vec<String>>,
) -> Result<Atlas, Unreadable> {
    let rows: Vec<Lenient<Row>> = serde_json::from_slice(content).map_err(|e| Unreadable::of(&e, content))?;
    let mut atlas = Atlas::default();
    for (number, row) in rows.into_iter().enumerate() {
        let Lenient::Right(row) = row else {
            atlas.skipped.add("row is no object with labels".to_owned(), || format!("row {}", number + 1));
            continue;
        };
        let done = match row.label("job") {
            Some("vcenter") => row.vcenter(only).map(|found| atlas.vcenters.extend(found)),
            Some("vmware-esxi") => row.host(template, only).map(|found| atlas.hosts.extend(found)),
            _ => Ok(()),
        };
        if let Err(reason) = done {
            atlas.skipped.add(reason, || row.describe(number + 1));
        }
    }
    // The order of the rows is random. Which one of two with the same address stays must not be.
    atlas.hosts.sort_by(|a, b| (&a.address, &a.labels).cmp(&(&b.address, &b.labels)));
    atlas.vcenters.sort_by(|a, b| (&a.address, &a.labels).cmp(&(&b.address, &b.labels)));
    let Atlas { hosts, vcenters, skipped } = &mut atlas;
    skipped.contradictions(hosts, |host| (&host.address, &host.site));
    skipped.contradictions(vcenters, |vcenter| (&vcenter.address, &vcenter.site));
    Ok(atlas)
}

/// Why a file's content is of no use, and where.
#[derive(Debug)]
pub(super) struct Unreadable {
    line: usize,
    column: usize,
    why: String,
}

impl Unreadable {
    fn of(error: &serde_json::Error, content: &[u8]) -> Self {
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        let why = match error.classify() {
            Category::Eof if content.trim_ascii().is_empty() => "is empty; a JSON array is needed".to_owned(),
            Category::Eof => format!("ends in the middle: {what}"),
            Category::Data => format!("is no array of targets: {what}"),
            Category::Syntax | Category::Io => format!("is no JSON: {what}"),
        };
        Self { line: error.line().max(1), column: error.column().max(1), why }
    }
}

impl fmt::Display for Unreadable {
    /// What follows the name of the file: `:2:25: is no JSON: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ":{}:{}: {}", self.line, self.column, self.why)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Lenient<T> {
    Right(T),
    Wrong(IgnoredAny),
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    targets: Vec<Lenient<String>>,
    labels: BTreeMap<String, Lenient<String>>,
}

impl Row {
    fn label(&self, name: &str) -> Option<&str> {
        match self.labels.get(name)? {
            Lenient::Right(value) if !value.is_empty() => Some(value),
            _ => None,
        }
    }

    /// What a placeholder stands for.
    fn value(&self, placeholder: &str) -> Result<&str, String> {
        match placeholder {
            "target" => match self.targets.first() {
                Some(Lenient::Right(target)) => Ok(target),
                _ => Err("no target".to_owned()),
            },
            "region" => match self.label("site") {
                Some(site) => region(site).ok_or_else(|| "site names no region".to_owned()),
                None => Err("no label site".to_owned()),
            },
            label => self.label(label).ok_or_else(|| format!("no label {label}")),
        }
    }

    fn host(
        &self,
        template: &AddressTemplate,
        only: &BTreeMap<String, Vec<String>>,
    ) -> Result<Option<Host>, String> {
        let wanted = |(label, values): (&String, &Vec<String>)| {
            self.label(label).is_some_and(|value| values.iter().any(|allowed| allowed == value))
        };
        if !only.iter().all(wanted) {
            return Ok(None);
        }
        let address = template.fill(self)?;
        let endpoint: Endpoint = address.parse().map_err(|_| "labels make no address".to_owned())?;
        Ok(Some(Host {
            address: address.into(),
            endpoint,
            site: self.label("site").unwrap_or_default().into(),
            labels: self.all_labels(),
        }))
    }

    fn vcenter(&self, only: &BTreeMap<String, Vec<String>>) -> Result<Option<Vcenter>, String> {
        // vCenters' rows have fewer labels than hosts' (`state`, but no `status`): a label that is not
        // there leaves none of them out.
        let unwanted = |(label, values): (&String, &Vec<String>)| {
            self.label(label).is_some_and(|value| values.iter().all(|allowed| allowed != value))
        };
        if only.iter().any(unwanted) {
            return Ok(None);
        }
        let address = self.value("server_name")?;
        let endpoint = address.parse().map_err(|_| "server_name is no address".to_owned())?;
        let site = vcenter_site(address).or_else(|| self.label("site").map(str::to_owned));
        let site = site.unwrap_or_default().into();
        Ok(Some(Vcenter { address: address.into(), endpoint, site, labels: self.all_labels() }))
    }

    fn all_labels(&self) -> BTreeMap<Arc<str>, Arc<str>> {
        let labels = self.labels.iter().filter_map(|(name, value)| match value {
            Lenient::Right(value) => Some((Arc::from(name.as_str()), Arc::from(value.as_str()))),
            Lenient::Wrong(_) => None,
        });
        labels.collect()
    }

    fn describe(&self, number: usize) -> String {
        let name = ["server_name", "name"].into_iter().find_map(|label| self.label(label));
        match name {
            Some(name) => format!("row {number}, {:?}", name.chars().take(80).collect::<String>()),
            None => format!("row {number}"),
        }
    }
}

/// The region in a site's name: `eu-de-1` of `eu-de-1a`.
fn region(site: &str) -> Option<&str> {
    #[expect(clippy::unwrap_used, reason = "a constant; the tests run it")]
    static REGION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("(?i)([A-Z]{2}-[A-Z]{2}-[0-9])[a-z]").unwrap());
    Some(REGION.captures(site)?.get(1)?.as_str())
}

/// The site in a vCenter's name: `eu-de-1a` of `vc-a-0.cc.eu-de-1.example.org`.
fn vcenter_site(name: &str) -> Option<String> {
    #[expect(clippy::unwrap_used, reason = "a constant; the tests run it")]
    static NAME: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^vc-([a-z])-[0-9]+\.cc\.([A-Za-z]{2}-[A-Za-z]{2}-[0-9])\.").unwrap());
    let found = NAME.captures(name)?;
    Some(format!("{}{}", found.get(2)?.as_str(), found.get(1)?.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row() -> impl Strategy<Value = serde_json::Value> {
        let key = prop::sample::select(vec!["job", "name", "server_name", "site", "status"]);
        let value = prop_oneof![
            "(vmware-esxi|vcenter|eu-de-1a|vc-a-0.cc.eu-de-1.x)".prop_map(serde_json::Value::from),
            Just(serde_json::Value::Null),
            Just(serde_json::json!([1])),
            "\\PC{0,12}".prop_map(serde_json::Value::from),
        ];
        let labels = prop::collection::hash_map(key, value, 0..6);
        labels.prop_map(|labels| serde_json::json!({"labels": labels}))
    }

    proptest! {
        #[test]
        fn each_of_our_rows_is_a_target_or_counted_as_skipped(rows in prop::collection::vec(row(), 0..20)) {
            let content = serde_json::to_vec(&rows).unwrap();
            let atlas = parse(&content, &AddressTemplate::default(), &BTreeMap::new()).unwrap();
            let skipped: usize = atlas.skipped.0.values().map(|(count, _)| count).sum();
            let ours = |row: &&serde_json::Value| {
                matches!(row["labels"]["job"].as_str(), Some("vmware-esxi" | "vcenter"))
            };
            let ours = rows.iter().filter(ours).count();
            prop_assert_eq!(atlas.hosts.len() + atlas.vcenters.len() + skipped, ours);
        }

        #[test]
        fn no_content_makes_it_panic(content in "[\\[\\]{}\",:a-z0-9 ]{0,60}") {
            let _ = parse(content.as_bytes(), &AddressTemplate::default(), &BTreeMap::new());
        }
    }

    #[test]
    fn templates_that_can_not_be_filled_are_refused() {
        for (template, problem) in [
            ("{name", "\"{name\" has a { without its }"),
            ("name}.x", "\"name}.x\" has a } without its {"),
            ("{}.x", "\"{}.x\" has a placeholder {} that can't be a label's name"),
            ("x", "\"x\" has no placeholder such as {name}, so all hosts would have one address"),
        ] {
            assert_eq!(template.parse::<AddressTemplate>(), Err(problem.to_owned()));
        }
    }
}
