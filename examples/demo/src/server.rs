//! The desktop's RFB server: one viewer's whole conversation, over any stream.
//!
//! Owns the order of things said (RFC 6143 §7) and the deadlines. Knows nothing of WebSockets: to it Portcullis is one
//! more TCP client. Invariant: a viewer is read and written by two halves of one task that wait for each other only when the
//! viewer itself does not read; whatever it says, the worst that happens is that its connection ends.

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
/// For the whole handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a viewer to take one update.
const STALL: Duration = Duration::from_secs(60);
/// Pause after a failed accept, which fails again at once when descriptors have run out.
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
    #[error("the viewer took nothing for {} s", STALL.as_secs())]
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
                        // Only a question of speed: the session works without.
                        let _ = stream.set_nodelay(true);
                        match session(stream, &desktop).await {
                            Ok(()) => tracing::debug!(%peer, "viewer left the desktop"),
                            Err(error) => tracing::info!(%peer, %error, "the desktop hung up on a viewer"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the desktop could not accept a viewer");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = sessions.join_next() => {}
        }
    }
}

/// One viewer, from the first byte to the last.
pub(crate) async fn session<S>(mut stream: S, desktop: &Arc<Desktop>) -> Result<(), SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let viewer =
        timeout(HANDSHAKE, handshake(&mut stream, desktop)).await.unwrap_or(Err(SessionError::Slow))?;
    let (read, write) = tokio::io::split(stream);
    // A viewer that asks faster than it reads is not read on until it does.
    let (wishes, wanted) = mpsc::channel(16);
    tokio::select! {
        ended = listen(read, &viewer, wishes) => ended,
        ended = show(write, &viewer, wanted) => ended,
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

    let Some(viewer) = desktop.enter() else {
        // No security types, then a reason; in 3.3 the zero has four bytes.
        stream.write_all(if version == Version::V3_3 { &[0, 0, 0, 0] } else { &[0] }).await?;
        stream.write_all(&rfb::reason("This desktop is full; try again when somebody has left.")).await?;
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

/// What the reading half passes to the writing half, in the order it was said.
enum Wish {
    Format(PixelFormat),
    Update { incremental: bool, area: Rectangle },
}

/// Reads what the viewer says until it closes.
async fn listen<R>(mut stream: R, viewer: &Viewer, wishes: mpsc::Sender<Wish>) -> Result<(), SessionError>
where
    R: AsyncRead + Unpin,
{
    let mut arrived = BytesMut::with_capacity(4096);
    loop {
        while let Some((message, length)) = ClientMessage::parse(&arrived)? {
            arrived.advance(length);
            let wish = match message {
                ClientMessage::SetPixelFormat(format) => Some(Wish::Format(format)),
                ClientMessage::UpdateRequest { incremental, area } => {
                    Some(Wish::Update { incremental, area })
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
            if let Some(wish) = wish
                && wishes.send(wish).await.is_err()
            {
                return Ok(());
            }
            discard(&mut stream, &mut arrived, message.discards()).await?;
            // A viewer that never pauses must not keep the others waiting.
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

/// Throws away the next `length` bytes, wherever they are.
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

/// Sends updates as they are asked for: at once if anything is new, otherwise with the next frame that is.
async fn show<W>(mut stream: W, viewer: &Viewer, mut wishes: mpsc::Receiver<Wish>) -> Result<(), SessionError>
where
    W: AsyncWrite + Unpin,
{
    let mut frames = viewer.frames();
    let mut seen = viewer.unseen();
    let mut format = Converter::new(PixelFormat::NATIVE);
    let mut wanted: Option<Rectangle> = None;
    let mut update = Vec::new();
    loop {
        tokio::select! {
            wish = wishes.recv() => match wish {
                Some(Wish::Format(new)) => format = Converter::new(new),
                Some(Wish::Update { incremental, area }) => {
                    if !incremental {
                        viewer.forget(&mut seen, area);
                    }
                    wanted = Some(wanted.map_or(area, |before| union(before, area)));
                }
                None => return Ok(()),
            },
            changed = frames.changed(), if wanted.is_some() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
        }
        if let Some(area) = wanted
            && viewer.update(&mut seen, area, &format, &mut update)
        {
            wanted = None;
            let written = async {
                stream.write_all(&update).await?;
                stream.flush().await
            };
            timeout(STALL, written).await.map_err(|_| SessionError::Stalled)??;
        }
    }
}

/// The smallest rectangle around both: one update may answer several requests (§7.5.3).
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

    /// A viewer's end of an in-memory connection that holds `room` bytes, the desktop, and how its session ends.
    fn connected(room: usize) -> (DuplexStream, Arc<Desktop>, JoinHandle<Result<(), SessionError>>) {
        connected_to(Desktop::new(), room)
    }

    fn connected_to(
        desktop: Arc<Desktop>,
        room: usize,
    ) -> (DuplexStream, Arc<Desktop>, JoinHandle<Result<(), SessionError>>) {
        let (ours, theirs) = tokio::io::duplex(room);
        let shared = Arc::clone(&desktop);
        (ours, desktop, tokio::spawn(async move { session(theirs, &shared).await }))
    }

    /// Says `line`, chooses security type None and reads up to the end of ServerInit.
    async fn introduced(stream: &mut DuplexStream, line: &[u8; 12], dialect: Version) -> (u16, u16, String) {
        let mut greeting = [0; 12];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"RFB 003.008\n");
        stream.write_all(line).await.unwrap();
        if dialect == Version::V3_3 {
            assert_eq!(stream.read_u32().await.unwrap(), 1);
        } else {
            assert_eq!(stream.read_u16().await.unwrap(), 0x0101, "one security type: None");
            stream.write_u8(1).await.unwrap();
        }
        if dialect == Version::V3_8 {
            assert_eq!(stream.read_u32().await.unwrap(), 0, "SecurityResult: fine");
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

    /// Reads one FramebufferUpdate into `copy`, `bytes` to a pixel; says which rectangles it held.
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
        ended.map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[tokio::test]
    async fn a_viewer_sees_the_desktop_draws_types_and_sees_that() {
        let (mut stream, desktop, session) = connected(4096);
        let size = introduced(&mut stream, b"RFB 003.008\n", Version::V3_8).await;
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
        // The desktop's hands stand still while nobody paints: a frame now holds exactly these changes.
        let frame = async {
            loop {
                desktop.paint(0.0);
                tokio::task::yield_now().await;
            }
        };
        let watch = async {
            let mut asked = 1;
            while pixel(&copy, 360, 60) != [0xff, 0xc2, 0x4b] || pixel(&copy, 24, 338) != [0xff, 0xc2, 0x4b] {
                let parts = update(&mut stream, &mut copy, 4).await;
                let pixels: usize =
                    parts.iter().map(|part| usize::from(part.width) * usize::from(part.height)).sum();
                assert!(
                    pixels < WIDTH * HEIGHT / 2,
                    "an incremental update carries what changed, not {pixels} pixels"
                );
                request(&mut stream, true).await;
                asked += 1;
                assert!(asked < 1000, "ink and letter did not appear");
            }
        };
        tokio::select! {
            () = frame => {}
            ended = timeout(Duration::from_secs(20), watch) => ended.expect("ink and letter did not appear in time"),
        }
        drop(stream);
        assert_eq!(ending(session).await, "fine");
    }

    #[tokio::test]
    async fn older_dialects_and_one_byte_at_a_time_work_too() {
        for (line, dialect) in [(b"RFB 003.003\n", Version::V3_3), (b"RFB 003.007\n", Version::V3_7)] {
            let (mut stream, _desktop, session) = connected(1);
            let size = introduced(&mut stream, line, dialect).await;
            assert_eq!(size, (640, 400, NAME.to_owned()));
            stream.write_all(&[0, 0, 0, 0, 8, 8, 0, 1, 0, 7, 0, 7, 0, 3, 0, 3, 6, 0, 0, 0]).await.unwrap();
            request(&mut stream, false).await;
            let mut copy = vec![0xee; WIDTH * HEIGHT];
            update(&mut stream, &mut copy, 1).await;
            assert_eq!(copy[0], 1 << 3 | 1 << 6, "the top of the sky in 8 bits");
            stream.shutdown().await.unwrap();
            assert_eq!(ending(session).await, "fine");
        }
    }

    #[tokio::test]
    async fn refusals_say_why_on_both_sides() {
        let (mut stream, _desktop, session) = connected(4096);
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(ending(session).await, "the first bytes were not an RFB version: \"GET / HTTP/1\"");

        let (mut stream, _desktop, session) = connected(4096);
        stream.write_all(b"RFB 003.008\n\x02").await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        assert_eq!(
            said,
            b"RFB 003.008\n\x01\x01\0\0\0\x01\0\0\0\x28Only security type 1 (None) was offered."
        );
        assert_eq!(ending(session).await, "the viewer chose security type 2; only 1 (None) was offered");

        let (mut stream, desktop, session) = connected(4096);
        let company: Vec<_> = std::iter::from_fn(|| desktop.enter()).collect();
        stream.write_all(b"RFB 003.008\n").await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        assert!(said.starts_with(b"RFB 003.008\n\0\0\0\0\x37This desktop is full"), "{said:?}");
        assert_eq!(ending(session).await, "too many viewers");
        drop(company);
        assert!(desktop.enter().is_some(), "places are given back");

        let (mut stream, _desktop, session) = connected(4096);
        introduced(&mut stream, b"RFB 003.008\n", Version::V3_8).await;
        stream.write_all(&[77]).await.unwrap();
        assert_eq!(ending(session).await, "RFB message type 77 is not one a viewer may send");

        let (mut stream, _desktop, session) = connected(4096);
        introduced(&mut stream, b"RFB 003.008\n", Version::V3_8).await;
        stream.write_all(&[4, 1, 0]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(ending(session).await, "connection lost: unexpected end of file");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_viewer_is_not_waited_for() {
        let (_stream, _desktop, session) = connected(4096);
        assert_eq!(
            session.await.unwrap().unwrap_err().to_string(),
            "the viewer did not finish the handshake within 10 s"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_viewer_that_does_not_read_is_dropped() {
        let (mut stream, desktop, session) = connected(4096);
        introduced(&mut stream, b"RFB 003.008\n", Version::V3_8).await;
        for _ in 0..40 {
            request(&mut stream, false).await;
        }
        assert_eq!(session.await.unwrap().unwrap_err().to_string(), "the viewer took nothing for 60 s");
        assert_eq!(
            std::iter::from_fn(|| desktop.enter().map(std::mem::forget)).count(),
            64,
            "its place is free again"
        );
    }

    #[test]
    fn a_union_holds_both() {
        let area = |x, y, width, height| Rectangle { x, y, width, height };
        assert_eq!(union(area(1, 2, 3, 4), area(10, 0, 5, 3)), area(1, 0, 14, 6));
        assert_eq!(union(area(65535, 0, 65535, 1), area(0, 0, 1, 1)), area(0, 0, 65535, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn no_viewer_can_make_a_session_panic(
            said in prop::collection::vec(prop_oneof![Just(0_u8), 0_u8..8, any::<u8>()], 0..2000), polite in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                static DESKTOP: LazyLock<Arc<Desktop>> = LazyLock::new(Desktop::new);
                let (stream, _, session) = connected_to(Arc::clone(&DESKTOP), 1 << 16);
                let (mut read, mut write) = tokio::io::split(stream);
                let speak = async {
                    // Either side may hang up first: then there is nobody to tell.
                    if polite {
                        let _ = write.write_all(b"RFB 003.008\n\x01\x01").await;
                    }
                    let _ = write.write_all(&said).await;
                    let _ = write.shutdown().await;
                };
                tokio::join!(speak, async { tokio::io::copy(&mut read, &mut tokio::io::sink()).await.unwrap() });
                // An error is fine, a panic is not.
                let _ = session.await.unwrap();
            });
        }
    }
}
