//! The documents match the program: the table of reasons, links, named files, and configurations.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use portcullis::{
    config::Config,
    outcome::{Phase, Reason},
};

/// The least that a configuration needs, for examples that show only a part.
const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
const ROUTE: &str =
    "[[route]]\nname = \"example\"\npath = \"/example\"\nbackend = \"tcp://127.0.0.1:5900\"\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// README.md, CHANGELOG.md, certs/README.md and everything in docs/.
fn documents() -> Vec<PathBuf> {
    let mut documents =
        ["README.md", "CHANGELOG.md", "certs/README.md"].map(|name| root().join(name)).to_vec();
    let docs = fs::read_dir(root().join("docs")).expect("docs/ exists");
    let docs = docs.map(|entry| entry.expect("docs/ can be listed").path());
    documents.extend(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    documents.push(root().join("examples/README.md"));
    documents.extend(examples().map(|example| example.join("README.md")));
    documents.sort();
    for needed in [
        "README.md",
        "docs/architecture.md",
        "docs/configuration.md",
        "docs/reasons.md",
        "docs/operations.md",
        "docs/standards.md",
    ] {
        assert!(documents.contains(&root().join(needed)), "{needed} is missing");
    }
    documents
}

/// The directories of the example applications: those with a configuration.
fn examples() -> impl Iterator<Item = PathBuf> {
    let examples = fs::read_dir(root().join("examples")).expect("examples/ exists");
    let examples = examples.map(|entry| entry.expect("examples/ can be listed").path());
    let mut examples: Vec<PathBuf> = examples.filter(|path| path.join("gateway.toml").is_file()).collect();
    examples.sort();
    let names: Vec<_> = examples.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert_eq!(names, ["stomp", "vnc", "xmpp"], "add new examples to this test");
    examples.into_iter()
}

// The table of reasons.

/// A table row of `docs/reasons.md` without the reason and its description: HTTP status, close code, log level.
type Columns = [String; 3];

/// The rows whose first cell is a word in backquotes, in their order.
fn reasons(text: &str) -> Vec<(String, Columns)> {
    let mut reasons = Vec::new();
    for line in text.lines() {
        let Some(row) = line.strip_prefix("| `") else { continue };
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        let [word, when, status, close, level] = cells[..] else { panic!("not five cells: {line}") };
        assert!(!when.is_empty(), "no description: {line}");
        reasons.push((word.trim_end_matches('`').to_owned(), [status, close, level].map(str::to_owned)));
    }
    reasons
}

fn reasons_of_the_program() -> Vec<(String, Columns)> {
    let number = |number: Option<u16>| number.map_or("–".to_owned(), |number| number.to_string());
    let row = |reason: &Reason| {
        let status = number(reason.status().map(|status| status.as_u16()));
        // The page shows the level for the phase in which the reason usually comes: from the dial on, there is a
        // session.
        let session = matches!(reason.phase(), Phase::Dial | Phase::Session);
        let level = reason.level(session).to_string().to_lowercase();
        (reason.as_str().to_owned(), [status, number(reason.close_code()), level])
    };
    Reason::ALL.iter().map(row).collect()
}

/// Rows that the page and the program do not share.
fn differences(documented: &[(String, Columns)], real: &[(String, Columns)]) -> Vec<String> {
    let mut differences = Vec::new();
    for (rows, other, name) in [(documented, real, "the program"), (real, documented, "docs/reasons.md")] {
        let missing = rows.iter().filter(|row| !other.contains(row));
        differences.extend(missing.map(|row| format!("{name} does not have {row:?}")));
    }
    if differences.is_empty() && documented != real {
        differences.push("the order differs, or a reason is listed twice".to_owned());
    }
    differences
}

#[test]
fn the_table_of_reasons_matches_the_program() {
    let documented = reasons(&read(&root().join("docs/reasons.md")));
    let differences = differences(&documented, &reasons_of_the_program());
    assert!(differences.is_empty(), "\n{}\n", differences.join("\n"));
}

#[test]
fn differences_from_the_table_of_reasons_are_found() {
    let real = reasons_of_the_program();
    let page = |rows: &[(String, Columns)]| {
        let row = |(word, [status, close, level]): &(String, Columns)| {
            format!("| `{word}` | when | {status} | {close} | {level} |\n")
        };
        rows.iter().map(row).collect::<String>()
    };
    assert_eq!(reasons(&page(&real)), real);
    let mut swapped = real.clone();
    swapped.swap(0, 1);
    assert_eq!(differences(&swapped, &real).len(), 1);
    assert_eq!(differences(&real[1..], &real).len(), 1);
    assert_eq!(differences(&real, &real[1..]).len(), 1);
    let mut wrong = real.clone();
    wrong[0].1[0] = "418".to_owned();
    assert_eq!(differences(&wrong, &real).len(), 2);
}

// Links and named files.

/// A document's lines outside fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The targets of a text's links and images.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        for (at, _) in line.match_indices("](") {
            let target = &line[at + 2..];
            links.push(target[..target.find(')').unwrap_or(target.len())].to_owned());
        }
    }
    links
}

