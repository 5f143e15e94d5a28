//! `portcullis explain` and `portcullis check --dial`, by the program itself and against servers of the test.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Output, Stdio},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use portcullis::{config::Config, gateway::Gateway, self_signed};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream, UnixListener},
    process::Command,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const PLAIN: &str = "[[listener]]\naddress = \"127.0.0.1:8080\"\n";
const LIMITS: &str = "20 new connections a second, 60 at once, 200 held";
const ANY_SUBPROTOCOL: &str = r#"sub-protocols  any: "binary" if offered, else the first that is not "xmpp""#;
const NO_HEADER: &str = "PROXY header   none is sent";

/// A directory with a configuration in it, a certificate for `localhost` beside.
struct Desk {
    directory: TempDir,
}

/// What the program said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: timeless(&text(output.stdout)), err: text(output.stderr) }
    }

    #[track_caller]
    fn is(&self, code: i32, lines: &[&str]) {
        assert_eq!(self.out.lines().collect::<Vec<_>>(), lines, "{self:#?}");
        assert_eq!(self.code, Some(code), "{self:#?}");
    }

    /// Asserts that these lines stand one below the other.
    #[track_caller]
    fn has(&self, lines: &[&str]) {
        let said: Vec<&str> = self.out.lines().collect();
        assert!(said.windows(lines.len()).any(|some| some == lines), "no {lines:#?} in {said:#?}");
    }

    #[track_caller]
    fn ends(&self, code: i32, verdict: &str) {
        assert_eq!((self.out.lines().last(), self.code), (Some(verdict), Some(code)), "{self:#?}");
    }
}

/// The text without how long things took.
fn timeless(text: &str) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    for at in 1..words.len() {
        if words[at] == "ms" && words[at - 1].parse::<u64>().is_ok() {
            words[at - 1] = "N";
        }
    }
    words.join(" ")
}

impl Desk {
    fn new(config: &str) -> Self {
        let desk = Self { directory: tempfile::tempdir().unwrap() };
        let pair = self_signed(&["localhost".to_owned()]).unwrap();
        desk.write("a.crt", &pair.certificate);
        desk.write("a.key", &pair.private_key);
        desk.write("gateway.toml", config);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(arguments).current_dir(&self.directory).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Said {
        let output = timeout(LONG, self.command(arguments).output()).await;
        Said::of(output.unwrap_or_else(|_| panic!("{arguments:?} goes on and on")).unwrap())
    }

    async fn explain(&self, arguments: &[&str]) -> Said {
        self.run(&[&["explain"], arguments].concat()).await
    }
}

fn tls_listener(port: u16) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\ncertificate = \"a.crt\"\nprivate_key = \"a.key\"\n"
    )
}

/// A route `/NAME` to a server, and further lines for it.
fn route(name: &str, backend: &str, lines: &str) -> String {
    format!("[[route]]\nname = \"{name}\"\npath = \"/{name}\"\nbackend = \"{backend}\"\n{lines}\n")
}

fn vnc(lines: &str) -> String {
    route("vnc", "tcp://127.0.0.1:5900", lines)
}

/// A server that takes connections and says nothing.
async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut all = Vec::new();
        while let Ok(connection) = listener.accept().await {
            all.push(connection);
        }
    });
    address
}

/// An address where nobody listens, as long as the socket lives.
fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A certificate for these names until 2096-10-02T07:06:40Z, and its key, both PEM.
fn pair(names: &[&str]) -> (String, String) {
    let mut params =
        CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    params.not_after = (UNIX_EPOCH + Duration::from_secs(4_000_000_000)).into();
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A server that shakes hands and says nothing; with `wants`, it wants a certificate of the client's.
async fn tls_server((certificate, key): &(String, String), version: &'static str, wants: bool) -> SocketAddr {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let version = if version == "1.2" { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
    let builder = ServerConfig::builder_with_protocol_versions(&[version]);
    let builder = if wants {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![certificate], key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(socket).await?;
                stream.read_to_end(&mut Vec::new()).await
            });
        }
    });
    address
}

