//! The files of `[web] root`, and those outside it.

use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Backend, ClientStream, Gateway, PLAIN, Request, Response, Setup, TLS, read_response, read_to_end, within,
};

const SECRET: &str = "not for your eyes";

/// A root with a few files, in a directory with a secret beside the root.
fn site() -> (TempDir, std::path::PathBuf) {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("web");
    let write = |path: &Path, text: &str| std::fs::write(path, text).expect("a file");
    for sub in ["web/assets", "web/bare", "web/echo", "private", "web-secret"] {
        std::fs::create_dir_all(directory.path().join(sub)).expect("a directory");
    }
    write(&root.join("index.html"), "<!doctype html><title>viewer</title>");
    write(&root.join("assets/viewer.js"), "export const answer = 42;\n");
    write(&root.join("assets/a b%c.txt"), "odd name\n");
    write(&root.join("echo/index.html"), "hidden behind a route");
    for secret in ["secret.txt", "private/index.html", "private/secret.txt", "web-secret/secret.txt"] {
        write(&directory.path().join(secret), SECRET);
    }
    symlink(directory.path().join("secret.txt"), root.join("absolute.txt")).expect("a link");
    symlink("../secret.txt", root.join("relative.txt")).expect("a link");
    symlink("../private", root.join("directory")).expect("a link");
    symlink("/etc", root.join("etc")).expect("a link");
    symlink("directory", root.join("twice")).expect("a link");
    symlink("../../secret.txt", root.join("assets/index.html")).expect("a link");
    (directory, root)
}

async fn get(gateway: &Gateway, connection: &mut ClientStream, method: &str, target: &str) -> Response {
    let request = Request::new(&format!("{method} {target} HTTP/1.1")).add("Host", &gateway.host(TLS));
    connection.write_all(&request.bytes()).await.expect("the request is sent");
    connection.flush().await.expect("the request is sent");
    read_response(connection, method != "HEAD").await
}

