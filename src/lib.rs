#![doc = "Portcullis: a WebSocket-to-TCP gateway."]
pub mod outcome;
pub mod websocket;
