//! STARTTLS with an XMPP server (RFC 6120 §5).
//!
//! Owns the exchange before the TLS handshake: stream header, features, `<starttls/>`, `<proceed/>`. The crate
//! `quick-xml` parses the server's side of it. Knows nothing of TLS and of the rest of XMPP. Invariants: no more than
//! 64 KiB are read; every byte that is read belongs to this exchange, so that plaintext injected by an attacker
//! cannot pass for data sent under TLS; nothing but this exchange is written. The client then opens a stream of its
//! own over TLS, as if it had connected directly.

use std::{fmt, io};

use quick_xml::{
    NsReader,
    errors::SyntaxError,
    escape::escape,
    events::{BytesStart, Event},
    name::{Namespace, ResolveResult},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Take},
    time::{Instant, timeout_at},
};

use crate::outcome::Reason;

/// The limit of what a server may send before TLS; the features of a real one are well below 2 KiB.
const MAX_EXCHANGE: usize = 64 * 1024;
/// The size of the read buffer.
const BUFFER: usize = 1024;
/// How many characters of a server's text an error message quotes.
const QUOTED: usize = 64;

const STREAM: Namespace<'_> = Namespace("http://etherx.jabber.org/streams");
const STREAM_ERRORS: Namespace<'_> = Namespace("urn:ietf:params:xml:ns:xmpp-streams");
const TLS: Namespace<'_> = Namespace("urn:ietf:params:xml:ns:xmpp-tls");

/// Why STARTTLS failed. The messages continue "cannot reach starttls+xmpp://…: ".
#[derive(Debug, thiserror::Error)]
pub enum StartTlsError {
    /// It does not speak XMPP, or violates it.
    #[error("it does not answer as an XMPP server does: {0}")]
    NotXmpp(String),
    /// Its features have no STARTTLS.
    #[error("the XMPP server offers no STARTTLS")]
    NotOffered,
    /// It offers STARTTLS and then answers with a failure.
    #[error("the XMPP server offers STARTTLS and then refuses it; check its certificate and its log")]
    Refused,
    /// It sent a stream error.
    #[error("the XMPP server ended the stream: {0}; check xmpp_domain")]
    StreamError(String),
    /// It sent plaintext after `<proceed/>`.
    #[error("data was sent in the clear after the XMPP server agreed to TLS, as in an injection attack")]
    Injected,
    /// It sent too much.
    #[error("the XMPP server sent more than 64 KiB before TLS")]
    TooLong,
    /// It closed the connection.
    #[error("the XMPP server closed the connection before TLS")]
    Closed,
    #[error("the connection broke before TLS: {0}")]
    Broken(io::Error),
    /// The deadline came first.
    #[error("the XMPP server did not complete STARTTLS in time")]
    Silent,
}

impl StartTlsError {
    /// The reason that a session ends with.
    pub fn reason(&self) -> Reason {
        Reason::BackendTlsFailed
    }

    fn not_xmpp(what: impl fmt::Display) -> Self {
        // It can quote the server, and is printed on terminals.
        let printable =
            |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { char::REPLACEMENT_CHARACTER };
        Self::NotXmpp(what.to_string().chars().take(QUOTED).map(printable).collect())
    }
}

impl From<io::Error> for StartTlsError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Negotiates TLS for `domain` with the XMPP server at the other end of `stream`. Afterwards, the next byte in either
/// direction belongs to the TLS handshake.
///
/// # Errors
/// [`StartTlsError`] has a variant for each cause; the stream cannot be used any more.
pub(crate) async fn negotiate<S>(stream: &mut S, domain: &str, deadline: Instant) -> Result<(), StartTlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    timeout_at(deadline, exchange(stream, domain)).await.unwrap_or(Err(StartTlsError::Silent))
}

async fn exchange<S>(stream: &mut S, domain: &str) -> Result<(), StartTlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut server = Server::new(stream);
    server
        .send(&format!(
            "<?xml version='1.0'?><stream:stream to='{}' version='1.0' xml:lang='en' xmlns='jabber:client' xmlns:stream='{}'>",
            escape(domain),
            STREAM.0
        ))
        .await?;
    server.stream_header().await?;
    if !server.features_have_starttls().await? {
        return Err(StartTlsError::NotOffered);
    }
    server.send(&format!("<starttls xmlns='{}'/>", TLS.0)).await?;
    server.proceed().await?;
    if server.has_unread_bytes() { Err(StartTlsError::Injected) } else { Ok(()) }
}

