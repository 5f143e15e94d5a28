//! What the gateway itself knows of credentials: the tickets that it has issued, the JWTs that it was asked to deny, and the
//! passwords that are being checked.
//!
//! Lives as long as the process: a reload loses nothing of it.

use std::time::SystemTime;

use super::{denied::DenyList, hash_queue::HashQueue, ticket::TicketTable};
use crate::session::CredentialId;

/// The tickets, the denied ids of JWTs, and the queue of passwords.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    pub(crate) tickets: TicketTable,
    pub(crate) denied: DenyList,
    pub(super) hashing: HashQueue,
}

impl Credentials {
    /// Whether a credential that was accepted a moment ago may not open a session any more. To be asked after the session is
    /// registered: then a revocation either finds the session, or is found here.
    pub(crate) fn is_revoked(&self, credential: &CredentialId, now: SystemTime) -> bool {
        match credential {
            CredentialId::Ticket(id) => self.tickets.is_revoked(id),
            CredentialId::Jwt(jti) => self.denied.is_denied(jti, now),
            // Its file is watched by the route.
            CredentialId::TargetToken(_) => false,
            // Its listener looks for sessions with a revoked one again and again.
            CredentialId::Certificate(_) => false,
            CredentialId::Both(both) => both.iter().any(|one| self.is_revoked(one, now)),
        }
    }

    /// Takes back the use of a credential whose client was refused for another reason.
    pub(crate) fn give_back(&self, credential: &CredentialId) {
        match credential {
            CredentialId::Ticket(id) => self.tickets.give_back(id),
            CredentialId::Certificate(_) | CredentialId::Jwt(_) | CredentialId::TargetToken(_) => {}
            CredentialId::Both(both) => both.iter().for_each(|one| self.give_back(one)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, task::Poll, thread, time::Duration};

    use super::*;
    use crate::{
        auth::{
            Grant,
            ticket::{Presented, TicketTerms},
        },
        outcome::Reason,
        session::{Registry, SessionInfo},
    };

    fn terms() -> TicketTerms {
        TicketTerms {
            route: "desk".to_owned(),
            target: None,
            user: None,
            origin: None,
            address: None,
            uses: NonZeroU32::MIN,
            valid_for: Duration::from_secs(60),
            session_for: None,
        }
    }

    #[test]
    fn a_denied_jwt_is_revoked() {
        let (credentials, now) = (Credentials::default(), SystemTime::now());
        let credential = CredentialId::Jwt("4711".into());
        assert!(!credentials.is_revoked(&credential, now));
        credentials.denied.deny("4711", now + Duration::from_secs(1), now).unwrap();
        assert!(credentials.is_revoked(&credential, now));
    }

    #[test]
    fn one_of_two_credentials_is_enough_to_be_revoked_or_given_back() {
        let (credentials, now) = (Credentials::default(), SystemTime::now());
        let issued = credentials.tickets.issue(terms(), now).unwrap();
        let presented = Presented { route: "desk", origin: None, address: [192, 0, 2, 7].into() };
        let take = || credentials.tickets.take(&issued.ticket, &presented, now);
        let jwt = Grant { credential: Some(CredentialId::Jwt("4711".into())), ..Grant::default() };
        let both = jwt.and(take().unwrap()).unwrap();
        assert!(take().is_err());
        let credential = both.credential.unwrap();
        credentials.give_back(&credential);
        take().unwrap();
        assert!(!credentials.is_revoked(&credential, now));
        credentials.tickets.revoke(issued.id);
        assert!(credentials.is_revoked(&credential, now));
    }

    /// A session is opened while its ticket is revoked: either the registry ends it, or it finds its ticket revoked.
    #[test]
    fn no_session_escapes_a_revocation_at_the_same_time() {
        let (registry, peer) = (Arc::<Registry>::default(), SocketAddr::from(([192, 0, 2, 7], 4711)));
        for _ in 0..2000 {
            let (credentials, now) = (Credentials::default(), SystemTime::now());
            let issued = credentials.tickets.issue(terms(), now).unwrap();
            let presented = Presented { route: "desk", origin: None, address: peer.ip() };
            let grant = credentials.tickets.take(&issued.ticket, &presented, now).unwrap();
            let credential = grant.credential.clone().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    credentials.tickets.revoke(issued.id);
                    registry.end_credential(&credential);
                });
                let identity = Some(grant.identity());
                let session = registry.open(SessionInfo { peer, route: "desk", since: now, identity });
                let is_revoked = credentials.is_revoked(&credential, now);
                let session = (!is_revoked).then_some(session);
                // It goes on for a while, as sessions do.
                let start = std::time::Instant::now();
                let waker = std::task::Waker::noop();
                while let Some(session) = &session {
                    if let Poll::Ready(end) = session.poll_end(&mut std::task::Context::from_waker(waker)) {
                        assert_eq!(end.reason, Reason::CredentialExpired);
                        break;
                    }
                    assert!(start.elapsed() < Duration::from_secs(10), "the session goes on");
                    thread::yield_now();
                }
            });
        }
    }
}
