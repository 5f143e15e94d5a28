//! Authentication: whether a request has the credentials that its route requires, and whose they are.
//!
//! Owns the methods of `[auth.NAME]` and how those of a route are combined. Knows nothing of sockets, responses and sessions:
//! it reads a request head and returns a [`Grant`], or why there is none. Invariants: a route without `auth` is never asked
//! for a credential; when it is uncertain whether a credential is valid, it is not; no credential is part of an error, of
//! a log line or of what Debug prints.

mod basic;
mod cache;
mod client_certificate;
mod credentials;
mod denied;
mod forward;
mod grant;
mod hash_queue;
mod jwt;
mod place;
mod ticket;
mod ticket_method;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderValue, Request};
use tokio_util::sync::CancellationToken;

use self::{
    basic::BasicMethod, client_certificate::ClientCertificateMethod, forward::ForwardMethod, jwt::JwtMethod,
    ticket_method::TicketMethod,
};
pub(crate) use self::{
    credentials::Credentials,
    denied::MAX_JTI,
    forward::Answer,
    grant::Grant,
    ticket::{IssuedTicket, MAX_TICKET_TIME, TicketId, TicketSnapshot, TicketState, TicketTerms},
    ticket_method::TicketLink,
};
use crate::{
    client_certificate::ClientCertificate,
    config::{AuthKind, AuthMethod, Route, Secret, Web},
    outcome::Reason,
    session::CredentialId,
};

/// What a method may look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AuthRequest<'a> {
    pub head: &'a Request<()>,
    /// The client's address, as a trusted proxy names it where there is one.
    pub client: SocketAddr,
    /// Whether the client used TLS, here or at a trusted proxy.
    pub https: bool,
    /// The host that the client asked for, with its port if it has one.
    pub host: &'a str,
    /// The certificate that the client has presented in its TLS handshake with the gateway.
    pub certificate: Option<&'a ClientCertificate>,
    /// The name of the route; `None` for a file.
    pub route: Option<&'a str>,
    pub now: SystemTime,
}

/// Why a request is not granted.
#[derive(Debug)]
pub(crate) enum Denied {
    /// There is no credential, or it is not valid.
    Unauthorized {
        /// For the access log: what is wrong, without the credential.
        detail: String,
        /// Whether the request has a credential. A client without one asks what it needs, and that is no failed attempt.
        attempted: bool,
    },
    /// The credential is valid, and does not cover this request.
    Forbidden { detail: String },
    /// It cannot be found out whether the credential is valid.
    Unavailable { detail: String },
    /// An authority that was asked has an answer for the client.
    Answered {
        answer: Box<Answer>,
        /// As for [`Denied::Unauthorized`].
        attempted: bool,
    },
}

impl Denied {
    /// There is no credential.
    pub(crate) fn missing(detail: &str) -> Self {
        Self::Unauthorized { detail: detail.to_owned(), attempted: false }
    }

    /// The credential is not valid.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::Unauthorized { detail: detail.into(), attempted: true }
    }

    /// The credential selects a target that the route does not have.
    pub(crate) fn no_such_target() -> Self {
        Self::Forbidden { detail: "the credential selects a target that the route does not have".to_owned() }
    }

    /// Why the connection ends.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Unauthorized { .. } => Reason::Unauthorized,
            Self::Forbidden { .. } => Reason::Forbidden,
            Self::Unavailable { .. } => Reason::AuthUnavailable,
            Self::Answered { answer, .. } if answer.is_forbidden() => Reason::Forbidden,
            Self::Answered { .. } => Reason::Unauthorized,
        }
    }

    /// Whether the client has presented nothing yet, and asks what it needs.
    pub(crate) fn is_question(&self) -> bool {
        match self {
            Self::Unauthorized { attempted, .. } => !attempted,
            Self::Answered { answer, attempted } => !attempted && !answer.is_forbidden(),
            Self::Forbidden { .. } | Self::Unavailable { .. } => false,
        }
    }

    /// For the access log: what is wrong.
    pub(crate) fn into_detail(self) -> String {
        match self {
            Self::Unauthorized { detail, .. } | Self::Forbidden { detail } | Self::Unavailable { detail } => {
                detail
            }
            Self::Answered { answer, .. } => format!("the authority answered {}", answer.status),
        }
    }
}

