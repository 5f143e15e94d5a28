//! The table of termination reasons: why a connection ended.
//!
//! Owns [`Reason`] and everything that is derived from it: the metric label, the log value and level, the HTTP status,
//! the WebSocket close code and the message for the client. Independent of every other module; no I/O, no clock.
//! Invariant: every connection ends with exactly one reason.

use std::fmt;

use http::StatusCode;
use tracing::Level;

/// The phase of a connection in which it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before a backend is dialled: the PROXY header, TLS, the request and its admission. The connection is refused.
    Handshake,
    /// Files were served, and no session was requested.
    Served,
    /// While the backend is dialled.
    Dial,
    /// After the backend is connected.
    Session,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal, $phase:ident, $status:expr, $close:expr, $explanation:literal;)+) => {
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

            /// The phase in which connections usually end for this reason. A few can also end in another one:
            /// `overloaded` while dialling, `client_gone`, `client_stalled` and `draining` before there is a session,
            /// `internal` at any time.
            pub const fn phase(self) -> Phase {
                match self { $(Self::$variant => Phase::$phase,)+ }
            }

            /// The HTTP status of the refusal, for reasons that can end a connection before its upgrade.
            pub const fn status(self) -> Option<StatusCode> {
                match self { $(Self::$variant => $status,)+ }
            }

            /// The code of the Close frame (RFC 6455 §7.4.1), for reasons after which one can be sent.
            /// `client_closed` has none of its own: the client's code is echoed.
            pub const fn close_code(self) -> Option<u16> {
                match self { $(Self::$variant => $close,)+ }
            }

            /// The message for the client: the body of a refusal, or the reason of a Close frame.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $explanation,)+ }
            }
        }
    };
}

