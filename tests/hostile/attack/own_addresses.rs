//! Row 70: no route and no token leads to an address of the gateway itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use crate::support::{Backend, Gateway, PLAIN, Setup, command, send_request};

/// A route on which a token selects the backend.
fn desks(tokens: &Path, unix: &Path) -> String {
    format!(
        "[[route]]\nname = \"desk\"\npath = \"/desk/*\"\nallowed_networks = [\"127.0.0.0/8\", \"::1\"]\n\
         backend_failure = \"status\"\n\
         targets = {{ from = \"file\", path = {tokens:?}, unix = {unix:?} }}"
    )
}

/// Requests `target`, whose backend must not be dialled.
async fn refused(gateway: &Gateway, target: &str) {
    let mut connection = gateway.connect(PLAIN).await;
    let response = send_request(&mut connection, &gateway.upgrade(PLAIN, target)).await;
    assert_eq!(response.status, 502, "{target}: {response:?}");
    let peer = connection.peer();
    drop(connection);
    let end = gateway.access_log_line(peer).await;
    assert_eq!(end.reason(), "backend_refused", "{end:?}");
    let detail = end.text("detail").unwrap_or_default();
    assert!(detail.contains("this gateway itself listens there"), "{target}: {end:?}");
}

#[tokio::test]
async fn row_70_no_route_leads_to_an_address_of_the_gateway_itself() {
    let (directory, backend) = (TempDir::new().unwrap(), Backend::echo().await);
    let (tokens, sockets) = (directory.path().join("tokens.cfg"), directory.path().join("sockets"));
    fs::create_dir(&sockets).unwrap();
    fs::write(&tokens, format!("good: {}\n", backend.address)).unwrap();
    let gateway = Setup::echo(&backend).admin().tables(&desks(&tokens, &sockets)).start().await;
    let admin: std::net::SocketAddr = gateway.admin().await.parse().unwrap();
    let listener = gateway.address(PLAIN).port();
    // Names: what they resolve to shows only when they are dialled.
    let port = admin.port();
    fs::write(
        &tokens,
        format!("good: {}\nadmin: localhost:{port}\nlistener: localhost:{listener}\n", backend.address),
    )
    .unwrap();
    gateway.until("the new tokens", |lines| reloaded(lines, 1)).await;
    for target in ["/desk/admin", "/desk/listener"] {
        refused(&gateway, target).await;
    }
    // Addresses: the line is refused, and the tokens before it stay.
    for (count, line) in [(1, format!("127.0.0.1:{port}")), (2, format!("0.0.0.0:{listener}"))] {
        fs::write(&tokens, format!("# x\nbad: {line}\n")).unwrap();
        let logged = gateway
            .until("a line about the tokens", |lines| {
                let is_it =
                    |line: &&serde_json::Value| line["message"].to_string().contains("tokens not reloaded");
                lines.iter().filter(is_it).nth(count - 1).map(ToString::to_string)
            })
            .await;
        assert!(logged.contains("tokens.cfg:2: this gateway itself listens there"), "{line}: {logged}");
    }
    let mut session = gateway.session_by(PLAIN, "/desk/good").await;
    session.echo(b"hello").await;
    session.close(1000).await;
    drop(session);
    // A route of the configuration: a reload refuses an address.
    let own = format!("[[route]]\nname = \"own\"\npath = \"/own\"\nbackend = \"tcp://0.0.0.0:{listener}\"\n");
    fs::write(&tokens, format!("good: {}\n", backend.address)).unwrap();
    let configured = gateway.configuration().replacen("127.0.0.1:0", &format!("127.0.0.1:{listener}"), 2);
    let configured = configured.replacen(&format!("127.0.0.1:{listener}"), "127.0.0.1:0", 1);
    let failed = gateway.reload(&format!("{configured}\n{own}")).await.expect_err("a route to itself");
    assert!(failed.contains("route \"own\"") && failed.contains("this gateway itself listens"), "{failed}");
    gateway.finish().await;
}

/// Whether the tokens were reloaded that often.
fn reloaded(lines: &[serde_json::Value], count: usize) -> Option<()> {
    (lines.iter().filter(|line| line["message"] == "tokens reloaded").count() >= count).then_some(())
}

#[tokio::test]
async fn row_70_a_link_to_the_admin_socket_is_not_followed() {
    let (directory, backend) = (TempDir::new().unwrap(), Backend::echo().await);
    let (tokens, sockets) = (directory.path().join("tokens.cfg"), directory.path().join("sockets"));
    fs::create_dir(&sockets).unwrap();
    let (link, admin) = (sockets.join("desk.sock"), directory.path().join("admin.sock"));
    fs::write(&tokens, format!("link: unix:{}\n", link.display())).unwrap();
    let gateway = Setup::echo(&backend)
        .tables(&format!("[admin]\naddress = \"unix:{}\"", admin.display()))
        .tables(&desks(&tokens, &sockets))
        .route_to("fixed", "/fixed", &format!("unix:{}", link.display()), "backend_failure = \"status\"")
        .start()
        .await;
    symlink(&admin, &link).unwrap();
    for target in ["/desk/link", "/fixed"] {
        refused(&gateway, target).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn row_70_a_token_line_that_the_route_does_not_allow_prevents_the_start() {
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    let configure = |keys: &str, targets: &str| {
        write(
            "gateway.toml",
            &format!(
                "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"a\"\npath = \"/a/*\"\n{keys}\n\
                 targets = {{ from = \"file\", path = \"tokens.cfg\"{targets} }}\n[admin]\naddress = \"127.0.0.1:9101\"\n"
            ),
        );
    };
    for (line, keys, targets, words) in [
        ("127.0.0.1:5900", "", "", Some("allowed_networks; add its network there")),
        ("0.0.0.0:5900", "allowed_networks = [\"10.0.0.0/8\"]", "", Some("allowed_networks")),
        ("169.254.169.254:80", "", "", Some("allowed_networks")),
        ("unix:/run/x.sock", "", "", Some("set that to its directory")),
        ("unix:/run/y/x.sock", "", ", unix = \"/run/x\"", Some("set that to its directory")),
        ("unix:/run/x/x.sock", "", ", unix = \"/run/x\"", None),
        ("127.0.0.1:5900", "allowed_networks = [\"127.0.0.0/8\"]", "", None),
        ("127.0.0.1:9101", "allowed_networks = [\"127.0.0.0/8\"]", "", Some("this gateway itself")),
    ] {
        configure(keys, targets);
        write("tokens.cfg", &format!("# desks\nsecret: {line}\n"));
        let output = command(directory.path().to_owned(), vec!["check".to_owned()]).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(if words.is_some() { 78 } else { 0 }), "{line}: {error}");
        if let Some(words) = words {
            assert!(error.contains("tokens.cfg:2: ") && error.contains(words), "{line}: {error}");
        }
        assert!(!error.contains("secret"), "{error}");
    }
}
