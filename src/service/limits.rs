//! How many descriptors the process may open.

use std::io;

/// Raises the soft limit (RLIMIT_NOFILE) to the hard one. Returns how many descriptors may be open.
///
/// # Errors
/// The system refused.
pub(crate) fn raise_descriptors() -> io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

/// Says that `needed` descriptors do not fit into `allowed`, and by how much, if that is so.
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
    fn a_shortfall_says_how_much_is_missing() {
        assert_eq!(shortfall(1000, 1000), None);
        let words = shortfall(1001, 900).unwrap();
        assert!(words.contains("101 more than the 900") && words.contains("max_sessions by 51"), "{words}");
    }

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let allowed = raise_descriptors().unwrap();
        assert_eq!(rlimit::Resource::NOFILE.get().unwrap(), (allowed, allowed));
    }
}
