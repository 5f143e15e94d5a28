//! nginx as the backend, with a PROXY header.

use std::net::Ipv4Addr;
use std::path::Path;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::server::{Server, find, free_port, missing};
use crate::support::{BINARY, Backend, PLAIN, Request, Response, Setup, TLS, frame, read_response, within};

const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

#[tokio::test]
#[ignore = "needs nginx: tests/run --only servers"]
async fn nginx_receives_the_address_of_the_client_not_of_the_gateway() {
    let Some(program) = find("nginx") else { return };
    if !Path::new(STREAM_MODULE).exists() {
        return missing("the stream module of nginx");
    }
    let directory = TempDir::new().unwrap();
    let here = directory.path().display();
    let (stream, http) = (free_port(), free_port());
    let text = format!(
        "load_module {STREAM_MODULE};\ndaemon off;\nmaster_process off;\npid {here}/nginx.pid;\n\
         error_log stderr info;\nevents {{ worker_connections 256; }}\n\
         stream {{\n  server {{\n    listen 127.0.0.1:{stream} proxy_protocol;\n    \
         return \"$proxy_protocol_addr:$proxy_protocol_port\\n\";\n  }}\n}}\n\
         http {{\n  access_log off;\n  client_body_temp_path {here}/a;\n  proxy_temp_path {here}/b;\n  \
         fastcgi_temp_path {here}/c;\n  uwsgi_temp_path {here}/d;\n  scgi_temp_path {here}/e;\n  \
         server {{\n    listen 127.0.0.1:{http} proxy_protocol;\n    location / {{\n      \
         return 200 \"$proxy_protocol_addr:$proxy_protocol_port\\n\";\n    }}\n  }}\n}}\n"
    );
    let config = directory.path().join("nginx.conf");
    std::fs::write(&config, text).unwrap();
    let arguments =
        ["-e", "stderr", "-p", directory.path().to_str().unwrap(), "-c", config.to_str().unwrap()];
    let _nginx = Server::start(&program, &arguments, &directory, &[stream, http]);

    let mut setup = Setup::new();
    for version in ["v1", "v2"] {
        let line = format!("send_proxy = \"{version}\"");
        for (kind, port) in [("stream", stream), ("http", http)] {
            let name = format!("{kind}-{version}");
            setup = setup.route_to(&name, &format!("/{name}"), &format!("tcp://127.0.0.1:{port}"), &line);
        }
    }
    let gateway = setup.start().await;
    for target in ["/stream-v1", "/stream-v2", "/http-v1", "/http-v2"] {
        for listener in [TLS, PLAIN] {
            let mut session = gateway.session_by(listener, target).await;
            if target.starts_with("/http") {
                let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
                session.send(&frame(true, BINARY, request)).await;
            }
            let (data, code, _) = session.closed().await;
            let received = String::from_utf8_lossy(&data);
            assert!(
                received.ends_with(&format!("{}\n", session.peer)),
                "{target}, {}: {received}",
                session.peer
            );
            assert!(target.starts_with("/stream") || received.starts_with("HTTP/1.1 200"), "{received}");
            assert_eq!(code, Some(1000));
            gateway.ended(session.peer, "backend_closed", Some(1000)).await;
        }
    }
    gateway.finish().await;
}

/// The nginx settings that the manual prints.
fn documented() -> String {
    let manual = include_str!("../../docs/operations.md");
    let (_, rest) = manual.split_once("```nginx\n").expect("settings of nginx");
    rest.split_once("```").expect("their end").0.to_owned()
}

async fn ask(port: u16, request: &Request) -> Response {
    let mut connection =
        within("nginx", TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await.expect("nginx");
    connection.write_all(&request.bytes()).await.expect("the request is sent");
    read_response(&mut connection, true).await
}

#[tokio::test]
#[ignore = "needs nginx: tests/run --only servers"]
async fn row_62_behind_the_documented_nginx_no_client_chooses_another_route() {
    let Some(program) = find("nginx") else { return };
    let [open, closed] = [Backend::echo().await, Backend::echo().await];
    let gateway = Setup::new()
        .route_with("vnc", "/vnc", &open, "")
        .route_with("desk", "/desk/*", &closed, "missing_origin = \"allow\"")
        .route_with("other", "/vnc", &closed, "host = \"closed.example\"\nmissing_origin = \"allow\"")
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.1\"]\n")
        .start()
        .await;
    let directory = TempDir::new().unwrap();
    let here = directory.path().display();
    let port = free_port();
    let documented = documented();
    assert_eq!(documented.matches("127.0.0.1:8080").count(), 1, "{documented}");
    let snippet = documented.replace("127.0.0.1:8080", &gateway.address(PLAIN).to_string());
    let text = format!(
        "daemon off;\nmaster_process off;\npid {here}/nginx.pid;\nerror_log stderr info;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {here}/a;\n  proxy_temp_path {here}/b;\n  \
         fastcgi_temp_path {here}/c;\n  uwsgi_temp_path {here}/d;\n  scgi_temp_path {here}/e;\n  \
         server {{\n    listen 127.0.0.1:{port};\n    server_name localhost;\n    location /desk/ {{ deny all; }}\n{snippet}  }}\n  \
         server {{\n    listen 127.0.0.1:{port};\n    server_name closed.example;\n    return 403;\n  }}\n}}\n"
    );
    let config = directory.path().join("nginx.conf");
    std::fs::write(&config, text).unwrap();
    let arguments =
        ["-e", "stderr", "-p", directory.path().to_str().unwrap(), "-c", config.to_str().unwrap()];
    let _nginx = Server::start(&program, &arguments, &directory, &[port]);

    let host = format!("localhost:{port}");
    let upgrade = |target: &str| Request::upgrade(target, "http", &host);
    assert_eq!(ask(port, &upgrade("/vnc")).await.status, 101);
    assert_eq!(ask(port, &upgrade("/desk/one")).await.status, 403);
    // nginx matches the normalised path and passes the original on.
    for target in ["/desk/../vnc", "/desk/%2e%2e/vnc", "//vnc", "/./vnc", "/desk/one/../../vnc"] {
        assert_eq!(ask(port, &upgrade(target)).await.status, 400, "{target}");
    }
    // The client's own forwarding fields, in every combination of letters, do not count.
    for (name, value) in [
        ("X-Forwarded-Host", "closed.example"),
        ("x-forwarded-host", "closed.example"),
        ("Forwarded", "for=192.0.2.7;host=closed.example"),
        ("X-Forwarded-For", "192.0.2.7"),
        ("X-Forwarded-Proto", "https"),
    ] {
        assert_eq!(ask(port, &upgrade("/vnc").add(name, value)).await.status, 101, "{name}: {value}");
    }
    // Neither does a Host that differs from the one by which nginx chose the server.
    let target = format!("GET http://{host}/vnc HTTP/1.1");
    let crooked = upgrade("/vnc").line(&target).with("Host", "closed.example");
    let response = ask(port, &crooked).await;
    assert!(matches!(response.status, 101 | 400), "{response:?}");
    assert_eq!(closed.connections().await, 0, "a client reached a route that nginx denies");
    assert_eq!(ask(port, &upgrade("/vnc").with("Host", "closed.example")).await.status, 403);
    assert!(open.connections().await >= 6);
    // The connections are nginx's own, so their log lines are not claimed one by one.
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.exit_at_once().await.code(), Some(0));
}
