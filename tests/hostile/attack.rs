//! Rows 61 to 73: what a review with attack scripts found.