/// A method of `[auth.NAME]`.
#[derive(Debug)]
pub(crate) enum Method {
    /// One of these suffices.
    Any(Vec<Arc<Method>>),
    Basic(Box<BasicMethod>),
    ClientCertificate(ClientCertificateMethod),
    Forward(Box<ForwardMethod>),
    Jwt(Box<JwtMethod>),
    Ticket(TicketMethod),
}

impl Method {
    /// Keeps current what the method has loaded, until `stop` is cancelled.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        match &*self {
            Self::Any(_) | Self::ClientCertificate(_) | Self::Forward(_) | Self::Ticket(_) => {}
            Self::Basic(method) => method.watch(stop).await,
            Self::Jwt(method) => method.watch(stop).await,
        }
    }

    async fn check(&self, request: &AuthRequest<'_>) -> Result<Grant, Denied> {
        match self {
            Self::Any(methods) => any(methods, request).await,
            Self::Basic(method) => method.check(request).await,
            Self::ClientCertificate(method) => method.check(request),
            Self::Forward(method) => method.check(request).await,
            Self::Jwt(method) => method.check(request).await,
            Self::Ticket(method) => method.check(request),
        }
    }

    /// Whether an offered subprotocol is a credential, and not the name of a protocol.
    fn is_credential(&self, offered: &str) -> bool {
        match self {
            Self::Any(methods) => methods.iter().any(|method| method.is_credential(offered)),
            Self::Basic(_) | Self::ClientCertificate(_) | Self::Forward(_) => false,
            Self::Jwt(method) => method.is_credential(offered),
            Self::Ticket(method) => method.is_credential(offered),
        }
    }

    /// How a ticket for this method becomes a link; `None` if it accepts no tickets.
    fn ticket_link(&self) -> Option<TicketLink<'_>> {
        match self {
            Self::Any(methods) => methods.iter().find_map(|method| method.ticket_link()),
            Self::Basic(_) | Self::ClientCertificate(_) | Self::Forward(_) | Self::Jwt(_) => None,
            Self::Ticket(method) => Some(method.link()),
        }
    }

    /// Adds how a client can authenticate (RFC 9110 §11.6.1). An authority that is asked says so itself.
    fn add_challenges(&self, challenges: &mut Vec<HeaderValue>) {
        let challenge = match self {
            Self::Any(methods) => {
                return methods.iter().for_each(|method| method.add_challenges(challenges));
            }
            Self::Forward(_) => return,
            Self::Basic(method) => method.challenge().clone(),
            // There is no scheme for certificates, and a 401 needs one.
            Self::ClientCertificate(_) | Self::Jwt(_) | Self::Ticket(_) => HeaderValue::from_static("Bearer"),
        };
        if !challenges.contains(&challenge) {
            challenges.push(challenge);
        }
    }
}

/// What one route requires: every one of its methods.
#[derive(Debug, Clone)]
pub(crate) struct Authenticator {
    methods: Vec<Arc<Method>>,
    credentials: Arc<Credentials>,
}

impl Authenticator {
    /// Checks a request with every method.
    ///
    /// # Errors
    /// The first method that does not grant it, or two that grant different things. Then no ticket is used.
    pub(crate) async fn check(&self, request: &AuthRequest<'_>) -> Result<Grant, Denied> {
        let mut used = Vec::new();
        let granted = self.combine(request, &mut used).await;
        if granted.is_err() {
            used.iter().for_each(|credential| self.credentials.give_back(credential));
        }
        granted
    }

