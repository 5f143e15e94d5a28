//! The shipped `gateway.toml` and docs/configuration.md agree with the parser: the same keys, the same defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use portcullis::config::{
    Balance, Config, Destinations, Group, Health, Identity, RoutePath, SocketAccess, TlsVersion, TokenFile,
    UpstreamConfig,
};

/// The header of the tables whose keys depend on `kind`.
const METHOD: &str = "[auth.NAME]";

/// A table's header, as in `[[route]]`, and the keys in it.
type Keys = BTreeMap<String, BTreeSet<String>>;

const MINIMAL: &str = r#"
    [[listener]]
    address = "0.0.0.0:8443"
    certificate = "certs/localhost.crt"
    private_key = "certs/localhost.key"
    [[route]]
    name = "vnc"
    path = "/vnc"
    backend = "tcp://127.0.0.1:5900"
"#;

fn shipped_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gateway.toml")
}

fn shipped() -> String {
    fs::read_to_string(shipped_file()).expect("the shipped file")
}

fn manual() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md"))
        .expect("the manual")
}

/// The text with every commented-out line enabled.
fn enabled(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(disabled) if !disabled.is_empty() && !disabled.starts_with(' ') => format!("{disabled}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// The value of each key of a TOML text, by table. If several tables have the same header, the first one with the key
/// counts.
fn written(text: &str) -> BTreeMap<(String, String), String> {
    let mut table = String::new();
    let mut keys = BTreeSet::new();
    let mut values = BTreeMap::new();
    for line in text.lines() {
        if line.starts_with('[') {
            table = line.to_owned();
            keys.clear();
        } else if let Some((key, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            assert!(keys.insert(key.to_owned()), "duplicate {key} in {table}");
            values.entry((table.clone(), key.to_owned())).or_insert(value.to_owned());
        }
    }
    values
}

/// The rows of the manual's tables: the type, default and meaning of each key.
fn documented(manual: &str) -> BTreeMap<(String, String), [String; 3]> {
    let mut table = None;
    let mut rows = BTreeMap::new();
    for line in manual.lines() {
        if line.starts_with('#') {
            table = line.split('`').nth(1).map(str::to_owned);
        } else if let Some((row, table)) = line.strip_prefix("| `").zip(table.as_ref()) {
            let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
            let [key, kind, default, meaning] = cells[..] else { panic!("not four cells: {line}") };
            let row = [kind, default, meaning].map(str::to_owned);
            let twice = rows.insert((table.clone(), key.trim_end_matches('`').to_owned()), row);
            assert_eq!(twice, None, "{key} is documented twice in {table}");
        }
    }
    rows
}

fn by_table<'a>(keys: impl Iterator<Item = &'a (String, String)>) -> Keys {
    let mut tables = Keys::new();
    for (table, key) in keys {
        tables.entry(table.clone()).or_default().insert(key.clone());
    }
    tables
}

/// The keys that the parser lists when it refuses a key that resembles none of them.
fn known_keys(header: &str) -> BTreeSet<String> {
    let parent = if header.starts_with("[route.") { "[[route]]" } else { "" };
    let text = format!("{parent}\n{header}\nqqqqqqqqqqqq = 1\n");
    let error = Config::parse(&text, Path::new("probe.toml")).expect_err("no such key").to_string();
    let (_, keys) = error.split_once("known here: ").unwrap_or_else(|| panic!("no list of keys in: {error}"));
    keys.split(", ").map(str::to_owned).collect()
}

fn known() -> Keys {
    let headers = [
        "[[listener]]",
        "[[route]]",
        "[route.tls]",
        "[route.health]",
        "[route.targets]",
        METHOD,
        "[limits]",
        "[limits.per_ip]",
        "[limits.per_network]",
        "[limits.per_user]",
        "[limits.penalties]",
        "[timeouts]",
        "[web]",
        "[admin]",
        "[admin.tickets]",
        "[log]",
        "[events]",
    ];
    let mut keys: Keys = headers.iter().map(|header| ((*header).to_owned(), known_keys(header))).collect();
    let top: BTreeSet<String> = headers
        .iter()
        .map(|header| header.trim_matches(['[', ']']).to_owned())
        .filter(|key| !key.contains('.'))
        .chain(["auth".to_owned()])
        .collect();
    assert_eq!(known_keys(""), top, "add the table to this test");
    // Nested tables have sections of their own.
    for (table, inner) in [
        ("[limits]", "per_ip"),
        ("[limits]", "per_network"),
        ("[limits]", "per_user"),
        ("[limits]", "penalties"),
        ("[admin]", "tickets"),
        ("[[route]]", "tls"),
        ("[[route]]", "health"),
        ("[[route]]", "targets"),
    ] {
        assert!(keys.get_mut(table).is_some_and(|keys| keys.remove(inner)), "no {inner} in {table}");
    }
    keys
}

#[test]
fn the_shipped_file_loads() {
    let config = Config::load(&shipped_file()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.listeners.len(), 1);
    assert_eq!(config.listeners[0].address.ip(), Some(([0, 0, 0, 0], 8443).into()));
    let beside = |name| shipped_file().with_file_name("certs").join(name);
    let identity =
        Identity::Files { certificate: beside("localhost.crt"), private_key: beside("localhost.key") };
    assert_eq!(config.listeners[0].identity, Some(identity));
    assert_eq!(config.routes.len(), 1);
    let route = &config.routes[0];
    assert_eq!(route.name, "vnc");
    assert_eq!(route.path, RoutePath::Exact("/vnc".into()));
    assert_eq!(route.upstream, UpstreamConfig::single("tcp://127.0.0.1:5900".parse().unwrap()));
    assert!(route.origins.same_origin && !route.origins.any && route.origins.listed.is_empty());
    assert_eq!((&config.web, &config.admin), (&None, &None));
}

#[test]
fn the_files_of_the_examples_load() {
    for example in ["vnc", "xmpp", "stomp"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example).join("gateway.toml");
        // `./start` builds the page.
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir(copy.path().join("dist")).unwrap();
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let config = Config::parse(&text, &copy.path().join("gateway.toml"));
        let config = config.unwrap_or_else(|error| panic!("{example}: {error}"));
        assert_eq!(config.warnings, Vec::<String>::new(), "{example}");
        assert!(config.web.is_some() && !config.routes.is_empty(), "{example}: a page and its routes");
    }
}

#[test]
fn the_shipped_file_loads_with_every_commented_line_enabled() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    fs::create_dir(directory.path().join("web")).unwrap();
    fs::write(directory.path().join("tokens.cfg"), "").unwrap();
    fs::write(&file, enabled(&shipped())).unwrap();

    let mut config = Config::load(&file).unwrap_or_else(|error| panic!("{error}"));

    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.routes[0].host.take().as_deref(), Some("desk.example.com"));
    assert_eq!(config.web.take().map(|web| web.root), Some(directory.path().join("web")));
    let address = config.admin.take().map(|admin| admin.address.to_string());
    assert_eq!(address.as_deref(), Some("127.0.0.1:9101"));
    let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["vnc", "xmpp", "desks"]);
    let xmpp = &config.routes[1].upstream;
    assert_eq!(xmpp.balance, Balance::default());
    assert_eq!(xmpp.health, Some(Health::default()));
    assert_eq!(xmpp.tls.min_version, TlsVersion::default());
    assert!(!xmpp.tls.insecure_no_verify);
    let tokens = TokenFile {
        path: directory.path().join("tokens.cfg"),
        unix: Some("/run/desks".into()),
        end_sessions: false,
    };
    assert_eq!(config.routes[2].upstream.destinations, Destinations::Tokens(tokens));
    assert_eq!(config.routes[2].auth, ["site"]);
    config.routes.truncate(1);
    assert_eq!(std::mem::take(&mut config.routes[0].auth), ["links"]);
    assert!(config.listeners[0].client_ca.take().is_some());
    let methods: Vec<String> =
        std::mem::take(&mut config.auth).into_iter().map(|method| method.name).collect();
    assert_eq!(methods, ["either", "links", "machines", "portal", "site", "team"]);
    let socket = config.listeners.pop().expect("a second listener");
    let group = Some(Group::Name("www-data".into()));
    assert_eq!(socket.access, SocketAccess { mode: SocketAccess::default().mode, group });
    let events = config.events.take().expect("a receiver of events");
    assert_eq!(events.secret_file, directory.path().join("events.secret"));
    assert_eq!(config.limits.sessions_per_user.take().map(u32::from), Some(10));
    let sessions = config.log.sessions.take();
    assert_eq!(sessions.as_deref(), Some(Path::new("/var/log/portcullis/sessions.log")));
    assert_eq!(
        config,
        Config::parse(MINIMAL, &file).unwrap(),
        "a commented line shows another value than the default"
    );
}

