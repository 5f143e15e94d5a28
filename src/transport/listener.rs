//! Listening sockets, and what to do when one cannot accept.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpSocket};

/// How many connections the kernel holds for us while we are busy.
pub const BACKLOG: u32 = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(640);

/// Listens on `address`.
///
/// # Errors
/// The address is in use, is not ours, or its port needs a privilege we do not have.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for old connections to leave TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How long to pause after failed accepts: some failures concern one connection only, the others (no descriptors,
/// no memory) pass when somebody frees something, and asking again at once would burn a processor.
#[derive(Debug, Default)]
pub struct Backoff {
    pause: Duration,
}

impl Backoff {
    /// An accept went well.
    pub fn reset(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// An accept failed: how long to pause, if at all.
    pub fn after(&mut self, error: &io::Error) -> Option<Duration> {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
        // The peer gave up between its SYN and our accept.
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | TimedOut) {
            return None;
        }
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        Some(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_resources_is_waited_out_ever_longer() {
        let mut backoff = Backoff::default();
        let full = io::Error::from_raw_os_error(24);
        let pauses: Vec<u64> =
            (0..8).map(|_| backoff.after(&full).map_or(0, |pause| pause.as_millis() as u64)).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 640]);
        backoff.reset();
        assert_eq!(backoff.after(&full), Some(FIRST_PAUSE));
    }

    #[test]
    fn a_peer_that_gave_up_costs_no_pause() {
        assert_eq!(Backoff::default().after(&io::ErrorKind::ConnectionAborted.into()), None);
    }
}
