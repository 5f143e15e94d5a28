//! From an XMPP server in the clear to one that waits for TLS (RFC 6120 §5).
//!
//! Owns the conversation before the handshake: stream header, features, `<starttls/>`, `<proceed/>`. The crate `quick-xml`
//! reads the server's side of it. Refuses to know about TLS and about what XMPP is for. Invariants: no more than 64 KiB
//! are read; every byte that was read belonged to this conversation, so that nothing said in the clear can be taken for
//! something said under TLS; nothing but this conversation is written. The client then opens a stream of its own, over
//! TLS, as if it had connected by itself.

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

/// How much a server may say before TLS; the features of a real one are well below 2 KiB.
const LONGEST: usize = 64 * 1024;
/// How much is read at a time.
const PIECE: usize = 1024;
/// How much of a server's own words an error repeats.
const QUOTED: usize = 64;

const STREAM: Namespace<'_> = Namespace("http://etherx.jabber.org/streams");
const STREAM_ERRORS: Namespace<'_> = Namespace("urn:ietf:params:xml:ns:xmpp-streams");
const TLS: Namespace<'_> = Namespace("urn:ietf:params:xml:ns:xmpp-tls");

/// Why a server does not wait for TLS. The texts continue "cannot reach starttls+xmpp://…: ".
#[derive(Debug, thiserror::Error)]
pub enum StartTlsError {
    /// It speaks something else, or XMPP badly.
    #[error("it does not answer as an XMPP server does: {0}")]
    NotXmpp(String),
    /// It has no TLS to offer.
    #[error("the XMPP server offers no STARTTLS")]
    NotOffered,
    /// It has, but not now.
    #[error("the XMPP server offers STARTTLS and then refuses it; look at its certificate and its log")]
    Refused,
    /// It does not want this stream.
    #[error("the XMPP server ended the stream: {0}; check xmpp_domain")]
    StreamError(String),
    /// It said something behind `<proceed/>`, in the clear.
    #[error(
        "something was said in the clear after the XMPP server agreed to TLS, as an attacker would do it"
    )]
    Injected,
    /// It talks too much.
    #[error("the XMPP server said more than 64 KiB before TLS")]
    TooLong,
    /// It hung up.
    #[error("the XMPP server closed the connection before TLS")]
    Closed,
    /// The connection broke.
    #[error("the connection broke before TLS: {0}")]
    Broken(io::Error),
    /// The deadline came first.
    #[error("the XMPP server did not get ready for TLS in time")]
    Silent,
}

impl StartTlsError {
    /// The end this leads to.
    pub fn reason(&self) -> Reason {
        Reason::BackendTlsFailed
    }

    fn not_xmpp(what: impl fmt::Display) -> Self {
        Self::NotXmpp(what.to_string().chars().take(QUOTED).collect())
    }
}

impl From<io::Error> for StartTlsError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Asks the XMPP server at the other end of `stream` to wait for TLS in the name of `domain`. Afterwards the next byte
/// either way is one of the TLS handshake.
///
/// # Errors
/// Each way to fail is a [`StartTlsError`] of its own; the stream is of no more use then.
pub(crate) async fn negotiate<S>(stream: &mut S, domain: &str, deadline: Instant) -> Result<(), StartTlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    timeout_at(deadline, converse(stream, domain)).await.unwrap_or(Err(StartTlsError::Silent))
}

async fn converse<S>(stream: &mut S, domain: &str) -> Result<(), StartTlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut server = Server::new(stream);
    server
        .say(&format!(
            "<?xml version='1.0'?><stream:stream to='{}' version='1.0' xml:lang='en' xmlns='jabber:client' xmlns:stream='{}'>",
            escape(domain),
            STREAM.0
        ))
        .await?;
    server.stream_header().await?;
    if !server.features_have_starttls().await? {
        return Err(StartTlsError::NotOffered);
    }
    server.say(&format!("<starttls xmlns='{}'/>", TLS.0)).await?;
    server.proceed().await?;
    if server.has_more() { Err(StartTlsError::Injected) } else { Ok(()) }
}

/// The server's side of the conversation.
struct Server<'a, S> {
    reader: NsReader<BufReader<Take<&'a mut S>>>,
    buffer: Vec<u8>,
}

/// A piece of it that matters.
enum Piece {
    Start(Element),
    End,
}

