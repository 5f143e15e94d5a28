//! Translates errors of the TOML parser and of serde into messages for people.
//!
//! Takes the tables and their keys from `raw`; knows none of their rules.

use std::ops::Range;

use toml::de::{DeTable, DeValue, Error};

use super::error::{ConfigFault, Problem, alternatives, listener_key, nearest, quoted, route_key};
use super::raw::{self, Table};

/// The text is not TOML.
pub(super) fn syntax(error: &Error, text: &str) -> ConfigFault {
    let at = error.span().unwrap_or(text.len()..text.len());
    let message = match (error.message(), text.get(at.clone())) {
        ("duplicate key", Some(key)) => {
            format!("duplicate key {}; keep one of them", quoted(key))
        }
        (other, _) => one_line(other),
    };
    ConfigFault { at, problem: Problem::Syntax { message } }
}

/// Finds a table that is written as a list, or the other way round. Checked before deserialization, because serde accepts
/// a list for a table, and its error for another type shows the name of the Rust type.
pub(super) fn brackets(document: &DeTable<'_>) -> Option<ConfigFault> {
    let tables = raw::tables();
    let nodes = nodes(document);
    let misshaped = |node: &&Node<'_>| match (header_of(node, &tables), node.path.last(), node.value) {
        (Some(header), Some(ParseStep::Key(_)), DeValue::Array(_)) => !header.starts_with("[["),
        (Some(header), Some(ParseStep::Key(_)), DeValue::Table(_)) => header.starts_with("[["),
        (Some(_), Some(ParseStep::Index(_)), DeValue::Table(_)) | (None, ..) => false,
        _ => true,
    };
    let node = nodes.iter().find(misshaped)?;
    let header = header_of(node, &tables)?;
    let brackets = if header.starts_with("[[") { "two brackets" } else { "one bracket" };
    let problem =
        Problem::Header { key: node.keys().join("."), header: header.into(), brackets: brackets.into() };
    Some(ConfigFault { at: node.key_at.clone().unwrap_or(node.at.clone()), problem })
}

/// The text is TOML but not a configuration: an unknown key, or a value of the wrong type.
pub(super) fn shape(error: &Error, document: &DeTable<'_>, text: &str) -> ConfigFault {
    let at = error.span().unwrap_or_default();
    let nodes = nodes(document);
    let problem = unknown_key(&at, &nodes)
        .or_else(|| wrong_value(error.message(), &at, &nodes, document, text))
        .unwrap_or_else(|| Problem::Syntax { message: one_line(error.message()) });
    ConfigFault { at, problem }
}

