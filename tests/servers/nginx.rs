//! nginx as the backend, with a PROXY header.

use std::path::Path;

use tempfile::TempDir;

use crate::server::{Server, find, free_port, missing};
use crate::support::{BINARY, PLAIN, Setup, TLS, frame};

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
