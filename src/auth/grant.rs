//! What a credential grants.
//!
//! Pure. Owns how the grants of several methods are combined. Invariant: a combination grants no more than each of them.

use std::time::{Duration, SystemTime};

use super::Denied;
use crate::session::{CredentialId, Identity};

/// The longest name of a user, in characters.
const MAX_USER: usize = 256;

/// What a credential grants. The default has no limits, and names no user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The user's name: visible characters, at most 256.
    pub user: Option<Box<str>>,
    /// When the session must end.
    pub expires: Option<SystemTime>,
    /// How long the session may be open.
    pub session_for: Option<Duration>,
    /// The target that the credential selects.
    pub target: Option<Box<str>>,
    /// The routes that it may be used for; `None` for any.
    pub routes: Option<Vec<String>>,
    /// The credential, if it can be revoked while the session is open.
    pub credential: Option<CredentialId>,
}

impl Grant {
    /// A grant for a user.
    ///
    /// # Errors
    /// The name cannot be shown to an operator.
    pub(crate) fn of_user(name: &str) -> Result<Self, Denied> {
        let is_valid =
            !name.is_empty() && name.chars().count() <= MAX_USER && !name.chars().any(char::is_control);
        if !is_valid {
            return Err(Denied::invalid("the user's name is empty, too long, or has control characters"));
        }
        Ok(Self { user: Some(name.into()), ..Self::default() })
    }

    /// What two credentials of the same request grant together.
    ///
    /// # Errors
    /// They are of different users, or select different targets.
    pub(super) fn and(self, other: Self) -> Result<Self, Denied> {
        let differ =
            |what: &str| Denied::Forbidden { detail: format!("two credentials are for different {what}") };
        Ok(Self {
            user: same(self.user, other.user).ok_or_else(|| differ("users"))?,
            target: same(self.target, other.target).ok_or_else(|| differ("targets"))?,
            expires: earlier(self.expires, other.expires),
            session_for: earlier(self.session_for, other.session_for),
            routes: match (self.routes, other.routes) {
                (Some(some), Some(others)) => {
                    Some(some.into_iter().filter(|route| others.contains(route)).collect())
                }
                (some, others) => some.or(others),
            },
            credential: match (self.credential, other.credential) {
                (Some(one), Some(other)) => Some(CredentialId::Both(Box::new([one, other]))),
                (one, other) => one.or(other),
            },
        })
    }

    /// The same, if it is for this route, or for files (`None`).
    ///
    /// # Errors
    /// It is for others.
    pub(crate) fn on_route(self, route: Option<&str>) -> Result<Self, Denied> {
        match (&self.routes, route) {
            (Some(_), None) => {
                Err(Denied::Forbidden { detail: "the credential is for routes, not for files".to_owned() })
            }
            (Some(routes), Some(route)) if !routes.iter().any(|other| other == route) => {
                Err(Denied::Forbidden { detail: "the credential is not for this route".to_owned() })
            }
            _ => Ok(self),
        }
    }

    /// When a session that is opened at `now` must end.
    pub(crate) fn end(&self, now: SystemTime) -> Option<SystemTime> {
        earlier(self.expires, self.session_for.and_then(|length| now.checked_add(length)))
    }

    pub(crate) fn identity(self) -> Identity {
        Identity { user: self.user, credential: self.credential }
    }
}

/// The value that both have, or that one of them has. `None` if they differ.
fn same<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<Option<T>> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => None,
        (one, other) => Some(one.or(other)),
    }
}

fn earlier<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn grant(user: Option<&str>, expires: Option<u64>, routes: Option<&[&str]>) -> Grant {
        let expires = expires.map(|seconds| SystemTime::UNIX_EPOCH + SECOND * seconds as u32);
        let routes = routes.map(|routes| routes.iter().map(|&route| route.to_owned()).collect());
        Grant { user: user.map(Box::from), expires, routes, ..Grant::default() }
    }

    #[test]
    fn a_combination_grants_no_more_than_each_of_its_parts() {
        let first = grant(Some("ann"), Some(20), Some(&["desk", "chat"]));
        let second = grant(None, Some(10), Some(&["chat", "mail"]));
        let both = grant(Some("ann"), Some(10), Some(&["chat"]));
        assert_eq!(first.clone().and(second.clone()).unwrap(), both);
        assert_eq!(second.and(first.clone()).unwrap(), both);
        assert_eq!(Grant::default().and(first.clone()).unwrap(), first);
        let nowhere = first.and(grant(None, None, Some(&["mail"]))).unwrap();
        assert_eq!(nowhere.routes, Some(vec![]));
    }

    #[test]
    fn a_combination_ends_with_each_of_its_credentials() {
        let of =
            |credential: &CredentialId| Grant { credential: Some(credential.clone()), ..Grant::default() };
        let (ticket, jwt) = (CredentialId::Ticket("a".into()), CredentialId::Jwt("a".into()));
        let other = CredentialId::Ticket("b".into());
        let both = of(&ticket).and(Grant::default()).unwrap().and(of(&jwt)).unwrap().credential.unwrap();
        assert!(both.includes(&ticket) && both.includes(&jwt) && !both.includes(&other));
        let one = Grant::default().and(of(&ticket)).unwrap().credential.unwrap();
        assert!(one.includes(&ticket) && !one.includes(&jwt));
    }

    #[test]
    fn credentials_of_different_users_or_targets_grant_nothing() {
        let denied = grant(Some("ann"), None, None).and(grant(Some("bob"), None, None)).unwrap_err();
        assert!(matches!(denied, Denied::Forbidden { .. }), "{denied:?}");
        let target = |name: &str| Grant { target: Some(name.into()), ..Grant::default() };
        assert!(matches!(target("a").and(target("b")), Err(Denied::Forbidden { .. })));
        assert_eq!(target("a").and(target("a")).unwrap().target.as_deref(), Some("a"));
    }

    #[test]
    fn a_session_ends_at_the_earlier_of_both_limits() {
        let now = SystemTime::UNIX_EPOCH + SECOND * 100;
        assert_eq!(Grant::default().end(now), None);
        let limited = Grant { session_for: Some(SECOND * 5), ..grant(None, Some(110), None) };
        assert_eq!(limited.end(now), Some(now + SECOND * 5));
        assert_eq!(limited.end(now + SECOND * 8), Some(now + SECOND * 10));
    }

    #[test]
    fn a_user_has_a_name_that_can_be_shown() {
        assert_eq!(Grant::of_user("Änne O'Hara").unwrap().user.as_deref(), Some("Änne O'Hara"));
        for name in ["", "a\nb", "\u{1b}[31m", &"x".repeat(257)] {
            assert!(
                matches!(Grant::of_user(name), Err(Denied::Unauthorized { attempted: true, .. })),
                "{name:?}"
            );
        }
    }
}