#[test]
fn the_shipped_file_shows_every_key_and_no_other() {
    let (mut shown, mut known) = (by_table(written(&enabled(&shipped())).keys()), known());
    // A method has the keys of one kind only: those that are shown are examples.
    let of_methods = known.remove(METHOD).unwrap();
    shown.retain(|table, keys| !table.starts_with("[auth.") || !keys.is_subset(&of_methods));
    assert_eq!(shown, known);
}

/// The header of a table of the manual: several kinds of methods have sections of their own, and may share keys.
fn header(section: &str) -> &str {
    if section.starts_with("kind = ") { METHOD } else { section }
}

#[test]
fn the_manual_documents_every_key_and_no_other() {
    let mut keys = Keys::new();
    for (section, documented) in by_table(documented(&manual()).keys()) {
        keys.entry(header(&section).to_owned()).or_default().extend(documented);
    }
    assert_eq!(keys, known());
}

#[test]
fn the_manual_and_the_shipped_file_show_the_same_defaults() {
    let shown = written(&enabled(&shipped()));
    for ((table, key), [_, default, _]) in documented(&manual()) {
        if default.starts_with("required") || default == "none" {
            continue;
        }
        let table = match table.split_once(" = ") {
            // The example of this kind.
            Some((_, name)) => {
                let is_kind =
                    |((_, key), value): &(&(String, String), &String)| key == "kind" && *value == name;
                &shown.iter().find(is_kind).unwrap_or_else(|| panic!("no example of kind {name}")).0.0
            }
            None => &table,
        };
        let shown = &shown[&(table.clone(), key.clone())];
        assert_eq!(default, format!("`{shown}`"), "{key} in {table}");
    }
}

