//! Rows 37 to 40: backends that fail, and clients that try to choose one.
