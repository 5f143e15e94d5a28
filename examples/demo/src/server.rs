//! The desktop's RFB server: one viewer's whole session, over any stream.
//!
//! Owns the order of messages (RFC 6143 §7) and the timeouts. Knows nothing of WebSocket: Portcullis is a TCP client like
//! any other. Invariant: the two halves of a session, reader and writer, run in one task and wait for each other only when
//! the viewer does not read; no input does more than end its own connection.

use crate::desktop::{Desktop, Viewer};
use crate::pixels::{Converter, PixelFormat};
use crate::rfb::{self, ClientMessage, GREETING, Rectangle, RfbError, SECURITY_NONE, Version};
use bytes::{Buf, BytesMut};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

const NAME: &str = "Portcullis demo desktop";
/// Drop the viewer if the whole handshake takes longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Drop the viewer if writing one update takes longer.
const STALL: Duration = Duration::from_secs(60);
/// Pause after a failed accept: without descriptors, the next one fails at once too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a viewer's connection ended early.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    #[error("{0}")]
    Rfb(#[from] RfbError),
    #[error("the viewer chose security type {0}; only 1 (None) was offered")]
    Security(u8),
    #[error("too many viewers")]
    Full,
    #[error("the viewer did not finish the handshake within {} s", HANDSHAKE.as_secs())]
    Slow,
    #[error("the viewer read nothing for {} s", STALL.as_secs())]
    Stalled,
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
}

/// Accepts viewers until dropped.
pub(crate) async fn serve(listener: TcpListener, desktop: Arc<Desktop>) {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let desktop = Arc::clone(&desktop);
                    sessions.spawn(async move {
                        // Only latency suffers without it.
                        let _ = stream.set_nodelay(true);
                        match session(stream, &desktop).await {
                            Ok(()) => tracing::debug!(%peer, "viewer disconnected"),
                            Err(error) => tracing::info!(%peer, %error, "viewer dropped"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a viewer");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = sessions.join_next() => {}
        }
    }
}

/// One viewer's session, from the first byte to the last.
pub(crate) async fn session<S>(mut stream: S, desktop: &Arc<Desktop>) -> Result<(), SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let viewer =
        timeout(HANDSHAKE, handshake(&mut stream, desktop)).await.unwrap_or(Err(SessionError::Slow))?;
    let (read, write) = tokio::io::split(stream);
    // Backpressure: a viewer that sends requests faster than it reads updates is not read until it does.
    let (requests, requested) = mpsc::channel(16);
    tokio::select! {
        ended = read_messages(read, &viewer, requests) => ended,
        ended = write_updates(write, &viewer, requested) => ended,
    }
}

/// §7.1 to §7.3: version, security, initialisation.
async fn handshake<S>(stream: &mut S, desktop: &Arc<Desktop>) -> Result<Viewer, SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(GREETING).await?;
    let mut line = [0; GREETING.len()];
    stream.read_exact(&mut line).await?;
    let version = Version::parse(&line)?;

    let Some(viewer) = desktop.join() else {
        // No security types, then a reason; in 3.3 the zero has four bytes.
        stream.write_all(if version == Version::V3_3 { &[0, 0, 0, 0] } else { &[0] }).await?;
        stream.write_all(&rfb::reason("This desktop is full; try again when a viewer has left.")).await?;
        stream.shutdown().await?;
        return Err(SessionError::Full);
    };
    if version == Version::V3_3 {
        stream.write_all(&u32::from(SECURITY_NONE).to_be_bytes()).await?;
    } else {
        stream.write_all(&[1, SECURITY_NONE]).await?;
        let chosen = stream.read_u8().await?;
        if chosen != SECURITY_NONE {
            stream.write_all(&[0, 0, 0, 1]).await?;
            if version == Version::V3_8 {
                stream.write_all(&rfb::reason("Only security type 1 (None) was offered.")).await?;
            }
            stream.shutdown().await?;
            return Err(SessionError::Security(chosen));
        }
        if version == Version::V3_8 {
            stream.write_all(&[0, 0, 0, 0]).await?;
        }
    }
    // ClientInit: whether to leave other viewers connected. This desktop is always shared.
    stream.read_u8().await?;
    let (width, height) = (crate::scene::WIDTH as u16, crate::scene::HEIGHT as u16);
    stream.write_all(&rfb::server_init(width, height, NAME)).await?;
    stream.flush().await?;
    Ok(viewer)
}

/// What the reader passes to the writer, in the order received.
enum Request {
    Format(PixelFormat),
    Update { incremental: bool, area: Rectangle },
}

