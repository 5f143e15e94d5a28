//! Rows 33 to 36: credentials of clients. No listener or route asks for any yet.