#[tokio::test]
async fn the_files_of_the_root_are_served_with_no_cache() {
    let backend = Backend::echo().await;
    let (_directory, root) = site();
    let gateway = Setup::echo(&backend).web(&root).start().await;
    for (target, kind, text) in [
        ("/", "text/html", "<!doctype html><title>viewer</title>"),
        ("/index.html", "text/html", "<!doctype html><title>viewer</title>"),
        ("/?query=1", "text/html", "<!doctype html><title>viewer</title>"),
        ("/assets/viewer.js", "text/javascript", "export const answer = 42;\n"),
        ("/assets/v%69ewer.js", "text/javascript", "export const answer = 42;\n"),
        ("/assets/a%20b%25c.txt", "text/plain", "odd name\n"),
    ] {
        let mut connection = gateway.connect(TLS).await;
        let response = get(&gateway, &mut connection, "GET", target).await;
        assert_eq!((response.status, response.text()), (200, text), "{target}: {response:?}");
        assert!(
            response.header("Content-Type").unwrap_or_default().starts_with(kind),
            "{target}: {response:?}"
        );
        assert_eq!(response.header("Cache-Control"), Some("no-cache"), "{target}");

        let peer = connection.peer();
        let length = response.header("Content-Length").map(str::to_owned);
        drop(connection);
        let end = gateway.refused(peer, "served").await;
        assert_eq!(end.text("message"), Some("served"));

        let mut connection = gateway.connect(TLS).await;
        let response = get(&gateway, &mut connection, "HEAD", target).await;
        assert_eq!((response.status, response.rest.as_slice()), (200, &b""[..]), "HEAD {target}");
        assert_eq!(response.header("Content-Length").map(str::to_owned), length, "HEAD {target}");
        let peer = connection.peer();
        drop(connection);
        gateway.refused(peer, "served").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn one_connection_serves_many_files_and_then_a_session() {
    let backend = Backend::echo().await;
    let (_directory, root) = site();
    let gateway = Setup::echo(&backend).web(&root).start().await;
    let mut connection = gateway.connect(TLS).await;
    for _ in 0..3 {
        assert_eq!(get(&gateway, &mut connection, "GET", "/").await.status, 200);
        assert_eq!(get(&gateway, &mut connection, "GET", "/assets/viewer.js").await.status, 200);
    }
    let mut session = gateway.open(connection, &gateway.upgrade(TLS, "/echo")).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_file_that_has_not_changed_is_not_sent_again() {
    let (_directory, root) = site();
    let gateway = Setup::new().web(&root).start().await;
    let mut connection = gateway.connect(TLS).await;
    let first = get(&gateway, &mut connection, "GET", "/index.html").await;
    let date = first.header("Last-Modified").expect("Last-Modified").to_owned();
    let request = Request::new("GET /index.html HTTP/1.1")
        .add("Host", &gateway.host(TLS))
        .add("If-Modified-Since", &date);
    let response = crate::support::send_request(&mut connection, &request).await;
    assert_eq!((response.status, response.header("Cache-Control")), (304, Some("no-cache")), "{response:?}");
    drop(connection);
    gateway.finish().await;
}

#[tokio::test]
async fn a_route_takes_precedence_over_a_file() {
    let backend = Backend::echo().await;
    let (_directory, root) = site();
    let gateway = Setup::new().route_with("echo", "/echo/*", &backend, "").web(&root).start().await;
    let mut connection = gateway.connect(TLS).await;
    let response = get(&gateway, &mut connection, "GET", "/echo/index.html").await;
    assert_eq!(response.status, 426, "{response:?}");
    let peer = connection.peer();
    drop(connection);
    gateway.refused(peer, "upgrade_required").await;
    gateway.finish().await;
}

/// Whether two servers could read the path differently.
fn is_crooked(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    ["//", "/../", "/./", "\\", "%2e", "%2f", "%5c", "%00"].iter().any(|part| path.contains(part))
}

#[tokio::test]
async fn nothing_outside_the_root_is_served_however_it_is_spelled() {
    let (directory, root) = site();
    let gateway = Setup::new().web(&root).start().await;
    let absolute = directory.path().join("secret.txt");
    let absolute = absolute.to_str().unwrap();
    let targets = [
        "/../secret.txt",
        "/../../../../../../etc/passwd",
        "/assets/../../secret.txt",
        "/assets/..//../secret.txt",
        "/./../secret.txt",
        "/%2e%2e/secret.txt",
        "/%2E%2E/secret.txt",
        "/.%2e/secret.txt",
        "/%2e%2e%2fsecret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/%252e%252e/secret.txt",
        "/..%c0%afsecret.txt",
        "/%c0%ae%c0%ae/secret.txt",
        "/../web-secret/secret.txt",
        "/..;/secret.txt",
        "/assets/%2e%2e/%2e%2e/secret.txt",
        "//secret.txt",
        "//etc/passwd",
        "///etc/passwd",
        "/%2fetc%2fpasswd",
        absolute,
        &format!("/{absolute}"),
        &format!("/{}", absolute.replace('/', "%2f")),
        "/file:///etc/passwd",
        "/index.html%00",
        "/index.html%00.txt",
        "/%00",
        "/absolute.txt",
        "/relative.txt",
        "/directory/secret.txt",
        "/directory/",
        "/directory",
        "/directory/index.html",
        "/twice/secret.txt",
        "/assets/",
        "/assets/index.html",
        "/etc/passwd",
        "/etc/hostname",
        "/bare/",
        "/nothing",
        "/nothing/",
        "/index.html/",
        "/index.html/nothing",
        "/INDEX.HTML",
        "/%ff",
        "/%zz",
        "/%",
    ];
    for target in targets {
        for method in ["GET", "HEAD"] {
            let mut connection = gateway.connect(TLS).await;
            let response = get(&gateway, &mut connection, method, target).await;
            let (status, reason) =
                if is_crooked(target) { (400, "bad_request") } else { (404, "unknown_route") };
            assert_eq!(response.status, status, "{method} {target}: {response:?}");
            let body = String::from_utf8_lossy(&response.body);
            assert!(!body.contains(SECRET) && !body.contains("root:"), "{method} {target}: {body}");
            let peer = connection.peer();
            drop(connection);
            gateway.refused(peer, reason).await;
        }
    }
    // A target that is not a path.
    for target in ["index.html", "../secret.txt", "*", "/a\0b"] {
        let mut connection = gateway.connect(TLS).await;
        let response = get(&gateway, &mut connection, "GET", target).await;
        assert!((400..500).contains(&response.status), "{target}: {response:?}");
        assert!(!String::from_utf8_lossy(&response.body).contains(SECRET), "{target}");
        let peer = connection.peer();
        drop(connection);
        gateway.access_log_line(peer).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn files_accept_only_get_and_head() {
    let (_directory, root) = site();
    let gateway = Setup::new().web(&root).start().await;
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let mut connection = gateway.connect(TLS).await;
        let response = get(&gateway, &mut connection, method, "/index.html").await;
        assert_eq!(response.status, 405, "{method}: {response:?}");
        assert_eq!(response.header("Allow"), Some("GET, HEAD"), "{method}: {response:?}");
        let peer = connection.peer();
        drop(connection);
        assert!(!gateway.access_log_line(peer).await.is_session());
    }
    gateway.finish().await;
}

#[tokio::test]
async fn without_a_root_no_files_are_served() {
    let gateway = Setup::new().start().await;
    for target in ["/", "/index.html", "/gateway.toml", "/localhost.key"] {
        let mut connection = gateway.connect(TLS).await;
        let response = get(&gateway, &mut connection, "GET", target).await;
        assert_eq!(response.status, 404, "{target}: {response:?}");
        let peer = connection.peer();
        drop(connection);
        gateway.refused(peer, "unknown_route").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn files_cannot_be_framed_by_other_sites() {
    let (_directory, root) = site();
    let gateway = Setup::new().web(&root).start().await;
    let mut connection = gateway.connect(TLS).await;
    let response = get(&gateway, &mut connection, "GET", "/").await;
    for (name, value) in [
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "strict-origin-when-cross-origin"),
        ("Content-Security-Policy", "frame-ancestors 'self'"),
    ] {
        assert_eq!(response.header(name), Some(value), "{response:?}");
    }
    drop(connection);
    gateway.finish().await;
}

#[tokio::test]
async fn a_file_that_becomes_shorter_while_it_is_sent_is_not_logged_as_served() {
    const LENGTH: usize = 24 * 1024 * 1024;
    let (_directory, root) = site();
    let file = std::fs::File::create(root.join("large")).expect("a file");
    let gateway = Setup::new().web(&root).start().await;
    for listener in [PLAIN, TLS] {
        file.set_len(LENGTH as u64).expect("a large file");
        let mut connection = gateway.connect_with_small_buffers(listener).await;
        let peer = connection.peer();
        connection
            .write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .expect("the gateway reads");
        connection.flush().await.expect("the gateway reads");
        let mut first = [0; 15];
        within("the first bytes", connection.read_exact(&mut first)).await.expect("the response begins");
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        // Most of it is not read yet, because it does not fit into the buffers.
        file.set_len(0).expect("an empty file");
        let (rest, _) = read_to_end(&mut connection).await;
        assert!(rest.len() < LENGTH, "{} bytes", rest.len());
        drop(connection);
        let end = gateway.refused(peer, "overloaded").await;
        assert!(end.text("detail").is_some_and(|detail| detail.contains("the rest of a file")), "{end:?}");
    }
    gateway.finish().await;
}
