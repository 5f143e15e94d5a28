//! Static files from one directory, served by tower-http.
//!
//! Invariants: no file outside that directory is opened, whatever the path and the symbolic links; only regular files are
//! opened; and neither a file system that does not answer nor many requests can take all threads, see [`DirectoryTree`].

use std::{io, path::Path, time::Duration};

use http::{
    HeaderName, HeaderValue, Method, Request, Response,
    header::{
        CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, REFERRER_POLICY, TRANSFER_ENCODING,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body_util::BodyExt;
use tokio::time::timeout;
use tower_http::services::{ServeDir, fs::DefaultServeDirFallback};

use super::{
    directory_tree::DirectoryTree,
    response::{Body, Refusal},
};
use crate::{config::is_unambiguous, outcome::Reason};

/// How long a file may take to open. A local one takes microseconds, one on a network mount that is gone hangs for ever.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

/// Fields of every response with a file.
const FIELDS: [(HeaderName, &str); 4] = [
    // The files of a web client must match each other, so a browser has to revalidate each cached one.
    (CACHE_CONTROL, "no-cache"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // The address of a page can contain a token.
    (REFERRER_POLICY, "strict-origin-when-cross-origin"),
    // A page of another site could lay its own buttons over a desktop.
    (CONTENT_SECURITY_POLICY, "frame-ancestors 'self'"),
];

/// The files in one directory and its subdirectories.
#[derive(Debug, Clone)]
pub struct Files {
    directory: ServeDir<DefaultServeDirFallback, DirectoryTree>,
}

impl Files {
    /// Serves the files below `root`.
    ///
    /// # Errors
    /// The directory does not exist or cannot be searched.
    pub fn new(root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let tree = DirectoryTree::new(&root);
        Ok(Self { directory: ServeDir::with_backend(root, tree) })
    }

    /// The file that `request` names.
    ///
    /// # Errors
    /// The file does not exist or cannot be read, or the method is neither GET nor HEAD.
    pub async fn find(&self, request: Request<()>) -> Result<Response<Body>, Refusal> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(Refusal::new(Reason::MethodNotAllowed).allow("GET, HEAD"));
        }
        // Every request was checked; a path that was not opens nothing either.
        if !is_unambiguous(request.uri().path()) {
            return Err(Refusal::new(Reason::UnknownRoute));
        }
        // Whether Content-Length was announced too shows no more, and two servers could disagree where such a request ends:
        // nothing behind it is read as a request (RFC 9112 §6.1).
        let is_last = request.headers().contains_key(TRANSFER_ENCODING);
        let Ok(response) = timeout(OPEN_DEADLINE, self.directory.clone().try_call(request)).await else {
            let refusal = Refusal::new(Reason::Overloaded).retry_after(OPEN_DEADLINE.as_secs());
            return Err(refusal.with_detail("the file system of [web] root does not answer".to_owned()));
        };
        // Missing, unreadable, a directory without an index: a client must not learn which.
        let Ok(response) = response else { return Err(Refusal::new(Reason::UnknownRoute)) };
        if response.status().is_client_error() && response.status() != 412 && response.status() != 416 {
            return Err(Refusal::new(Reason::UnknownRoute));
        }
        let mut response = response.map(|body| body.map_err(io::Error::other).boxed_unsync());
        for (name, value) in FIELDS {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if is_last {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    struct WebRoot {
        files: Files,
        directory: tempfile::TempDir,
    }

    impl WebRoot {
        fn files_root(&self) -> std::path::PathBuf {
            self.directory.path().join("web")
        }
    }

    fn web_root() -> WebRoot {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("web");
        fs::create_dir_all(root.join("core")).unwrap();
        fs::write(root.join("index.html"), "<!doctype html>hello").unwrap();
        fs::write(root.join("core/rfb.js"), "export {}").unwrap();
        fs::write(directory.path().join("secret"), "secret").unwrap();
        symlink(directory.path().join("secret"), root.join("leak")).unwrap();
        symlink(root.join("core/rfb.js"), root.join("inside.js")).unwrap();
        for directory in [".git", ".well-known/.git", "core/.well-known", ".data"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in [
            ".git/config",
            ".env",
            ".htpasswd",
            ".well-known/security.txt",
            ".well-known/.git/config",
            "core/.well-known/a",
            "core/.rfb.js.swp",
            "core/rfb.js~",
            "core/rfb.js.bak",
            "core/rfb.js.ORIG",
            "a..b",
            ".data/config.js",
        ] {
            fs::write(root.join(file), "text").unwrap();
        }
        symlink(".data/config.js", root.join("config.js")).unwrap();
        WebRoot { files: Files::new(&root).unwrap(), directory }
    }

    async fn get(root: &WebRoot, path: &str) -> Result<(u16, String), Reason> {
        let request = Request::builder().uri(path).body(()).unwrap();
        let response = root.files.find(request).await.map_err(|refusal| refusal.reason())?;
        assert_eq!(response.headers()["cache-control"], "no-cache");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    #[tokio::test]
    async fn files_and_links_inside_the_root_are_served() {
        let root = web_root();
        assert_eq!(get(&root, "/").await, Ok((200, "<!doctype html>hello".into())));
        assert_eq!(get(&root, "/core/rfb.js?v=1").await, Ok((200, "export {}".into())));
        assert_eq!(get(&root, "/inside.js").await, Ok((200, "export {}".into())));
    }

    #[tokio::test]
    async fn nothing_outside_the_root_is_opened() {
        let root = web_root();
        for path in [
            "/leak",
            "/../secret",
            "/%2e%2e/secret",
            "/core/..%2f..%2fsecret",
            "//etc/passwd",
            "/a%00b",
            "/no",
        ] {
            assert_eq!(get(&root, path).await, Err(Reason::UnknownRoute), "{path}");
        }
    }

    #[tokio::test]
    async fn hidden_files_and_backups_are_not_served() {
        let root = web_root();
        for path in [
            "/.git/config",
            "/.git",
            "/.git/",
            "/.env",
            "/%2eenv",
            "/.htpasswd",
            "/.well-known/.git/config",
            "/core/.well-known/a",
            "/core/.rfb.js.swp",
            "/core/rfb.js~",
            "/core/rfb.js%7e",
            "/core/rfb.js.bak",
            "/core/rfb.js.ORIG",
        ] {
            assert_eq!(get(&root, path).await, Err(Reason::UnknownRoute), "{path}");
        }
        // A link to a hidden directory is how some deployments switch all files at once.
        for path in ["/.well-known/security.txt", "/a..b", "/config.js"] {
            assert_eq!(get(&root, path).await, Ok((200, "text".into())), "{path}");
        }
    }

    #[tokio::test]
    async fn only_regular_files_are_opened() {
        let root = web_root();
        let fifo = root.files_root().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.files_root().join("socket")).unwrap();
        for method in [Method::GET, Method::HEAD] {
            for path in ["/fifo", "/socket"] {
                let request = Request::builder().method(&method).uri(path).body(()).unwrap();
                let refused = root.files.find(request).await.map(|response| response.status());
                assert_eq!(
                    refused.map_err(|refusal| refusal.reason()),
                    Err(Reason::UnknownRoute),
                    "{method} {path}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_system_that_does_not_answer_is_given_up() {
        let root = web_root();
        let tree = DirectoryTree::new(&root.files_root().canonicalize().unwrap());
        let files = Files { directory: ServeDir::with_backend(root.files_root(), tree.clone()) };
        let request = || Request::builder().uri("/index.html").body(()).unwrap();
        let hanging = tree.hang().await;
        let start = tokio::time::Instant::now();
        assert_eq!(files.find(request()).await.unwrap_err().reason(), Reason::Overloaded);
        assert!(start.elapsed() <= OPEN_DEADLINE + Duration::from_millis(10), "{:?}", start.elapsed());
        drop(hanging);
    }

    #[tokio::test]
    async fn a_range_of_a_file_is_served() {
        let root = web_root();
        fs::write(root.files_root().join("large"), vec![b'a'; 200_000]).unwrap();
        fs::write(root.files_root().join("digits"), "0123456789").unwrap();
        assert_eq!(get(&root, "/large").await.map(|(status, body)| (status, body.len())), Ok((200, 200_000)));
        let request = Request::builder().uri("/digits").header("range", "bytes=3-5").body(()).unwrap();
        let response = root.files.find(request).await.unwrap();
        assert_eq!(response.status(), 206);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "345");
    }

    #[tokio::test]
    async fn only_get_and_head_are_allowed() {
        let root = web_root();
        let request = Request::post("/index.html").body(()).unwrap();
        assert_eq!(root.files.find(request).await.unwrap_err().reason(), Reason::MethodNotAllowed);
    }

    #[tokio::test]
    async fn conditions_and_ranges_that_fail_are_answered_as_such() {
        let root = web_root();
        for (field, value, expected) in
            [("range", "bytes=1000-", 416), ("if-unmodified-since", "Thu, 01 Jan 1970 00:00:01 GMT", 412)]
        {
            let request = Request::builder().uri("/index.html").header(field, value).body(()).unwrap();
            let status = root.files.find(request).await.map(|response| response.status().as_u16());
            assert_eq!(status.map_err(|refusal| refusal.reason()), Ok(expected), "{field}");
        }
    }
}
