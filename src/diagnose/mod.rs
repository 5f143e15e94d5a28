//! Offline checks: what would happen to a connection, whether the backends answer, what the machine can hold.
//!
//! Owns the answers to `explain`, `check --dial` and `check --capacity`. Facts ([`findings`], [`dial`], [`capacity`]) are kept
//! apart from their wording ([`explain`]). Knows nothing of a running gateway and decides nothing: every decision is made by
//! the code that makes it while the gateway runs. Invariant: no token is shown, neither one that is asked about nor one of
//! a token file.

pub(crate) mod capacity;
pub(crate) mod dial;
pub(crate) mod explain;
pub(crate) mod findings;
mod list;
pub(crate) mod machine;
pub(crate) mod question;

use std::sync::Arc;

use futures_util::{StreamExt, stream};

use self::{
    dial::dial,
    findings::{DialTargets, Findings},
};
pub(crate) use self::{
    explain::Explanation,
    question::{Question, QuestionError},
};
use crate::{
    backend::Upstream,
    config::Config,
    http::{Files, Routes},
};

/// How many servers are dialled side by side.
const SIDE_BY_SIDE: usize = 16;

/// A loaded configuration to examine. No address is bound.
#[derive(Debug)]
pub(crate) struct Diagnostics {
    config: Config,
    routes: Routes<Arc<Upstream>>,
    files: Option<Files>,
}

impl Diagnostics {
    /// Diagnostics for `config` and what was loaded for it.
    pub(crate) fn new(config: Config, routes: Routes<Arc<Upstream>>, files: Option<Files>) -> Self {
        Self { config, routes, files }
    }

    /// What would become of a connection, step by step. With `dials`, the servers it could be led to are connected to, each
    /// within `timeouts.connect`.
    pub(crate) async fn explain(&self, question: &Question, dials: bool) -> Explanation {
        let findings = Findings::of(&self.config, &self.routes, self.files.as_ref(), question).await;
        let (mut backends, mut answers) = (Vec::new(), Vec::new());
        if let Some(found) = findings.found.as_ref().ok().filter(|_| dials) {
            backends = match &found.target {
                DialTargets::Any(backends) => backends.clone(),
                DialTargets::Token(backend) => vec![backend.clone()],
                DialTargets::NoToken | DialTargets::UnknownToken => Vec::new(),
            };
            let limit = self.config.timeouts.connect;
            let dialled = stream::iter(&backends).map(|backend| dial(found.routed, backend, limit));
            answers = dialled.buffered(SIDE_BY_SIDE).collect().await;
        }
        explain::report(&findings, &backends.into_iter().zip(answers).collect::<Vec<_>>())
    }

    /// Connects to every server of every route, each within `timeouts.connect`, and says one line of each as soon as it is
    /// its turn. Returns how many there are and how many did not answer.
    pub(crate) async fn dial_all(&self, mut say: impl FnMut(&str)) -> (usize, usize) {
        let mut all = Vec::new();
        for routed in self.routes.iter() {
            all.extend(routed.upstream.backends().into_iter().map(|backend| (routed, backend)));
        }
        let names = all.iter().map(|(routed, _)| routed.route.name.chars().count()).max().unwrap_or(0);
        let urls = all.iter().map(|(_, backend)| backend.to_string().chars().count()).max().unwrap_or(0);
        let limit = self.config.timeouts.connect;
        let dialled = stream::iter(&all).map(async |(routed, backend)| {
            let answer = dial(routed, backend, limit).await;
            let words = dial::words(&answer).join("; ");
            let url = backend.to_string();
            (format!("{:names$}  {url:urls$}  {words}", routed.route.name), answer.is_ok())
        });
        let mut failed = 0;
        let mut dialled = std::pin::pin!(dialled.buffered(SIDE_BY_SIDE));
        while let Some((line, is_reached)) = dialled.next().await {
            say(&line);
            failed += usize::from(!is_reached);
        }
        (all.len(), failed)
    }
}
