//! The endpoint of the deny list for JWTs.

use std::{sync::Arc, time::SystemTime};

use http::StatusCode;
use serde::Deserialize;

use super::{
    response::{AdminResponse, ApiError, json},
    tickets::RevokeResponse,
};
use crate::{
    auth::{Credentials, MAX_JTI},
    session::{CredentialId, Registry},
};

/// The body of `POST /api/denied`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DenyRequest {
    /// The `jti` claim of the token.
    jti: String,
    /// When the token expires: RFC 3339.
    until: String,
}

#[derive(Debug)]
pub(super) struct DenyApi {
    registry: Arc<Registry>,
    credentials: Arc<Credentials>,
}

impl DenyApi {
    pub(super) fn new(registry: Arc<Registry>, credentials: Arc<Credentials>) -> Self {
        Self { registry, credentials }
    }

    /// `POST /api/denied`.
    pub(super) fn deny(&self, DenyRequest { jti, until }: &DenyRequest) -> Result<AdminResponse, ApiError> {
        if jti.is_empty() || jti.len() > MAX_JTI {
            return Err(ApiError::bad_request(format!("jti: must have 1 to {MAX_JTI} bytes")));
        }
        let until = humantime::parse_rfc3339(until).map_err(|_| {
            ApiError::bad_request(format!("until {until:?}: write a time such as \"2030-12-31T23:59:59Z\""))
        })?;
        let now = SystemTime::now();
        // In this order: a session that is registered in between finds that its token is denied.
        let denied = self.credentials.denied.deny(jti, until, now);
        denied.map_err(|full| ApiError(StatusCode::SERVICE_UNAVAILABLE, full.to_string()))?;
        let ended = self.registry.end_credential(&CredentialId::Jwt(jti.as_str().into()));
        tracing::info!(sessions = ended, "JWT denied");
        Ok(json(StatusCode::OK, &RevokeResponse { ended }))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::{
        outcome::Reason,
        session::{Identity, Session, SessionInfo},
    };

    fn session(registry: &Arc<Registry>, credential: Option<CredentialId>) -> Session {
        let (peer, identity) =
            (SocketAddr::from(([192, 0, 2, 7], 4711)), Identity { user: None, credential });
        let since = SystemTime::UNIX_EPOCH;
        registry.open(SessionInfo { peer, route: "desk", since, identity: Some(identity) })
    }

    fn end_of(session: &Session) -> Option<Reason> {
        match session.poll_end(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(end) => Some(end.reason),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_sessions_of_a_denied_token_end() {
        let (registry, credentials) = (Arc::<Registry>::default(), Arc::<Credentials>::default());
        let api = DenyApi::new(Arc::clone(&registry), Arc::clone(&credentials));
        let denied = session(&registry, Some(CredentialId::Jwt("4711".into())));
        let others = [
            session(&registry, Some(CredentialId::Jwt("47110".into()))),
            session(&registry, Some(CredentialId::Ticket("4711".into()))),
            session(&registry, None),
        ];
        let request = DenyRequest { jti: "4711".to_owned(), until: "2040-01-01T00:00:00Z".to_owned() };
        assert!(api.deny(&request).is_ok_and(|answer| answer.status() == StatusCode::OK));
        assert_eq!(end_of(&denied), Some(Reason::CredentialExpired));
        assert_eq!(others.each_ref().map(end_of), [None; 3]);
        assert!(credentials.denied.is_denied("4711", SystemTime::now()));
    }
}
