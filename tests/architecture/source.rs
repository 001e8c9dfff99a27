//! The crate's sources as text: without comments, strings and tests, line by line where they were.

use std::collections::BTreeSet;
use std::path::Path;

/// One file of `src/`.
#[derive(Debug, Clone)]
pub struct Source {
    /// Path below `src/`, with slashes.
    pub path: String,
    /// Number of lines, everything included.
    pub lines: usize,
    /// Code alone: comments, strings and tests are blank, lines stay where they are.
    pub code: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = without_tests(&without_words(text));
        let code = if is_test(path) { String::new() } else { code };
        Self { path: path.to_owned(), lines: text.lines().count(), code }
    }

    /// Every file of the crate.
    pub fn all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut all = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                    all.push(Self::new(&name, &std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// The module below the crate's root that it belongs to.
    pub fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    pub fn is_in(&self, folder: &str) -> bool {
        self.room() == folder
    }

    /// Where `needle` occurs as a whole path or word, as `path:line`.
    pub fn find(&self, needle: &str) -> Vec<String> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut found = Vec::new();
        for (number, line) in self.code.lines().enumerate() {
            for (at, _) in line.match_indices(needle) {
                let before = line[..at].chars().next_back();
                let after = line[at + needle.len()..].chars().next();
                let open = needle.starts_with(word) && before.is_some_and(word);
                let goes_on = needle.ends_with(word) && after.is_some_and(word);
                if !open && !goes_on {
                    found.push(format!("{}:{}", self.path, number + 1));
                }
            }
        }
        found
    }

    /// The rooms that it names, its own left out. `accounts::Secret` is a leaf of its own.
    pub fn rooms(&self) -> BTreeSet<String> {
        let mut rooms = BTreeSet::new();
        let code: String = self.code.split_whitespace().collect::<Vec<_>>().join(" ");
        for (at, _) in code.match_indices("crate::") {
            if code[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            for path in paths(&code[at + "crate::".len()..]) {
                let leaf = ["accounts::Secret", "accounts::secret"].iter().any(|leaf| path.starts_with(leaf));
                let room = if leaf { "accounts::secret" } else { path.split("::").next().unwrap() };
                if room != self.room() {
                    rooms.insert(room.to_owned());
                }
            }
        }
        rooms
    }
}

/// The paths that follow `crate::`: one, or those of a group in braces.
fn paths(rest: &str) -> Vec<String> {
    let path = |text: &str| -> String {
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let Some(group) = rest.strip_prefix('{') else { return vec![path(rest)] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                let one = path(group[start..at].trim());
                if !one.is_empty() {
                    found.push(one);
                }
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// Whether a file holds nothing but tests.
fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap();
    name == "tests.rs" || name.ends_with("_tests.rs") || path.split('/').any(|part| part == "tests")
}

/// Comments and the insides of strings become blanks.
fn without_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let raw =
            raw_string(rest).filter(|_| !out.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'));
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw {
            length
        } else if c == '"' {
            string(rest)
        } else if c == '\'' {
            character(rest)
        } else {
            0
        };
        if taken == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..taken].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[taken..];
        }
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// Length of a raw string at the start.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.bytes().take_while(|b| *b == b'#').count();
    let inside = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(text.len() - inside.len() + length)
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of a character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut rest = text.char_indices().skip(1);
    match (rest.next(), rest.next()) {
        (Some((_, '\\')), Some((at, c))) => {
            let from = at + c.len_utf8();
            text[from..].find('\'').map_or(0, |end| from + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

/// What `#[cfg(test)]` stands before becomes blank: a block in braces, or all up to a semicolon.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut rest) = (String::new(), code);
    while let Some(at) = rest.find(MARK) {
        out.push_str(&rest[..at]);
        let (mut depth, mut end) = (0, rest.len());
        for (offset, c) in rest[at..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(c, '}' | ';') {
                end = at + offset + 1;
                break;
            }
        }
        out.extend(rest[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[end..];
    }
    out + rest
}

#[test]
fn comments_strings_and_tests_are_no_code() {
    let text = r##"
fn f<'a>(x: &'a str) -> char { '"' } // .unwrap()
/* .unwrap() /* nested */ .unwrap() */
const A: &str = ".unwrap() \" .unwrap()";
const B: &str = r#".unwrap() " .unwrap()"#;
fn g() { x.unwrap() }
#[cfg(test)]
mod tests { fn h() { x.unwrap() } }
#[cfg(test)]
mod other;
fn i() { x.unwrap() }
"##;
    assert_eq!(Source::new("room/file.rs", text).find(".unwrap()"), ["room/file.rs:6", "room/file.rs:11"]);
    assert!(Source::new("room/tests.rs", text).find(".unwrap()").is_empty());
}

#[test]
fn rooms_are_told_from_paths_and_groups() {
    let text = "use crate::{config::{Config, x}, ssh, accounts::Secret};\nfn f(_: crate::vim::Client, _: crate::own::X) { $crate::no::no() }";
    let rooms = Source::new("own/mod.rs", text).rooms();
    assert_eq!(rooms.into_iter().collect::<Vec<_>>(), ["accounts::secret", "config", "ssh", "vim"]);
}