/// The server's side of the exchange.
struct Server<'a, S> {
    reader: NsReader<BufReader<Take<&'a mut S>>>,
    buffer: Vec<u8>,
}

/// The parts of its XML that matter.
enum XmlEvent {
    Start(StreamElement),
    End,
}

/// The elements that matter here.
enum StreamElement {
    Stream { version: bool },
    StreamError,
    StreamErrorCondition(String),
    Features,
    StartTls,
    Proceed,
    Failure,
    Other(String),
}

impl StreamElement {
    fn new(namespace: ResolveResult<'_>, start: &BytesStart<'_>) -> Self {
        let name = start.local_name();
        let name: &str = name.as_ref();
        let ResolveResult::Bound(namespace) = namespace else { return Self::Other(name.to_owned()) };
        match name {
            "stream" if namespace == STREAM => Self::Stream { version: has_version(start) },
            "error" if namespace == STREAM => Self::StreamError,
            "features" if namespace == STREAM => Self::Features,
            "starttls" if namespace == TLS => Self::StartTls,
            "proceed" if namespace == TLS => Self::Proceed,
            "failure" if namespace == TLS => Self::Failure,
            "text" => Self::Other(name.to_owned()),
            condition if namespace == STREAM_ERRORS => Self::StreamErrorCondition(condition.to_owned()),
            name => Self::Other(name.to_owned()),
        }
    }
}

