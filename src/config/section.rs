//! A section of the file, with what the environment and the flags say about its settings: the one place
//! where precedence is decided, and where unknown and duplicate keys are found.

use super::file::{Entries, File, NodePath, Value};
use super::report::{ConfigError, Origin, Problem, SettingOrigin};
use super::values::{Show, describe};
use super::{Overrides, Sources};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// Problems that are reported one by one; of further ones only the number is told.
const MOST_PROBLEMS: usize = 50;

/// Who said something. Ordered by precedence, and within the file from top to bottom.
///
/// Becomes an [`Origin`] only when somebody is told: to find a node's line the file is read once more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum By {
    Flag(String),
    Variable(String),
    Node(NodePath),
    Nobody,
}

/// What all sections share.
pub(super) struct Context<'a> {
    sources: &'a Sources,
    file: Option<&'a File>,
    /// Who, key, message.
    problems: RefCell<Vec<(By, String, String)>>,
    /// Key, value, who.
    settings: RefCell<Vec<(String, String, By)>>,
    notes: RefCell<Vec<String>>,
    flags_used: RefCell<HashSet<String>>,
}

/// A setting's value, and who said so.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) key: String,
    pub(super) by: By,
    /// What was said made no sense, so this is the default. Already reported: nothing that follows from
    /// it is worth a further problem.
    pub(super) bad: bool,
}

impl<T> At<T> {
    /// Whether somebody said it, and it made sense.
    pub(super) fn is_given(&self) -> bool {
        self.by != By::Nobody && !self.bad
    }
}

impl<'a> Context<'a> {
    pub(super) fn new(sources: &'a Sources, file: Option<&'a File>) -> Self {
        let (problems, settings, notes, flags_used) = Default::default();
        Self { sources, file, problems, settings, notes, flags_used }
    }

    pub(super) fn root(&'a self) -> Section<'a> {
        let entries = self.file.map(|file| &file.entries);
        Section { context: self, entries, node: Vec::new(), path: String::new(), asked: Vec::new() }
    }

    /// A variable that is set and not empty: OpenTelemetry's rule, for all variables.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let value = self.sources.env.get(name).filter(|value| !value.is_empty())?;
        let text = value.to_str();
        if text.is_none() {
            self.problem(By::Variable(name.to_owned()), "", "is no UTF-8 text");
        }
        text.map(str::to_owned)
    }

    pub(super) fn problem(&self, by: By, key: &str, message: impl Into<String>) {
        self.problems.borrow_mut().push((by, key.to_owned(), message.into()));
    }

    pub(super) fn problem_count(&self) -> usize {
        self.problems.borrow().len()
    }

    pub(super) fn problem_at<T>(&self, setting: &At<T>, message: impl Into<String>) {
        self.problem(setting.by.clone(), &setting.key, message);
    }

    pub(super) fn note(&self, note: impl Into<String>) {
        self.notes.borrow_mut().push(note.into());
    }

    /// The path that a text of the file or of elsewhere means.
    pub(super) fn path(&self, value: &Value) -> Result<std::path::PathBuf, String> {
        let text = super::values::text(value)?;
        match (value, self.file) {
            (Value::Text(_), Some(file)) => Ok(file.folder.join(text)),
            _ => Ok(text.into()),
        }
    }

    pub(super) fn record(&self, key: &str, value: String, by: By) {
        self.settings.borrow_mut().push((key.to_owned(), value, by));
    }

    /// For people: where in the file a node stands.
    pub(super) fn origin(&self, by: &By) -> Origin {
        match (by, self.file) {
            (By::Flag(name), _) => Origin::Flag(name.clone()),
            (By::Variable(name), _) => Origin::Environment(name.clone()),
            (By::Node(node), Some(file)) => Origin::File { name: file.name.clone(), place: file.place(node) },
            (By::Node(_), None) | (By::Nobody, _) => Origin::Default,
        }
    }

    /// The notes and settings, or all the problems.
    pub(super) fn finish(self) -> Result<(Vec<String>, Vec<SettingOrigin>), ConfigError> {
        self.report_unused_flags();
        let mut problems = self.problems.take();
        problems.sort();
        problems.dedup();
        if problems.is_empty() {
            let setting = |(key, value, by)| SettingOrigin { key, value, origin: self.origin(&by) };
            let settings = self.settings.take().into_iter().map(setting).collect();
            return Ok((self.notes.into_inner(), settings));
        }
        let more = problems.len().saturating_sub(MOST_PROBLEMS);
        problems.truncate(MOST_PROBLEMS);
        if more > 0 {
            problems.push((By::Nobody, String::new(), format!("and {more} more problems")));
        }
        let problem = |(by, key, message)| Problem { origin: self.origin(&by), key, message };
        Err(ConfigError::new(problems.into_iter().map(problem).collect()))
    }

