//! The rooms keep their floors: what a room of the library imports lies strictly below it.
//!
//! Reads the sources as Rust reads them: from `lib.rs` along its `mod` lines, without comments, strings and what is
//! compiled for tests only. `lib.rs` is the map of the tree and belongs to no floor.

use std::{
    collections::BTreeSet,
    fmt, fs,
    iter::Peekable,
    path::{Path, PathBuf},
    str::Chars,
};

/// The tree, from the top floor down.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["gateway"],
    &["connection", "admin", "diagnose", "service"],
    &["http", "relay", "backend", "transport"],
    &["config"],
    &["session", "metrics", "admission", "websocket"],
    &["counting_stream", "outcome", "pem", "watched_file"],
];

#[test]
fn rooms_import_from_floors_below_only() {
    let tree = SourceTree::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path());
    let rooms: BTreeSet<&str> = tree.imports.iter().map(|import| import.from.as_str()).collect();
    for room in ["cli", "gateway", "connection", "relay", "config", "session"] {
        assert!(rooms.contains(room), "no import of {room} was read, only those of {rooms:?}");
    }
    let violations: Vec<String> = tree.imports.iter().filter_map(violation).collect();
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn every_source_file_is_reached() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let tree = SourceTree::read(&src);
    let strays: Vec<_> = all_files(&src).difference(&tree.files).cloned().collect();
    assert!(strays.is_empty(), "no `mod` line leads to {strays:?}, so nobody compiles or checks them");
}

fn all_files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            files.append(&mut all_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(path);
        }
    }
    files
}

/// One path from a room to something that is not its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    file: PathBuf,
    line: usize,
    from: String,
    to: Target,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Room(String),
    /// The whole tree at once, or under another name.
    Root,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Room(room) => write!(f, "crate::{room}"),
            Self::Root => write!(f, "the crate's root"),
        }
    }
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// What is wrong with an import, if anything is.
fn violation(import: &Import) -> Option<String> {
    let Import { file, line, from, to } = import;
    let wrong = match to {
        Target::Root => Some("nobody can see what it means".to_owned()),
        Target::Room(to) if to == from => None,
        Target::Room(to) => match (floor(from), floor(to)) {
            (None, _) => Some(format!("{from} has no floor yet: give it one in tests/modules.rs")),
            (_, None) => Some(format!("{to} has no floor yet: give it one in tests/modules.rs")),
            (Some(above), Some(below)) if above < below => None,
            (Some(here), Some(there)) if here == there => Some("they are on one floor".to_owned()),
            _ => Some("it is on a floor above".to_owned()),
        },
    };
    wrong.map(|wrong| format!("{}:{line}: {from} imports {to}: {wrong}", file.display()))
}

/// What is found in the sources.
#[derive(Debug, Default)]
struct SourceTree {
    /// Every file a `mod` line leads to, those for tests included.
    files: BTreeSet<PathBuf>,
    imports: Vec<Import>,
}

impl SourceTree {
    fn read(src: &Path) -> Self {
        let mut tree = Self::default();
        let lib = src.join("lib.rs");
        for (room, for_tests) in modules(&source(&lib)) {
            assert!(!for_tests, "a room for tests only: {room}");
            tree.enter(file_of(src, &room), src, &[room]);
        }
        let main = src.join("main.rs");
        // The program sees the library from outside, by its name.
        let of_main = source(&main).into_iter().map(|mut token| {
            if token.is("portcullis") {
                token.text = "crate".to_owned();
            }
            token
        });
        tree.add_imports(&main, &["main".to_owned()], of_main.collect());
        tree.files.extend([lib, main]);
        tree
    }

    /// Reads one module and those it declares. `path` are the modules from the root to it.
    fn enter(&mut self, file: PathBuf, directory: &Path, path: &[String]) {
        let tokens = source(&file);
        let below = directory.join(&path[path.len() - 1]);
        for (name, for_tests) in modules(&tokens) {
            let child = file_of(&below, &name);
            if for_tests {
                self.files.insert(child);
            } else {
                self.enter(child, &below, &[path, &[name]].concat());
            }
        }
        self.add_imports(&file, path, tokens);
        self.files.insert(file);
    }

    fn add_imports(&mut self, file: &Path, path: &[String], tokens: Vec<Token>) {
        self.imports.extend(imports(file, path, &without_tests(tokens)));
    }
}

