//! HAProxy in front of the gateway, with a PROXY header.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::server::{Server, find, free_port};
use crate::support::{Backend, ClientStream, PLAIN, Session, Setup, TLS, send_request, within};

/// The load balancer of docs/capacity.md.
#[test]
#[ignore = "needs HAProxy: tests/run --only servers"]
fn haproxy_accepts_the_documented_configuration() {
    let Some(program) = find("haproxy") else { return };
    let page = include_str!("../../docs/capacity.md");
    let blocks: Vec<&str> =
        page.split("```haproxy\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let [block] = blocks[..] else { panic!("not exactly one configuration of HAProxy: {blocks:?}") };
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("haproxy.cfg");
    std::fs::write(&file, block).unwrap();
    let output = Command::new(program).args(["-c", "-f"]).arg(&file).output().unwrap();
    let output_text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{output_text}");
    assert!(!output_text.contains("[WARNING]"), "{output_text}");
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run --only servers"]
async fn the_client_of_haproxys_header_is_the_peer() {
    let Some(program) = find("haproxy") else { return };
    for (option, tls) in [("send-proxy", true), ("send-proxy-v2", true), ("send-proxy-v2", false)] {
        let backend = Backend::echo().await;
        let certificate = "certificate = \"localhost.crt\"\nprivate_key = \"localhost.key\"\n";
        let gateway = Setup::echo(&backend)
            .listener(PLAIN, "proxy_protocol = true\ntrusted_proxies = [\"127.0.0.1/32\"]\n")
            .listener(PLAIN, if tls { certificate } else { "" })
            .start()
            .await;
        let directory = TempDir::new().unwrap();
        let port = free_port();
        let text = format!(
            "global\n    maxconn 200\ndefaults\n    mode tcp\n    timeout connect 5s\n    timeout client 30s\n    \
             timeout server 30s\nfrontend front\n    bind 127.0.0.1:{port}\n    default_backend back\nbackend back\n    \
             server gateway {} {option}\n",
            gateway.address(PLAIN)
        );
        let config = directory.path().join("haproxy.cfg");
        std::fs::write(&config, text).unwrap();
        let arguments = ["-db", "-f", config.to_str().unwrap()];
        let _haproxy = Server::start(&program, &arguments, &directory, &[port]);
        for last in 31..36 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((IpAddr::from([127, 0, 0, last]), 0).into()).unwrap();
            let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
            let socket = within("HAProxy", socket.connect(address)).await.unwrap();
            let client = socket.local_addr().unwrap();
            gateway.expect_log_line(client);
            let mut connection = if tls { gateway.secure(socket).await } else { ClientStream::Plain(socket) };
            let request = gateway.upgrade(if tls { TLS } else { PLAIN }, "/echo");
            let response = send_request(&mut connection, &request).await;
            assert_eq!(response.status, 101, "{response:?}");
            let mut session = Session::new(connection, client, &response.rest);
            session.echo(b"hello").await;
            session.close(1000).await;
            drop(session);
            gateway.ended(client, "client_closed", Some(1000)).await;
        }
        gateway.finish().await;
    }
}
