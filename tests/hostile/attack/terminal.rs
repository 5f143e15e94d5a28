//! Row 73: what a hostile server says does not control the operator's terminal.

use std::fs;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::command;

#[tokio::test]
async fn row_73_escape_sequences_of_a_hostile_server_do_not_reach_the_terminal() {
    const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
    let hostile = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hostile.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((mut socket, _)) = hostile.accept().await {
            let answer = format!("{HEADER}<stream:features><a></b\x1b[2J\x1b]0;owned\x07\u{9b}31m\u{202e}>");
            let _ = socket.write_all(answer.as_bytes()).await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    });
    let directory = TempDir::new().unwrap();
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:8080\"\n[[route]]\nname = \"a\"\npath = \"/a\"\n\
         missing_origin = \"allow\"\nxmpp_domain = \"example.com\"\nbackend = \"starttls+xmpp://{address}\"\n\
         tls = {{ insecure_no_verify = true }}\n"
    );
    fs::write(directory.path().join("gateway.toml"), text).unwrap();
    for arguments in [&["check", "--dial"][..], &["explain", "ws://localhost:8080/a", "--dial"]] {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let output = command(directory.path().to_owned(), arguments).await;
        let all = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let is_bad = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!all.contains(is_bad), "{all:?}");
        assert!(all.contains("[2J"), "the text is not shown: {all:?}");
    }
    server.abort();
}
