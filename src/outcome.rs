//! The table of ends.
//!
//! Every connection ends with exactly one [`Reason`]. The log line, the metric label, the HTTP status and the
//! WebSocket close code are all derived from it here and nowhere else. Pure: no sockets, no clock.

use std::fmt;

use http::StatusCode;
use tracing::Level;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal, $status:expr, $close:expr, $explanation:literal;)+) => {
        /// Why a connection ended. The words are stable: they are metric labels and log values.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable snake_case word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The HTTP status of the refusal, for reasons that can end a connection before its upgrade.
            pub const fn status(self) -> Option<StatusCode> {
                match self { $(Self::$variant => $status,)+ }
            }

            /// The WebSocket close code, for reasons that can say goodbye with a Close frame
            /// (RFC 6455 §7.4.1). `client_closed` has none of its own: it echoes the client's.
            pub const fn close_code(self) -> Option<u16> {
                match self { $(Self::$variant => $close,)+ }
            }

            /// The reason in words for the person at the other end: the body of a refusal, the reason of a Close.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $explanation,)+ }
            }
        }
    };
}

reasons! {
    // Before the upgrade.
    /// One address opened connections faster than `limits.per_ip.rate` and `burst` allow.
    RateLimited = "rate_limited", Some(StatusCode::TOO_MANY_REQUESTS), None, "too many new connections from your address, try again later";
    /// One address holds `limits.per_ip.sessions` connections already.
    TooManySessions = "too_many_sessions", Some(StatusCode::TOO_MANY_REQUESTS), None, "too many connections from your address";
    /// The gateway as a whole is full: `max_sessions`, `max_handshakes`, descriptors or local ports.
    Overloaded = "overloaded", Some(StatusCode::SERVICE_UNAVAILABLE), Some(1013), "the gateway is full, try again later";
    /// No valid PROXY header on a listener that requires one, or from a peer that may not send one.
    ProxyHeaderInvalid = "proxy_header_invalid", None, None, "no valid PROXY header";
    /// TLS was not established within `timeouts.tls`.
    TlsTimeout = "tls_timeout", None, None, "no TLS handshake in time";
    /// The TLS handshake failed.
    TlsFailed = "tls_failed", None, None, "the TLS handshake failed";
    /// Something other than TLS was spoken on a TLS listener.
    NotTls = "not_tls", Some(StatusCode::BAD_REQUEST), None, "this port speaks TLS: use https:// or wss://";
    /// No whole request head within `timeouts.request`.
    RequestTimeout = "request_timeout", Some(StatusCode::REQUEST_TIMEOUT), None, "no whole request in time";
    /// A request that RFC 9112 or RFC 6455 §4.2.1 forbids.
    BadRequest = "bad_request", Some(StatusCode::BAD_REQUEST), None, "bad request";
    /// A method other than GET on a route (RFC 6455 §4.1).
    MethodNotAllowed = "method_not_allowed", Some(StatusCode::METHOD_NOT_ALLOWED), None, "only GET is answered here";
    /// A request target over 8 KiB.
    UriTooLong = "uri_too_long", Some(StatusCode::URI_TOO_LONG), None, "the request target is longer than 8 KiB";
    /// A head over 16 KiB or over 100 header fields.
    HeadTooLarge = "head_too_large", Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE), None, "the request head is larger than 16 KiB or has more than 100 fields";
    /// A route asked for without a WebSocket upgrade, or with a version other than 13.
    UpgradeRequired = "upgrade_required", Some(StatusCode::UPGRADE_REQUIRED), None, "this address speaks WebSocket: connect with a WebSocket client";
    /// No route and no file of that name, or a token that leads nowhere.
    UnknownRoute = "unknown_route", Some(StatusCode::NOT_FOUND), None, "nothing here";
    /// The page's Origin may not use this route.
    OriginRefused = "origin_refused", Some(StatusCode::FORBIDDEN), None, "pages of this origin may not connect here";
    /// The client offered only sub-protocols that the route does not speak.
    SubprotocolRefused = "subprotocol_refused", Some(StatusCode::BAD_REQUEST), None, "none of the offered sub-protocols is spoken here";
    /// The connection was used for files of `[web] root` only, and ended well.
    Served = "served", None, None, "files were served";

    // At the dial.
    /// The backend refused the connection.
    BackendRefused = "backend_refused", Some(StatusCode::BAD_GATEWAY), Some(1011), "the server behind the gateway refused the connection";
    /// The backend did not answer within `timeouts.connect`.
    BackendTimeout = "backend_timeout", Some(StatusCode::GATEWAY_TIMEOUT), Some(1011), "the server behind the gateway did not answer in time";
    /// The backend's name does not resolve.
    BackendUnresolved = "backend_unresolved", Some(StatusCode::BAD_GATEWAY), Some(1011), "the name of the server behind the gateway does not resolve";
    /// The backend was reached, but TLS with it was not established: its certificate, or what it speaks.
    BackendTlsFailed = "backend_tls_failed", Some(StatusCode::BAD_GATEWAY), Some(1011), "no secure connection to the server behind the gateway";
    /// Every backend of the route is down or full.
    NoHealthyBackend = "no_healthy_backend", Some(StatusCode::SERVICE_UNAVAILABLE), Some(1011), "no server behind the gateway is available";

    // In a session.
    /// The client sent a Close frame; its code was echoed.
    ClientClosed = "client_closed", None, None, "the client closed";
    /// The client's connection ended without a Close frame.
    ClientGone = "client_gone", None, None, "the client vanished";
    /// The backend closed its connection; everything it said was delivered.
    BackendClosed = "backend_closed", None, Some(1000), "the server closed the connection";
    /// The backend's connection broke.
    BackendFailed = "backend_failed", None, Some(1011), "the connection to the server broke";
    /// The client broke RFC 6455.
    ProtocolError = "protocol_error", None, Some(1002), "the client broke the WebSocket protocol";
    /// The client sent text on a route with `receive = "binary"`.
    TextRefused = "text_refused", None, Some(1003), "only binary frames are accepted here";
    /// The client sent text that is not UTF-8 (RFC 6455 §8.1).
    InvalidText = "invalid_text", None, Some(1007), "text is not UTF-8";
    /// An operator ended the session.
    Killed = "killed", None, Some(1008), "ended by the operator";
    /// No payload either way for `timeouts.idle`.
    IdleTimeout = "idle_timeout", None, Some(1000), "idle for too long";
    /// The session is as old as `timeouts.lifetime` allows.
    LifetimeReached = "lifetime_reached", None, Some(1000), "the session reached its age limit";
    /// The client did not answer a ping within `timeouts.pong`.
    PongTimeout = "pong_timeout", None, None, "the client did not answer a ping";
    /// The client accepted nothing, or left a frame header unfinished, for `timeouts.stall`.
    ClientStalled = "client_stalled", None, None, "the client takes nothing";
    /// The backend accepted nothing for `timeouts.stall`.
    BackendStalled = "backend_stalled", None, Some(1011), "the server takes nothing";
    /// The gateway is stopping.
    Draining = "draining", None, Some(1001), "the gateway is stopping";
    /// A fault of the gateway itself.
    Internal = "internal", Some(StatusCode::INTERNAL_SERVER_ERROR), Some(1011), "the gateway failed";
}

/// The target of the event that ends each connection: what a log of sessions is made of.
pub const ACCESS_LOG: &str = "portcullis::ends";

impl Reason {
    /// The level of the closing line, of a session or of a connection that never became one: a stranger can cause as
    /// many of those as he likes.
    pub const fn level(self, session: bool) -> Level {
        match self {
            Self::Internal => Level::ERROR,
            _ if session => Level::INFO,
            _ => Level::DEBUG,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
