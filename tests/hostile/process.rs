//! Rows 52 to 60: the process and its limits.
