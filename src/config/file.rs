//! The YAML file as it stands: a tree that keeps duplicate keys, and finds the place of each of its
//! nodes again.
//!
//! A tree of our own instead of derived structures, for the sake of the report: a derived
//! `Deserialize` ends at the first error, and knows no places afterwards.

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest configuration: some 100,000 hosts written by hand.
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// Most brackets that are open at a time.
const DEEPEST: usize = 1000;

/// A node of the tree, or a text from elsewhere that stands in for one.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    Map(Entries),
    /// From a flag or the environment, where everything is text.
    Loose(String),
}

pub(super) type Entries = Vec<(String, Value)>;

/// A place in the file: which child of which child. Of a map's child it is the key's.
pub(super) type NodePath = Vec<usize>;

/// A file that could be read as YAML.
#[derive(Debug)]
pub(super) struct File {
    /// As it was named.
    pub(super) name: Arc<str>,
    /// What relative paths in it are relative to.
    pub(super) folder: PathBuf,
    pub(super) entries: Entries,
    text: String,
}

/// Line and column, both from 1; `None` where the file as a whole is meant.
pub(super) type Place = Option<(usize, usize)>;

impl File {
    pub(super) fn read(path: &Path) -> Result<Self, (Place, String)> {
        let cannot = |e: std::io::Error| (None, format!("cannot be read: {e}"));
        let metadata = std::fs::metadata(path).map_err(cannot)?;
        if metadata.is_dir() {
            return Err((None, "is a directory; a YAML file is needed".to_owned()));
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(cannot)?;
        file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(cannot)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err((None, format!("is larger than {FILE_LIMIT} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let good = e.utf8_error().valid_up_to();
            let line = 1 + e.as_bytes().iter().take(good).filter(|b| **b == b'\n').count();
            (None, format!("is no UTF-8 text: line {line} holds other bytes"))
        })?;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        Self::parse(path.display().to_string().into(), folder, text)
    }

    fn parse(name: Arc<str>, folder: PathBuf, text: String) -> Result<Self, (Place, String)> {
        if let Some(place) = too_deep(&text) {
            return Err((Some(place), format!("has more than {DEEPEST} brackets within each other")));
        }
        let root: Value = serde_yaml::from_str(&text).map_err(|e| syntax_problem(&text, &e))?;
        match root {
            Value::Null => Ok(Self { name, folder, entries: Vec::new(), text }),
            Value::Map(entries) => Ok(Self { name, folder, entries, text }),
            _ => Err((Some((1, 1)), "keys such as `inventory:` are needed here".to_owned())),
        }
    }

    /// Where a node stands. Reads the text once more, so it is for problems and reports only.
    pub(super) fn place(&self, node: &[usize]) -> Place {
        let sought = Seek(node).deserialize(serde_yaml::Deserializer::from_str(&self.text));
        let location = sought.err()?.location()?;
        Some((location.line(), location.column()))
    }
}

/// Where brackets are nested too deeply. The parser refuses far less, but not before it has read everything, for which
/// it takes the square of the depth: minutes. Those in texts and comments count as well, so the limit is a generous one.
fn too_deep(text: &str) -> Option<(usize, usize)> {
    let mut depth = 0_usize;
    let at = text.bytes().position(|byte| {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > DEEPEST
    })?;
    let before = text.get(..at)?;
    Some((
        before.matches('\n').count() + 1,
        before.rsplit('\n').next().map_or(1, |line| line.chars().count() + 1),
    ))
}

fn syntax_problem(text: &str, error: &serde_yaml::Error) -> (Place, String) {
    let place = error.location().map(|at| (at.line(), at.column()));
    let line = place.and_then(|(line, _)| text.lines().nth(line.saturating_sub(1)));
    if line.is_some_and(|line| line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t')) {
        return (place, "is indented with a tab; YAML wants spaces".to_owned());
    }
    let message = error.to_string();
    if message.contains("invalid type: enum") {
        return (place, "has a tag such as !include; tags are not supported".to_owned());
    }
    // The place stands before the message already.
    let message = message.split(" at line ").next().unwrap_or_default().replace(['\n', '\r'], " ");
    (place, format!("is no YAML: {message}"))
}

impl<'de> de::Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Build)
    }
}

struct Build;

impl<'de> Visitor<'de> for Build {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Value>()? {
            let key = match key {
                Value::Text(key) => key,
                Value::Int(key) => key.to_string(),
                Value::Bool(key) => key.to_string(),
                _ => return Err(de::Error::custom("a key has to be a word")),
            };
            entries.push((key, map.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}

/// Walks to a node and fails there: the error has the place.
struct Seek<'a>(&'a [usize]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the way to a node")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((&at, rest)) = self.0.split_first() else { return Err(de::Error::custom("here")) };
        for _ in 0..at {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Seek(rest)).map(|_| ())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((&at, rest)) = self.0.split_first() else { return Err(de::Error::custom("here")) };
        for _ in 0..at {
            map.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        if rest.is_empty() {
            map.next_key_seed(Seek(rest)).map(|_| ())
        } else {
            map.next_key::<IgnoredAny>()?;
            map.next_value_seed(Seek(rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<File, (Place, String)> {
        File::parse("test.yaml".into(), PathBuf::new(), text.to_owned())
    }

    #[test]
    fn every_node_is_found_again() {
        let file = parse("a: 1\nb:\n  - x\n  - y: {z: 2}\nc:\n  d: &e [1]\n  f: *e\n").unwrap();
        for (node, place) in [
            (&[0][..], (1, 1)),
            (&[1], (2, 1)),
            (&[1, 0], (3, 5)),
            (&[1, 1], (4, 5)),
            (&[1, 1, 0], (4, 5)),
            (&[1, 1, 0, 0], (4, 9)),
            (&[2, 1], (7, 3)),
        ] {
            assert_eq!(file.place(node), Some(place), "{node:?}");
        }
        assert_eq!(file.place(&[7]), None);
    }

    #[test]
    fn duplicate_keys_are_kept_for_the_report() {
        let one = |n| ("a".to_owned(), Value::Int(n));
        assert_eq!(parse("a: 1\na: 2\n").unwrap().entries, [one(1), one(2)]);
    }

    #[test]
    fn deep_nesting_and_multiplying_anchors_are_refused() {
        let (place, problem) = parse(&format!("a: 1\nb: {}", "[".repeat(1_000_000))).unwrap_err();
        assert_eq!((place, &*problem), (Some((2, 1004)), "has more than 1000 brackets within each other"));
        assert!(parse(&"[".repeat(1_000)).unwrap_err().1.starts_with("is no YAML: "));
        assert_eq!(parse(&"a: '[{'\n".repeat(400)).unwrap().entries.len(), 400);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..20 {
            let below = format!("*a{}", n - 1);
            bomb += &format!("a{n}: &a{n} [{}]\n", vec![below; 10].join(", "));
        }
        assert!(parse(&bomb).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-c:\\-\\[\\]{}&*!<|>'\"#, \n\t0-9.?%@]{0,60}") {
            if let Ok(file) = parse(&text) {
                for at in 0..file.entries.len() {
                    prop_assert!(file.place(&[at]).is_some(), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn an_empty_file_has_no_entries() {
        assert_eq!(parse("# nothing\n").unwrap().entries, []);
    }
}