/// The anchors of a document's headings, as GitHub generates them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|char| char.is_alphanumeric() || "-_ ".contains(*char));
        kept.map(|char| if char == ' ' { '-' } else { char }).collect()
    };
    headings.map(anchor).collect()
}

/// What is wrong with a link, if anything is.
fn broken(document: &Path, link: &str) -> Option<String> {
    if link.starts_with("https://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { document.to_owned() } else { beside(document, path) };
    if !target.exists() {
        return Some(format!("{}: {link}: {} does not exist", document.display(), target.display()));
    }
    let wrong = !anchor.is_empty() && !anchors(&read(&target)).contains(anchor);
    wrong.then(|| format!("{}: {link}: {} has no such heading", document.display(), target.display()))
}

/// `path` relative to the directory of `document`, with `..` resolved.
fn beside(document: &Path, path: &str) -> PathBuf {
    let mut target = document.parent().unwrap_or(document).to_owned();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(target.pop()),
            part => target.push(part),
        }
    }
    target
}

#[test]
fn links_have_targets() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for document in documents() {
        let links = links(&read(&document));
        seen += links.len();
        wrong.extend(links.iter().filter_map(|link| broken(&document, link)));
    }
    assert!(seen > 20, "only {seen} links were found");
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn a_broken_link_is_detected() {
    let directory = tempfile::tempdir().unwrap();
    let document = directory.path().join("a.md");
    let text =
        "# A word, and `more`\n\n[one](b.md), ![two](#a-word-and-more)\n```\n[three](c.md)\n```\n[four](#no)";
    fs::write(&document, text).unwrap();
    let found = links(text);
    assert_eq!(found, ["b.md", "#a-word-and-more", "#no"]);
    let wrong: Vec<bool> = found.iter().map(|link| broken(&document, link).is_some()).collect();
    assert_eq!(wrong, [true, false, true]);
    fs::write(directory.path().join("b.md"), "").unwrap();
    assert_eq!(broken(&document, "b.md"), None);
    assert!(broken(&document, "b.md#heading").is_some());
}

#[test]
fn the_commands_of_the_readme_exist() {
    let readme = read(&root().join("README.md"));
    let commands: Vec<&str> =
        readme.lines().filter_map(|line| line.strip_prefix("    ")).filter(|line| !line.is_empty()).collect();
    assert_eq!(commands, ["cargo run --release -p demo", "tests/run"]);
    for file in ["examples/demo/src/main.rs", "tests/run"] {
        assert!(root().join(file).is_file(), "{file} is missing");
    }
}

#[test]
fn the_architecture_names_every_module() {
    let crate_root = read(&root().join("src/lib.rs"));
    let page = read(&root().join("docs/architecture.md"));
    let modules: Vec<&str> = crate_root
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    assert!(modules.len() > 10, "only these modules were found: {modules:?}");
    for module in modules {
        assert!(
            page.contains(&format!("| [{module}](")) || page.contains(&format!(", [{module}](")),
            "{module} is missing"
        );
    }
}