/// What an element is, as far as that matters here.
enum Element {
    Stream { version: bool },
    StreamError,
    StreamErrorCondition(String),
    Features,
    StartTls,
    Proceed,
    Failure,
    Other(String),
}

impl Element {
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

/// Whether a stream is of version 1.0 or later: features exist since then (RFC 6120 §4.7.5).
fn has_version(start: &BytesStart<'_>) -> bool {
    let version = start.try_get_attribute("version").ok().flatten();
    version.is_some_and(|version| !version.value.starts_with("0."))
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Server<'a, S> {
    fn new(stream: &'a mut S) -> Self {
        let bounded = stream.take(LONGEST as u64);
        let mut reader = NsReader::from_reader(BufReader::with_capacity(PIECE, bounded));
        reader.config_mut().expand_empty_elements = true;
        Self { reader, buffer: Vec::new() }
    }

    async fn say(&mut self, text: &str) -> Result<(), StartTlsError> {
        let stream = self.reader.get_mut().get_mut().get_mut();
        stream.write_all(text.as_bytes()).await?;
        Ok(stream.flush().await?)
    }

    async fn stream_header(&mut self) -> Result<(), StartTlsError> {
        // Other protocols never send what would let the parser see that they are other protocols.
        match self.reader.get_mut().fill_buf().await?.first() {
            None => return Err(StartTlsError::Closed),
            Some(b'<') => {}
            Some(_) => return Err(StartTlsError::not_xmpp("it begins with something other than \"<\"")),
        }
        match self.next(0).await? {
            Piece::Start(Element::Stream { version: true }) => Ok(()),
            Piece::Start(Element::Stream { version: false }) => Err(StartTlsError::NotOffered),
            other => self.unexpected(other).await,
        }
    }

    async fn features_have_starttls(&mut self) -> Result<bool, StartTlsError> {
        match self.next(0).await? {
            Piece::Start(Element::Features) => {}
            other => return self.unexpected(other).await,
        }
        let (mut depth, mut found) = (1, false);
        while depth > 0 {
            match self.next(depth).await? {
                Piece::Start(element) => {
                    found |= depth == 1 && matches!(element, Element::StartTls);
                    depth += 1;
                }
                Piece::End => depth -= 1,
            }
        }
        Ok(found)
    }

    async fn proceed(&mut self) -> Result<(), StartTlsError> {
        match self.next(0).await? {
            Piece::Start(Element::Proceed) => {}
            Piece::Start(Element::Failure) => return Err(StartTlsError::Refused),
            other => return self.unexpected(other).await,
        }
        match self.next(0).await? {
            Piece::End => Ok(()),
            other => self.unexpected(other).await,
        }
    }

    /// What to make of a piece that has no place here: an error of the stream may come at any time.
    async fn unexpected<T>(&mut self, piece: Piece) -> Result<T, StartTlsError> {
        match piece {
            Piece::Start(Element::StreamError) => match self.next(1).await? {
                Piece::Start(Element::StreamErrorCondition(condition)) => {
                    let shown = condition.chars().filter(|c| c.is_ascii_graphic()).take(QUOTED).collect();
                    Err(StartTlsError::StreamError(shown))
                }
                _ => Err(StartTlsError::StreamError("it does not say why".to_owned())),
            },
            Piece::Start(Element::Other(name)) => {
                Err(StartTlsError::not_xmpp(format_args!("unexpected <{}>", name.escape_debug())))
            }
            Piece::Start(_) => Err(StartTlsError::not_xmpp("its answers are in the wrong order")),
            // The end of the stream itself.
            Piece::End => Err(StartTlsError::Closed),
        }
    }

    /// The next element that begins or ends. Directly in the stream, at depth 0, there is nothing but white space between
    /// elements; what RFC 6120 §11.1 forbids is an error anywhere.
    async fn next(&mut self, depth: usize) -> Result<Piece, StartTlsError> {
        loop {
            self.buffer.clear();
            let event = self.reader.read_resolved_event_into_async(&mut self.buffer).await;
            let wrong = match event {
                Ok((namespace, Event::Start(start))) => {
                    return Ok(Piece::Start(Element::new(namespace, &start)));
                }
                Ok((_, Event::End(_))) => return Ok(Piece::End),
                Ok((_, Event::Decl(_))) => continue,
                Ok((_, Event::Text(_) | Event::CData(_) | Event::GeneralRef(_))) if depth > 0 => continue,
                Ok((_, Event::Text(text))) if text.trim_ascii().is_empty() => continue,
                Ok((_, Event::Eof)) => return Err(self.end()),
                Ok(_) => StartTlsError::not_xmpp("there is something between its elements"),
                Err(quick_xml::Error::Io(error)) => io::Error::new(error.kind(), error).into(),
                Err(quick_xml::Error::Syntax(error)) if error != SyntaxError::InvalidBangMarkup => {
                    return Err(self.end());
                }
                Err(error) => StartTlsError::not_xmpp(error),
            };
            return Err(wrong);
        }
    }

    /// Why there is nothing more to read.
    fn end(&self) -> StartTlsError {
        if self.reader.get_ref().get_ref().limit() == 0 {
            StartTlsError::TooLong
        } else {
            StartTlsError::Closed
        }
    }

    /// Whether more was read than the conversation is made of.
    fn has_more(&self) -> bool {
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
    /// As Prosody says it, with things that do not matter here.
    const FEATURES: &str = "<stream:features><sasl2 xmlns='urn:xmpp:sasl:2'><mechanism>PLAIN</mechanism></sasl2>\
         <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>";
    const PROCEED: &str = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
    const ASKED: &str = "<?xml version='1.0'?><stream:stream to='xmpp.example.com' version='1.0' xml:lang='en' \
         xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
    const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// A server that says `hello` to the stream header and `answer` to `<starttls/>`, and gives back what it heard.
    fn server(mut stream: DuplexStream, hello: String, answer: String) -> JoinHandle<(DuplexStream, String)> {
        tokio::spawn(async move {
            let mut heard = String::new();
            for (asked, said) in [(ASKED, hello), (STARTTLS, answer)] {
                let mut piece = vec![0; asked.len()];
                let read = stream.read_exact(&mut piece).await;
                heard.push_str(std::str::from_utf8(&piece).unwrap().trim_end_matches('\0'));
                // A client that has heard enough is gone.
                if read.is_err() || stream.write_all(said.as_bytes()).await.is_err() {
                    break;
                }
            }
            (stream, heard)
        })
    }

    async fn talk(
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
            let (result, ..) = talk(hello, answer, pipe).await;
            errors.push(result.expect_err("this is not what a server should say"));
        }
        assert_eq!(errors[0].to_string(), errors[1].to_string(), "pieces of one byte make a difference");
        assert_eq!(errors[0].reason(), Reason::BackendTlsFailed);
        errors.remove(0)
    }

    #[tokio::test]
    async fn afterwards_the_stream_is_as_good_as_new() {
        let spelled_out = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'></proceed>";
        let prefixed = "<t:proceed xmlns:t='urn:ietf:params:xml:ns:xmpp-tls' />";
        let spacious = format!("{}\n \n{}", HEADER, FEATURES.replace("><", ">\n<"));
        for pipe in [1, 3, 64 * 1024] {
            for hello in [format!("{HEADER}{FEATURES}"), spacious.clone()] {
                for proceed in [PROCEED, spelled_out, prefixed] {
                    let (result, mut ours, server) = talk(&hello, proceed, pipe).await;
                    result.unwrap_or_else(|error| panic!("{error} ({hello}, {proceed}, {pipe})"));
                    let (mut theirs, heard) = server.await.unwrap();
                    assert_eq!(heard, format!("{ASKED}{STARTTLS}"));
                    let (client_hello, server_hello) = tokio::join!(
                        async {
                            ours.write_all(b"client hello").await.unwrap();
                            let mut heard = [0; 12];
                            ours.read_exact(&mut heard).await.unwrap();
                            heard
                        },
                        async {
                            let mut heard = [0; 12];
                            theirs.read_exact(&mut heard).await.unwrap();
                            theirs.write_all(b"server hello").await.unwrap();
                            heard
                        }
                    );
                    assert_eq!((&client_hello, &server_hello), (b"server hello", b"client hello"));
                }
            }
        }
    }

    #[tokio::test]
    async fn without_starttls_there_is_none() {
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
    async fn a_failure_is_a_failure() {
        let failure = "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>";
        let error = refusal(&format!("{HEADER}{FEATURES}"), failure).await;
        assert!(matches!(error, StartTlsError::Refused), "{error:?}");
    }

    #[tokio::test]
    async fn an_error_of_the_stream_is_told_whenever_it_comes() {
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
        assert!(silent.to_string().contains("it does not say why"), "{silent}");
    }

    #[tokio::test]
    async fn what_is_said_behind_proceed_is_refused() {
        for more in ["x", " ", "\n", "<iq/>", "</stream:stream>", "\u{16}\u{3}\u{3}"] {
            let (result, ..) =
                talk(&format!("{HEADER}{FEATURES}"), &format!("{PROCEED}{more}"), 64 * 1024).await;
            assert!(matches!(result, Err(StartTlsError::Injected)), "{more:?}: {result:?}");
        }
    }

    #[tokio::test]
    async fn other_protocols_are_told_from_xmpp() {
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
    async fn an_error_does_not_repeat_a_book() {
        let error = refusal(&format!("{HEADER}<{}>", "x\u{e9}".repeat(10_000)), "").await.to_string();
        assert!(error.len() < 300, "{} bytes", error.len());
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_is_told() {
        for said in [
            String::new(),
            "<?xml version".into(),
            HEADER[..60].into(),
            HEADER.into(),
            format!("{HEADER}<stream:features>"),
            format!("{HEADER}</stream:stream>"),
        ] {
            for pipe in [1, 64 * 1024] {
                let (mut ours, mut theirs) = duplex(pipe);
                let answer = said.clone();
                let server = tokio::spawn(async move {
                    theirs.read_exact(&mut [0; ASKED.len()]).await.unwrap();
                    // A client that has heard enough is gone.
                    let _ = theirs.write_all(answer.as_bytes()).await;
                });
                let error = negotiate(&mut ours, "xmpp.example.com", soon()).await.unwrap_err();
                assert!(matches!(error, StartTlsError::Closed), "{said}: {error:?}");
                server.await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_never_stops_is_stopped() {
        for endless in ["<a>", "<a/>", "x", " "] {
            let (mut ours, theirs) = duplex(4096);
            let (mut hears, mut says) = tokio::io::split(theirs);
            let server = tokio::spawn(async move {
                let mut sent = 0;
                let hello =
                    format!("{HEADER}<stream:features>{}", if endless == "x" { "<long-" } else { "" });
                says.write_all(hello.as_bytes()).await.unwrap();
                while says.write_all(endless.as_bytes()).await.is_ok() {
                    sent += endless.len();
                }
                sent
            });
            let listener =
                tokio::spawn(async move { tokio::io::copy(&mut hears, &mut tokio::io::sink()).await });
            let error = negotiate(&mut ours, "xmpp.example.com", soon()).await.unwrap_err();
            let deep = matches!(&error, StartTlsError::NotXmpp(what) if what.contains("deep"));
            assert!(matches!(error, StartTlsError::TooLong) || deep, "{endless:?}: {error:?}");
            drop(ours);
            let sent = server.await.unwrap();
            assert!(sent <= LONGEST + 8192, "{sent} bytes of {endless:?} were taken");
            listener.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_with_the_deadline() {
        let features = format!("{HEADER}{FEATURES}");
        for said in ["", HEADER, features.as_str()] {
            let (mut ours, mut theirs) = duplex(64 * 1024);
            theirs.write_all(said.as_bytes()).await.unwrap();
            let began = Instant::now();
            let deadline = began + Duration::from_secs(5);
            let error = negotiate(&mut ours, "xmpp.example.com", deadline).await.unwrap_err();
            assert!(matches!(error, StartTlsError::Silent), "{said}: {error:?}");
            assert_eq!(began.elapsed(), Duration::from_secs(5));
        }
    }

    #[tokio::test]
    async fn a_domain_cannot_say_anything_but_its_name() {
        let (mut ours, mut theirs) = duplex(64 * 1024);
        let hears = tokio::spawn(async move {
            let mut heard = vec![0; 200];
            let read = theirs.read(&mut heard).await.unwrap();
            String::from_utf8(heard[..read].to_vec()).unwrap()
        });
        let _ = negotiate(&mut ours, "a'/><iq>", soon()).await;
        let heard = hears.await.unwrap();
        assert!(heard.contains("to='a&apos;/&gt;&lt;iq&gt;' version"), "{heard}");
    }
}
