//! The places that lines are written to: standard error, the journal, the file of sessions.

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

/// How long to wait for a reader that asks for patience: standard error may be a pipe that somebody has told not to
/// block.
const PATIENCE: Duration = Duration::from_millis(10);

/// Standard error.
pub(super) struct Stderr;

impl Sink for Stderr {
    fn write(&mut self, lines: &[Vec<u8>]) -> u64 {
        // There is nobody left to tell when this fails.
        let written = write_lines(&mut io::stderr().lock(), false, lines).whole;
        lines.len() as u64 - written
    }
}

/// The socket of systemd-journald.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    is_deaf: bool,
}

impl Journal {
    /// Looks whether somebody listens there.
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        UnixDatagram::unbound()?.connect(path)?;
        // Not connected itself: a journal that was started anew has another socket at the same place.
        Ok(Self { socket: UnixDatagram::unbound()?, path: path.to_owned(), is_deaf: false })
    }
}

impl Sink for Journal {
    fn write(&mut self, lines: &[Vec<u8>]) -> u64 {
        let mut lost = 0;
        for line in lines {
            let sent = self.socket.send_to(line, &self.path);
            // The journal cannot be told; whoever started the process may see this.
            if let Err(error) = &sent
                && !self.is_deaf
            {
                let path = self.path.display();
                let _ = writeln!(
                    io::stderr(),
                    "portcullis: cannot write to the journal at {path}: {error}; lines are lost and counted"
                );
            }
            self.is_deaf = sent.is_err();
            lost += u64::from(self.is_deaf);
        }
        lost
    }
}

/// A file that lines are appended to.
#[derive(Debug)]
pub(super) struct SessionFile {
    path: PathBuf,
    file: File,
    /// Whether its last line has no end.
    is_torn: bool,
    /// How many lines were lost since it last could be written.
    lost: u64,
}

impl SessionFile {
    /// Opens the file, and makes it with mode 0640 if there is none.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if path.metadata().is_ok_and(|found| found.file_type().is_fifo()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is a pipe, not a file"));
        }
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
        let len = file.metadata()?.len();
        let mut last = [b'\n'];
        // What is no file, such as a terminal, has no last byte; nor needs it one.
        let is_torn = len > 0 && file.read_exact_at(&mut last, len - 1).is_ok() && last != *b"\n";
        Ok(Self { path: path.to_owned(), file, is_torn, lost: 0 })
    }
}

impl Sink for SessionFile {
    fn write(&mut self, lines: &[Vec<u8>]) -> u64 {
        let Written { whole, is_torn, error } = write_lines(&mut self.file, self.is_torn, lines);
        self.is_torn = is_torn;
        let lost = lines.len() as u64 - whole;
        match error {
            None if self.lost > 0 => {
                let (path, lost) = (self.path.display(), std::mem::take(&mut self.lost));
                tracing::info!(%path, lost, "the log of sessions is written again");
            }
            Some(error) => {
                if self.lost == 0 {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "cannot write the log of sessions; sessions go on, their lines are lost");
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
                tracing::warn!(%path, %error, "cannot open the log of sessions again; the old file is written on");
            }
        }
    }
}

/// How far the writing came.
struct Written {
    /// How many lines are there whole.
    whole: u64,
    /// Whether the last line that is there has no end.
    is_torn: bool,
    error: Option<io::Error>,
}

/// Writes the lines with as few calls as possible; behind the end of a line, if the place `is_torn`.
fn write_lines(place: &mut impl Write, is_torn: bool, lines: &[Vec<u8>]) -> Written {
    let first: &[u8] = if is_torn { b"\n" } else { b"" };
    let all = [first, &lines.concat()].concat();
    let mut done = 0;
    let error = loop {
        if done == all.len() {
            break None;
        }
        match place.write(&all[done..]) {
            Ok(0) => break Some(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PATIENCE),
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
    Written { whole, is_torn, error }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn lines(lines: &[&str]) -> Vec<Vec<u8>> {
        lines.iter().map(|line| line.as_bytes().to_vec()).collect()
    }

    /// Takes so many bytes, a few at a time.
    struct Full {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(3).min(self.room);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_is_torn_is_lost_and_tears_no_other() {
        for (room, whole, is_torn) in
            [(0, 0, false), (3, 0, true), (4, 1, false), (5, 1, true), (8, 2, false)]
        {
            let mut place = Full { room, written: Vec::new() };
            let first = write_lines(&mut place, false, &lines(&["abc\n", "def\n"]));
            assert_eq!(
                (first.whole, first.is_torn, first.error.is_some()),
                (whole, is_torn, room < 8),
                "{room}"
            );
            place.room = 100;
            let then = write_lines(&mut place, first.is_torn, &lines(&["ghi\n"]));
            assert_eq!((then.whole, then.is_torn, then.error.is_some()), (1, false, false));
            let text = String::from_utf8(place.written).unwrap();
            assert_eq!(text.lines().last(), Some("ghi"), "{text:?}");
        }
    }

    #[test]
    fn the_file_is_made_for_its_group_and_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sessions.log");
        let mut file = SessionFile::open(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o} lets others in");
        assert_eq!(file.write(&lines(&["one\n"])), 0);
        fs::write(&path, "one\nhalf a li").unwrap();
        let mut file_again = SessionFile::open(&path).unwrap();
        assert_eq!(file_again.write(&lines(&["two\n"])), 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\nhalf a li\ntwo\n");
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let [path, old] = ["sessions.log", "sessions.log.1"].map(|name| directory.path().join(name));
        let mut file = SessionFile::open(&path).unwrap();
        file.write(&lines(&["one\n"]));
        fs::rename(&path, &old).unwrap();
        file.write(&lines(&["two\n"]));
        file.reopen();
        file.write(&lines(&["three\n"]));
        assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        // Where there is no way to a new one, the old one goes on.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        file.reopen();
        assert_eq!(file.write(&lines(&["four\n"])), 0);
    }

    #[test]
    fn a_pipe_is_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = SessionFile::open(&path).unwrap_err();
        assert_eq!(error.to_string(), "this is a pipe, not a file");
    }

    #[test]
    fn a_journal_that_comes_back_is_written_to_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(Journal::find(&path).is_err(), "there is none");
        let listening = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::find(&path).unwrap();
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
