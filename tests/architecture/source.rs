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
        let code = without_items(without_items(without_words(text), TEST), IMPOSSIBLE);
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
                    all.push((name, std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        all.sort_by(|a: &(String, String), b| a.0.cmp(&b.0));
        Self::of(&all)
    }

    /// Sources from their paths and texts. A module that is there for tests alone has no code.
    fn of(files: &[(String, String)]) -> Vec<Self> {
        let tests: BTreeSet<String> =
            files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
        let is_test = |path: &str| {
            let module = path.trim_end_matches(".rs").trim_end_matches("/mod");
            tests.iter().any(|test| module == test || module.starts_with(&format!("{test}/")))
        };
        let all = files.iter().map(|(path, text)| (is_test(path), Self::new(path, text)));
        all.map(|(test, source)| if test { Self { code: String::new(), ..source } } else { source }).collect()
    }

    /// The module below the crate's root that it belongs to.
    pub fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        room(first.strip_suffix(".rs").unwrap_or(first))
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
                let room = if leaf { "accounts::secret" } else { room(path.split("::").next().unwrap()) };
                if room != self.room() {
                    rooms.insert(room.to_owned());
                }
            }
        }
        rooms
    }
}

/// The verbs and their flags are one room: each verb declares its own flags, `cli` gathers them.
fn room(module: &str) -> &str {
    if module == "cli" { "commands" } else { module }
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

const TEST: &[&str] = &["#[cfg(test)]"];
/// What the compiler checks to be needed, and what says why it can't happen.
const IMPOSSIBLE: &[&str] =
    &["#[expect(clippy::unwrap_used", "#[expect(clippy::expect_used", "#[expect(clippy::panic"];

/// What one of `marks` stands before becomes blank: a block in braces, or all up to a semicolon.
fn without_items(code: String, marks: &[&str]) -> String {
    let (mut out, mut rest) = (String::new(), code.as_str());
    while let Some(at) = marks.iter().filter_map(|mark| rest.find(mark)).min() {
        out.push_str(&rest[..at]);
        let end = at + item(&rest[at..]);
        out.extend(rest[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[end..];
    }
    out + rest
}

/// Length of the item at the start, its attributes included.
fn item(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(c, '}' | ';') {
            return at + 1;
        }
    }
    code.len()
}

/// The modules with files of their own that a file declares for tests alone: `telemetry/taken`.
fn test_modules(path: &str, text: &str) -> Vec<String> {
    let folder = path.strip_suffix("mod.rs").map(str::to_owned);
    let folder = folder.unwrap_or_else(|| format!("{}/", path.trim_end_matches(".rs")));
    let code = without_words(text);
    let declared = code.match_indices(TEST[0]).filter_map(|(at, mark)| {
        let item = code[at + mark.len()..].split(['{', ';']).next()?.trim();
        let (_, name) =
            format!(" {item}").split_once(" mod ").map(|(a, b)| (a.to_owned(), b.trim().to_owned()))?;
        Some(format!("{folder}{name}"))
    });
    declared.collect()
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
fn what_is_expected_is_exempt_and_what_follows_is_not() {
    let text = "#[expect(clippy::unwrap_used, reason = \"a; constant\")]\nstatic R: L = L::new(|| x.unwrap());\nfn f() { x.unwrap() }";
    assert_eq!(Source::new("room/file.rs", text).find(".unwrap()"), ["room/file.rs:3"]);
}

#[test]
fn a_module_for_tests_is_no_code() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let wrong = "fn f() { x.unwrap() }";
    let declares =
        file("room/mod.rs", "#[cfg(test)]\npub(crate) mod taken;\nmod given;\n#[cfg(test)]\nmod t { }");
    let sources = Source::of(&[declares, file("room/given.rs", wrong), file("room/taken.rs", wrong)]);
    let found: Vec<_> = sources.iter().flat_map(|source| source.find(".unwrap()")).collect();
    assert_eq!(found, ["room/given.rs:1"]);
}

#[test]
fn rooms_are_told_from_paths_and_groups() {
    let text = "use crate::{config::{Config, x}, ssh, accounts::Secret};\nfn f(_: crate::vim::Client, _: crate::own::X) { $crate::no::no() }";
    let rooms = Source::new("own/mod.rs", text).rooms();
    assert_eq!(rooms.into_iter().collect::<Vec<_>>(), ["accounts::secret", "config", "ssh", "vim"]);
}
