//! The question of `explain`: one connection of one client.
//!
//! Owns the parsing of its URL, as a browser parses it, and the request head that a browser would send. Pure. Invariant: no
//! error shows the URL, which can contain a token.

use std::net::IpAddr;

use http::{
    HeaderValue, Request, Uri,
    header::{CONNECTION, HOST, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use url::Url;

use crate::admission::canonical;

/// Why a question is invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuestionError {
    #[error("not a valid URL: {0}; use wss://host/path")]
    Url(url::ParseError),
    #[error("a WebSocket URL begins with wss:// or ws://; use wss://host/path")]
    Scheme,
    #[error("a WebSocket URL has no user and no password; remove everything up to the \"@\"")]
    User,
    #[error("a WebSocket URL has no \"#\"; remove everything from there on")]
    Fragment,
    #[error("the URL contains characters that cannot be sent; percent-encode them")]
    Target,
    #[error("--origin contains characters that cannot be sent; use one such as https://desk.example.com")]
    Origin,
}

/// A connection to explain.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    url: Url,
    port: u16,
    target: Uri,
    host: HeaderValue,
    origin: Option<HeaderValue>,
    from: Option<IpAddr>,
}

impl Question {
    /// A connection to `url` from the address `from`. Without `origin` the client sends no Origin header.
    ///
    /// # Errors
    /// A browser would not connect to this URL, or the Origin is not a valid header value.
    pub(crate) fn new(url: &str, origin: Option<&str>, from: Option<IpAddr>) -> Result<Self, QuestionError> {
        let url = Url::parse(url).map_err(QuestionError::Url)?;
        let (Some(name), true) = (url.host_str(), matches!(url.scheme(), "ws" | "wss")) else {
            return Err(QuestionError::Scheme);
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(QuestionError::User);
        }
        if url.fragment().is_some() {
            return Err(QuestionError::Fragment);
        }
        // The default port of the scheme is left out, as browsers do.
        let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        let host = HeaderValue::try_from(host).map_err(|_| QuestionError::Target)?;
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let target = target.parse().map_err(|_| QuestionError::Target)?;
        let origin = origin.map(HeaderValue::from_str).transpose().map_err(|_| QuestionError::Origin)?;
        let port = url.port_or_known_default().ok_or(QuestionError::Scheme)?;
        Ok(Self { port, target, host, origin, from: from.map(canonical), url })
    }

    /// Whether the URL requires TLS.
    pub(crate) fn is_wss(&self) -> bool {
        self.url.scheme() == "wss"
    }

    /// The port to connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The address to connect to, if the host of the URL is an address and not a name.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self.url.host()? {
            url::Host::Domain(_) => None,
            url::Host::Ipv4(address) => Some(address.into()),
            url::Host::Ipv6(address) => Some(canonical(address.into())),
        }
    }

    /// The value of the Origin header, if one is sent.
    pub(crate) fn origin(&self) -> Option<&HeaderValue> {
        self.origin.as_ref()
    }

    /// The canonical source address, if it is known.
    pub(crate) fn from(&self) -> Option<IpAddr> {
        self.from
    }

    /// The request head of a browser that offers no subprotocol. Its key is the example of RFC 6455 §1.3.
    pub(crate) fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        if let Some(origin) = &self.origin {
            headers.insert(ORIGIN, origin.clone());
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(url: &str) -> Question {
        Question::new(url, None, None).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn a_url_is_parsed_as_a_browser_parses_it() {
        for (url, host, target, port) in [
            ("wss://Desk.example", "desk.example", "/", 443),
            ("ws://desk.example:80/vnc", "desk.example", "/vnc", 80),
            ("wss://desk.example:8443/a/../vnc?token=x", "desk.example:8443", "/vnc?token=x", 8443),
            ("wss://bücher.example/ü", "xn--bcher-kva.example", "/%C3%BC", 443),
            ("wss://[::1]:8443/vnc", "[::1]:8443", "/vnc", 8443),
        ] {
            let question = question(url);
            let request = question.request();
            assert_eq!(request.headers()[HOST], host, "{url}");
            assert_eq!((request.uri().to_string().as_str(), question.port()), (target, port), "{url}");
        }
        assert_eq!(question("wss://[::ffff:127.0.0.1]/").address(), Some([127, 0, 0, 1].into()));
        assert_eq!(question("wss://localhost/").address(), None);
    }

    #[test]
    fn an_error_never_shows_the_url() {
        for (url, needle) in [
            ("desk.example/vnc?token=hunter2", "not a valid URL"),
            ("https://desk.example/vnc?token=hunter2", "begins with wss://"),
            ("hunter2:8443/vnc", "begins with wss://"),
            ("wss://me:hunter2@desk.example/", "no user"),
            ("wss://desk.example/#hunter2", "no \"#\""),
            ("wss://hunter2:99999/", "not a valid URL"),
        ] {
            let error = Question::new(url, None, None).unwrap_err().to_string();
            assert!(error.contains(needle) && !error.contains("hunter2"), "{url}: {error}");
        }
        assert!(Question::new("wss://a/", Some("a\nb"), None).is_err());
    }
}