    async fn combine(
        &self,
        request: &AuthRequest<'_>,
        used: &mut Vec<CredentialId>,
    ) -> Result<Grant, Denied> {
        let mut granted = Grant::default();
        for method in &self.methods {
            let grant = method.check(request).await?;
            used.extend(grant.credential.clone());
            granted = granted.and(grant)?;
        }
        granted.on_route(request.route)
    }

    /// How a client can authenticate: the values of `WWW-Authenticate`. The same for every request.
    pub(crate) fn challenges(&self) -> Vec<HeaderValue> {
        let mut challenges = Vec::new();
        self.methods.iter().for_each(|method| method.add_challenges(&mut challenges));
        challenges
    }

    /// How a ticket for the route becomes a link; `None` if it accepts no tickets.
    pub(crate) fn ticket_link(&self) -> Option<TicketLink<'_>> {
        self.methods.iter().find_map(|method| method.ticket_link())
    }

    /// Whether an offered subprotocol is a credential, and not the name of a protocol.
    pub(crate) fn is_credential(&self, offered: &str) -> bool {
        self.methods.iter().any(|method| method.is_credential(offered))
    }
}

/// Checks one after the other, until one grants the request.
///
/// The error is that of the method whose credential was tried, because it is the one that the client meant to use.
async fn any(methods: &[Arc<Method>], request: &AuthRequest<'_>) -> Result<Grant, Denied> {
    let mut denied: Option<Denied> = None;
    for method in methods {
        match Box::pin(method.check(request)).await {
            Ok(grant) => return Ok(grant),
            Err(error) => {
                let is_better = denied.as_ref().is_none_or(|previous| rank(&error) > rank(previous));
                if is_better {
                    denied = Some(error);
                }
            }
        }
    }
    Err(denied.unwrap_or_else(|| Denied::missing("no method is configured")))
}

/// How much an error says of what the client meant to do.
fn rank(denied: &Denied) -> u8 {
    match denied {
        Denied::Unauthorized { attempted: false, .. } => 0,
        // It says more: where to log in, for example.
        Denied::Answered { attempted: false, answer } if !answer.is_forbidden() => 1,
        Denied::Unauthorized { .. } => 2,
        Denied::Answered { answer, .. } if !answer.is_forbidden() => 2,
        Denied::Unavailable { .. } => 3,
        Denied::Forbidden { .. } | Denied::Answered { .. } => 4,
    }
}

/// The methods, and the authenticators of the routes that have one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Authenticators {
    /// By the name of the method.
    methods: HashMap<String, Arc<Method>>,
    /// By the name of the route.
    routes: HashMap<String, Authenticator>,
    /// For the files of `[web] root`.
    files: Option<Authenticator>,
}

impl Authenticators {
    /// Loads the methods, and combines them for each route and for the files of `web`. `previous` are those of the
    /// configuration that this one replaces, if there is one.
    ///
    /// # Errors
    /// A file that a method names cannot be used.
    pub(crate) fn load(
        methods: &[AuthMethod],
        routes: &[Route],
        web: Option<&Web>,
        credentials: &Arc<Credentials>,
        previous: Option<&Self>,
    ) -> Result<Self, AuthError> {
        let mut loaded: HashMap<String, Arc<Method>> = HashMap::new();
        // Those that name others come last.
        let (combined, single): (Vec<_>, Vec<_>) =
            methods.iter().partition(|method| matches!(method.kind, AuthKind::Any(_)));
        for method in single.into_iter().chain(combined) {
            let before = previous.and_then(|previous| previous.methods.get(&method.name));
            let current = load(method, &loaded, credentials, before)
                .map_err(|cause| AuthError { name: method.name.clone(), cause })?;
            loaded.insert(method.name.clone(), current);
        }
        let of_names = |names: &[String]| {
            let mut methods: Vec<Arc<Method>> =
                names.iter().filter_map(|name| loaded.get(name.as_str()).cloned()).collect();
            // A ticket is used up when it is checked, so it is checked when all others have granted the request.
            methods.sort_by_key(|method| method.ticket_link().is_some());
            (!names.is_empty()).then(|| Authenticator { methods, credentials: Arc::clone(credentials) })
        };
        let of_route = |route: &Route| Some((route.name.clone(), of_names(&route.auth)?));
        let (routes, files) =
            (routes.iter().filter_map(of_route).collect(), web.and_then(|web| of_names(&web.auth)));
        Ok(Self { methods: loaded, routes, files })
    }

