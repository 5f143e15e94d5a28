//! Static files from one directory, served by tower-http.
//!
//! Invariant: no file outside that directory is opened, whatever the path and the symbolic links.

use std::{
    fs::Metadata,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use http::{
    HeaderValue, Method, Request, Response,
    header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS},
};
use http_body_util::BodyExt;
use tower_http::services::{
    ServeDir,
    fs::{Backend, TokioBackend, TokioFile},
};

use super::response::{Body, Refusal};
use crate::outcome::Reason;

/// The files in one directory and its subdirectories.
#[derive(Debug, Clone)]
pub struct Files {
    directory: ServeDir<tower_http::services::fs::DefaultServeDirFallback, BeneathRoot>,
}

impl Files {
    /// Serves the files below `root`.
    ///
    /// # Errors
    /// The directory does not exist or cannot be searched.
    pub fn new(root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let backend = BeneathRoot { root: root.as_path().into() };
        Ok(Self { directory: ServeDir::with_backend(root, backend) })
    }

    /// The file that `request` names.
    ///
    /// # Errors
    /// The file does not exist or cannot be read, or the method is neither GET nor HEAD.
    pub async fn find(&self, request: Request<()>) -> Result<Response<Body>, Refusal> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(Refusal::new(Reason::MethodNotAllowed));
        }
        if is_ambiguous(request.uri().path()) {
            return Err(Refusal::new(Reason::UnknownRoute));
        }
        let response = self.directory.clone().try_call(request).await;
        // Missing, unreadable, a directory without an index: a client must not learn which.
        let Ok(response) = response else { return Err(Refusal::new(Reason::UnknownRoute)) };
        if response.status().is_client_error() && response.status() != 412 && response.status() != 416 {
            return Err(Refusal::new(Reason::UnknownRoute));
        }
        let mut response = response.map(|body| body.map_err(io::Error::other).boxed_unsync());
        let headers = response.headers_mut();
        // The files of a web client must match each other, so a browser has to revalidate each cached one.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Ok(response)
    }
}

/// Whether a file system or a decoder could read the path differently: no legitimate page requests such a file.
fn is_ambiguous(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    ["//", "\\", "%2e", "%2f", "%5c", "%00"].iter().any(|part| path.contains(part))
        || path.split('/').any(|segment| segment == "." || segment == "..")
}

/// Opens files below a root only, also where symbolic links point elsewhere.
#[derive(Debug, Clone)]
struct BeneathRoot {
    root: Arc<Path>,
}

impl BeneathRoot {
    /// Resolves the symbolic links of `path`; an error if the target is outside the root.
    async fn resolve(root: Arc<Path>, path: PathBuf) -> io::Result<PathBuf> {
        let resolved = tokio::fs::canonicalize(path).await?;
        if resolved.starts_with(&root) { Ok(resolved) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl Backend for BeneathRoot {
    type File = TokioFile;
    type Metadata = Metadata;
    type OpenFuture = Pin<Box<dyn Future<Output = io::Result<TokioFile>> + Send>>;
    type MetadataFuture = Pin<Box<dyn Future<Output = io::Result<Metadata>> + Send>>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        let root = Arc::clone(&self.root);
        Box::pin(async move { TokioBackend.open(Self::resolve(root, path).await?).await })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let root = Arc::clone(&self.root);
        Box::pin(async move { TokioBackend.metadata(Self::resolve(root, path).await?).await })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    struct WebRoot {
        files: Files,
        _directory: tempfile::TempDir,
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
        WebRoot { files: Files::new(&root).unwrap(), _directory: directory }
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
    async fn only_get_and_head_are_allowed() {
        let root = web_root();
        let request = Request::post("/index.html").body(()).unwrap();
        assert_eq!(root.files.find(request).await.unwrap_err().reason(), Reason::MethodNotAllowed);
    }
}