reasons! {
    /// One address, or one network, opens connections faster than `limits.per_ip` or `limits.per_network` allow; or one
    /// address has a penalty for repeated refusals.
    RateLimited = "rate_limited", Handshake, Some(StatusCode::TOO_MANY_REQUESTS), None, "too many new connections from your address, try again later";
    /// One address, or one network, already holds as many connections as `limits.per_ip` or `limits.per_network` allow; or one
    /// user as many sessions as `limits.per_user`.
    TooManySessions = "too_many_sessions", Handshake, Some(StatusCode::TOO_MANY_REQUESTS), None, "too many connections from your address";
    /// The gateway as a whole is full: `max_sessions`, file descriptors or local ports; or the handshake was too slow while
    /// there were `max_handshakes` of them; or the file system of `[web] root` does not answer or fails.
    Overloaded = "overloaded", Handshake, Some(StatusCode::SERVICE_UNAVAILABLE), Some(1013), "the gateway is full, try again later";
    /// No valid PROXY header on a listener that requires one, or one from a peer that may not send it.
    ProxyHeaderInvalid = "proxy_header_invalid", Handshake, None, None, "no valid PROXY header";
    /// TLS was not established within `timeouts.tls`.
    TlsTimeout = "tls_timeout", Handshake, None, None, "the TLS handshake timed out";
    /// The TLS handshake failed.
    TlsFailed = "tls_failed", Handshake, None, None, "the TLS handshake failed";
    /// The client sent something other than TLS to a TLS listener.
    NotTls = "not_tls", Handshake, Some(StatusCode::BAD_REQUEST), None, "this port speaks TLS: use https:// or wss://";
    /// No complete request head within `timeouts.request`.
    RequestTimeout = "request_timeout", Handshake, Some(StatusCode::REQUEST_TIMEOUT), None, "no complete request in time";
    /// A request that RFC 9112 or RFC 6455 §4.2.1 forbids.
    BadRequest = "bad_request", Handshake, Some(StatusCode::BAD_REQUEST), None, "bad request";
    /// The request names a host that this listener does not know.
    Misdirected = "misdirected", Handshake, Some(StatusCode::MISDIRECTED_REQUEST), None, "this address does not serve that host";
    /// A method other than GET on a route (RFC 6455 §4.1).
    MethodNotAllowed = "method_not_allowed", Handshake, Some(StatusCode::METHOD_NOT_ALLOWED), None, "only GET is allowed here";
    /// A request target over 8 KiB.
    UriTooLong = "uri_too_long", Handshake, Some(StatusCode::URI_TOO_LONG), None, "the request target is longer than 8 KiB";
    /// A request head over 16 KiB or with over 100 header fields.
    HeadTooLarge = "head_too_large", Handshake, Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE), None, "the request head is larger than 16 KiB or has more than 100 fields";
    /// A route was requested without a WebSocket upgrade, or with a version other than 13.
    UpgradeRequired = "upgrade_required", Handshake, Some(StatusCode::UPGRADE_REQUIRED), None, "this is a WebSocket address: connect with a WebSocket client";
    /// No route and no file has this path, or the token is unknown.
    UnknownRoute = "unknown_route", Handshake, Some(StatusCode::NOT_FOUND), None, "not found";
    /// The route does not admit the page's Origin.
    OriginRefused = "origin_refused", Handshake, Some(StatusCode::FORBIDDEN), None, "pages of this origin may not connect here";
    /// The route requires a credential, and the request has none that is valid.
    Unauthorized = "unauthorized", Handshake, Some(StatusCode::UNAUTHORIZED), None, "a valid login is needed here";
    /// The user is known, but may not use this route.
    Forbidden = "forbidden", Handshake, Some(StatusCode::FORBIDDEN), None, "you may not connect here";
    /// Whether the credential is valid cannot be found out: what decides it does not answer, or has too much to do.
    AuthUnavailable = "auth_unavailable", Handshake, Some(StatusCode::SERVICE_UNAVAILABLE), None, "logins cannot be checked at the moment, try again later";
    /// The client offered only subprotocols that the route does not support.
    SubprotocolRefused = "subprotocol_refused", Handshake, Some(StatusCode::BAD_REQUEST), None, "none of the offered subprotocols is supported here";
    /// The connection was used for files of `[web] root` only, and ended without an error.
    Served = "served", Served, None, None, "files were served";

    /// The backend refused the connection.
    BackendRefused = "backend_refused", Dial, Some(StatusCode::BAD_GATEWAY), Some(1011), "the server behind the gateway refused the connection";
    /// The backend did not answer within `timeouts.connect`.
    BackendTimeout = "backend_timeout", Dial, Some(StatusCode::GATEWAY_TIMEOUT), Some(1011), "the server behind the gateway did not answer in time";
    /// The backend's name does not resolve.
    BackendUnresolved = "backend_unresolved", Dial, Some(StatusCode::BAD_GATEWAY), Some(1011), "the name of the server behind the gateway does not resolve";
    /// The backend accepted the connection, but TLS with it failed: its certificate, or it does not speak TLS.
    BackendTlsFailed = "backend_tls_failed", Dial, Some(StatusCode::BAD_GATEWAY), Some(1011), "no secure connection to the server behind the gateway";
    /// Every backend of the route is down or full.
    NoHealthyBackend = "no_healthy_backend", Dial, Some(StatusCode::SERVICE_UNAVAILABLE), Some(1011), "no server behind the gateway is available";

    /// The client sent a Close frame; its code was echoed.
    ClientClosed = "client_closed", Session, None, None, "the client closed the session";
    /// The client's connection ended without a Close frame.
    ClientGone = "client_gone", Session, None, None, "the client disconnected without a Close frame";
    /// The backend closed its connection; everything it sent was delivered.
    BackendClosed = "backend_closed", Session, None, Some(1000), "the server closed the connection";
    /// The backend's connection broke.
    BackendFailed = "backend_failed", Session, None, Some(1011), "the connection to the server broke";
    /// The client broke RFC 6455.
    ProtocolError = "protocol_error", Session, None, Some(1002), "the client broke the WebSocket protocol";
    /// The client sent text on a route with `receive = "binary"`.
    TextRefused = "text_refused", Session, None, Some(1003), "only binary frames are accepted here";
    /// The client sent text that is not UTF-8 (RFC 6455 §8.1).
    InvalidText = "invalid_text", Session, None, Some(1007), "text is not UTF-8";
    /// An operator ended the session.
    Killed = "killed", Session, None, Some(1008), "ended by the operator";
    /// The credential that the session was opened with has expired, or was revoked.
    CredentialExpired = "credential_expired", Session, None, Some(1008), "your login has expired";
    /// No payload in either direction for `timeouts.idle`.
    IdleTimeout = "idle_timeout", Session, None, Some(1000), "idle for too long";
    /// The session is as old as `timeouts.lifetime` allows.
    LifetimeReached = "lifetime_reached", Session, None, Some(1000), "the session reached its age limit";
    /// The client did not answer a Ping within `timeouts.pong`.
    PongTimeout = "pong_timeout", Session, None, None, "the client did not answer a ping";
    /// The client read nothing of what was pending, or left a frame header unfinished, for `timeouts.stall`.
    ClientStalled = "client_stalled", Session, None, None, "the client stopped reading";
    /// The backend read nothing of what was pending for `timeouts.stall`.
    BackendStalled = "backend_stalled", Session, None, Some(1011), "the server stopped reading";
    /// The gateway is stopping.
    Draining = "draining", Session, None, Some(1001), "the gateway is stopping";
    /// A fault of the gateway itself.
    Internal = "internal", Session, Some(StatusCode::INTERNAL_SERVER_ERROR), Some(1011), "internal error of the gateway";
}

/// The tracing target of the access log: the one line that each connection writes when it ends.
pub const ACCESS_LOG: &str = "portcullis::ends";

impl Reason {
    /// The level of the access log line. `session`: whether the connection had become a session, which [`phase`]
    /// alone cannot say. Lines of connections that had not are `debug`, because untrusted clients can cause any
    /// number of them.
    ///
    /// [`phase`]: Self::phase
    pub const fn level(self, session: bool) -> Level {
        match self {
            Self::Internal => Level::ERROR,
            _ if session => Level::INFO,
            _ => Level::DEBUG,
        }
    }
}

impl Reason {
    /// Whether a client that is refused for this reason again and again gets a penalty: only for what a healthy client does
    /// not do, even if the gateway, a backend or the network has a problem.
    pub const fn counts_for_penalty(self) -> bool {
        matches!(
            self,
            Self::ProxyHeaderInvalid
                | Self::TlsTimeout
                | Self::TlsFailed
                | Self::NotTls
                | Self::RequestTimeout
                | Self::BadRequest
                | Self::Misdirected
                | Self::MethodNotAllowed
                | Self::UriTooLong
                | Self::HeadTooLarge
                | Self::UnknownRoute
                | Self::OriginRefused
                | Self::Unauthorized
                | Self::Forbidden
                | Self::SubprotocolRefused
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