    /// The methods that have something to keep current.
    pub(crate) fn watched(&self) -> impl Iterator<Item = &Arc<Method>> {
        self.methods.values().filter(|method| matches!(***method, Method::Basic(_) | Method::Jwt(_)))
    }

    /// Checks a token alone, without a request. `None` if the method of this name uses none.
    pub(crate) async fn examine(
        &self,
        method: &str,
        token: &Secret,
        now: SystemTime,
    ) -> Option<Result<Grant, Denied>> {
        match &**self.methods.get(method)? {
            Method::Any(_)
            | Method::Basic(_)
            | Method::ClientCertificate(_)
            | Method::Forward(_)
            | Method::Ticket(_) => None,
            Method::Jwt(method) => Some(method.examine(token.expose(), now).await),
        }
    }

    /// What a route requires; `None` if it requires nothing.
    pub(crate) fn of(&self, route: &str) -> Option<&Authenticator> {
        self.routes.get(route)
    }

    /// What the files of `[web] root` require; `None` if they require nothing.
    pub(crate) fn of_files(&self) -> Option<&Authenticator> {
        self.files.as_ref()
    }
}

/// Loads one method, or keeps `previous` with what it has cached. Those that it names are loaded already: the configuration
/// has checked that they exist.
fn load(
    method: &AuthMethod,
    loaded: &HashMap<String, Arc<Method>>,
    credentials: &Arc<Credentials>,
    previous: Option<&Arc<Method>>,
) -> Result<Arc<Method>, String> {
    let current = match (&method.kind, previous.map(|previous| (previous, &**previous))) {
        (AuthKind::Any(names), _) => {
            Method::Any(names.iter().filter_map(|name| loaded.get(name.as_str()).cloned()).collect())
        }
        (AuthKind::Basic(config), previous) => {
            let previous = previous.and_then(|(_, previous)| match previous {
                Method::Basic(previous) => Some(&**previous),
                _ => None,
            });
            Method::Basic(Box::new(BasicMethod::load(config, credentials, previous)?))
        }
        (AuthKind::ClientCertificate(config), _) => {
            Method::ClientCertificate(ClientCertificateMethod::new(config))
        }
        (AuthKind::Forward(config), Some((kept, Method::Forward(previous)))) if previous.is_kept(config) => {
            return Ok(Arc::clone(kept));
        }
        (AuthKind::Forward(config), _) => {
            Method::Forward(Box::new(ForwardMethod::load(&method.name, config)?))
        }
        (AuthKind::Jwt(config), Some((kept, Method::Jwt(previous)))) if previous.is_kept(config) => {
            return Ok(Arc::clone(kept));
        }
        (AuthKind::Jwt(config), previous) => {
            let previous = previous.and_then(|(_, previous)| match previous {
                Method::Jwt(previous) => Some(&**previous),
                _ => None,
            });
            Method::Jwt(Box::new(JwtMethod::load(&method.name, config, previous)?))
        }
        (AuthKind::Ticket(config), _) => Method::Ticket(TicketMethod::new(config, credentials)),
    };
    Ok(Arc::new(current))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sha256
}

/// Why a method cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("auth.{name}: {cause}")]
pub struct AuthError {
    /// The name of the method.
    pub name: String,
    /// What is wrong with it, and what to do.
    pub cause: String,
}
