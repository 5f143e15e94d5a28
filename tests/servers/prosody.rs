//! Prosody as the backend, which requires TLS: the gateway provides it, without support in the page.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::authority::{Authority, quoted};
use crate::server::{Server, find, free_port};
use crate::support::{BINARY, Gateway, Session, Setup, frame};

const OPEN: &str = "<?xml version='1.0'?><stream:stream to='chat.example' version='1.0' xmlns='jabber:client' \
                    xmlns:stream='http://etherx.jabber.org/streams'>";
/// `\0juliet\0secret` (RFC 4616).
const AUTH: &str =
    "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGp1bGlldABzZWNyZXQ=</auth>";

struct Prosody {
    _server: Server,
    _directory: TempDir,
    authority: Authority,
    plain: u16,
    tls: u16,
}

impl Prosody {
    fn start() -> Option<Self> {
        let (program, control) = (find("prosody")?, find("prosodyctl")?);
        let directory = TempDir::new().expect("a directory");
        let authority = Authority::new();
        let (certificate, key) = authority.write("chat.example", &authority.leaf("chat.example"));
        let (plain, tls) = (free_port(), free_port());
        let here = directory.path().display();
        let ssl = format!("{{ certificate = {}; key = {} }}", quoted(&certificate), quoted(&key));
        let text = format!(
            "run_as_root = true\npidfile = \"{here}/prosody.pid\"\ndata_path = \"{here}/data\"\n\
             modules_enabled = {{ \"roster\", \"saslauth\", \"tls\", \"disco\" }}\n\
             modules_disabled = {{ \"s2s\" }}\n\
             interfaces = {{ \"127.0.0.1\" }}\nlocal_interfaces = {{ \"127.0.0.1\" }}\n\
             c2s_ports = {{ {plain} }}\nc2s_direct_tls_ports = {{ {tls} }}\n\
             c2s_direct_tls_ssl = {ssl}\nssl = {ssl}\n\
             c2s_require_encryption = true\nauthentication = \"internal_hashed\"\n\
             log = {{ debug = \"*console\" }}\nVirtualHost \"chat.example\"\n  ssl = {ssl}\n"
        );
        let config = directory.path().join("prosody.cfg.lua");
        std::fs::write(&config, text).expect("a file");
        std::fs::create_dir(directory.path().join("data")).expect("a directory");
        let config = config.to_str().expect("a path of text");
        let registered = Command::new(control)
            .args(["--config", config, "--root", "register", "juliet", "chat.example", "secret"])
            .stdin(Stdio::null())
            .output()
            .expect("prosodyctl");
        assert!(registered.status.success(), "{registered:?}");
        let server = Server::start(&program, &["--config", config, "-F"], &directory, &[plain, tls]);
        Some(Self { _server: server, _directory: directory, authority, plain, tls })
    }

    async fn gateway(&self) -> Gateway {
        let named = self.authority.trusted_with(", server_name = \"chat.example\"");
        Setup::new()
            .route_to(
                "chat",
                "/chat",
                &format!("starttls+xmpp://127.0.0.1:{}", self.plain),
                &format!("xmpp_domain = \"chat.example\"\n{}", self.authority.trusted()),
            )
            .route_to(
                "elsewhere",
                "/elsewhere",
                &format!("starttls+xmpp://127.0.0.1:{}", self.plain),
                &format!("xmpp_domain = \"nowhere.example\"\n{}", self.authority.trusted()),
            )
            .route_to("direct", "/direct", &format!("tls://127.0.0.1:{}", self.tls), &named)
            .route_to("clear", "/clear", &format!("tcp://127.0.0.1:{}", self.plain), "")
            .route_to("wrong", "/wrong", &format!("tls://127.0.0.1:{}", self.plain), &named)
            .start()
            .await
    }
}

/// Sends `text` and reads the answer, up to `end`.
async fn exchange(session: &mut Session, text: &str, end: &str) -> String {
    session.send(&frame(true, BINARY, text.as_bytes())).await;
    let mut received = Vec::new();
    loop {
        received.extend(session.frames.data().await.payload);
        let text = String::from_utf8_lossy(&received);
        if text.contains(end) {
            return text.into_owned();
        }
    }
}

#[tokio::test]
#[ignore = "needs Prosody: tests/run --only servers"]
async fn a_client_logs_in_over_the_gateways_tls() {
    let Some(prosody) = Prosody::start() else { return };
    let gateway = prosody.gateway().await;
    // Over plain TCP the server offers STARTTLS only.
    let mut session = gateway.session("/clear").await;
    let received = exchange(&mut session, OPEN, "</stream:features>").await;
    assert!(received.contains("<starttls") && !received.contains("PLAIN"), "{received}");
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;

    for target in ["/chat", "/direct", "/chat", "/direct"] {
        let mut session = gateway.session(target).await;
        let received = exchange(&mut session, OPEN, "</stream:features>").await;
        assert!(received.starts_with("<?xml"), "not the answer to this stream alone: {received}");
        assert_eq!(received.matches("<stream:stream").count(), 1, "{received}");
        assert!(received.contains("PLAIN") && !received.contains("<starttls"), "{target}: {received}");
        let received = exchange(&mut session, AUTH, ">").await;
        assert!(received.contains("<success"), "{target}: {received}");
        let received = exchange(&mut session, OPEN, "</stream:features>").await;
        assert!(received.contains("<bind"), "{target}: {received}");
        let bind = "<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
        let received = exchange(&mut session, bind, "</iq>").await;
        assert!(received.contains("juliet@chat.example/"), "{target}: {received}");
        // Prosody closes the stream, and with it the session.
        session.send(&frame(true, BINARY, b"</stream:stream>")).await;
        let (data, code, _) = session.closed().await;
        assert_eq!(code, Some(1000));
        assert!(String::from_utf8_lossy(&data).contains("</stream:stream>"));
        gateway.ended(session.peer, "backend_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
#[ignore = "needs Prosody: tests/run --only servers"]
async fn a_wrong_domain_or_scheme_is_reported() {
    let Some(prosody) = Prosody::start() else { return };
    let gateway = prosody.gateway().await;
    for (target, word) in [("/elsewhere", "host-unknown"), ("/wrong", "TLS")] {
        let mut session = gateway.session(target).await;
        assert_eq!(session.closed().await.1, Some(1011));
        let end = gateway.ended(session.peer, "backend_tls_failed", Some(1011)).await;
        assert!(end.text("detail").unwrap_or_default().contains(word), "{word:?} is not in {end:?}");
    }
    gateway.finish().await;
}
