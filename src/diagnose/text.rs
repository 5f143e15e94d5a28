//! Text that several reports share.

/// How many items of a list are shown.
const MAX_LISTED: usize = 8;

/// The first items of a list, and how many more there are.
pub(super) fn list<T>(items: &[T], describe: impl FnMut(&T) -> String) -> String {
    let mut shown: Vec<String> = items.iter().take(MAX_LISTED).map(describe).collect();
    if let Some(more @ 1..) = items.len().checked_sub(MAX_LISTED) {
        shown.push(format!("{more} more"));
    }
    shown.join("; ")
}
