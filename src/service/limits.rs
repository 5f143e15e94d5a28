//! The limits of the process: descriptors (RLIMIT_NOFILE) and core dumps (RLIMIT_CORE).

use std::io;

/// Raises the soft limit to the hard limit and returns it.
pub(crate) fn raise_descriptors() -> io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

/// Forbids core dumps: a core contains the private keys, and payload in the clear.
pub(crate) fn forbid_core_dumps() -> io::Result<()> {
    rlimit::Resource::CORE.set(0, 0)
}

/// A warning with advice, if the configuration can need more descriptors than are allowed.
pub(crate) fn shortfall(needed: u64, allowed: u64) -> Option<String> {
    let missing = needed.checked_sub(allowed).filter(|missing| *missing > 0)?;
    Some(format!(
        "limits.max_sessions and max_handshakes can need {needed} descriptors, {missing} more than the {allowed} this \
         process may open; raise the limit (LimitNOFILE= in the unit, ulimit -Hn in a shell) or lower max_sessions \
         by {}",
        missing.div_ceil(2)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortfall_names_the_missing_descriptors() {
        assert_eq!(shortfall(1000, 1000), None);
        let warning = shortfall(1001, 900).unwrap();
        assert!(
            warning.contains("101 more than the 900") && warning.contains("max_sessions by 51"),
            "{warning}"
        );
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let allowed = raise_descriptors().unwrap();
        assert_eq!(rlimit::Resource::NOFILE.get().unwrap(), (allowed, allowed));
    }
}