// The table of what hostile peers get.

/// How many rows the table has.
const ROWS: usize = 73;
/// What a row says in place of tests, if the program does not have what it is about.
const NOT_OFFERED: &str = "not offered yet";

/// The names of all functions in the Rust files below a directory.
fn functions(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = read(&path);
            let names =
                text.lines().filter_map(|line| line.trim_start().split_once("fn ")?.1.split_once('('));
            found.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
}

/// The rows of a table: number, promise, tests.
fn promises(text: &str) -> Vec<(usize, &str, &str)> {
    let mut promises = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [number, promise, tests] = cells[..]
            && let Ok(number) = number.parse()
        {
            promises.push((number, promise, tests));
        }
    }
    promises
}

/// What is wrong with the tests that a row names.
fn unproven((number, promise, tests): (usize, &str, &str), functions: &BTreeSet<String>) -> Vec<String> {
    if tests == NOT_OFFERED {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    for name in tests.split(", ") {
        let name = name.trim_matches('`');
        let exists = match name.strip_suffix('*') {
            None => functions.contains(name),
            Some(start) => {
                start == format!("row_{number:02}_") && functions.iter().any(|name| name.starts_with(start))
            }
        };
        if !exists {
            wrong.push(format!("row {number} ({promise}): there is no test {name:?}"));
        }
    }
    wrong
}

#[test]
fn every_promise_to_hostile_peers_has_a_test() {
    let page = read(&root().join("docs/security.md"));
    let promises = promises(&page);
    let numbers: Vec<usize> = promises.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=ROWS).collect::<Vec<_>>(), "the rows of docs/security.md");
    let mut known = BTreeSet::new();
    functions(&root().join("tests"), &mut known);
    functions(&root().join("src"), &mut known);
    assert!(known.len() > 500, "only {} functions were found", known.len());
    let wrong: Vec<String> = promises.into_iter().flat_map(|row| unproven(row, &known)).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    let number = |name: &String| name.strip_prefix("row_")?.split_once('_')?.0.parse::<usize>().ok();
    let beyond: Vec<&String> =
        known.iter().filter(|name| number(name).is_some_and(|row| row > ROWS)).collect();
    assert!(beyond.is_empty(), "docs/security.md has no row of {beyond:?}");
}

#[test]
fn a_promise_without_its_test_is_found() {
    let known = BTreeSet::from(["a_test".to_owned(), "row_04_another".to_owned()]);
    let wrong = |text| unproven(promises(text)[0], &known).len();
    assert_eq!(wrong("| 4 | a promise | `a_test`, `row_04_*` |"), 0);
    assert_eq!(wrong("| 4 | a promise | not offered yet |"), 0);
    assert_eq!(wrong("| 4 | a promise | `no_test`, `a_test`, `row_05_*` |"), 2);
    assert_eq!(wrong("| 5 | a promise | `row_05_*` |"), 1);
    assert_eq!(wrong("| 5 | a promise | |"), 1);
}

// The requirements of the standards.

/// How many requirements the page lists.
const REQUIREMENTS: usize = 69;
/// Begins what a row says of a requirement that needs no test.
const NOT_APPLICABLE: &str = "Not applicable: ";

/// The rows of tables whose first cell is a section: the section, what the gateway does, and the tests.
fn requirements(text: &str) -> Vec<[&str; 3]> {
    let mut requirements = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if let [section, _required, behaviour, tests] = cells[..]
            && section.contains('§')
        {
            requirements.push([section, behaviour, tests]);
        }
    }
    requirements
}

/// The links of a line whose texts are code: their texts and their targets.
fn named_links(line: &str) -> Vec<(&str, &str)> {
    let links = line.split("[`").skip(1).filter_map(|link| {
        let (name, target) = link.split_once("`](")?;
        Some((name, target.split_once(')')?.0))
    });
    links.collect()
}

