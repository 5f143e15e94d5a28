//! Static files, by tower-http, from one directory and never from outside it.

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

/// The files below one directory.
#[derive(Debug, Clone)]
pub struct Files {
    directory: ServeDir<tower_http::services::fs::DefaultServeDirFallback, Beneath>,
}

impl Files {
    /// Serves what lies below `root`.
    ///
    /// # Errors
    /// The directory does not exist or may not be entered.
    pub fn new(root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let beneath = Beneath { root: root.as_path().into() };
        Ok(Self { directory: ServeDir::with_backend(root, beneath) })
    }

    /// The file that `request` asks for.
    ///
    /// # Errors
    /// There is none, it may not be read, or it was asked for by a method other than GET and HEAD.
    pub async fn find(&self, request: Request<()>) -> Result<Response<Body>, Refusal> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(Refusal::new(Reason::MethodNotAllowed));
        }
        if is_crooked(request.uri().path()) {
            return Err(Refusal::new(Reason::UnknownRoute));
        }
        let response = self.directory.clone().try_call(request).await;
        // Missing, a directory without an index, not readable for us: all the same to a stranger.
        let Ok(response) = response else { return Err(Refusal::new(Reason::UnknownRoute)) };
        if response.status().is_client_error() && response.status() != 412 && response.status() != 416 {
            return Err(Refusal::new(Reason::UnknownRoute));
        }
        let mut response = response.map(|body| body.map_err(io::Error::other).boxed_unsync());
        let headers = response.headers_mut();
        // A viewer's files belong together: a browser must ask whether each is still the one it has.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Ok(response)
    }
}

/// Whether a path could mean something other than it says: no honest page asks for such a file.
fn is_crooked(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    ["//", "\\", "%2e", "%2f", "%5c", "%00"].iter().any(|part| path.contains(part))
        || path.split('/').any(|segment| segment == "." || segment == "..")
}

/// Opens files below a root only, wherever symbolic links lead.
#[derive(Debug, Clone)]
struct Beneath {
    root: Arc<Path>,
}

impl Beneath {
    /// Where `path` really lies, if that is below the root.
    async fn real(root: Arc<Path>, path: PathBuf) -> io::Result<PathBuf> {
        let real = tokio::fs::canonicalize(path).await?;
        if real.starts_with(&root) { Ok(real) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl Backend for Beneath {
    type File = TokioFile;
    type Metadata = Metadata;
    type OpenFuture = Pin<Box<dyn Future<Output = io::Result<TokioFile>> + Send>>;
    type MetadataFuture = Pin<Box<dyn Future<Output = io::Result<Metadata>> + Send>>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        let root = Arc::clone(&self.root);
        Box::pin(async move { TokioBackend.open(Self::real(root, path).await?).await })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let root = Arc::clone(&self.root);
        Box::pin(async move { TokioBackend.metadata(Self::real(root, path).await?).await })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    struct Site {
        files: Files,
        _kept: tempfile::TempDir,
    }

    fn site() -> Site {
        let kept = tempfile::tempdir().unwrap();
        let root = kept.path().join("web");
        fs::create_dir_all(root.join("core")).unwrap();
        fs::write(root.join("index.html"), "<!doctype html>hello").unwrap();
        fs::write(root.join("core/rfb.js"), "export {}").unwrap();
        fs::write(kept.path().join("secret"), "secret").unwrap();
        symlink(kept.path().join("secret"), root.join("leak")).unwrap();
        symlink(root.join("core/rfb.js"), root.join("inside.js")).unwrap();
        Site { files: Files::new(&root).unwrap(), _kept: kept }
    }

    async fn get(site: &Site, path: &str) -> Result<(u16, String), Reason> {
        let request = Request::builder().uri(path).body(()).unwrap();
        let response = site.files.find(request).await.map_err(|refusal| refusal.reason())?;
        assert_eq!(response.headers()["cache-control"], "no-cache");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    #[tokio::test]
    async fn files_and_links_inside_are_served() {
        let site = site();
        assert_eq!(get(&site, "/").await, Ok((200, "<!doctype html>hello".into())));
        assert_eq!(get(&site, "/core/rfb.js?v=1").await, Ok((200, "export {}".into())));
        assert_eq!(get(&site, "/inside.js").await, Ok((200, "export {}".into())));
    }

    #[tokio::test]
    async fn nothing_outside_is_opened() {
        let site = site();
        for path in [
            "/leak",
            "/../secret",
            "/%2e%2e/secret",
            "/core/..%2f..%2fsecret",
            "//etc/passwd",
            "/a%00b",
            "/no",
        ] {
            assert_eq!(get(&site, path).await, Err(Reason::UnknownRoute), "{path}");
        }
    }

    #[tokio::test]
    async fn files_are_read_and_nothing_else() {
        let site = site();
        let request = Request::post("/index.html").body(()).unwrap();
        assert_eq!(site.files.find(request).await.unwrap_err().reason(), Reason::MethodNotAllowed);
    }
}