fn source(file: &Path) -> Vec<Token> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    tokens(&text)
}

/// `name.rs` or `name/mod.rs`.
fn file_of(directory: &Path, name: &str) -> PathBuf {
    let file = directory.join(format!("{name}.rs"));
    if file.is_file() { file } else { directory.join(name).join("mod.rs") }
}

/// The modules in files of their own that a source declares, and whether each is for tests only.
fn modules(tokens: &[Token]) -> Vec<(String, bool)> {
    let mut modules = Vec::new();
    let kept: BTreeSet<usize> = without_tests(tokens.to_vec()).iter().map(|token| token.place).collect();
    for (at, window) in tokens.windows(3).enumerate() {
        if window[0].is("mod") && window[2].is(";") {
            let attribute = tokens[..at].iter().rev().take_while(|token| !token.is(";") && !token.is("}"));
            assert!(
                !attribute.into_iter().any(|token| token.is("path")),
                "a module with a #[path]: {}",
                window[1].text
            );
            modules.push((window[1].text.clone(), !kept.contains(&window[0].place)));
        }
    }
    modules
}

/// Every path that begins at the crate's root, or reaches it by `super`, and the room it leads to.
fn imports(file: &Path, path: &[String], tokens: &[Token]) -> Vec<Import> {
    let mut imports = Vec::new();
    // How deep in braces each module inside this file began.
    let mut inner: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        let token = &tokens[at];
        match token.text.as_str() {
            "{" => {
                if at >= 2 && tokens[at - 2].is("mod") {
                    inner.push(depth);
                }
                depth += 1;
            }
            "}" => {
                depth -= 1;
                inner.pop_if(|began| *began == depth);
            }
            "crate" => {
                at = follow(tokens, at + 1, &mut imports);
                continue;
            }
            "super" => {
                let mut ups = 1;
                while tokens.get(at + 1).is_some_and(|token| token.is("::"))
                    && tokens.get(at + 2).is_some_and(|token| token.is("super"))
                {
                    ups += 1;
                    at += 2;
                }
                if ups >= path.len() + inner.len() {
                    at = follow(tokens, at + 1, &mut imports);
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    let from = &path[0];
    imports
        .into_iter()
        .map(|(line, to)| Import { file: file.to_owned(), line, from: from.clone(), to })
        .collect()
}

/// Reads on behind a path to the crate's root: `::room…`, or `::{room…, room::{…}}`. Returns where to go on.
fn follow(tokens: &[Token], at: usize, targets: &mut Vec<(usize, Target)>) -> usize {
    let line = tokens[at - 1].line;
    if !tokens.get(at).is_some_and(|token| token.is("::")) {
        // `pub(crate)` and `pub(in crate)` say who may look in, not out.
        let visibility = tokens.get(at).is_some_and(|token| token.is(")"))
            && tokens[..at - 1].iter().rev().take(2).any(|token| token.is("pub"))
            || tokens[..at - 1].iter().rev().take(3).any(|token| token.is("pub")) && tokens[at - 2].is("in");
        if !visibility {
            targets.push((line, Target::Root));
        }
        return at;
    }
    match tokens.get(at + 1) {
        Some(token) if token.is("{") => group(tokens, at + 2, targets),
        Some(token) if token.is_name() => {
            targets.push((token.line, Target::Room(token.text.clone())));
            at + 2
        }
        _ => {
            targets.push((line, Target::Root));
            at + 1
        }
    }
}

/// The members of a `{…}` right behind the crate's root: only the first name of each matters.
fn group(tokens: &[Token], mut at: usize, targets: &mut Vec<(usize, Target)>) -> usize {
    let mut depth = 1;
    let mut first = true;
    while depth > 0 && at < tokens.len() {
        let token = &tokens[at];
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => first = true,
            "::" if first => {}
            name if first && depth == 1 => {
                first = false;
                let is_room = token.is_name() && !["self", "super", "crate"].contains(&name);
                targets
                    .push((token.line, if is_room { Target::Room(name.to_owned()) } else { Target::Root }));
            }
            _ => {}
        }
        at += 1;
    }
    at
}

/// The tokens without the items that stand under `#[cfg(test)]` or `#[cfg(all(test, …))]`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !tokens[at].is("#") {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let inner = tokens.get(at + 1).is_some_and(|token| token.is("!"));
        let end = closing(&tokens, at + 1 + usize::from(inner));
        if !is_test(&tokens[at..end]) {
            kept.extend_from_slice(&tokens[at..end]);
            at = end;
        } else if inner {
            break;
        } else {
            at = end_of_item(&tokens, end);
        }
    }
    kept
}

