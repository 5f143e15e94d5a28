//! Rows 61 to 73: what a review with attack scripts found. One file per subject.

mod files;
mod handshakes;
mod kernel_memory;
mod ordered_end;
mod own_addresses;
mod requests;
mod slow_readers;
mod terminal;

use std::path::PathBuf;

use tempfile::TempDir;

/// A directory of files to serve.
fn site() -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("web");
    for sub in [".git", ".well-known", "chat"] {
        std::fs::create_dir_all(root.join(sub)).expect("a directory");
    }
    for file in
        ["index.html", ".git/config", ".env", ".htpasswd", ".well-known/security.txt", "a.html~", "a.bak"]
    {
        std::fs::write(root.join(file), "text").expect("a file");
    }
    (directory, root)
}