#[test]
fn keys_that_the_manual_calls_required_are_required() {
    let tokens =
        "[[route]]\nname = \"desks\"\npath = \"/\"\n[route.targets]\nfrom = \"file\"\npath = \"tokens\"";
    let method = "[auth.jwt]\nkind = \"jwt\"\nalgorithms = [\"ES256\"]\nkey = \"site.pem\"\n\
         [auth.basic]\nkind = \"basic\"\nfile = \"users\"\n\
         [auth.forward]\nkind = \"forward\"\nurl = \"http://127.0.0.1:1\"";
    let admin = "[admin]\naddress = \"[::1]:0\"\n[admin.tickets]\naddress = \"unix:t.sock\"";
    let events = "[events]\nurl = \"https://www.example.com/\"\nsecret_file = \"s\"";
    let complete = format!("{MINIMAL}\n{tokens}\n{method}\n[web]\nroot = \"web\"\n{admin}\n{events}\n");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    for inside in ["tokens", "web"] {
        fs::create_dir(directory.path().join(inside)).unwrap();
    }
    Config::parse(&complete, &file).unwrap_or_else(|error| panic!("{error}"));
    for ((table, key), [_, default, _]) in documented(&manual()) {
        if default != "required" {
            continue;
        }
        let table = match table.split('"').nth(1) {
            // The method whose name is its kind.
            Some(kind) if header(&table) == METHOD => format!("[auth.{kind}]"),
            _ => table,
        };
        let without = without(&complete, &table, &key);
        let error = Config::parse(&without, &file).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{key} is missing; add {key} = ")),
            "without {key} of {table}: {error}"
        );
    }
}

/// The text without the first line that sets this key of this table.
fn without(text: &str, table: &str, key: &str) -> String {
    let mut lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let mut header = "";
    let line = lines.iter().position(|line| {
        header = if line.starts_with('[') { line } else { header };
        header == table && line.starts_with(&format!("{key} = "))
    });
    lines.remove(line.unwrap_or_else(|| panic!("add {key} of {table} to this test")));
    lines.join("\n")
}

#[test]
fn the_examples_in_the_manual_load() {
    let manual = manual();
    let examples: Vec<&str> =
        manual.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!examples.is_empty());
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("tokens.cfg"), "").unwrap();
    for example in examples {
        let config = Config::parse(example, &directory.path().join("gateway.toml"))
            .unwrap_or_else(|error| panic!("{error}\n{example}"));
        assert_eq!(config.warnings, Vec::<String>::new(), "{example}");
    }
}

#[test]
fn the_errors_in_the_manual_are_those_of_the_parser() {
    let manual = manual();
    let lines: Vec<&str> = manual.lines().filter(|line| line.starts_with("gateway.toml:")).collect();
    let route = "[[listener]]\naddress = \"127.0.0.1:8443\"\n\n[[route]]\nname = \"vnc\"\npath = \"/vnc\"\n";
    let backend = "backend = \"tcp://127.0.0.1:5900\"\n";
    let errors = [
        format!("{route}{backend}orgins = []"),
        format!("{route}backend = \"vnc.local\""),
        format!("{route}{backend}\n[limits]\nmax_sessions = \"9000\""),
        format!("{route}{backend}\n[timeouts]\ntls = \"0s\""),
    ]
    .map(|text| Config::parse(&text, Path::new("gateway.toml")).unwrap_err().to_string());
    assert_eq!(lines, errors);
}

#[test]
fn keys_of_features_that_do_not_exist_are_unknown() {
    for (header, key) in [("[[listener]]", "certificates"), ("[[route]]", "password"), ("", "users")] {
        let text = format!("{header}\n{key} = true\n");
        let error = Config::parse(&text, Path::new("gateway.toml")).unwrap_err().to_string();
        let place = if header.is_empty() { "at the top level".to_owned() } else { format!("in {header}") };
        let expected = format!("gateway.toml:2:1: unknown key {key:?} {place}; ");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn the_cause_of_an_unreadable_file_is_printed_once() {
    // A regular file in place of a directory, so the cause is the same for root.
    let error = Config::load(&shipped_file().join("gateway.toml")).unwrap_err();
    let cause = std::io::Error::from_raw_os_error(20).to_string();
    let mut chain = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(below) = source {
        chain.push(below.to_string());
        source = below.source();
    }
    assert_eq!(chain.join(": ").matches(&cause).count(), 1, "{chain:?}");
}
