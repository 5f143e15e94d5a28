//! Destinations of log lines: standard error, journald, the access log file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::{
        fs::{FileExt, FileTypeExt, OpenOptionsExt},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::writer::Sink;

/// The pause before a write that would block is retried: standard error may be a non-blocking pipe.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

pub(super) struct Stderr;

impl Sink for Stderr {
    fn write(&mut self, lines: &[Vec<u8>]) -> u64 {
        // An error has nowhere else to be reported; the lost lines are counted.
        let written = write_lines(&mut io::stderr().lock(), false, lines).whole;
        lines.len() as u64 - written
    }
}

/// The socket of systemd-journald.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Whether the last write failed.
    is_failing: bool,
}

impl Journal {
    /// Checks that journald listens on `path`.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        UnixDatagram::unbound()?.connect(path)?;
        // The socket itself stays unconnected: after a restart, journald has another socket at the same path.
        Ok(Self { socket: UnixDatagram::unbound()?, path: path.to_owned(), is_failing: false })
    }
}

impl Sink for Journal {
    fn write(&mut self, lines: &[Vec<u8>]) -> u64 {
        let mut lost = 0;
        for line in lines {
            let sent = self.socket.send_to(line, &self.path);
            // Not to the log, which is what fails; standard error may still be read. Once per outage.
            if let Err(error) = &sent
                && !self.is_failing
            {
                let path = self.path.display();
                let _ = writeln!(
                    io::stderr(),
                    "portcullis: cannot write to the journal at {path}: {error}; lines are lost and counted"
                );
            }
            self.is_failing = sent.is_err();
            lost += u64::from(self.is_failing);
        }
        lost
    }
}

/// The access log file, opened for appending.
#[derive(Debug)]
pub(super) struct AccessLogFile {
    path: PathBuf,
    file: File,
    /// Whether its last line has no newline.
    is_torn: bool,
    /// Lines lost since the last successful write.
    lost: u64,
}

impl AccessLogFile {
    /// Opens the file, or creates it with mode 0640.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if path.metadata().is_ok_and(|found| found.file_type().is_fifo()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is a pipe, not a file"));
        }
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
        let len = file.metadata()?.len();
        let mut last = [b'\n'];
        // A terminal or other device has no last byte and needs no newline.
        let is_torn = len > 0 && file.read_exact_at(&mut last, len - 1).is_ok() && last != *b"\n";
        Ok(Self { path: path.to_owned(), file, is_torn, lost: 0 })
    }
}

impl Sink for AccessLogFile {
    fn write(&mut self, lines: &[Vec<u8>]) -> u64 {
        let WriteResult { whole, is_torn, error } = write_lines(&mut self.file, self.is_torn, lines);
        self.is_torn = is_torn;
        let lost = lines.len() as u64 - whole;
        match error {
            None if self.lost > 0 => {
                let (path, lost) = (self.path.display(), std::mem::take(&mut self.lost));
                tracing::info!(%path, lost, "the access log is writable again");
            }
            Some(error) => {
                if self.lost == 0 {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "cannot write the access log; sessions continue, their lines are lost");
                }
                self.lost += lost;
            }
            None => {}
        }
        lost
    }

    fn reopen(&mut self) {
        match Self::open(&self.path) {
            Ok(reopened) => *self = Self { lost: self.lost, ..reopened },
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "cannot reopen the access log; still writing to the old file");
            }
        }
    }
}

/// The result of a write that may have been partial.
struct WriteResult {
    /// How many lines were written completely.
    whole: u64,
    /// Whether the output ends in the middle of a line.
    is_torn: bool,
    error: Option<io::Error>,
}

/// Writes the lines with as few system calls as possible; if the output `is_torn`, ends its last line first.
fn write_lines(out: &mut impl Write, is_torn: bool, lines: &[Vec<u8>]) -> WriteResult {
    let first: &[u8] = if is_torn { b"\n" } else { b"" };
    let all = [first, &lines.concat()].concat();
    let mut done = 0;
    let error = loop {
        if done == all.len() {
            break None;
        }
        match out.write(&all[done..]) {
            Ok(0) => break Some(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_INTERVAL),
            Err(error) => break Some(error),
        }
    };
    let mut end = first.len();
    let is_whole = |line: &&Vec<u8>| {
        end += line.len();
        end <= done
    };
    let whole = lines.iter().take_while(is_whole).count() as u64;
    let is_torn = if done == 0 { is_torn } else { all[done - 1] != b'\n' };
    WriteResult { whole, is_torn, error }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn lines(lines: &[&str]) -> Vec<Vec<u8>> {
        lines.iter().map(|line| line.as_bytes().to_vec()).collect()
    }

    /// Accepts up to `space` bytes, a few at a time.
    struct Full {
        space: usize,
        written: Vec<u8>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(3).min(self.space);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.space -= count;
            self.written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_torn_line_is_lost_and_does_not_join_the_next() {
        for (space, whole, is_torn) in
            [(0, 0, false), (3, 0, true), (4, 1, false), (5, 1, true), (8, 2, false)]
        {
            let mut out = Full { space, written: Vec::new() };
            let first = write_lines(&mut out, false, &lines(&["abc\n", "def\n"]));
            assert_eq!(
                (first.whole, first.is_torn, first.error.is_some()),
                (whole, is_torn, space < 8),
                "{space}"
            );
            out.space = 100;
            let then = write_lines(&mut out, first.is_torn, &lines(&["ghi\n"]));
            assert_eq!((then.whole, then.is_torn, then.error.is_some()), (1, false, false));
            let text = String::from_utf8(out.written).unwrap();
            assert_eq!(text.lines().last(), Some("ghi"), "{text:?}");
        }
    }

    #[test]
    fn the_file_is_created_group_readable_and_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sessions.log");
        let mut file = AccessLogFile::open(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o} is accessible to others");
        assert_eq!(file.write(&lines(&["one\n"])), 0);
        fs::write(&path, "one\nhalf a li").unwrap();
        let mut file_again = AccessLogFile::open(&path).unwrap();
        assert_eq!(file_again.write(&lines(&["two\n"])), 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\nhalf a li\ntwo\n");
    }

    #[test]
    fn a_rotated_file_is_created_again() {
        let directory = tempfile::tempdir().unwrap();
        let [path, old] = ["sessions.log", "sessions.log.1"].map(|name| directory.path().join(name));
        let mut file = AccessLogFile::open(&path).unwrap();
        file.write(&lines(&["one\n"]));
        fs::rename(&path, &old).unwrap();
        file.write(&lines(&["two\n"]));
        file.reopen();
        file.write(&lines(&["three\n"]));
        assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        // If it cannot be reopened, the old file is kept.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        file.reopen();
        assert_eq!(file.write(&lines(&["four\n"])), 0);
    }

    #[test]
    fn a_pipe_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = AccessLogFile::open(&path).unwrap_err();
        assert_eq!(error.to_string(), "this is a pipe, not a file");
    }

    #[test]
    fn writing_resumes_after_journald_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(Journal::connect(&path).is_err(), "there is none");
        let listening = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::connect(&path).unwrap();
        assert_eq!(journal.write(&lines(&["MESSAGE=one\n"])), 0);
        drop(listening);
        assert_eq!(journal.write(&lines(&["MESSAGE=two\n", "MESSAGE=three\n"])), 2, "both are lost");
        fs::remove_file(&path).unwrap();
        let listening = UnixDatagram::bind(&path).unwrap();
        assert_eq!(journal.write(&lines(&["MESSAGE=four\n"])), 0);
        let mut buffer = [0; 64];
        let length = listening.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"MESSAGE=four\n");
    }
}
