//! nginx as the authority of `kind = "forward"`: its own check of passwords, for routes and files of the gateway.

use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::server::{Server, find, free_port};
use crate::support::{Backend, Gateway, Request, Response, Setup, TLS, read_response, send_request};

/// "secret", hashed by bcrypt with the least cost.
const HASH: &str = "$2y$04$Wra2LL5Zh0hx5Uyte5BQOOop1MrHlP1Bp9nrp5SO9JbKmV49lEM96";

/// Starts nginx with a location that asks for a password, and names the user in its response.
fn start(program: &Path, directory: &TempDir, port: u16) -> Server {
    let here = directory.path().display();
    std::fs::write(directory.path().join("users"), format!("ann:{HASH}\n")).expect("a file");
    let text = format!(
        "daemon off;\nmaster_process off;\npid {here}/nginx.pid;\nerror_log stderr info;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {here}/a;\n  proxy_temp_path {here}/b;\n  \
         fastcgi_temp_path {here}/c;\n  uwsgi_temp_path {here}/d;\n  scgi_temp_path {here}/e;\n  \
         server {{\n    listen 127.0.0.1:{port};\n    location = /check {{\n      auth_basic \"nginx\";\n      \
         auth_basic_user_file {here}/users;\n      add_header X-User $remote_user;\n      \
         if ($http_x_forwarded_uri = \"/desk?as=forbidden\") {{ return 403; }}\n      \
         try_files /nothing =204;\n    }}\n  }}\n}}\n"
    );
    let config = directory.path().join("nginx.conf");
    std::fs::write(&config, text).expect("a file");
    let text = |path: &Path| path.to_str().expect("a path of text").to_owned();
    let (prefix, config) = (text(directory.path()), text(&config));
    let arguments = ["-e", "stderr", "-p", &prefix, "-c", &config];
    Server::start(program, &arguments, directory, &[port])
}

async fn ask(gateway: &Gateway, request: &Request, reason: &str) -> Response {
    let mut connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    connection.write_all(&request.bytes()).await.expect("the request is sent");
    connection.flush().await.expect("the request is sent");
    let response = read_response(&mut connection, true).await;
    drop(connection);
    gateway.refused(peer, reason).await;
    response
}

#[tokio::test]
#[ignore = "needs nginx: tests/run --only servers"]
async fn nginx_decides_who_opens_a_session_and_who_reads_a_file() {
    let Some(program) = find("nginx") else { return };
    let directory = TempDir::new().unwrap();
    std::fs::create_dir(directory.path().join("web")).unwrap();
    std::fs::write(directory.path().join("web/index.html"), "<!doctype html>viewer").unwrap();
    let port = free_port();
    let nginx = start(&program, &directory, port);
    let backend = Backend::echo().await;
    let gateway = Setup::new()
        .route_with("desk", "/desk", &backend, "auth = \"nginx\"")
        .tables(&format!(
            "[auth.nginx]\nkind = \"forward\"\nurl = \"http://127.0.0.1:{port}/check\"\nuser_header = \"X-User\"\n\
             [web]\nroot = {:?}\nauth = \"nginx\"",
            directory.path().join("web")
        ))
        .start()
        .await;
    let password =
        |password: &str| format!("Basic {}", BASE64_STANDARD.encode(format!("ann:{password}").as_bytes()));
    let upgrade = |target: &str| gateway.upgrade(TLS, target);
    let page = || Request::new("GET / HTTP/1.1").add("Host", &gateway.host(TLS));
    for _ in 0..3 {
        let right = upgrade("/desk").add("Authorization", &password("secret")).add("X-User", "root");
        let mut session = gateway.open(gateway.connect(TLS).await, &right).await;
        session.echo(b"hello").await;
        session.close(1000).await;
        let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
        assert_eq!(end.text("user"), Some("ann"), "{end:?}");
    }
    for request in [
        upgrade("/desk"),
        upgrade("/desk").add("Authorization", &password("wrong")),
        upgrade("/desk").add("X-User", "root").add("Remote-User", "root"),
        page(),
        page().add("Authorization", &password("wrong")),
    ] {
        let response = ask(&gateway, &request, "unauthorized").await;
        assert_eq!(
            (response.status, response.header("WWW-Authenticate")),
            (401, Some("Basic realm=\"nginx\""))
        );
    }
    let served = ask(&gateway, &page().add("Authorization", &password("secret")), "served").await;
    assert_eq!((served.status, served.text()), (200, "<!doctype html>viewer"));
    let forbidden = upgrade("/desk?as=forbidden").add("Authorization", &password("secret"));
    assert_eq!(ask(&gateway, &forbidden, "forbidden").await.status, 403);
    assert_eq!(backend.connections().await, 3);
    // nginx is gone: without an answer there is no session.
    drop(nginx);
    let right = upgrade("/desk").add("Authorization", &password("secret"));
    assert_eq!(ask(&gateway, &right, "auth_unavailable").await.status, 503);
    let mut connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    assert_eq!(send_request(&mut connection, &page()).await.status, 503);
    drop(connection);
    gateway.refused(peer, "auth_unavailable").await;
    gateway.finish().await;
}
