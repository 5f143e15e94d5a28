//! How a credential fares with a route, as `explain` reports it.

use crate::outcome::Reason;

/// The report about one credential.
#[derive(Debug)]
pub(crate) struct CredentialReport {
    /// The kind of credential: the label of the lines.
    pub label: &'static str,
    pub lines: Vec<String>,
    /// Why the route refuses it.
    pub refusal: Option<Reason>,
}

impl CredentialReport {
    pub(crate) fn new(label: &'static str) -> Self {
        Self { label, lines: Vec::new(), refusal: None }
    }
}
