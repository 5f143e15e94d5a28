//! Rows 12 to 23: the head of a request.