/// Reads the viewer's messages until it closes.
async fn read_messages<R>(
    mut stream: R,
    viewer: &Viewer,
    requests: mpsc::Sender<Request>,
) -> Result<(), SessionError>
where
    R: AsyncRead + Unpin,
{
    let mut arrived = BytesMut::with_capacity(4096);
    loop {
        while let Some((message, length)) = ClientMessage::parse(&arrived)? {
            arrived.advance(length);
            let request = match message {
                ClientMessage::SetPixelFormat(format) => Some(Request::Format(format)),
                ClientMessage::UpdateRequest { incremental, area } => {
                    Some(Request::Update { incremental, area })
                }
                ClientMessage::Key { down: true, keysym } => {
                    viewer.press(keysym);
                    None
                }
                ClientMessage::Pointer { buttons, x, y } => {
                    viewer.point(buttons, x, y);
                    None
                }
                ClientMessage::Key { .. }
                | ClientMessage::SetEncodings { .. }
                | ClientMessage::CutText { .. } => None,
            };
            if let Some(request) = request
                && requests.send(request).await.is_err()
            {
                return Ok(());
            }
            discard(&mut stream, &mut arrived, message.discards()).await?;
            // A viewer that sends without pause must not starve the others.
            tokio::task::coop::consume_budget().await;
        }
        if stream.read_buf(&mut arrived).await? == 0 {
            return if arrived.is_empty() {
                Ok(())
            } else {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            };
        }
    }
}

/// Discards the next `length` bytes, received already or not.
async fn discard<R>(stream: &mut R, arrived: &mut BytesMut, length: u64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
{
    let mut left = length;
    loop {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(arrived.len());
        arrived.advance(here);
        left -= here as u64;
        if left == 0 {
            return Ok(());
        }
        if stream.read_buf(arrived).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Sends updates as requested: at once if anything changed, otherwise with the next frame that changes something.
async fn write_updates<W>(
    mut stream: W,
    viewer: &Viewer,
    mut requests: mpsc::Receiver<Request>,
) -> Result<(), SessionError>
where
    W: AsyncWrite + Unpin,
{
    let mut frames = viewer.frames();
    let mut seen = viewer.unseen();
    let mut format = Converter::new(PixelFormat::NATIVE);
    let mut requested: Option<Rectangle> = None;
    let mut update = Vec::new();
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                Some(Request::Format(new)) => format = Converter::new(new),
                Some(Request::Update { incremental, area }) => {
                    if !incremental {
                        viewer.forget(&mut seen, area);
                    }
                    requested = Some(requested.map_or(area, |before| union(before, area)));
                }
                None => return Ok(()),
            },
            changed = frames.changed(), if requested.is_some() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
        }
        if let Some(area) = requested
            && viewer.update(&mut seen, area, &format, &mut update)
        {
            requested = None;
            let written = async {
                stream.write_all(&update).await?;
                stream.flush().await
            };
            timeout(STALL, written).await.map_err(|_| SessionError::Stalled)??;
        }
    }
}