    /// A flag whose setting nobody asked for would be passed over in silence.
    fn report_unused_flags(&self) {
        let used = self.flags_used.borrow();
        for (key, (flag, _)) in self.sources.overrides.0.iter().filter(|(key, _)| !used.contains(*key)) {
            self.problem(By::Flag(flag.clone()), key, format!("there is no setting {key}"));
        }
    }
}

/// A map of the file, or the absence of one. What nobody asked for is reported when it is dropped.
pub(super) struct Section<'a> {
    pub(super) context: &'a Context<'a>,
    entries: Option<&'a Entries>,
    node: NodePath,
    pub(super) path: String,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// Whether the file has the key at all.
    pub(super) fn names(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// A setting, still to be told what else may set it and what its default is.
    pub(super) fn setting<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Setting<'a, T> {
        self.asked.push(key);
        let context = self.context;
        let path = self.key(key);
        let mut setting = Setting { context, key: path, found: None, bad: None };
        if let Some((flag, text)) = context.sources.overrides.get(&setting.key) {
            context.flags_used.borrow_mut().insert(setting.key.clone());
            setting.offer(By::Flag(flag.clone()), parse(&Value::Loose(text.clone())));
        }
        if let Some((at, value)) = self.find(key).filter(|(_, value)| **value != Value::Null) {
            setting.offer(By::Node(self.child(at)), parse(value));
        }
        setting
    }

    /// A section below this one.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        self.asked.push(key);
        let path = self.key(key);
        match self.find(key) {
            Some((at, value)) => self.context.section_of(value, self.child(at), path),
            None => Section { entries: None, node: Vec::new(), asked: Vec::new(), path, ..*self },
        }
    }

    /// A key that must not be there, with what to do instead. Nobody is told that it is known.
    pub(super) fn refuse(&mut self, key: &'static str, message: &str) {
        if let Some((at, _)) = self.find(key) {
            self.asked.push(key);
            self.context.problem(By::Node(self.child(at)), &self.key(key), message);
        }
    }

    /// The elements of a list, with their places; `None`: it is not there.
    pub(super) fn list(&mut self, key: &'static str) -> Option<Vec<Element<'a>>> {
        self.asked.push(key);
        let (at, value) = self.find(key).filter(|(_, value)| **value != Value::Null)?;
        let (node, path, context) = (self.child(at), self.key(key), self.context);
        let Value::List(list) = value else {
            context.problem(By::Node(node.clone()), &path, format!("{} is no list", describe(value)));
            return None;
        };
        let element = |(i, value)| Element {
            context,
            value,
            node: [node.as_slice(), &[i]].concat(),
            path: format!("{path}[{i}]"),
        };
        Some(list.iter().enumerate().map(element).collect())
    }

    /// The entries of a map with free keys, such as labels.
    pub(super) fn map(&mut self, key: &'static str) -> Vec<(&'a str, Element<'a>)> {
        let mut section = self.section(key);
        let entries = section.entries.take().map(Vec::as_slice).unwrap_or_default();
        section.report_duplicates(entries);
        let element = |(i, (key, value)): (usize, &'a (String, Value))| {
            let (node, path) = (section.child(i), section.key(key));
            (key.as_str(), Element { context: section.context, value, node, path })
        };
        entries.iter().enumerate().map(element).collect()
    }

    /// Whether the file has a section below this key, where a word would do, too.
    pub(super) fn is_section(&self, key: &str) -> bool {
        matches!(self.find(key), Some((_, Value::Map(_))))
    }

    /// Where the file has the key.
    pub(super) fn place_of(&self, key: &str) -> By {
        self.find(key).map_or(By::Nobody, |(at, _)| By::Node(self.child(at)))
    }

    fn find(&self, key: &str) -> Option<(usize, &'a Value)> {
        let entries = self.entries?;
        entries.iter().enumerate().find(|(_, (name, _))| name == key).map(|(at, (_, value))| (at, value))
    }

    fn child(&self, at: usize) -> NodePath {
        [self.node.as_slice(), &[at]].concat()
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn report_duplicates(&self, entries: &[(String, Value)]) {
        let mut seen = HashMap::new();
        for (at, (key, _)) in entries.iter().enumerate() {
            let first = *seen.entry(key).or_insert(at);
            if first == at {
                continue;
            }
            let line = match self.context.origin(&By::Node(self.child(first))) {
                Origin::File { place: Some((line, _)), .. } => format!(" (first in line {line})"),
                _ => String::new(),
            };
            self.context.problem(By::Node(self.child(at)), &self.key(key), format!("given twice{line}"));
            if self.context.problem_count() > MOST_PROBLEMS {
                return;
            }
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let entries = self.entries.map(Vec::as_slice).unwrap_or_default();
        self.report_duplicates(entries);
        for (at, (key, _)) in
            entries.iter().enumerate().filter(|(_, (key, _))| !self.asked.contains(&key.as_str()))
        {
            let message = format!("unknown key; {}", suggest(key, &self.asked));
            self.context.problem(By::Node(self.child(at)), &self.key(key), message);
        }
    }
}

/// How alike two names have to be for one to be suggested for the other (Jaro-Winkler, 0–1).
const ALIKE: f64 = 0.85;

fn suggest(key: &str, known: &[&'static str]) -> String {
    let alike = |name: &&str| strsim::jaro_winkler(key, name);
    let nearest = known.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match nearest.filter(|name| alike(name) >= ALIKE) {
        Some(name) => format!("did you mean {name}?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// An element of a list, or an entry with a free key.
pub(super) struct Element<'a> {
    context: &'a Context<'a>,
    pub(super) value: &'a Value,
    node: NodePath,
    pub(super) path: String,
}

impl<'a> Element<'a> {
    /// As a section.
    pub(super) fn section(&self) -> Section<'a> {
        self.context.section_of(self.value, self.node.clone(), self.path.clone())
    }

    /// As a value; what is wrong is reported.
    pub(super) fn parse<T>(&self, parse: impl Fn(&Value) -> Result<T, String>) -> Option<T> {
        parse(self.value).map_err(|message| self.problem(message)).ok()
    }

    pub(super) fn problem(&self, message: impl Into<String>) {
        self.context.problem(self.place(), &self.path, message);
    }

    /// Where it stands.
    pub(super) fn place(&self) -> By {
        By::Node(self.node.clone())
    }
}

impl<'a> Context<'a> {
    fn section_of(&'a self, value: &'a Value, node: NodePath, path: String) -> Section<'a> {
        let entries = match value {
            Value::Map(entries) => Some(entries),
            Value::Null => None,
            _ => {
                let message = format!("{} where keys and values are needed", describe(value));
                self.problem(By::Node(node.clone()), &path, message);
                None
            }
        };
        Section { context: self, entries, node, path, asked: Vec::new() }
    }
}

/// A setting on its way: the first one who said something that makes sense wins, but whatever makes no
/// sense is reported, whoever said it.
#[must_use]
pub(super) struct Setting<'a, T> {
    context: &'a Context<'a>,
    key: String,
    found: Option<(T, By)>,
    bad: Option<By>,
}

impl<'a, T> Setting<'a, T> {
    /// A variable that sets it, too, and beats the file. Of several the one named first wins.
    pub(super) fn env(mut self, name: &str, parse: impl Fn(&Value) -> Result<T, String>) -> Self {
        if let Some(text) = self.context.variable(name) {
            self.offer(By::Variable(name.to_owned()), parse(&Value::Loose(text)));
        }
        self
    }

    /// The same, for a variable that does not always say something about this setting.
    pub(super) fn env_maybe(mut self, name: &str, parse: impl Fn(&str) -> Result<Option<T>, String>) -> Self {
        if let Some(parsed) = self.context.variable(name).and_then(|text| parse(&text).transpose()) {
            self.offer(By::Variable(name.to_owned()), parsed);
        }
        self
    }

    fn offer(&mut self, by: By, parsed: Result<T, String>) {
        match parsed {
            Ok(value) => {
                // Two variables are of one rank: the one that was asked first stays.
                let of_a_variable = |by: &By| matches!(by, By::Variable(_));
                let stays = |first: &By| *first < by || of_a_variable(first) && of_a_variable(&by);
                if !self.found.as_ref().is_some_and(|(_, first)| stays(first)) {
                    self.found = Some((value, by));
                }
            }
            Err(message) => {
                self.context.problem(by.clone(), &self.key, message);
                self.bad = Some(by);
            }
        }
    }

    /// Its value or the default.
    pub(super) fn or(self, default: T) -> At<T>
    where
        T: Show,
    {
        let (context, key, bad) = (self.context, self.key.clone(), self.bad.clone());
        self.optional().unwrap_or_else(|| {
            if bad.is_none() {
                context.record(&key, default.show(), By::Nobody);
            }
            At { value: default, key, bad: bad.is_some(), by: bad.unwrap_or(By::Nobody) }
        })
    }

    /// Its value, if somebody gave one that makes sense.
    pub(super) fn optional(self) -> Option<At<T>>
    where
        T: Show,
    {
        let context = self.context;
        let found = self.unrecorded()?;
        context.record(&found.key, found.value.show(), found.by.clone());
        Some(found)
    }

    /// The same, without a line in the report of `check`: for elements of lists, and secrets.
    pub(super) fn unrecorded(self) -> Option<At<T>> {
        let (value, by) = self.found?;
        Some(At { value, key: self.key, by, bad: false })
    }
}

impl Overrides {
    fn get(&self, key: &str) -> Option<&(String, String)> {
        self.0.get(key)
    }
}
