//! The series that a PromQL expression uses. Only extracts names; promtool validates the syntax.

use std::collections::BTreeSet;

/// A metric's name and its matchers, in an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) name: String,
    /// Label and value, such as `reason` and `client_closed|client_gone`.
    pub(crate) matchers: Vec<(String, String)>,
}

/// The names in an expression.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) selectors: Vec<Selector>,
    /// The labels in `by (…)`, `on (…)` and the like.
    pub(crate) groupings: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// Words that are followed by labels in parentheses.
const GROUPING: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that stand alone.
const KEYWORDS: &[&str] = &["and", "or", "unless", "offset", "bool", "inf", "nan"];

fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression.chars().peekable();
    while let Some(char) = rest.next() {
        match char {
            '"' | '\'' => {
                let text = rest.by_ref().take_while(|next| *next != char).collect();
                tokens.push(Token::Text(text));
            }
            // Durations.
            '[' => drop(rest.by_ref().find(|next| *next == ']')),
            '0'..='9' => while rest.next_if(|next| next.is_alphanumeric() || *next == '.').is_some() {},
            'a'..='z' | 'A'..='Z' | '_' | ':' => {
                let mut word = char.to_string();
                while let Some(next) = rest.next_if(|next| next.is_alphanumeric() || "_:".contains(*next)) {
                    word.push(next);
                }
                tokens.push(Token::Word(word));
            }
            char if char.is_whitespace() => {}
            char => tokens.push(Token::Sign(char)),
        }
    }
    tokens
}

/// Extracts the names from an expression.
pub(crate) fn names(expression: &str) -> Names {
    let tokens = tokens(expression);
    let mut names = Names::default();
    let mut at = 0;
    // The text from here to the closing character, and its end.
    let until = |from: usize, close: char| {
        let length = tokens[from..].iter().position(|token| *token == Token::Sign(close));
        let end = from + length.unwrap_or_else(|| panic!("no {close:?} in {expression}"));
        (&tokens[from..end], end)
    };
    while let Some(token) = tokens.get(at) {
        at += 1;
        let Token::Word(word) = token else { continue };
        let next = tokens.get(at);
        if GROUPING.contains(&word.as_str()) {
            if next == Some(&Token::Sign('(')) {
                let (labels, end) = until(at + 1, ')');
                names.groupings.extend(labels.iter().filter_map(|token| match token {
                    Token::Word(label) => Some(label.clone()),
                    _ => None,
                }));
                at = end + 1;
            }
        } else if next != Some(&Token::Sign('(')) && !KEYWORDS.contains(&word.to_lowercase().as_str()) {
            // An aggregation may have its grouping first: sum by (…) (…).
            if matches!(next, Some(Token::Word(next)) if ["by", "without"].contains(&next.as_str())) {
                continue;
            }
            let mut selector = Selector { name: word.clone(), matchers: Vec::new() };
            if next == Some(&Token::Sign('{')) {
                let (inside, end) = until(at + 1, '}');
                let mut label = None;
                for token in inside {
                    match token {
                        Token::Word(word) => label = Some(word.clone()),
                        Token::Text(text) => {
                            let label = label
                                .take()
                                .unwrap_or_else(|| panic!("a value without a label in {expression}"));
                            selector.matchers.push((label, text.clone()));
                        }
                        Token::Sign(_) => {}
                    }
                }
                at = end + 1;
            }
            names.selectors.push(selector);
        }
    }
    names
}

#[test]
fn only_names_are_extracted() {
    let found = names(
        "sum by (job, le) (rate(a_bucket{x=~\"p|q\", y!=\"r\"}[5m] offset 1h)) / on (z) group_left () b > 1e3 \
         or histogram_quantile(0.95, sum(rate(c[5m])) without (w)) unless time() - d < 14 * 86400",
    );
    let selectors: Vec<&str> = found.selectors.iter().map(|selector| selector.name.as_str()).collect();
    assert_eq!(selectors, ["a_bucket", "b", "c", "d"]);
    assert_eq!(found.groupings, BTreeSet::from(["job", "le", "w", "z"].map(str::to_owned)));
    let pair = |label: &str, value: &str| (label.to_owned(), value.to_owned());
    assert_eq!(found.selectors[0].matchers, [pair("x", "p|q"), pair("y", "r")]);
}