/// Whether an attribute is `cfg(test)` or `cfg(all(test, …))`.
fn is_test(attribute: &[Token]) -> bool {
    let words: Vec<&str> =
        attribute.iter().filter(|token| token.is_name()).map(|token| token.text.as_str()).collect();
    matches!(words[..], ["cfg", "test"] | ["cfg", "all", "test", ..]) && !words.contains(&"not")
}

/// Behind the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Behind the item, field or statement that begins at `start`, its other attributes included.
fn end_of_item(tokens: &[Token], start: usize) -> usize {
    // Of these, braces are not the end.
    let ends_with_semicolon =
        |token: &Token| ["use", "let", "const", "static"].contains(&token.text.as_str());
    let mut at = start;
    let mut by_semicolon = false;
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            ";" | "," => return at + 1,
            ")" | "]" | "}" => return at,
            "{" if !by_semicolon => return closing(tokens, at),
            "(" | "[" | "{" => at = closing(tokens, at),
            "fn" => {
                // `const fn` ends like any function.
                by_semicolon = false;
                at += 1;
            }
            _ => {
                by_semicolon |= ends_with_semicolon(token);
                at += 1;
            }
        }
    }
    at
}

/// A word or a sign of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
    /// Which of the source's tokens.
    place: usize,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        self.text == text
    }

    fn is_name(&self) -> bool {
        self.text.starts_with(|first: char| first == '_' || first.is_alphabetic())
    }
}

/// Splits a source into names, numbers and signs (`::` is one). Comments, strings, characters and lifetimes are
/// left out.
fn tokens(source: &str) -> Vec<Token> {
    let mut chars = source.chars().peekable();
    let mut line = 1;
    let mut tokens: Vec<Token> = Vec::new();
    while let Some(char) = chars.next() {
        let began = line;
        let mut text = String::from(char);
        match char {
            '\n' => line += 1,
            '/' if chars.peek() == Some(&'/') => {
                while chars.next_if(|char| *char != '\n').is_some() {}
                continue;
            }
            '/' if chars.peek() == Some(&'*') => {
                line += block_comment(&mut chars);
                continue;
            }
            '"' => {
                line += string(&mut chars);
                continue;
            }
            '\'' => {
                quote(&mut chars);
                continue;
            }
            ':' if chars.next_if_eq(&':').is_some() => text.push(':'),
            _ if is_word(char) => {
                while let Some(next) = chars.next_if(|char| is_word(*char)) {
                    text.push(next);
                }
                match (text.as_str(), chars.peek()) {
                    ("r" | "br" | "cr", Some('"' | '#')) => {
                        if let Some(lines) = raw_string(&mut chars) {
                            line += lines;
                            continue;
                        }
                        // A raw name: `r#type`.
                        text.clear();
                        while let Some(next) = chars.next_if(|char| is_word(*char)) {
                            text.push(next);
                        }
                    }
                    ("b" | "c", Some('"' | '\'')) => continue,
                    _ => {}
                }
            }
            _ => {}
        }
        if !char.is_whitespace() {
            let place = tokens.len();
            tokens.push(Token { text, line: began, place });
        }
    }
    tokens
}

fn is_word(char: char) -> bool {
    char == '_' || char.is_alphanumeric()
}

/// Skips a comment that may hold others. Returns how many lines it ends.
fn block_comment(chars: &mut Peekable<Chars<'_>>) -> usize {
    let (mut depth, mut lines) = (0, 0);
    let mut last = '/';
    for char in chars.by_ref() {
        lines += usize::from(char == '\n');
        match (last, char) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                last = char;
                continue;
            }
        }
        // The same sign is not part of two.
        last = ' ';
        if depth == 0 {
            break;
        }
    }
    lines
}

fn string(chars: &mut Peekable<Chars<'_>>) -> usize {
    let mut lines = 0;
    while let Some(char) = chars.next() {
        match char {
            '"' => break,
            '\\' => lines += usize::from(chars.next() == Some('\n')),
            '\n' => lines += 1,
            _ => {}
        }
    }
    lines
}

