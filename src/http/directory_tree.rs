//! The files of a directory as tower-http opens and reads them.
//!
//! Owns what may be opened, and the threads for it. A system call on a file blocks its thread, for ever if the file is on a
//! network mount that is gone. Invariants: at most [`MAX_THREADS`] threads are blocked, because each call holds a permit until
//! it returns; a task waits for a call no longer than [`READ_DEADLINE`]; a path leads outside of the root, to a hidden file
//! or to anything but a regular file never.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    future::{self, Ready},
    io::{self, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use tokio::{
    io::{AsyncRead, AsyncSeek, ReadBuf},
    sync::Semaphore,
    task::spawn_blocking,
    time::timeout,
};
use tower_http::services::fs::{Backend, File as BackendFile};

/// How many threads may be in a system call on a file.
const MAX_THREADS: usize = 64;
/// How long a task waits for one part of a file.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// How much of a file is read at once, in bytes.
const CHUNK: usize = 1 << 16;
/// What names of backup files end with.
const BACKUP_SUFFIXES: [&str; 4] = ["~", ".bak", ".orig", ".swp"];

/// The files below a root, also where symbolic links point elsewhere.
#[derive(Debug, Clone)]
pub(super) struct DirectoryTree {
    root: Arc<Path>,
    threads: Arc<Semaphore>,
}

impl DirectoryTree {
    /// The files below `root`, an absolute path without symbolic links.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.into(), threads: Arc::new(Semaphore::new(MAX_THREADS)) }
    }

    /// As many calls as there are threads, none of which returns before the guard is dropped.
    #[cfg(test)]
    pub(super) async fn hang(&self) -> tokio::sync::OwnedSemaphorePermit {
        let all = u32::try_from(MAX_THREADS).expect("a small number");
        Arc::clone(&self.threads).acquire_many_owned(all).await.expect("a semaphore that is never closed")
    }

    /// Runs a system call on `path` on a thread of its own, after its checks.
    async fn on_thread<T: Send + 'static>(
        self,
        path: PathBuf,
        call: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if !is_public(path.strip_prefix(&self.root).unwrap_or(&path)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let root = self.root;
        on_thread(self.threads, move || {
            let resolved = fs::canonicalize(path)?;
            if resolved.starts_with(&root) { call(&resolved) } else { Err(io::ErrorKind::NotFound.into()) }
        })
        .await
    }
}

/// Runs a system call on a thread, which holds a permit until the call returns, even if the caller has given up.
async fn on_thread<T: Send + 'static>(
    threads: Arc<Semaphore>,
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let permit = threads.acquire_owned().await.map_err(io::Error::other)?;
    let result = spawn_blocking(move || {
        let _permit = permit;
        call()
    });
    result.await.map_err(io::Error::other)?
}

/// Whether a path, relative to the root, may be served: no segment begins with a dot, except a first `.well-known` (RFC 8615),
/// and the file is no backup of an editor. Where symbolic links lead is not considered: deployments that switch all files at
/// once link to hidden directories.
fn is_public(relative: &Path) -> bool {
    let is_public = |(index, component): (usize, Component<'_>)| {
        let name = component.as_os_str().as_encoded_bytes();
        let ends_with = |suffix: &str| {
            let start = name.len().checked_sub(suffix.len());
            start.is_some_and(|start| name[start..].eq_ignore_ascii_case(suffix.as_bytes()))
        };
        (!name.starts_with(b".") || index == 0 && name == b".well-known")
            && !BACKUP_SUFFIXES.iter().any(|suffix| ends_with(suffix))
    };
    relative.components().enumerate().all(is_public)
}

/// Opens a regular file. Opening anything else can block, or have an effect on a device.
fn open_regular(path: &Path) -> io::Result<(File, Metadata)> {
    let regular = |metadata: Metadata| match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    regular(fs::metadata(path)?)?;
    // Checked again, because the path can have been replaced meanwhile, by a FIFO for example.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = regular(file.metadata()?)?;
    Ok((file, metadata))
}

type BoxedResult<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl Backend for DirectoryTree {
    type File = RegularFile;
    type Metadata = Metadata;
    type OpenFuture = BoxedResult<RegularFile>;
    type MetadataFuture = BoxedResult<Metadata>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        let (tree, threads) = (self.clone(), Arc::clone(&self.threads));
        Box::pin(async move {
            let (file, metadata) = tree.on_thread(path, open_regular).await?;
            let (file, reading) = (Arc::new(file), Mutex::default());
            Ok(RegularFile { threads, file, metadata, start: 0, reading, chunk: Bytes::new() })
        })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        Box::pin(self.clone().on_thread(path, |path| {
            let metadata = fs::metadata(path)?;
            let is_served = metadata.is_file() || metadata.is_dir();
            if is_served { Ok(metadata) } else { Err(io::ErrorKind::NotFound.into()) }
        }))
    }
}

/// An open file, read in chunks.
pub(super) struct RegularFile {
    threads: Arc<Semaphore>,
    file: Arc<File>,
    metadata: Metadata,
    /// Where the next chunk begins.
    start: u64,
    /// The call that reads the next chunk. Never locked: a future is not `Sync` by itself.
    reading: Mutex<Option<BoxedResult<Bytes>>>,
    /// What was read and not yet returned.
    chunk: Bytes,
}

/// Reads up to `length` bytes from `start` on; none at the end of the file.
async fn read_chunk(
    threads: Arc<Semaphore>,
    file: Arc<File>,
    start: u64,
    length: usize,
) -> io::Result<Bytes> {
    let chunk = on_thread(threads, move || {
        let mut chunk = vec![0; length];
        let read = file.read_at(&mut chunk, start)?;
        chunk.truncate(read);
        Ok(Bytes::from(chunk))
    });
    timeout(READ_DEADLINE, chunk).await.map_err(|_| io::Error::other("the file system does not answer"))?
}

impl AsyncRead for RegularFile {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.chunk.is_empty() {
            let reading = this.reading.get_mut();
            let next = reading.get_or_insert_with(|| {
                let (threads, file) = (Arc::clone(&this.threads), Arc::clone(&this.file));
                Box::pin(read_chunk(threads, file, this.start, buf.remaining().min(CHUNK)))
            });
            let read = ready!(next.as_mut().poll(cx));
            *reading = None;
            this.chunk = read?;
            this.start += this.chunk.len() as u64;
        }
        let returned = this.chunk.len().min(buf.remaining());
        buf.put_slice(&this.chunk.split_to(returned));
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for RegularFile {
    fn start_seek(self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        // Ranges of a response are the only use.
        let SeekFrom::Start(start) = position else { return Err(io::ErrorKind::Unsupported.into()) };
        let this = self.get_mut();
        this.start = start;
        this.chunk.clear();
        *this.reading.get_mut() = None;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.start))
    }
}

impl BackendFile for RegularFile {
    type Metadata = Metadata;
    type MetadataFuture<'a> = Ready<io::Result<Metadata>>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        future::ready(Ok(self.metadata.clone()))
    }
}
