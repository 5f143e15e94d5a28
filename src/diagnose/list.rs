//! The wording of long lists, shared by `explain` and the dial reports.

/// How many items are listed before the rest is only counted.
const MOST: usize = 8;

/// The first items, separated by semicolons, and how many more there are.
pub(super) fn list<T>(items: &[T], text: impl FnMut(&T) -> String) -> String {
    let mut listed: Vec<String> = items.iter().take(MOST).map(text).collect();
    if let Some(more @ 1..) = items.len().checked_sub(MOST) {
        listed.push(format!("{more} more"));
    }
    listed.join("; ")
}
