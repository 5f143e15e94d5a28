//! The admin address itself: a Unix socket, and an address that is in use.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;

use nix::sys::signal::Signal::SIGTERM;
use tokio::net::UnixStream;

use crate::support::{Backend, Setup, command, request_on, within};

fn unix(setup: Setup, path: &Path) -> Setup {
    setup.tables(&format!("[admin]\naddress = \"unix:{}\"", path.display()))
}

#[tokio::test]
async fn a_unix_admin_socket_is_private_and_is_removed_at_exit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    // A socket file that a killed process leaves behind.
    drop(StdUnixListener::bind(&path).unwrap());
    let backend = Backend::echo().await;
    let gateway = unix(Setup::echo(&backend), &path).start().await;
    assert_eq!(gateway.admin().await, format!("unix:{}", path.display()));
    let found = fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let stream = within("the socket", UnixStream::connect(&path)).await.unwrap();
    let answer = request_on(stream, "GET", "/healthz", &[("Host", "localhost")], "").await;
    assert_eq!((answer.status, answer.text()), (200, "alive\n"));
    let stream = UnixStream::connect(&path).await.unwrap();
    let answer = request_on(stream, "GET", "/healthz", &[("Host", "evil.example")], "").await;
    assert_eq!(answer.status, 403);
    // The command finds it in the configuration.
    let file = gateway.path("gateway.toml").display().to_string();
    let asked =
        command(directory.path().to_owned(), vec!["health".to_owned(), "--config".to_owned(), file]).await;
    assert_eq!(String::from_utf8_lossy(&asked.stdout), "ready\n", "{asked:?}");
    gateway.signal(SIGTERM);
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(!path.exists(), "the socket is left behind");
}

#[tokio::test]
async fn an_admin_address_in_use_is_retried_until_it_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let backend = Backend::echo().await;
    let first = unix(Setup::echo(&backend), &path).start().await;
    first.admin().await;
    let second = unix(Setup::echo(&backend), &path).start().await;
    second
        .until("a line about the address", |lines| {
            let taken = |line: &&serde_json::Value| {
                line["level"] == "WARN"
                    && line["message"].as_str().is_some_and(|m| m.contains("admin address"))
            };
            lines.iter().find(taken).map(|_| ())
        })
        .await;
    // The gateway that stops finishes its response, and the other one takes over the address.
    let stream = UnixStream::connect(&path).await.unwrap();
    assert_eq!(request_on(stream, "GET", "/readyz", &[("Host", "localhost")], "").await.status, 200);
    first.signal(SIGTERM);
    assert_eq!(first.exit().await.code(), Some(0));
    second.admin().await;
    let asked = second.command(&["health"]).await;
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    second.signal(SIGTERM);
    assert_eq!(second.exit().await.code(), Some(0));
    assert!(!path.exists(), "the socket is left behind");
}

#[tokio::test]
async fn a_file_in_place_of_the_socket_prevents_the_start() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("admin.sock"), "precious").unwrap();
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"a\"\npath = \"/a\"\n\
                backend = \"tcp://127.0.0.1:1\"\n[admin]\naddress = \"unix:admin.sock\"\n";
    fs::write(directory.path().join("gateway.toml"), text).unwrap();
    let output = command(directory.path().to_owned(), vec!["run".to_owned()]).await;
    let wrong = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{wrong}");
    assert!(wrong.contains("gateway.toml: admin.address unix:admin.sock: cannot listen on it"), "{wrong}");
    assert!(wrong.contains("not a socket; remove it"), "{wrong}");
    assert_eq!(fs::read_to_string(directory.path().join("admin.sock")).unwrap(), "precious");
}
