//! Who opened a session, as far as a login says so.

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
    /// Two credentials, both of which the route requires.
    Both(Box<[CredentialId; 2]>),
}

impl CredentialId {
    /// Whether this is that credential, or that one and another.
    pub(crate) fn includes(&self, credential: &Self) -> bool {
        match self {
            Self::Both(both) => both.iter().any(|one| one.includes(credential)),
            one => one == credential,
        }
    }
}
