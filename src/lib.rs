#![doc = "Portcullis: a WebSocket-to-TCP gateway."]
pub mod admission;
pub mod config;
pub mod outcome;
pub mod transport;