/// Whether a stream is of version 1.0 or later, which introduced features (RFC 6120 §4.7.5).
fn has_version(start: &BytesStart<'_>) -> bool {
    let version = start.try_get_attribute("version").ok().flatten();
    version.is_some_and(|version| !version.value.starts_with("0."))
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Server<'a, S> {
    fn new(stream: &'a mut S) -> Self {
        let bounded = stream.take(MAX_EXCHANGE as u64);
        let mut reader = NsReader::from_reader(BufReader::with_capacity(BUFFER, bounded));
        reader.config_mut().expand_empty_elements = true;
        Self { reader, buffer: Vec::new() }
    }

    async fn send(&mut self, text: &str) -> Result<(), StartTlsError> {
        let stream = self.reader.get_mut().get_mut().get_mut();
        stream.write_all(text.as_bytes()).await?;
        Ok(stream.flush().await?)
    }

    async fn stream_header(&mut self) -> Result<(), StartTlsError> {
        // The parser would wait for more input from most other protocols, instead of rejecting them.
        match self.reader.get_mut().fill_buf().await?.first() {
            None => return Err(StartTlsError::Closed),
            Some(b'<') => {}
            Some(_) => return Err(StartTlsError::not_xmpp("it begins with something other than \"<\"")),
        }
        match self.next(0).await? {
            XmlEvent::Start(StreamElement::Stream { version: true }) => Ok(()),
            XmlEvent::Start(StreamElement::Stream { version: false }) => Err(StartTlsError::NotOffered),
            other => self.unexpected(other).await,
        }
    }

    async fn features_have_starttls(&mut self) -> Result<bool, StartTlsError> {
        match self.next(0).await? {
            XmlEvent::Start(StreamElement::Features) => {}
            other => return self.unexpected(other).await,
        }
        let (mut depth, mut found) = (1, false);
        while depth > 0 {
            match self.next(depth).await? {
                XmlEvent::Start(element) => {
                    found |= depth == 1 && matches!(element, StreamElement::StartTls);
                    depth += 1;
                }
                XmlEvent::End => depth -= 1,
            }
        }
        Ok(found)
    }

    async fn proceed(&mut self) -> Result<(), StartTlsError> {
        match self.next(0).await? {
            XmlEvent::Start(StreamElement::Proceed) => {}
            XmlEvent::Start(StreamElement::Failure) => return Err(StartTlsError::Refused),
            other => return self.unexpected(other).await,
        }
        match self.next(0).await? {
            XmlEvent::End => Ok(()),
            other => self.unexpected(other).await,
        }
    }

    /// The error for an unexpected event: a stream error may come at any time.
    async fn unexpected<T>(&mut self, event: XmlEvent) -> Result<T, StartTlsError> {
        match event {
            XmlEvent::Start(StreamElement::StreamError) => match self.next(1).await? {
                XmlEvent::Start(StreamElement::StreamErrorCondition(condition)) => {
                    let shown = condition.chars().filter(|c| c.is_ascii_graphic()).take(QUOTED).collect();
                    Err(StartTlsError::StreamError(shown))
                }
                _ => Err(StartTlsError::StreamError("without a reason".to_owned())),
            },
            XmlEvent::Start(StreamElement::Other(name)) => {
                Err(StartTlsError::not_xmpp(format_args!("unexpected <{}>", name.escape_debug())))
            }
            XmlEvent::Start(_) => Err(StartTlsError::not_xmpp("its elements are in the wrong order")),
            // The end tag of the stream.
            XmlEvent::End => Err(StartTlsError::Closed),
        }
    }

    /// The next start or end tag. Directly in the stream, at depth 0, only white space is allowed between elements;
    /// what RFC 6120 §11.1 forbids is an error at any depth.
    async fn next(&mut self, depth: usize) -> Result<XmlEvent, StartTlsError> {
        loop {
            self.buffer.clear();
            let event = self.reader.read_resolved_event_into_async(&mut self.buffer).await;
            let error = match event {
                Ok((namespace, Event::Start(start))) => {
                    return Ok(XmlEvent::Start(StreamElement::new(namespace, &start)));
                }
                Ok((_, Event::End(_))) => return Ok(XmlEvent::End),
                Ok((_, Event::Decl(_))) => continue,
                Ok((_, Event::Text(_) | Event::CData(_) | Event::GeneralRef(_))) if depth > 0 => continue,
                Ok((_, Event::Text(text))) if text.trim_ascii().is_empty() => continue,
                Ok((_, Event::Eof)) => return Err(self.end_of_input()),
                Ok(_) => StartTlsError::not_xmpp("there is text between its elements"),
                Err(quick_xml::Error::Io(error)) => io::Error::new(error.kind(), error).into(),
                Err(quick_xml::Error::Syntax(error)) if error != SyntaxError::InvalidBangMarkup => {
                    return Err(self.end_of_input());
                }
                Err(error) => StartTlsError::not_xmpp(error),
            };
            return Err(error);
        }
    }

    /// The error for the end of the input.
    fn end_of_input(&self) -> StartTlsError {
        if self.reader.get_ref().get_ref().limit() == 0 {
            StartTlsError::TooLong
        } else {
            StartTlsError::Closed
        }
    }

    /// Whether more was read than the exchange consists of.
    fn has_unread_bytes(&self) -> bool {
        !self.reader.get_ref().buffer().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{DuplexStream, duplex},
        task::JoinHandle,
    };

    use super::*;

    const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' from='xmpp.example.com' id='1' \
         xmlns:stream='http://etherx.jabber.org/streams' version='1.0' xml:lang='en'>";
    /// Those of Prosody, with elements that do not matter here.
    const FEATURES: &str = "<stream:features><sasl2 xmlns='urn:xmpp:sasl:2'><mechanism>PLAIN</mechanism></sasl2>\
         <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>";
    const PROCEED: &str = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
    const REQUEST: &str = "<?xml version='1.0'?><stream:stream to='xmpp.example.com' version='1.0' xml:lang='en' \
         xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
    const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// A server that answers the stream header with `hello` and `<starttls/>` with `answer`; returns what it received.
    fn server(mut stream: DuplexStream, hello: String, answer: String) -> JoinHandle<(DuplexStream, String)> {
        tokio::spawn(async move {
            let mut received = String::new();
            for (request, response) in [(REQUEST, hello), (STARTTLS, answer)] {
                let mut buffer = vec![0; request.len()];
                let read = stream.read_exact(&mut buffer).await;
                received.push_str(std::str::from_utf8(&buffer).unwrap().trim_end_matches('\0'));
                // A client that has failed is gone.
                if read.is_err() || stream.write_all(response.as_bytes()).await.is_err() {
                    break;
                }
            }
            (stream, received)
        })
    }

    #[test]
    fn messages_have_no_control_characters() {
        let message = StartTlsError::not_xmpp("expected `</a>`, but `</\x1b[31m\n`").to_string();
        assert!(message.ends_with("expected `</a>`, but `</\u{fffd}[31m\u{fffd}`"), "{message:?}");
    }

    async fn negotiate_with(
        hello: &str,
        answer: &str,
        pipe: usize,
    ) -> (Result<(), StartTlsError>, DuplexStream, JoinHandle<(DuplexStream, String)>) {
        let (mut ours, theirs) = duplex(pipe);
        let server = server(theirs, hello.to_owned(), answer.to_owned());
        let result = negotiate(&mut ours, "xmpp.example.com", soon()).await;
        (result, ours, server)
    }

    async fn refusal(hello: &str, answer: &str) -> StartTlsError {
        let mut errors = Vec::new();
        for pipe in [1, 64 * 1024] {
            let (result, ..) = negotiate_with(hello, answer, pipe).await;
            errors.push(result.expect_err("this server should be refused"));
        }
        assert_eq!(errors[0].to_string(), errors[1].to_string(), "one byte at a time gives another result");
        assert_eq!(errors[0].reason(), Reason::BackendTlsFailed);
        errors.remove(0)
    }

    #[tokio::test]
    async fn stream_is_ready_for_tls_afterwards() {
        let spelled_out = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'></proceed>";
        let prefixed = "<t:proceed xmlns:t='urn:ietf:params:xml:ns:xmpp-tls' />";
        let spacious = format!("{}\n \n{}", HEADER, FEATURES.replace("><", ">\n<"));
        for pipe in [1, 3, 64 * 1024] {
            for hello in [format!("{HEADER}{FEATURES}"), spacious.clone()] {
                for proceed in [PROCEED, spelled_out, prefixed] {
                    let (result, mut ours, server) = negotiate_with(&hello, proceed, pipe).await;
                    result.unwrap_or_else(|error| panic!("{error} ({hello}, {proceed}, {pipe})"));
                    let (mut theirs, received) = server.await.unwrap();
                    assert_eq!(received, format!("{REQUEST}{STARTTLS}"));
                    let (client_hello, server_hello) = tokio::join!(
                        async {
                            ours.write_all(b"client hello").await.unwrap();
                            let mut received = [0; 12];
                            ours.read_exact(&mut received).await.unwrap();
                            received
                        },
                        async {
                            let mut received = [0; 12];
                            theirs.read_exact(&mut received).await.unwrap();
                            theirs.write_all(b"server hello").await.unwrap();
                            received
                        }
                    );
                    assert_eq!((&client_hello, &server_hello), (b"server hello", b"client hello"));
                }
            }
        }
    }

    #[tokio::test]
    async fn missing_starttls_is_not_offered() {
        let none =
            "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/></stream:features>";
        let elsewhere = "<stream:features><x xmlns='y'><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></x></stream:features>";
        let foreign = "<stream:features><starttls xmlns='urn:example'/></stream:features>";
        for features in [none, elsewhere, foreign, "<stream:features/>"] {
            let error = refusal(&format!("{HEADER}{features}"), "").await;
            assert!(matches!(error, StartTlsError::NotOffered), "{features}: {error:?}");
        }
        let old = HEADER.replace(" version='1.0' xml", " xml");
        assert!(
            matches!(refusal(&old, "").await, StartTlsError::NotOffered),
            "there are no features to wait for"
        );
    }

    #[tokio::test]
    async fn failure_is_refused() {
        let failure = "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>";
        let error = refusal(&format!("{HEADER}{FEATURES}"), failure).await;
        assert!(matches!(error, StartTlsError::Refused), "{error:?}");
    }

    #[tokio::test]
    async fn stream_error_is_reported_at_any_time() {
        let unknown = "<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
             <text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>no such host</text></stream:error></stream:stream>";
        for (hello, answer) in [(format!("{HEADER}{unknown}"), ""), (format!("{HEADER}{FEATURES}"), unknown)]
        {
            let error = refusal(&hello, answer).await;
            assert_eq!(
                error.to_string(),
                "the XMPP server ended the stream: host-unknown; check xmpp_domain"
            );
        }
        let silent = refusal(&format!("{HEADER}<stream:error/></stream:stream>"), "").await;
        assert!(silent.to_string().contains("without a reason"), "{silent}");
    }

    #[tokio::test]
    async fn data_after_proceed_is_refused() {
        for more in ["x", " ", "\n", "<iq/>", "</stream:stream>", "\u{16}\u{3}\u{3}"] {
            let (result, ..) =
                negotiate_with(&format!("{HEADER}{FEATURES}"), &format!("{PROCEED}{more}"), 64 * 1024).await;
            assert!(matches!(result, Err(StartTlsError::Injected)), "{more:?}: {result:?}");
        }
    }

    #[tokio::test]
    async fn other_protocols_are_recognised() {
        for (hello, answer) in [
            ("RFB 003.008\n", ""),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", ""),
            ("<html>", ""),
            ("<!DOCTYPE html><html>", ""),
            ("<!-- hello --><stream:stream>", ""),
            ("<?php ?>", ""),
            ("<stream:stream xmlns:stream='urn:example' version='1.0'>", ""),
            ("<stream version='1.0'>", ""),
            ("<\u{0}>", ""),
            ("</stream:stream>", ""),
        ] {
            let error = refusal(hello, answer).await;
            assert!(matches!(error, StartTlsError::NotXmpp(_)), "{hello}: {error:?}");
        }
        for features in [
            "text<stream:features/>",
            "<!-- --><stream:features/>",
            "<?pi?><stream:features/>",
            "<![CDATA[x]]><stream:features/>",
            "&amp;<stream:features/>",
            "<iq/>",
            "<stream:features><a></b></stream:features>",
            "<stream:features><!-- --></stream:features>",
        ] {
            let error = refusal(&format!("{HEADER}{features}"), "").await;
            assert!(matches!(error, StartTlsError::NotXmpp(_)), "{features}: {error:?}");
        }
        for answer in ["<iq/>", "<proceed/>", "<proceed xmlns='urn:example'/>", FEATURES, "no"] {
            let hello = format!("{HEADER}{FEATURES}");
            let error = refusal(&hello, &format!("{answer}<")).await;
            assert!(matches!(error, StartTlsError::NotXmpp(_)), "{answer}: {error:?}");
        }
        let filled = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'><x/>";
        let error = refusal(&format!("{HEADER}{FEATURES}"), filled).await;
        assert!(matches!(error, StartTlsError::NotXmpp(_)), "{error:?}");
    }

    #[tokio::test]
    async fn error_message_has_a_bounded_length() {
        let error = refusal(&format!("{HEADER}<{}>", "x\u{e9}".repeat(10_000)), "").await.to_string();
        assert!(error.len() < 300, "{} bytes", error.len());
    }

    #[tokio::test]
    async fn server_that_closes_is_reported() {
        for sent in [
            String::new(),
            "<?xml version".into(),
            HEADER[..60].into(),
            HEADER.into(),
            format!("{HEADER}<stream:features>"),
            format!("{HEADER}</stream:stream>"),
        ] {
            for pipe in [1, 64 * 1024] {
                let (mut ours, mut theirs) = duplex(pipe);
                let answer = sent.clone();
                let server = tokio::spawn(async move {
                    theirs.read_exact(&mut [0; REQUEST.len()]).await.unwrap();
                    // A client that has failed is gone.
                    let _ = theirs.write_all(answer.as_bytes()).await;
                });
                let error = negotiate(&mut ours, "xmpp.example.com", soon()).await.unwrap_err();
                assert!(matches!(error, StartTlsError::Closed), "{sent}: {error:?}");
                server.await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn endless_server_is_cut_off() {
        for endless in ["<a>", "<a/>", "x", " "] {
            let (mut ours, theirs) = duplex(4096);
            let (mut reader, mut writer) = tokio::io::split(theirs);
            let server = tokio::spawn(async move {
                let mut sent = 0;
                let hello =
                    format!("{HEADER}<stream:features>{}", if endless == "x" { "<long-" } else { "" });
                writer.write_all(hello.as_bytes()).await.unwrap();
                while writer.write_all(endless.as_bytes()).await.is_ok() {
                    sent += endless.len();
                }
                sent
            });
            let listener =
                tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
            let error = negotiate(&mut ours, "xmpp.example.com", soon()).await.unwrap_err();
            let deep = matches!(&error, StartTlsError::NotXmpp(what) if what.contains("deep"));
            assert!(matches!(error, StartTlsError::TooLong) || deep, "{endless:?}: {error:?}");
            drop(ours);
            let sent = server.await.unwrap();
            assert!(sent <= MAX_EXCHANGE + 8192, "{sent} bytes of {endless:?} were read");
            listener.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_server_ends_with_the_deadline() {
        let features = format!("{HEADER}{FEATURES}");
        for sent in ["", HEADER, features.as_str()] {
            let (mut ours, mut theirs) = duplex(64 * 1024);
            theirs.write_all(sent.as_bytes()).await.unwrap();
            let began = Instant::now();
            let deadline = began + Duration::from_secs(5);
            let error = negotiate(&mut ours, "xmpp.example.com", deadline).await.unwrap_err();
            assert!(matches!(error, StartTlsError::Silent), "{sent}: {error:?}");
            assert_eq!(began.elapsed(), Duration::from_secs(5));
        }
    }

    #[tokio::test]
    async fn domain_is_escaped() {
        let (mut ours, mut theirs) = duplex(64 * 1024);
        let server = tokio::spawn(async move {
            let mut received = vec![0; 200];
            let read = theirs.read(&mut received).await.unwrap();
            String::from_utf8(received[..read].to_vec()).unwrap()
        });
        let _ = negotiate(&mut ours, "a'/><iq>", soon()).await;
        let received = server.await.unwrap();
        assert!(received.contains("to='a&apos;/&gt;&lt;iq&gt;' version"), "{received}");
    }
}
