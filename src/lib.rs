#![doc = "Portcullis: a WebSocket-to-TCP gateway."]
pub mod admission;
pub mod outcome;
pub mod transport;