/// Skips what follows `r`: `#"…"#`. `None`, with the signs skipped, if it is no string.
fn raw_string(chars: &mut Peekable<Chars<'_>>) -> Option<usize> {
    let mut hashes = 0;
    while chars.next_if_eq(&'#').is_some() {
        hashes += 1;
    }
    chars.next_if_eq(&'"')?;
    let (mut lines, mut seen) = (0, None);
    for char in chars.by_ref() {
        lines += usize::from(char == '\n');
        seen = match (char, seen) {
            ('"', _) => Some(0),
            ('#', Some(count)) => Some(count + 1),
            _ => None,
        };
        if seen == Some(hashes) {
            break;
        }
    }
    Some(lines)
}

/// Skips a character or a lifetime, of which only the first has a closing quote.
fn quote(chars: &mut Peekable<Chars<'_>>) {
    match chars.next() {
        Some('\\') => {
            chars.next();
            while chars.next().is_some_and(|char| char != '\'') {}
        }
        Some(first) if is_word(first) => {
            while chars.next_if(|char| is_word(*char)).is_some() {}
            chars.next_if_eq(&'\'');
        }
        Some(_) => {
            chars.next_if_eq(&'\'');
        }
        None => {}
    }
}

/// The checker itself, on made-up sources.
mod checker {
    use super::*;

    /// What the file of a module reaches, as "line room".
    fn reached(path: &[&str], source: &str) -> Vec<String> {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        let found = imports(Path::new("made-up.rs"), &path, &without_tests(tokens(source)));
        let words = |import: &Import| match &import.to {
            Target::Room(room) => format!("{} {room}", import.line),
            Target::Root => format!("{} root", import.line),
        };
        found.iter().map(words).collect()
    }

    fn verdict(from: &str, source: &str) -> Option<String> {
        let path = [from.to_owned()];
        let found = imports(Path::new("made-up.rs"), &path, &without_tests(tokens(source)));
        assert_eq!(found.len(), 1, "{found:?}");
        violation(&found[0])
    }

    #[test]
    fn a_use_over_many_lines_is_read_whole() {
        let source = "use std::io;\n\nuse crate::{\n    config::{Config, Route},\n    http::{self, Body},\n    outcome::Reason,\n};";
        assert_eq!(reached(&["connection"], source), ["4 config", "5 http", "6 outcome"]);
        assert_eq!(reached(&["a"], "use crate::{b::{c::{d, e}, f}, ::g::h};"), ["1 b", "1 g"]);
        assert_eq!(reached(&["a"], "use crate\n  ::\n  b\n  ::C;"), ["3 b"]);
    }

    #[test]
    fn paths_in_code_count_too() {
        let source = "fn f() -> crate::config::Config { crate::http::go::<crate::session::Session>(); $crate::relay!() }";
        assert_eq!(reached(&["a"], source), ["1 config", "1 http", "1 session", "1 relay"]);
        assert_eq!(reached(&["a"], "impl crate::relay::Link for X {}"), ["1 relay"]);
    }

    #[test]
    fn super_is_followed_to_the_root_and_no_further() {
        assert_eq!(reached(&["session"], "use super::relay::Rules;"), ["1 relay"]);
        assert!(reached(&["relay", "inbound"], "use super::pending::Pending;").is_empty());
        assert_eq!(reached(&["relay", "inbound"], "use super::super::http::Body;"), ["1 http"]);
        assert_eq!(reached(&["session"], "use super::{relay::Rules, http};"), ["1 relay", "1 http"]);
        let nested = "mod inner { use super::own; use super::super::relay; } use super::http;";
        assert_eq!(reached(&["session"], nested), ["1 relay", "1 http"]);
        assert_eq!(reached(&["session"], "use super::*;"), ["1 root"]);
    }

    #[test]
    fn the_root_itself_is_never_imported() {
        for source in ["use crate::*;", "use crate as tree;", "use crate::{self as tree};", "use crate::{*};"]
        {
            assert_eq!(reached(&["a"], source), ["1 root"], "{source}");
        }
        for source in [
            "pub(crate) fn f() {}",
            "pub(in crate) fn f() {}",
            "pub(super) fn f() {}",
            "struct S { pub(crate) a: u8 }",
        ] {
            assert!(reached(&["a"], source).is_empty(), "{source}");
        }
    }

