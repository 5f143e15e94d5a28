//! Offline checks: what would happen to a connection, whether the backends are reachable, how many sessions fit.
//!
//! Owns `explain`, `check --dial` and `check --capacity`. Facts ([`findings`], [`dial`], [`capacity`]) are kept apart from
//! their wording ([`explain`]). Knows nothing of a running gateway and decides nothing: every decision is made by the code
//! that makes it in a running gateway. Invariant: no token is shown, neither that of the question nor one of a token file.

pub(crate) mod capacity;
mod credential;
pub(crate) mod dial;
pub(crate) mod explain;
pub(crate) mod findings;
pub(crate) mod machine;
pub(crate) mod question;
mod required;
mod text;
mod token;
mod user;

use std::{sync::Arc, time::SystemTime};

use futures_util::{StreamExt, stream};

pub(crate) use self::{
    credential::CredentialReport,
    explain::Explanation,
    question::{Question, QuestionError},
};
use self::{
    dial::dial,
    findings::{DialTargets, Findings},
};
use crate::{
    auth::Authenticators,
    backend::Upstream,
    config::{Config, Secret},
    http::{Files, KnownHosts, Routes},
};

/// How many backends are dialled concurrently.
const CONCURRENT_DIALS: usize = 16;

/// A loaded configuration to examine. No address is bound.
#[derive(Debug)]
pub(crate) struct Diagnostics {
    config: Config,
    routes: Routes<Arc<Upstream>>,
    files: Option<Files>,
    known_hosts: Vec<Option<KnownHosts>>,
}

/// The credentials of a connection to explain.
#[derive(Debug, Default)]
pub(crate) struct Presented<'a> {
    /// Checked with the methods of the route that use one.
    pub token: Option<(&'a Authenticators, &'a Secret)>,
    /// The name of a user who has none yet.
    pub user: Option<&'a str>,
    /// What was examined already.
    pub examined: Vec<CredentialReport>,
}

impl Diagnostics {
    /// `routes`, `files` and the known hosts of each listener are what was loaded for `config`.
    pub(crate) fn new(
        config: Config,
        routes: Routes<Arc<Upstream>>,
        files: Option<Files>,
        known_hosts: Vec<Option<KnownHosts>>,
    ) -> Self {
        Self { config, routes, files, known_hosts }
    }

    /// The name of the route that a connection matches.
    pub(crate) async fn route(&self, question: &Question) -> Option<String> {
        let Self { config, routes, files, known_hosts } = self;
        let findings = Findings::of(config, routes, files.as_ref(), known_hosts, question).await;
        findings.route_match.ok().map(|route_match| route_match.routed.route.name.clone())
    }

    /// Explains step by step what would happen to a connection. With `dials`, also connects to its possible backends, each
    /// within `timeouts.connect`.
    pub(crate) async fn explain(
        &self,
        question: &Question,
        presented: Presented<'_>,
        dials: bool,
    ) -> Explanation {
        let Self { config, routes, files, known_hosts } = self;
        let findings = Findings::of(config, routes, files.as_ref(), known_hosts, question).await;
        let (mut backends, mut results) = (Vec::new(), Vec::new());
        if let Some(route_match) = findings.route_match.as_ref().ok().filter(|_| dials) {
            backends = match &route_match.targets {
                DialTargets::Any(backends) => backends.clone(),
                DialTargets::Token(backend) => vec![backend.clone()],
                DialTargets::NoToken | DialTargets::UnknownToken => Vec::new(),
            };
            let limit = self.config.timeouts.connect;
            let dialled = stream::iter(&backends).map(|backend| dial(route_match.routed, backend, limit));
            results = dialled.buffered(CONCURRENT_DIALS).collect().await;
        }
        let Presented { token, user, examined } = presented;
        let mut credentials = Vec::new();
        if let Ok(route_match) = &findings.route_match {
            let routed = route_match.routed;
            credentials.extend(user.map(|user| user::examine(config, routed, user)));
            if let Some((authenticators, token)) = token {
                let now = SystemTime::now();
                credentials.push(token::examine(config, authenticators, routed, token, now).await);
            }
            credentials.extend(examined);
        }
        explain::report(&findings, &credentials, &backends.into_iter().zip(results).collect::<Vec<_>>())
    }

    /// Connects to every backend of every route, each within `timeouts.connect`, and passes one line for each to `print`, in
    /// the order of the routes. Returns how many there are and how many failed.
    pub(crate) async fn dial_all(&self, mut print: impl FnMut(&str)) -> (usize, usize) {
        let mut all = Vec::new();
        for routed in self.routes.iter() {
            all.extend(routed.upstream.backends().into_iter().map(|backend| (routed, backend)));
        }
        let names = all.iter().map(|(routed, _)| routed.route.name.chars().count()).max().unwrap_or(0);
        let urls = all.iter().map(|(_, backend)| backend.to_string().chars().count()).max().unwrap_or(0);
        let limit = self.config.timeouts.connect;
        let dialled = stream::iter(&all).map(async |(routed, backend)| {
            let result = dial(routed, backend, limit).await;
            let description = dial::lines(&result).join("; ");
            let url = backend.to_string();
            (format!("{:names$}  {url:urls$}  {description}", routed.route.name), result.is_ok())
        });
        let mut failed = 0;
        let mut dialled = std::pin::pin!(dialled.buffered(CONCURRENT_DIALS));
        while let Some((line, is_reached)) = dialled.next().await {
            print(&line);
            failed += usize::from(!is_reached);
        }
        (all.len(), failed)
    }
}