#[tokio::test]
async fn a_connection_that_would_be_let_in() {
    let desk = Desk::new(&format!("{}{}", tls_listener(8443), vnc("")));
    let said = desk
        .explain(&["wss://localhost:8443/vnc", "--origin", "https://localhost:8443", "--from", "192.0.2.7"])
        .await;
    let from = format!("from           192.0.2.7 is counted: it may have {LIMITS}");
    said.is(
        0,
        &[
            "listener       127.0.0.1:8443 takes it, with TLS",
            &from,
            "route          \"vnc\", any host and exactly /vnc",
            "origin         https://localhost:8443 is allowed",
            "               would pass: https://localhost:8443 (same-origin)",
            ANY_SUBPROTOCOL,
            "backend        tcp://127.0.0.1:5900",
            NO_HEADER,
            "would be let in",
        ],
    );
    assert_eq!(said.err, "");
}

#[tokio::test]
async fn the_origin_rule() {
    let listed = "origins = [\"same-origin\", \"https://a.example\", \"null\"]\nmissing_origin = \"allow\"";
    let desk = Desk::new(&format!(
        "{PLAIN}[[listener]]\naddress = \"[::1]:8080\"\n{}{}{}{}",
        vnc(""),
        route("listed", "tcp://127.0.0.1:1", listed),
        route("any", "tcp://127.0.0.1:1", "origins = [\"*\"]"),
        route("only", "tcp://127.0.0.1:1", "origins = [\"https://a.example\"]"),
    ));
    let refused = "would be refused: origin_refused (HTTP 403)";
    for (url, origin, lines, verdict) in [
        (
            "ws://localhost:8080/vnc",
            None,
            [
                "origin         refused: there is no Origin header (see --origin)",
                "               would pass: http://localhost:8080 (same-origin)",
            ],
            refused,
        ),
        (
            "ws://localhost:8080/vnc",
            Some("https://evil.example"),
            [
                "origin         refused: the origin https://evil.example is foreign",
                "               would pass: http://localhost:8080 (same-origin)",
            ],
            refused,
        ),
        (
            "ws://localhost:8080/vnc",
            Some("localhost"),
            [
                "origin         refused: the Origin header is malformed: it does not begin with a scheme as \
                 \"https://desk.example.com\" does",
                "               would pass: http://localhost:8080 (same-origin)",
            ],
            refused,
        ),
        (
            "ws://[::1]:8080/vnc",
            Some("http://[::1]:8080"),
            [
                "origin         refused: the origin http://[::1]:8080 is foreign",
                "               would pass: not http://[::1]:8080, for same-origin takes no IPv6 addresses",
            ],
            refused,
        ),
        (
            "ws://localhost:8080/listed",
            None,
            [
                "origin         none is sent (see --origin), which is allowed",
                "               would pass: http://localhost:8080 (same-origin), https://a.example, null, none at all",
            ],
            "would be let in",
        ),
        (
            "ws://localhost:8080/any",
            Some("https://evil.example"),
            ["origin         https://evil.example is allowed", "               would pass: any"],
            "would be let in",
        ),
        (
            "ws://localhost:8080/only",
            Some("null"),
            ["origin         refused: the origin is null", "               would pass: https://a.example"],
            refused,
        ),
    ] {
        let origin = origin.map(|origin| format!("--origin={origin}"));
        let said = desk
            .explain(&[&[url][..], &origin.iter().map(String::as_str).collect::<Vec<_>>()].concat())
            .await;
        said.has(&lines);
        said.ends((verdict == refused).into(), verdict);
    }
}

