//! Rows 28 to 32: rate limits and the address of a client.