    #[test]
    fn comments_strings_and_characters_are_not_code() {
        let source = r####"
            //! [`crate::a`]
            /* use crate::b; /* crate::c */ crate::d */
            const S: &str = "crate::e \" crate::f";
            const R: &str = r#"crate::g " crate::h"#;
            const B: &[u8] = b"crate::i";
            const C: [char; 3] = ['"', '\'', '{'];
            fn f<'a>(x: &'a str) -> crate::real::Thing<'a> {}
            use crate::r#type::X;
        "####;
        assert_eq!(reached(&["x"], source), ["8 real", "9 type"]);
    }

    #[test]
    fn only_what_is_for_tests_is_left_out() {
        let source = "
            #[cfg(test)]
            mod tests;
            use crate::kept;
            #[cfg(test)]
            use crate::{left, out};
            #[cfg(test)]
            #[expect(dead_code, reason = \"why\")]
            fn helper(a: [u8; 2]) -> u8 { crate::left::out() }
            #[cfg(all(test, unix))]
            const X: S = S { a: crate::left::A };
            #[cfg(not(test))]
            use crate::real;
            struct T { #[cfg(test)] a: crate::left::A, b: crate::also::B }
            #[cfg(test)]
            mod more { use crate::left; mod deep { use crate::left; } }
            use crate::last;";
        assert_eq!(reached(&["a"], source), ["4 kept", "13 real", "14 also", "17 last"]);
        assert!(reached(&["a"], "#![cfg(test)]\nuse crate::left;").is_empty());
    }

    #[test]
    fn modules_for_tests_are_told_from_the_others() {
        let source = "mod a;\npub mod b;\n#[cfg(test)]\nmod c;\nmod d { }\npub(crate) mod e;";
        let expected = [("a", false), ("b", false), ("c", true), ("e", false)];
        assert_eq!(modules(&tokens(source)), expected.map(|(name, tests)| (name.to_owned(), tests)));
    }

    #[test]
    fn an_import_upwards_or_sideways_is_a_violation() {
        assert_eq!(verdict("gateway", "use crate::connection;"), None);
        assert_eq!(verdict("config", "use crate::admission::PerIp;"), None);
        assert_eq!(verdict("relay", "use crate::relay::Rules;"), None);
        assert_eq!(
            verdict("outcome", "\nuse crate::session::Session;").unwrap(),
            "made-up.rs:2: outcome imports crate::session: it is on a floor above"
        );
        assert!(verdict("relay", "use crate::http::Body;").unwrap().ends_with("they are on one floor"));
        assert!(verdict("relay", "use crate::cellar::Wine;").unwrap().contains("cellar has no floor yet"));
        assert!(verdict("cellar", "use crate::outcome;").unwrap().contains("cellar has no floor yet"));
        assert!(verdict("relay", "use crate::*;").unwrap().contains("nobody can see"));
    }

    #[test]
    fn a_tree_is_read_along_its_mod_lines() {
        let directory = tempfile::tempdir().unwrap();
        let src = directory.path();
        fs::create_dir_all(src.join("relay")).unwrap();
        let write = |name: &str, text: &str| fs::write(src.join(name), text).unwrap();
        write("lib.rs", "pub mod outcome;\npub mod relay;\n");
        write("main.rs", "fn main() { portcullis::relay::go() }");
        write("outcome.rs", "use crate::relay::Rules;");
        write("relay/mod.rs", "#[cfg(test)]\nmod tests;\nmod inbound;\nuse crate::outcome::Reason;");
        write("relay/inbound.rs", "use crate::outcome::Reason;");
        write("relay/tests.rs", "use crate::gateway::Gateway;");
        let tree = SourceTree::read(src);
        assert_eq!(tree.files, all_files(src));
        let violations: Vec<String> = tree.imports.iter().filter_map(violation).collect();
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert!(
            violations[0].ends_with("outcome.rs:1: outcome imports crate::relay: it is on a floor above")
        );
        let from: BTreeSet<&str> = tree.imports.iter().map(|import| import.from.as_str()).collect();
        assert_eq!(from, BTreeSet::from(["main", "outcome", "relay"]));
        write("forgotten.rs", "use crate::gateway;");
        assert_eq!(all_files(src).difference(&SourceTree::read(src).files).count(), 1);
    }
}
