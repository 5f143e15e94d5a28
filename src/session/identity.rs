//! Who opened a session, as far as a login says so.

use std::fmt;

use crate::client_certificate::CertificateId;

/// What is known of the user of a session. Shown to operators; never sent to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The user's name, if the credential has one.
    pub user: Option<Box<str>>,
    /// The credential, if it can be revoked while the session is open.
    pub credential: Option<CredentialId>,
}

/// Names a credential without revealing it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum CredentialId {
    /// The id of a ticket.
    Ticket(Box<str>),
    /// The `jti` claim of a JWT (RFC 7519 §4.1.7).
    Jwt(Box<str>),
    /// A line of the route's token file.
    TargetToken(TokenDigest),
    /// A client certificate.
    Certificate(CertificateId),
    /// Two credentials, both of which the route requires.
    Both(Box<[CredentialId; 2]>),
}

impl CredentialId {
    /// Whether this is that credential, or that one and another.
    pub(crate) fn includes(&self, credential: &Self) -> bool {
        self.any(&|one| one == credential)
    }

    /// Whether `applies` to this credential or, of two, to one of them.
    pub(crate) fn any(&self, applies: &impl Fn(&Self) -> bool) -> bool {
        match self {
            Self::Both(both) => both.iter().any(|one| one.any(applies)),
            one => applies(one),
        }
    }

    /// This credential and, if there is another, that one.
    pub(crate) fn and(self, other: Option<Self>) -> Self {
        match other {
            Some(other) => Self::Both(Box::new([self, other])),
            None => self,
        }
    }
}

/// A digest of a token under a key of this process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest(pub(crate) [u8; 32]);

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(…)")
    }
}
