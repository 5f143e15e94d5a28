//! Rows 24 to 27: the Origin of a request.