#[tokio::test]
async fn the_listener() {
    let desk = Desk::new(&format!("{}{PLAIN}{}", tls_listener(8443), vnc("missing_origin = \"allow\"")));
    let there = "there is 127.0.0.1:8443 with TLS; 127.0.0.1:8080 without TLS";
    let proxy = "               if a proxy stands in front, give its address: --from ADDRESS";
    for (url, lines, code, verdict) in [
        ("ws://a.example:8080/vnc", vec!["listener       127.0.0.1:8080 takes it, without TLS".to_owned()], 0, "would be let in"),
        (
            "wss://a.example/vnc",
            vec![format!("listener       nothing listens on port 443; {there}"), proxy.to_owned()],
            1,
            "would be refused: nothing listens on port 443",
        ),
        (
            "wss://127.0.0.2:8443/vnc",
            vec![format!("listener       nothing listens on port 8443 of 127.0.0.2; {there}"), proxy.to_owned()],
            1,
            "would be refused: nothing listens on port 8443",
        ),
        (
            "ws://a.example:8443/vnc",
            vec!["listener       127.0.0.1:8443 listens on that port, but with TLS: ask for wss://".to_owned()],
            1,
            "would be refused: not_tls (HTTP 400)",
        ),
        (
            "wss://a.example:8080/vnc",
            vec![
                "listener       127.0.0.1:8080 listens on that port, but without TLS: ask for ws://, or let a proxy of \
                 its trusted_proxies end TLS (--from its address)"
                    .to_owned(),
            ],
            1,
            "would be refused: bad_request (HTTP 400)",
        ),
    ] {
        let said = desk.explain(&[url]).await;
        said.has(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        said.ends(code, verdict);
    }
}

#[tokio::test]
async fn who_calls() {
    let desk = Desk::new(&format!(
        "{PLAIN}trusted_proxies = [\"10.0.0.0/8\"]\n\
         [[listener]]\naddress = \"127.0.0.1:8081\"\nproxy_protocol = true\ntrusted_proxies = [\"10.0.0.0/8\"]\n\
         {}[limits.per_ip]\nrate = 5\nburst = 7\nsessions = 9\nexempt = [\"192.0.2.0/24\"]\n",
        vnc("")
    ));
    let counts = "5 new connections a second, 7 at once, 9 held";
    let header = "               every connection must begin with a PROXY header, sent from 10.0.0.0/8";
    for (url, from, lines) in [
        (
            "ws://a.example:8080/vnc",
            None,
            vec![format!("from           anywhere (see --from): one address may have {counts}")],
        ),
        (
            "ws://a.example:8080/vnc",
            Some("::ffff:192.0.2.7"),
            vec!["from           192.0.2.7 is exempt from the limits per address".to_owned()],
        ),
        (
            "wss://a.example/vnc",
            Some("10.1.2.3"),
            vec![
                "listener       127.0.0.1:8080 takes it, without TLS".to_owned(),
                "               (nothing listens on port 443 itself: that is the proxy's)".to_owned(),
                format!(
                    "from           10.1.2.3 is a trusted proxy: the client that it names is counted, with {counts}"
                ),
                "               taken for granted: it passes on Host, and X-Forwarded-Proto: https"
                    .to_owned(),
            ],
        ),
        (
            "ws://a.example:8081/vnc",
            Some("10.1.2.3"),
            vec![
                "listener       127.0.0.1:8081 takes it, without TLS".to_owned(),
                header.to_owned(),
                format!(
                    "from           10.1.2.3 is a trusted proxy: the client in its PROXY header is counted, with {counts}"
                ),
            ],
        ),
        (
            "ws://a.example:8081/vnc",
            Some("192.0.2.7"),
            vec![
                "listener       127.0.0.1:8081 takes it, without TLS".to_owned(),
                header.to_owned(),
                "from           192.0.2.7 is not in trusted_proxies, and may not send a PROXY header"
                    .to_owned(),
            ],
        ),
    ] {
        let origin = format!("--origin={}", url.replace("ws", "http").trim_end_matches("/vnc"));
        let from_argument = from.map(|from| format!("--from={from}"));
        let said = desk
            .explain(
                &[&[url, &origin][..], &from_argument.iter().map(String::as_str).collect::<Vec<_>>()]
                    .concat(),
            )
            .await;
        said.has(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        match (url, from) {
            ("ws://a.example:8081/vnc", Some("192.0.2.7")) => {
                said.ends(1, "would be refused: proxy_header_invalid (closed without an answer)");
            }
            _ => said.ends(0, "would be let in"),
        }
    }
}

#[tokio::test]
async fn the_route() {
    let desk = Desk::new(&format!(
        "{PLAIN}{}{}{}[web]\nroot = \"web\"\n",
        "[[route]]\nname = \"desk\"\nhost = \"desk.example\"\npath = \"/vnc/*\"\nbackend = \"tcp://127.0.0.1:1\"\n",
        "[[route]]\nname = \"some\"\npath = \"/vnc/*\"\nbackend = \"tcp://127.0.0.1:1\"\nmissing_origin = \"allow\"\n",
        "[[route]]\nname = \"one\"\npath = \"/vnc/one\"\nbackend = \"tcp://127.0.0.1:1\"\nmissing_origin = \"allow\"\n",
    ));
    fs::create_dir(desk.path("web")).unwrap();
    desk.write("web/page.html", "<!doctype html>");
    let why = "               (a host goes before any host, an exact path before a prefix, a longer prefix before a shorter)";
    let said = desk.explain(&["ws://Desk.example:8080/vnc/one"]).await;
    said.has(&[
        "route          \"desk\", host desk.example and all of /vnc/*",
        "               goes before \"one\", any host and exactly /vnc/one; \"some\", any host and all of /vnc/*",
        why,
    ]);
    let said = desk.explain(&["ws://a.example:8080/vnc/one"]).await;
    said.has(&[
        "route          \"one\", any host and exactly /vnc/one",
        "               goes before \"some\", any host and all of /vnc/*",
        why,
    ]);
    said.ends(0, "would be let in");
    let said = desk.explain(&["ws://a.example:8080/VNC"]).await;
    said.has(&["route          none takes this host and path; there is \"desk\", host desk.example and all of /vnc/*; \
                \"some\", any host and all of /vnc/*; \"one\", any host and exactly /vnc/one"]);
    said.ends(1, "would be refused: unknown_route (HTTP 404)");
    let said = desk.explain(&["ws://a.example:8080/page.html"]).await;
    said.has(&["route          none: it is a file of [web] root"]);
    said.ends(1, "would get a file and no session (HTTP 200)");
    let said = desk.explain(&[&format!("ws://a.example:8080/vnc/{}", "x".repeat(9000))]).await;
    said.has(&["route          none: the request target is longer than 8 KiB"]);
    said.ends(1, "would be refused: uri_too_long (HTTP 414)");
}

#[tokio::test]
async fn sub_protocols_servers_and_what_they_are_told() {
    let several = |balance: &str| {
        let name = balance;
        format!(
            "[[route]]\nname = \"{name}\"\npath = \"/{name}\"\nbackend = [\"tcp://127.0.0.1:1\", \"unix:/run/a.sock\"]\n\
             balance = \"{balance}\"\nmissing_origin = \"allow\"\n"
        )
    };
    let desk = Desk::new(&format!(
        "{PLAIN}{}{}{}{}{}{}",
        several("round-robin"),
        several("least-sessions"),
        several("first"),
        several("source-ip"),
        route(
            "v1",
            "tls://127.0.0.1:1",
            "send_proxy = \"v1\"\nmax_sessions = 5\nsubprotocols = [\"binary\", \"base64\"]\ntls = { insecure_no_verify = true }"
        ),
        route("v2", "tcp://127.0.0.1:1", "send_proxy = \"v2\""),
    ));
    for (balance, words) in [
        ("round-robin", "each in turn"),
        ("least-sessions", "the one with the fewest sessions"),
        ("first", "the first that can be reached"),
        ("source-ip", "always the same for the same client address"),
    ] {
        let said = desk.explain(&[&format!("ws://localhost:8080/{balance}")]).await;
        said.has(&[
            ANY_SUBPROTOCOL,
            &format!("backend        {words}, and the others if it fails:"),
            "               tcp://127.0.0.1:1",
            "               unix:/run/a.sock",
            NO_HEADER,
        ]);
    }
    let v1 = desk.explain(&["ws://localhost:8080/v1", "--from=192.0.2.7"]).await;
    v1.has(&[
        "sub-protocols  binary, base64: the first of them that is offered; an offer of others only is refused",
        "backend        tls://127.0.0.1:1",
        "               at most 5 sessions with each",
        "               any certificate is taken (insecure_no_verify)",
        "PROXY header   version 1: \"PROXY TCP4 192.0.2.7 127.0.0.1 0 8080\", with the client's port for 0",
    ]);
    assert!(v1.err.contains("tls.insecure_no_verify true accepts any certificate"), "{v1:#?}");
    let v1 = desk.explain(&["ws://localhost:8080/v1"]).await;
    v1.has(&["PROXY header   version 1, with the client's address and the one it called"]);
    let v2 = desk.explain(&["ws://localhost:8080/v2"]).await;
    v2.has(&["PROXY header   version 2, with the client's address and the one it called, TLS and the session's number"]);
}

#[tokio::test]
async fn tokens_lead_somewhere_and_are_never_shown() {
    let server = silent().await;
    let desk = Desk::new(&format!(
        "{PLAIN}[[route]]\nname = \"desks\"\npath = \"/desk/*\"\nmissing_origin = \"allow\"\n\
         targets = {{ from = \"file\", path = \"tokens.cfg\" }}\n"
    ));
    desk.write(
        "tokens.cfg",
        &format!("hunter2: {server}\nhunter3: {server}\nhunter4: unix:/nowhere/hunted\n"),
    );
    let found = format!("backend        tcp://{server}, which the token names");
    let dialled = format!("dial           tcp://{server}: reachable in N ms at {server}");
    for url in ["ws://localhost:8080/desk/?token=hunter2", "ws://localhost:8080/desk/hunter2"] {
        let said = desk.explain(&[url, "--dial"]).await;
        said.has(&["route          \"desks\", any host and all of /desk/*"]);
        said.has(&[&found, NO_HEADER, &dialled, "would be let in"]);
        assert!(!format!("{said:?}").contains("hunter"), "{said:#?}");
    }
    let said = desk.explain(&["ws://localhost:8080/desk/?token=hunter9", "--dial"]).await;
    said.has(&["backend        none: the token is not in tokens.cfg", NO_HEADER]);
    said.ends(1, "would be refused: unknown_route (HTTP 404)");
    assert!(!format!("{said:?}").contains("hunter9"), "{said:#?}");
    let said = desk.explain(&["ws://localhost:8080/desk/"]).await;
    said.has(&["backend        none: the URL has no token, or two; it stands in ?token=…, or as the last part of the path"]);
    said.ends(1, "would be refused: unknown_route (HTTP 404)");
    let said = desk.run(&["check", "--dial"]).await;
    let width = format!("tcp://{server}").len();
    said.is(
        1,
        &[
            "gateway.toml: good, 1 listener(s), 1 route(s)",
            &format!("desks  tcp://{server}  reachable in N ms at {server}"),
            &format!(
                "desks  {:width$}  FAILED: No such file or directory (os error 2)",
                "unix:/nowhere/hunted"
            ),
        ],
    );
    assert_eq!(said.err, "portcullis: 1 of 2 backend(s) cannot be reached\n");
}

#[tokio::test]
async fn what_the_servers_say() {
    let server = silent().await;
    let (_socket, dead) = nobody();
    let pair = pair(&["localhost", "*.a.example", "127.0.0.1"]);
    let (new, old) = (tls_server(&pair, "1.3", false).await, tls_server(&pair, "1.2", false).await);
    let wants = tls_server(&pair, "1.3", true).await;
    let trusting = "tls = { ca = \"ca.pem\" }\nmissing_origin = \"allow\"\n";
    let lenient = "tls = { insecure_no_verify = true }\nmissing_origin = \"allow\"\n";
    let desk = Desk::new(&format!(
        "{PLAIN}{}{}{}{}{}{}{}{}[timeouts]\nconnect = \"2s\"\n",
        route("new", &format!("tls://{new}"), trusting),
        route("old", &format!("tls://{old}"), trusting),
        route("any", &format!("tls://{new}"), lenient),
        route("wants", &format!("tls://{wants}"), trusting),
        route("mute", &format!("tls://{server}"), trusting),
        route("dead", &format!("tcp://{dead}"), "missing_origin = \"allow\""),
        route("status", &format!("tcp://{dead}"), "missing_origin = \"allow\"\nbackend_failure = \"status\""),
        format_args!(
            "[[route]]\nname = \"both\"\npath = \"/both\"\nmissing_origin = \"allow\"\n\
             backend = [\"tcp://{dead}\", \"unix:{}\"]\n",
            "SOCKET"
        ),
    ));
    let socket = desk.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let config = fs::read_to_string(desk.path("gateway.toml")).unwrap();
    desk.write("gateway.toml", &config.replace("SOCKET", socket.to_str().unwrap()));
    desk.write("ca.pem", &pair.0);
    let certificate = "certificate for localhost; *.a.example; 127.0.0.1, valid until 2096-10-02T07:06:40Z";
    let indent = "              ";
    let of_new = [
        format!("dial           tls://{new}: reachable in N ms at {new}"),
        format!("{indent} TLS 1.3 with TLS13_AES_256_GCM_SHA384"),
        format!("{indent} {certificate}"),
    ];
    let of_old = [
        format!("dial           tls://{old}: reachable in N ms at {old}"),
        format!("{indent} TLS 1.2 with TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
        format!("{indent} {certificate}"),
    ];
    let of_any =
        [of_new[0].clone(), of_new[1].clone(), format!("{} (not checked: insecure_no_verify)", of_new[2])];
    let of_wants =
        [format!("dial           tls://{wants}: FAILED: it refused the TLS handshake: CertificateRequired")];
    let of_mute = [format!(
        "dial           tls://{server}: FAILED: it did not finish the TLS handshake in time; does it speak TLS on this port?"
    )];
    let refused = format!("FAILED: {dead}: Connection refused (os error 111)");
    let of_dead = [format!("dial           tcp://{dead}: {refused}")];
    let of_both =
        [of_dead[0].clone(), format!("dial           unix:{0}: reachable in N ms at {0}", socket.display())];
    let in_tls = "would be let in, and closed at once: backend_tls_failed (Close 1011)";
    for (name, lines, code, verdict) in [
        ("new", &of_new[..], 0, "would be let in"),
        ("old", &of_old, 0, "would be let in"),
        ("any", &of_any, 0, "would be let in"),
        ("wants", &of_wants, 1, in_tls),
        ("mute", &of_mute, 1, in_tls),
        ("dead", &of_dead, 1, "would be let in, and closed at once: backend_refused (Close 1011)"),
        ("status", &of_dead, 1, "would be refused: backend_refused (HTTP 502)"),
        ("both", &of_both, 0, "would be let in"),
    ] {
        let said = desk.explain(&[&format!("ws://localhost:8080/{name}"), "--dial"]).await;
        let lines: Vec<&str> = lines.iter().map(String::as_str).chain([verdict]).collect();
        said.has(&[&[NO_HEADER], &lines[..]].concat());
        said.ends(code, verdict);
    }
    let said = desk.run(&["check", "--dial"]).await;
    let unix = format!("unix:{}", socket.display());
    let width = unix.len().max(format!("tcp://{dead}").len());
    let line = |name: &str, url: &str, words: &str| format!("{name:6}  {url:width$}  {words}");
    let tls = |at: SocketAddr, words: &str| format!("reachable in N ms at {at}; {words}; {certificate}");
    let tls13 = |at| tls(at, "TLS 1.3 with TLS13_AES_256_GCM_SHA384");
    let of_any = format!("{} (not checked: insecure_no_verify)", tls13(new));
    let of_old = tls(old, "TLS 1.2 with TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384");
    let failed = |line: &str| line.split_once(": ").map(|(_, words)| words.to_owned()).unwrap();
    said.is(
        1,
        &[
            "gateway.toml: good, 1 listener(s), 8 route(s)",
            &line("new", &format!("tls://{new}"), &tls13(new)),
            &line("old", &format!("tls://{old}"), &of_old),
            &line("any", &format!("tls://{new}"), &of_any),
            &line("wants", &format!("tls://{wants}"), &failed(&of_wants[0])),
            &line("mute", &format!("tls://{server}"), &failed(&of_mute[0])),
            &line("dead", &format!("tcp://{dead}"), &refused),
            &line("status", &format!("tcp://{dead}"), &refused),
            &line("both", &format!("tcp://{dead}"), &refused),
            &line("both", &unix, &format!("reachable in N ms at {}", socket.display())),
        ],
    );
    assert!(said.err.ends_with("portcullis: 5 of 9 backend(s) cannot be reached\n"), "{said:#?}");
}

#[tokio::test]
async fn a_check_that_finds_every_server() {
    let server = silent().await;
    let desk = Desk::new(&format!("{PLAIN}{}", route("vnc", &format!("tcp://{server}"), "")));
    let good = "gateway.toml: good, 1 listener(s), 1 route(s)";
    desk.run(&["check"]).await.is(0, &[good]);
    let said = desk.run(&["check", "--dial"]).await;
    said.is(0, &[good, &format!("vnc  tcp://{server}  reachable in N ms at {server}")]);
    assert_eq!(said.err, "");
}

#[tokio::test]
async fn bad_usage_and_bad_configurations() {
    let desk = Desk::new(&format!("{PLAIN}{}", vnc("")));
    for arguments in [
        &["explain"][..],
        &["explain", "https://desk.example/vnc?token=hunter2"],
        &["explain", "desk.example/vnc?token=hunter2"],
        &["explain", "wss://desk.example/", "--from", "desk"],
        &["explain", "wss://desk.example/", "--origin", "a\nb"],
    ] {
        let said = desk.run(arguments).await;
        said.is(64, &[]);
        assert!(!said.err.contains("hunter2"), "{said:#?}");
    }
    let said = desk.explain(&["https://desk.example/vnc"]).await;
    assert_eq!(
        said.err,
        "portcullis: the URL of a WebSocket begins with wss:// or ws://; write wss://host/path\n"
    );
    let said = desk.explain(&["desk.example/vnc"]).await;
    assert_eq!(said.err, "portcullis: this is no URL: relative URL without a base; write wss://host/path\n");
    desk.explain(&["wss://desk.example/", "--config", "nowhere.toml"]).await.is(78, &[]);
    // What the start would not have, this does not have either.
    desk.write("gateway.toml", &format!("{}{}", tls_listener(8443), vnc("")));
    desk.write("a.key", "nothing");
    desk.explain(&["wss://localhost:8443/vnc"]).await.is(78, &[]);
    desk.write("gateway.toml", &format!("{PLAIN}{}", route("a", "tls://a:1", "tls = { ca = \"none.pem\" }")));
    desk.explain(&["ws://localhost:8080/a"]).await.is(78, &[]);
    desk.run(&["check", "--dial"]).await.is(78, &[]);
}

#[tokio::test]
async fn certificates_that_are_not_checked_are_warned_about() {
    let desk = Desk::new(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n{}",
        route("vnc", "tls://127.0.0.1:1", "tls = { insecure_no_verify = true }")
    ));
    let warning = "gateway.toml:7:30: route \"vnc\": tls.insecure_no_verify true accepts any certificate, so anyone on \
                   the network path can impersonate the backend and read and change the traffic; set ca to its \
                   certificate authority instead.";
    assert_eq!(desk.run(&["check"]).await.err, format!("warning: {warning}\n"));
    let mut gateway = desk.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(gateway.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    while let Some(line) = timeout(LONG, log.next_line()).await.expect("a log line in time").unwrap() {
        let is_over = line.ends_with("ready");
        seen.push(line);
        if is_over {
            break;
        }
    }
    let is_warning = |line: &&String| line.contains(" WARN ") && line.contains(warning);
    assert_eq!(seen.iter().filter(is_warning).count(), 1, "{seen:#?}");
    gateway.kill().await.unwrap();
}

/// The status that a gateway answers a WebSocket handshake with.
async fn status(
    gateway: SocketAddr,
    host: &str,
    path: &str,
    origin: Option<&str>,
    from: Option<&str>,
) -> u16 {
    let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
    let proxied = from.map(|from| format!("X-Forwarded-For: {from}\r\nX-Forwarded-Proto: https\r\n"));
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{origin}{}\r\n",
        proxied.unwrap_or_default()
    );
    answer(gateway, head.as_bytes()).await
}

/// The status of whatever is answered to these bytes.
async fn answer(gateway: SocketAddr, bytes: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = [0; 12];
    timeout(LONG, stream.read_exact(&mut answer)).await.expect("an answer in time").unwrap();
    std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
}

/// The status that an explanation ends with: 101 for a session.
fn foretold(said: &Said) -> u16 {
    let verdict = said.out.lines().last().unwrap_or_default();
    if verdict == "would be let in" {
        return 101;
    }
    let status = verdict.rsplit_once("(HTTP ").and_then(|(_, rest)| rest.strip_suffix(')')?.parse().ok());
    status.unwrap_or_else(|| panic!("no status in {said:#?}"))
}

#[tokio::test]
async fn a_gateway_does_what_was_foretold() {
    let server = silent().await;
    let config = |trusting: &str, listening: u16, tls: u16| {
        let plain = format!("[[listener]]\naddress = \"127.0.0.1:{listening}\"\n{trusting}");
        let routes = [
            route("same", &format!("tcp://{server}"), ""),
            route("open", &format!("tcp://{server}"), "missing_origin = \"allow\""),
            route("listed", &format!("tcp://{server}"), "origins = [\"https://a.example\"]"),
            "[[route]]\nname = \"t\"\npath = \"/t/*\"\nmissing_origin = \"allow\"\n\
             targets = { from = \"file\", path = \"tokens.cfg\" }\n"
                .to_owned(),
        ];
        format!("{plain}{}{}[web]\nroot = \"web\"\n", tls_listener(tls), routes.concat())
    };
    for trusting in ["", "trusted_proxies = [\"127.0.0.1\"]\n"] {
        let desk = Desk::new("");
        fs::create_dir(desk.path("web")).unwrap();
        desk.write("web/page.html", "<!doctype html>");
        desk.write("tokens.cfg", &format!("good: {server}\n"));
        let file = desk.path("gateway.toml");
        let gateway = Gateway::bind(Config::parse(&config(trusting, 0, 0), &file).unwrap()).await.unwrap();
        let bound: Vec<_> = gateway.addresses().iter().map(|address| address.ip().unwrap()).collect();
        let (address, tls) = (bound[0], bound[1]);
        tokio::spawn(gateway.run(std::future::pending()));
        desk.write("gateway.toml", &config(trusting, address.port(), tls.port()));
        let (scheme, from) = if trusting.is_empty() { ("ws", None) } else { ("wss", Some("192.0.2.7")) };
        let host = format!("localhost:{}", address.port());
        let own = format!("{}://{host}", scheme.replace("ws", "http"));
        let other = format!("{}://{host}", if scheme == "ws" { "https" } else { "http" });
        for path in ["/same", "/open", "/listed", "/t/good", "/t/?token=bad", "/t/", "/none", "/page.html"] {
            for origin in
                [None, Some(&own[..]), Some(&other[..]), Some("https://a.example"), Some("null"), Some("x")]
            {
                let url = format!("{scheme}://{host}{path}");
                let mut arguments = vec!["--from", "127.0.0.1", &url];
                arguments.extend(origin.map(|origin| ["--origin", origin]).into_iter().flatten());
                let said = desk.explain(&arguments).await;
                let real = status(address, &host, path, origin, from).await;
                assert_eq!(foretold(&said), real, "{origin:?}: {said:#?}");
            }
        }
        let said = desk.explain(&[&format!("ws://localhost:{}/open", tls.port())]).await;
        assert_eq!(foretold(&said), status(tls, "localhost", "/open", None, None).await);
        if trusting.is_empty() {
            let said = desk.explain(&[&format!("wss://localhost:{}/open", address.port())]).await;
            assert_eq!(
                foretold(&said),
                answer(address, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n").await
            );
        }
    }
}
