//! Which web pages may connect.

use std::fmt;
use std::str::FromStr;

/// A web origin (RFC 6454 §4): scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// The origin of a page that was itself loaded from this request's scheme and Host.
    pub fn of_host(https: bool, host_header: &str) -> Option<Self> {
        format!("{}://{host_header}", if https { "https" } else { "http" }).parse().ok()
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let _ = text;
        Err(InvalidOrigin::Scheme)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// What is wrong with a text that should be an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOrigin {
    /// It does not begin with a scheme and `://`.
    #[error("it must begin with a scheme and \"://\", as in \"https://desk.example.com\"")]
    Scheme,
}

/// What a request without an Origin header meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingOrigin {
    /// It is refused.
    #[default]
    Refuse,
    /// It is let in: such a client is no browser.
    Allow,
}

/// Which origins a route admits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginPolicy {
    /// `"*"`.
    pub any: bool,
    /// `"same-origin"`.
    pub same_origin: bool,
    /// `"null"`.
    pub null: bool,
    /// The origins that are written out.
    pub listed: Vec<Origin>,
    /// What a request without an Origin header meets.
    pub missing: MissingOrigin,
}

/// An entry of `origins` that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{entry:?} is not an origin: {reason}")]
pub struct OriginError {
    /// Which entry of the list, counted from 0.
    pub index: usize,
    /// The entry as it was written.
    pub entry: String,
    /// What is wrong with it.
    pub reason: InvalidOrigin,
}

/// Why a request was refused for its Origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginRefused {
    /// No Origin header, and the route wants one.
    #[error("no Origin header")]
    Missing,
    /// A well-formed origin that the route does not admit.
    #[error("{0} is not admitted")]
    Foreign(Origin),
    /// Not an origin.
    #[error("malformed Origin header: {0}")]
    Malformed(InvalidOrigin),
}

impl OriginPolicy {
    /// Reads the entries of a route's `origins`: `"same-origin"`, `"*"`, `"null"` or an origin.
    ///
    /// # Errors
    /// [`OriginError`] names the first entry that is none of these.
    pub fn parse(entries: &[String], missing: MissingOrigin) -> Result<Self, OriginError> {
        let mut policy = Self { any: false, same_origin: false, null: false, listed: Vec::new(), missing };
        for (index, entry) in entries.iter().enumerate() {
            match entry.as_str() {
                "*" => policy.any = true,
                "same-origin" => policy.same_origin = true,
                "null" => policy.null = true,
                other => policy.listed.push(other.parse().map_err(|reason| OriginError {
                    index,
                    entry: entry.clone(),
                    reason,
                })?),
            }
        }
        Ok(policy)
    }

    /// Whether a request with these Origin header values, made to the origin `own`, may enter.
    ///
    /// # Errors
    /// [`OriginRefused`] says why not.
    pub fn permit(&self, headers: &[&[u8]], own: Option<&Origin>) -> Result<(), OriginRefused> {
        let _ = (headers, own);
        Err(OriginRefused::Missing)
    }
}