fn header_of(node: &Node<'_>, tables: &[Table]) -> Option<&'static str> {
    let keys = node.keys();
    tables.iter().find(|table| !keys.is_empty() && table.is_at(&keys)).map(|table| table.header)
}

fn unknown_key(at: &Range<usize>, nodes: &[Node<'_>]) -> Option<Problem> {
    let node = nodes.iter().find(|node| node.key_at.as_ref() == Some(at))?;
    let (key, above) = node.keys().split_last().map(|(key, above)| (*key, above.to_vec()))?;
    let known = raw::tables();
    let table = known.iter().find(|table| table.is_at(&above)).filter(|table| !table.keys.contains(&key))?;
    let location =
        if table.path.is_empty() { "at the top level".into() } else { format!("in {}", table.header) };
    Some(Problem::UnknownKey { key: key.into(), table: location, advice: advice(key, table, &known) })
}

fn advice(key: &str, table: &Table, known: &[Table]) -> String {
    let called = known.iter().find(|other| other.path.last() == Some(&key));
    let with: Vec<_> = known.iter().filter(|other| other.keys.contains(&key)).collect();
    match (called, &with[..]) {
        (Some(called), [_]) => {
            return format!("it is a table: write {} on a line of its own", called.header);
        }
        (_, [_, ..]) => {
            return format!("{key:?} belongs in {}", alternatives(with.iter().map(|with| with.header)));
        }
        (_, []) => {}
    }
    if let Some(near) = nearest(key, table.keys.iter().copied()) {
        return format!("did you mean {near:?}?");
    }
    let elsewhere = |other: &Table| nearest(key, other.keys.iter().copied()).map(|near| (near, other.header));
    match known.iter().filter(|other| !other.path.is_empty()).find_map(elsewhere) {
        Some((near, header)) => format!("did you mean {near:?}, which belongs in {header}?"),
        None => format!("known here: {}", table.keys.join(", ")),
    }
}

fn wrong_value(
    message: &str,
    at: &Range<usize>,
    nodes: &[Node<'_>],
    document: &DeTable<'_>,
    text: &str,
) -> Option<Problem> {
    let node = nodes.iter().rfind(|node| node.at == *at)?;
    let key = node.name(document);
    // The found type is taken from the document, because serde names Rust types and may quote a long value.
    let Some((_, expected)) = message.rsplit_once(", expected ") else {
        // The only other error is a number that fits into no integer type.
        let wrong = "the number is too large; write a smaller one".into();
        return Some(Problem::Value { key, value: quoted(text.get(at.clone())?), wrong });
    };
    let expected = match expected {
        "a sequence" => "a list such as [\"…\"]",
        "a map" => "a table of tables such as [auth.NAME]",
        other => other,
    };
    Some(Problem::WrongType { key, expected: expected.into(), found: type_of(node.value).into() })
}

/// One value of the document.
#[derive(Debug)]
struct Node<'a> {
    path: Vec<ParseStep<'a>>,
    key_at: Option<Range<usize>>,
    at: Range<usize>,
    value: &'a DeValue<'a>,
}

/// One step of the path from the top of the document to a value.
#[derive(Debug, Clone, Copy)]
enum ParseStep<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> Node<'a> {
    /// The keys of the path, without the list indices.
    fn keys(&self) -> Vec<&'a str> {
        let key = |step: &ParseStep<'a>| match *step {
            ParseStep::Key(key) => Some(key),
            ParseStep::Index(_) => None,
        };
        self.path.iter().filter_map(key).collect()
    }

    /// The name of this value in messages.
    fn name(&self, document: &DeTable<'_>) -> String {
        let entry = |key: &str| match self.path.last() {
            Some(ParseStep::Index(_)) => format!("every entry of {key}"),
            _ => key.to_owned(),
        };
        match self.path[..] {
            [ParseStep::Key("listener"), ParseStep::Index(index), ParseStep::Key(key), ..] => {
                listener_key(index, &entry(key))
            }
            [ParseStep::Key("route"), ParseStep::Index(index), ParseStep::Key(_), ..] => {
                let key = self.keys()[1..].join(".");
                let route = document.get("route").and_then(|routes| routes.get_ref().get(index));
                let name = route.and_then(|route| route.get_ref().get("name"));
                route_key(index, name.and_then(|name| name.get_ref().as_str()), &entry(&key))
            }
            _ => entry(&self.keys().join(".")),
        }
    }
}

/// Every value of the document, each before the values that it contains.
fn nodes<'a>(document: &'a DeTable<'a>) -> Vec<Node<'a>> {
    fn enter<'a>(table: &'a DeTable<'a>, above: &[ParseStep<'a>], nodes: &mut Vec<Node<'a>>) {
        for (key, value) in table {
            let path = [above, &[ParseStep::Key(key.get_ref())]].concat();
            visit(path, Some(key.span()), value.span(), value.get_ref(), nodes);
        }
    }
    fn visit<'a>(
        path: Vec<ParseStep<'a>>,
        key_at: Option<Range<usize>>,
        at: Range<usize>,
        value: &'a DeValue<'a>,
        nodes: &mut Vec<Node<'a>>,
    ) {
        nodes.push(Node { path: path.clone(), key_at, at, value });
        match value {
            DeValue::Table(table) => enter(table, &path, nodes),
            DeValue::Array(array) => {
                for (index, item) in array.iter().enumerate() {
                    let path = [&path[..], &[ParseStep::Index(index)]].concat();
                    visit(path, None, item.span(), item.get_ref(), nodes);
                }
            }
            _ => {}
        }
    }

    let mut nodes = Vec::new();
    enter(document, &[], &mut nodes);
    nodes
}

fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fractional number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