/// What is wrong with the tests of a requirement, in a page of `directory`.
fn unfounded([section, behaviour, tests]: [&str; 3], directory: &Path) -> Vec<String> {
    let links = named_links(tests);
    if links.is_empty() && !behaviour.starts_with(NOT_APPLICABLE) {
        return vec![format!("{section}: no test ({behaviour})")];
    }
    let mut wrong = Vec::new();
    for (name, file) in links {
        let path = beside(&directory.join("page.md"), file);
        let text = fs::read_to_string(&path).unwrap_or_default();
        if !text.contains(&format!("fn {name}(")) {
            wrong.push(format!("{section}: {} has no test {name:?}", path.display()));
        }
    }
    wrong
}

#[test]
fn every_requirement_of_the_standards_has_a_test_in_the_named_file() {
    let page = read(&root().join("docs/standards.md"));
    let requirements = requirements(&page);
    assert_eq!(requirements.len(), REQUIREMENTS, "the rows of docs/standards.md");
    let docs = root().join("docs");
    let wrong: Vec<String> = requirements.into_iter().flat_map(|row| unfounded(row, &docs)).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn every_test_that_a_document_links_to_exists_in_its_file() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for document in documents() {
        for line in prose(&read(&document)) {
            let links = named_links(line).into_iter();
            for (name, file) in links.filter(|(_, file)| file.ends_with(".rs")) {
                seen += 1;
                if !read(&beside(&document, file)).contains(&format!("fn {name}(")) {
                    wrong.push(format!("{}: {file} has no test {name:?}", document.display()));
                }
            }
        }
    }
    assert!(seen > 100, "only {seen} links to tests were found");
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn a_requirement_without_its_test_is_found() {
    let docs = root().join("docs");
    let wrong = |behaviour: &str, tests: &str| {
        let row = format!("| §1 | required | {behaviour} | {tests} |");
        unfounded(requirements(&row)[0], &docs).len()
    };
    let own = "[`a_requirement_without_its_test_is_found`](../tests/docs.rs)";
    assert_eq!(wrong("as required", own), 0);
    assert_eq!(wrong("as required", &format!("{own}, [`no_such_test`](../tests/docs.rs)")), 1);
    assert_eq!(wrong("as required", &own.replace("docs.rs", "config.rs")), 1);
    assert_eq!(wrong("as required", "–"), 1);
    assert_eq!(wrong("Not applicable: why", "–"), 0);
}

// Configurations.

/// The fenced blocks of a text with their languages, by the line they begin at.
fn blocks(text: &str) -> BTreeMap<usize, (String, String)> {
    let mut blocks = BTreeMap::new();
    let mut open: Option<(usize, String, String)> = None;
    for (number, line) in text.lines().enumerate() {
        open = match (line.strip_prefix("```"), open) {
            (Some(language), None) => Some((number + 1, language.to_owned(), String::new())),
            (Some(_), Some((start, language, body))) => {
                blocks.insert(start, (language, body));
                None
            }
            (None, Some((start, language, body))) => Some((start, language, body + line + "\n")),
            (None, None) => None,
        };
    }
    assert!(open.is_none(), "an unclosed block: {open:?}");
    blocks
}

#[test]
fn configurations_in_documents_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    // The files that the examples name must exist.
    for pages in ["web", "dist"] {
        fs::create_dir(directory.path().join(pages)).unwrap();
    }
    fs::write(directory.path().join("tokens.cfg"), "").unwrap();
    let file = directory.path().join("gateway.toml");
    let mut whole = Vec::new();
    for document in documents() {
        for (line, (language, body)) in blocks(&read(&document)) {
            if language != "toml" {
                continue;
            }
            let mut text = body.clone();
            for (table, missing) in [("[[listener]]", LISTENER), ("[[route]]", ROUTE)] {
                if !body.contains(table) {
                    text += missing;
                }
            }
            let config = Config::parse(&text, &file)
                .unwrap_or_else(|error| panic!("{}:{line}: {error}\n{text}", document.display()));
            assert!(config.warnings.is_empty(), "{}:{line}: {:?}", document.display(), config.warnings);
            if text == body {
                whole.push(document.clone());
            }
        }
    }
    assert!(whole.contains(&root().join("README.md")), "the README has no complete configuration");
}
