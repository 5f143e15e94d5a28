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

use super::outlet::Sink;

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
