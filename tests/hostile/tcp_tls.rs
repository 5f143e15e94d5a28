//! Rows 1 to 11: connections before the first byte of HTTP.