/// The bounding box of both: one update may answer several requests (§7.5.3).
fn union(a: Rectangle, b: Rectangle) -> Rectangle {
    let span = |start_a: u16, length_a: u16, start_b: u16, length_b: u16| {
        let start = start_a.min(start_b);
        let end = start_a.saturating_add(length_a).max(start_b.saturating_add(length_b));
        (start, end - start)
    };
    let (x, width) = span(a.x, a.width, b.x, b.width);
    let (y, height) = span(a.y, a.height, b.y, b.height);
    Rectangle { x, y, width, height }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{HEIGHT, WIDTH};
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;

    /// A viewer's end of an in-memory connection with a buffer of `capacity` bytes, the desktop, and the session's task.
    fn connected(capacity: usize) -> (DuplexStream, Arc<Desktop>, JoinHandle<Result<(), SessionError>>) {
        connected_to(Desktop::new(), capacity)
    }

    fn connected_to(
        desktop: Arc<Desktop>,
        capacity: usize,
    ) -> (DuplexStream, Arc<Desktop>, JoinHandle<Result<(), SessionError>>) {
        let (ours, theirs) = tokio::io::duplex(capacity);
        let shared = Arc::clone(&desktop);
        (ours, desktop, tokio::spawn(async move { session(theirs, &shared).await }))
    }

    /// Sends `line`, chooses security type None and reads up to the end of ServerInit.
    async fn initialised(stream: &mut DuplexStream, line: &[u8; 12], version: Version) -> (u16, u16, String) {
        let mut greeting = [0; 12];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"RFB 003.008\n");
        stream.write_all(line).await.unwrap();
        if version == Version::V3_3 {
            assert_eq!(stream.read_u32().await.unwrap(), 1);
        } else {
            assert_eq!(stream.read_u16().await.unwrap(), 0x0101, "one security type: None");
            stream.write_u8(1).await.unwrap();
        }
        if version == Version::V3_8 {
            assert_eq!(stream.read_u32().await.unwrap(), 0, "SecurityResult: OK");
        }
        stream.write_u8(1).await.unwrap();
        let (width, height) = (stream.read_u16().await.unwrap(), stream.read_u16().await.unwrap());
        let mut format = [0; 16];
        stream.read_exact(&mut format).await.unwrap();
        assert_eq!(PixelFormat::parse(&format), Ok(PixelFormat::NATIVE));
        let mut name = vec![0; stream.read_u32().await.unwrap() as usize];
        stream.read_exact(&mut name).await.unwrap();
        (width, height, String::from_utf8(name).unwrap())
    }

    async fn request(stream: &mut DuplexStream, incremental: bool) {
        stream.write_all(&[3, incremental.into(), 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    }

    /// Reads one FramebufferUpdate into `copy`, `bytes` per pixel; returns its rectangles.
    async fn update(stream: &mut DuplexStream, copy: &mut [u8], bytes: usize) -> Vec<Rectangle> {
        assert_eq!(stream.read_u16().await.unwrap(), 0, "FramebufferUpdate");
        let mut parts = Vec::new();
        for _ in 0..stream.read_u16().await.unwrap() {
            let (x, y) = (stream.read_u16().await.unwrap(), stream.read_u16().await.unwrap());
            let (width, height) = (stream.read_u16().await.unwrap(), stream.read_u16().await.unwrap());
            assert_eq!(stream.read_u32().await.unwrap(), 0, "Raw encoding");
            for row in usize::from(y)..usize::from(y + height) {
                let start = (row * WIDTH + usize::from(x)) * bytes;
                stream.read_exact(&mut copy[start..start + usize::from(width) * bytes]).await.unwrap();
            }
            parts.push(Rectangle { x, y, width, height });
        }
        parts
    }

    async fn ending(session: JoinHandle<Result<(), SessionError>>) -> String {
        let ended =
            timeout(Duration::from_secs(10), session).await.expect("the session did not end").unwrap();
        ended.map_or_else(|error| error.to_string(), |()| "ok".to_owned())
    }

    #[tokio::test]
    async fn drawing_and_typing_show_up_in_the_next_updates() {
        let (mut stream, desktop, session) = connected(4096);
        let size = initialised(&mut stream, b"RFB 003.008\n", Version::V3_8).await;
        assert_eq!(size, (640, 400, NAME.to_owned()));

        // SetPixelFormat as a canvas wants it (red first), SetEncodings with two entries, a clipboard.
        stream
            .write_all(&[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 0, 8, 16, 0, 0, 0])
            .await
            .unwrap();
        stream.write_all(&[2, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x11]).await.unwrap();
        stream.write_all(b"\x06\0\0\0\0\0\0\x05hello").await.unwrap();
        request(&mut stream, false).await;
        let mut copy = vec![0; WIDTH * HEIGHT * 4];
        let parts = update(&mut stream, &mut copy, 4).await;
        assert_eq!(parts, [Rectangle { x: 0, y: 0, width: 640, height: 400 }]);
        let pixel = |copy: &[u8], x: usize, y: usize| -> [u8; 3] {
            copy[(y * WIDTH + x) * 4..][..3].try_into().unwrap()
        };
        assert_eq!(pixel(&copy, 0, 0), [0x12, 0x16, 0x31], "the top of the sky, red first");

        // A stroke along y = 60 from x = 300 to x = 420, then the letter A.
        request(&mut stream, true).await;
        stream.write_all(&[5, 1, 1, 44, 0, 60, 5, 1, 1, 164, 0, 60, 5, 0, 1, 164, 0, 60]).await.unwrap();
        stream.write_all(&[4, 1, 0, 0, 0, 0, 0, b'A', 4, 0, 0, 0, 0, 0, 0, b'A']).await.unwrap();
        // The time is constant, so that a frame holds exactly these changes.
        let frame = async {
            loop {
                desktop.paint(0.0);
                tokio::task::yield_now().await;
            }
        };
        let updates = async {
            let mut requests = 1;
            while pixel(&copy, 360, 60) != [0xff, 0xc2, 0x4b] || pixel(&copy, 24, 338) != [0xff, 0xc2, 0x4b] {
                let parts = update(&mut stream, &mut copy, 4).await;
                let pixels: usize =
                    parts.iter().map(|part| usize::from(part.width) * usize::from(part.height)).sum();
                assert!(
                    pixels < WIDTH * HEIGHT / 2,
                    "an incremental update carries what changed, not {pixels} pixels"
                );
                request(&mut stream, true).await;
                requests += 1;
                assert!(requests < 1000, "ink and letter did not appear");
            }
        };
        tokio::select! {
            () = frame => {}
            ended = timeout(Duration::from_secs(20), updates) => ended.expect("ink and letter did not appear in time"),
        }
        drop(stream);
        assert_eq!(ending(session).await, "ok");
    }

    #[tokio::test]
    async fn older_versions_work_one_byte_at_a_time() {
        for (line, version) in [(b"RFB 003.003\n", Version::V3_3), (b"RFB 003.007\n", Version::V3_7)] {
            let (mut stream, _desktop, session) = connected(1);
            let size = initialised(&mut stream, line, version).await;
            assert_eq!(size, (640, 400, NAME.to_owned()));
            stream.write_all(&[0, 0, 0, 0, 8, 8, 0, 1, 0, 7, 0, 7, 0, 3, 0, 3, 6, 0, 0, 0]).await.unwrap();
            request(&mut stream, false).await;
            let mut copy = vec![0xee; WIDTH * HEIGHT];
            update(&mut stream, &mut copy, 1).await;
            assert_eq!(copy[0], 1 << 3 | 1 << 6, "the top of the sky in 8 bits");
            stream.shutdown().await.unwrap();
            assert_eq!(ending(session).await, "ok");
        }
    }

    #[tokio::test]
    async fn refusals_name_the_cause_on_both_sides() {
        let (mut stream, _desktop, session) = connected(4096);
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(ending(session).await, "the first bytes are not an RFB version: \"GET / HTTP/1\"");

        let (mut stream, _desktop, session) = connected(4096);
        stream.write_all(b"RFB 003.008\n\x02").await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(
            received,
            b"RFB 003.008\n\x01\x01\0\0\0\x01\0\0\0\x28Only security type 1 (None) was offered."
        );
        assert_eq!(ending(session).await, "the viewer chose security type 2; only 1 (None) was offered");

        let (mut stream, desktop, session) = connected(4096);
        let viewers: Vec<_> = std::iter::from_fn(|| desktop.join()).collect();
        stream.write_all(b"RFB 003.008\n").await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received.starts_with(b"RFB 003.008\n\0\0\0\0\x37This desktop is full"), "{received:?}");
        assert_eq!(ending(session).await, "too many viewers");
        drop(viewers);
        assert!(desktop.join().is_some(), "dropped viewers leave");

        let (mut stream, _desktop, session) = connected(4096);
        initialised(&mut stream, b"RFB 003.008\n", Version::V3_8).await;
        stream.write_all(&[77]).await.unwrap();
        assert_eq!(ending(session).await, "a viewer cannot send RFB message type 77");

        let (mut stream, _desktop, session) = connected(4096);
        initialised(&mut stream, b"RFB 003.008\n", Version::V3_8).await;
        stream.write_all(&[4, 1, 0]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(ending(session).await, "connection lost: unexpected end of file");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_viewer_is_dropped() {
        let (_stream, _desktop, session) = connected(4096);
        assert_eq!(
            session.await.unwrap().unwrap_err().to_string(),
            "the viewer did not finish the handshake within 10 s"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_viewer_that_does_not_read_is_dropped() {
        let (mut stream, desktop, session) = connected(4096);
        initialised(&mut stream, b"RFB 003.008\n", Version::V3_8).await;
        for _ in 0..40 {
            request(&mut stream, false).await;
        }
        assert_eq!(session.await.unwrap().unwrap_err().to_string(), "the viewer read nothing for 60 s");
        assert_eq!(
            std::iter::from_fn(|| desktop.join().map(std::mem::forget)).count(),
            64,
            "a dropped viewer leaves"
        );
    }

    #[test]
    fn a_union_contains_both() {
        let area = |x, y, width, height| Rectangle { x, y, width, height };
        assert_eq!(union(area(1, 2, 3, 4), area(10, 0, 5, 3)), area(1, 0, 14, 6));
        assert_eq!(union(area(65535, 0, 65535, 1), area(0, 0, 1, 1)), area(0, 0, 65535, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn no_input_makes_a_session_panic(
            sent in prop::collection::vec(prop_oneof![Just(0_u8), 0_u8..8, any::<u8>()], 0..2000), handshake in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                static DESKTOP: LazyLock<Arc<Desktop>> = LazyLock::new(Desktop::new);
                let (stream, _, session) = connected_to(Arc::clone(&DESKTOP), 1 << 16);
                let (mut read, mut write) = tokio::io::split(stream);
                let send = async {
                    // Either side may close first.
                    if handshake {
                        let _ = write.write_all(b"RFB 003.008\n\x01\x01").await;
                    }
                    let _ = write.write_all(&sent).await;
                    let _ = write.shutdown().await;
                };
                tokio::join!(send, async { tokio::io::copy(&mut read, &mut tokio::io::sink()).await.unwrap() });
                // An error is fine, a panic is not.
                let _ = session.await.unwrap();
            });
        }
    }
}
