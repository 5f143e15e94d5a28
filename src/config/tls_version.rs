//! The TLS versions that the gateway speaks: their names, and what they are to rustls.
//!
//! The one table of TLS versions: the configuration, both TLS setups and every display of a negotiated version use it.

use std::fmt;

use rustls::{ProtocolVersion, SupportedProtocolVersion, version};

/// A TLS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

impl TlsVersion {
    /// Each version with its name in the configuration.
    pub(super) const NAMES: [(&'static str, Self); 2] = [("1.2", Self::V1_2), ("1.3", Self::V1_3)];

    /// The negotiated version; `None` for one that the gateway does not speak.
    pub(crate) fn negotiated(version: ProtocolVersion) -> Option<Self> {
        match version {
            ProtocolVersion::TLSv1_2 => Some(Self::V1_2),
            ProtocolVersion::TLSv1_3 => Some(Self::V1_3),
            _ => None,
        }
    }

    /// The versions that may be negotiated when this is the oldest.
    pub(crate) fn or_newer(self) -> &'static [&'static SupportedProtocolVersion] {
        static NEWEST_FIRST: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
        match self {
            Self::V1_2 => &NEWEST_FIRST,
            Self::V1_3 => &NEWEST_FIRST[..1],
        }
    }
}

impl fmt::Display for TlsVersion {
    /// `1.2` or `1.3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, version)| version == self).map_or("", |(name, _)| *name);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_has_a_name_and_is_negotiable() {
        for (version, name) in [(TlsVersion::V1_2, "1.2"), (TlsVersion::V1_3, "1.3")] {
            assert_eq!(version.to_string(), name);
            let oldest =
                version.or_newer().iter().filter_map(|this| TlsVersion::negotiated(this.version)).min();
            assert_eq!(oldest, Some(version));
        }
    }
}
