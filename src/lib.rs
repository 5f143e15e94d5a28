#![doc = "Portcullis: a WebSocket-to-TCP gateway."]
pub mod metrics;
pub mod outcome;
pub mod relay;
pub mod session;
pub mod websocket;
