//! Rows 41 to 47: frames that are invalid, oversized or too many.
