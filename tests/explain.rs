//! `portcullis explain` and `portcullis check --dial`: runs the program against backends of the test.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

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

/// Longer than any step takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
const PLAIN: &str = "[[listener]]\naddress = \"127.0.0.1:8080\"\n";
const LIMITS: &str = "20 new connections per second, bursts of 60, 200 open";
const ANY_SUBPROTOCOL: &str = r#"subprotocols  any: "binary" if offered, else the first that is not "xmpp""#;
const NO_HEADER: &str = "PROXY header  none is sent";

/// A directory with a configuration, and a certificate for `localhost`.
struct ConfigDirectory {
    directory: TempDir,
}

/// The exit code and output of the program.
#[derive(Debug)]
struct ProgramOutput {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl ProgramOutput {
    fn new(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code(),
            stdout: mask_durations(&text(output.stdout)),
            stderr: text(output.stderr),
        }
    }

    #[track_caller]
    fn assert_is(&self, code: i32, lines: &[&str]) {
        assert_eq!(self.stdout.lines().collect::<Vec<_>>(), lines, "{self:#?}");
        assert_eq!(self.code, Some(code), "{self:#?}");
    }

    /// Asserts that standard output contains these consecutive lines.
    #[track_caller]
    fn assert_contains(&self, lines: &[&str]) {
        let lines_shown: Vec<&str> = self.stdout.lines().collect();
        assert!(lines_shown.windows(lines.len()).any(|window| window == lines), "no {lines:#?} in {self:#?}");
    }

    #[track_caller]
    fn assert_verdict(&self, code: i32, verdict: &str) {
        assert_eq!((self.stdout.lines().last(), self.code), (Some(verdict), Some(code)), "{self:#?}");
    }
}

/// Replaces durations in milliseconds by N.
fn mask_durations(text: &str) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    for at in 1..words.len() {
        if words[at] == "ms" && words[at - 1].parse::<u64>().is_ok() {
            words[at - 1] = "N";
        }
    }
    words.join(" ")
}

impl ConfigDirectory {
    fn new(config: &str) -> Self {
        let directory = Self { directory: tempfile::tempdir().unwrap() };
        let pair = self_signed(&["localhost".to_owned()]).unwrap();
        directory.write("a.crt", &pair.certificate);
        directory.write("a.key", &pair.private_key);
        directory.write("gateway.toml", config);
        directory
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

    async fn run(&self, arguments: &[&str]) -> ProgramOutput {
        let output = timeout(TEST_TIMEOUT, self.command(arguments).output()).await;
        ProgramOutput::new(output.unwrap_or_else(|_| panic!("{arguments:?} does not finish")).unwrap())
    }

    async fn explain(&self, arguments: &[&str]) -> ProgramOutput {
        self.run(&[&["explain"], arguments].concat()).await
    }
}

fn tls_listener(port: u16) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\ncertificate = \"a.crt\"\nprivate_key = \"a.key\"\n"
    )
}

/// A route `/NAME` to a backend, with further configuration lines.
fn route(name: &str, backend: &str, lines: &str) -> String {
    format!("[[route]]\nname = \"{name}\"\npath = \"/{name}\"\nbackend = \"{backend}\"\n{lines}\n")
}

fn vnc(lines: &str) -> String {
    route("vnc", "tcp://127.0.0.1:5900", lines)
}

/// A backend that accepts connections and sends nothing.
async fn silent_backend() -> SocketAddr {
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

/// An address without a listener, reserved as long as the socket exists.
fn refusing_address() -> (TcpSocket, SocketAddr) {
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

/// A backend that completes the TLS handshake and sends nothing. It can require a client certificate.
async fn tls_backend(
    (certificate, key): &(String, String),
    version: &'static str,
    requires_certificate: bool,
) -> SocketAddr {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let version = if version == "1.2" { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
    let builder = ServerConfig::builder_with_protocol_versions(&[version]);
    let builder = if requires_certificate {
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
async fn an_accepted_connection_is_explained_step_by_step() {
    let directory = ConfigDirectory::new(&format!("{}{}", tls_listener(8443), vnc("")));
    let output = directory
        .explain(&["wss://localhost:8443/vnc", "--origin", "https://localhost:8443", "--from", "192.0.2.7"])
        .await;
    let from = format!("from          192.0.2.7, limited to {LIMITS}");
    output.assert_is(
        0,
        &[
            "listener      127.0.0.1:8443 accepts it, with TLS",
            &from,
            "route         \"vnc\": any host, path /vnc",
            "origin        https://localhost:8443 is allowed",
            "              allowed: https://localhost:8443 (same-origin)",
            ANY_SUBPROTOCOL,
            "backend       tcp://127.0.0.1:5900",
            NO_HEADER,
            "would be accepted",
        ],
    );
    assert_eq!(output.stderr, "");
}

#[tokio::test]
async fn the_origin_policy_is_explained() {
    let listed = "origins = [\"same-origin\", \"https://a.example\", \"null\"]\nmissing_origin = \"allow\"";
    let directory = ConfigDirectory::new(&format!(
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
                "origin        refused: there is no Origin header (see --origin)",
                "              allowed: http://localhost:8080 (same-origin)",
            ],
            refused,
        ),
        (
            "ws://localhost:8080/vnc",
            Some("https://evil.example"),
            [
                "origin        refused: the origin https://evil.example is not allowed",
                "              allowed: http://localhost:8080 (same-origin)",
            ],
            refused,
        ),
        (
            "ws://localhost:8080/vnc",
            Some("localhost"),
            [
                "origin        refused: the Origin header is malformed: it does not begin with a scheme as \
                 \"https://desk.example.com\" does",
                "              allowed: http://localhost:8080 (same-origin)",
            ],
            refused,
        ),
        (
            "ws://[::1]:8080/vnc",
            Some("http://[::1]:8080"),
            [
                "origin        refused: the origin http://[::1]:8080 is not allowed",
                "              allowed: not http://[::1]:8080: same-origin never covers an IPv6 address",
            ],
            refused,
        ),
        (
            "ws://localhost:8080/listed",
            None,
            [
                "origin        none is sent (see --origin), which is allowed",
                "              allowed: http://localhost:8080 (same-origin), https://a.example, null, no Origin header",
            ],
            "would be accepted",
        ),
        (
            "ws://localhost:8080/any",
            Some("https://evil.example"),
            ["origin        https://evil.example is allowed", "              allowed: any"],
            "would be accepted",
        ),
        (
            "ws://localhost:8080/only",
            Some("null"),
            ["origin        refused: the origin is null", "              allowed: https://a.example"],
            refused,
        ),
    ] {
        let origin = origin.map(|origin| format!("--origin={origin}"));
        let output = directory
            .explain(&[&[url][..], &origin.iter().map(String::as_str).collect::<Vec<_>>()].concat())
            .await;
        output.assert_contains(&lines);
        output.assert_verdict((verdict == refused).into(), verdict);
    }
}

#[tokio::test]
async fn the_listener_is_explained() {
    let directory =
        ConfigDirectory::new(&format!("{}{PLAIN}{}", tls_listener(8443), vnc("missing_origin = \"allow\"")));
    let configured = "configured: 127.0.0.1:8443 with TLS; 127.0.0.1:8080 without TLS";
    let proxy = "              if a proxy is in front, give its address: --from ADDRESS";
    for (url, lines, code, verdict) in [
        ("ws://a.localhost:8080/vnc", vec!["listener      127.0.0.1:8080 accepts it, without TLS".to_owned()], 0, "would be accepted"),
        (
            "wss://a.example/vnc",
            vec![format!("listener      none has port 443; {configured}"), proxy.to_owned()],
            1,
            "would be refused: no listener on port 443",
        ),
        (
            "wss://127.0.0.2:8443/vnc",
            vec![format!("listener      none has port 8443 of 127.0.0.2; {configured}"), proxy.to_owned()],
            1,
            "would be refused: no listener on port 8443",
        ),
        (
            "ws://a.example:8443/vnc",
            vec!["listener      127.0.0.1:8443 listens on that port, but with TLS: use wss://".to_owned()],
            1,
            "would be refused: not_tls (HTTP 400)",
        ),
        (
            "wss://a.example:8080/vnc",
            vec![
                "listener      127.0.0.1:8080 listens on that port, but without TLS: use ws://, or terminate TLS at one of \
                 its trusted_proxies (--from its address)"
                    .to_owned(),
            ],
            1,
            "would be refused: bad_request (HTTP 400)",
        ),
    ] {
        let output = directory.explain(&[url]).await;
        output.assert_contains(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        output.assert_verdict(code, verdict);
    }
}

#[tokio::test]
async fn the_client_address_is_explained() {
    let directory = ConfigDirectory::new(&format!(
        "{PLAIN}trusted_proxies = [\"10.0.0.0/8\"]\n\
         [[listener]]\naddress = \"127.0.0.1:8081\"\nproxy_protocol = true\ntrusted_proxies = [\"10.0.0.0/8\"]\n\
         {}[limits.per_ip]\nrate = 5\nburst = 7\nsessions = 9\nexempt = [\"192.0.2.0/24\"]\n",
        vnc("")
    ));
    let counts = "5 new connections per second, bursts of 7, 9 open";
    let header = "              every connection must begin with a PROXY header, sent from 10.0.0.0/8";
    for (url, from, lines) in [
        (
            "ws://a.localhost:8080/vnc",
            None,
            vec![format!("from          any address (see --from), each limited to {counts}")],
        ),
        (
            "ws://a.localhost:8080/vnc",
            Some("::ffff:192.0.2.7"),
            vec!["from          192.0.2.7 is exempt from the limits per address".to_owned()],
        ),
        (
            "wss://a.example/vnc",
            Some("10.1.2.3"),
            vec![
                "listener      127.0.0.1:8080 accepts it, without TLS".to_owned(),
                "              (no listener has port 443: it is the proxy's)".to_owned(),
                format!(
                    "from          10.1.2.3 is a trusted proxy: the client that it names is limited to {counts}"
                ),
                "              assumed: it forwards Host, and sends X-Forwarded-Proto: https".to_owned(),
            ],
        ),
        (
            "ws://a.localhost:8081/vnc",
            Some("10.1.2.3"),
            vec![
                "listener      127.0.0.1:8081 accepts it, without TLS".to_owned(),
                header.to_owned(),
                format!(
                    "from          10.1.2.3 is a trusted proxy: the client in its PROXY header is limited to {counts}"
                ),
            ],
        ),
        (
            "ws://a.localhost:8081/vnc",
            Some("192.0.2.7"),
            vec![
                "listener      127.0.0.1:8081 accepts it, without TLS".to_owned(),
                header.to_owned(),
                "from          192.0.2.7 is not in trusted_proxies, so its PROXY header is refused"
                    .to_owned(),
            ],
        ),
    ] {
        let origin = format!("--origin={}", url.replace("ws", "http").trim_end_matches("/vnc"));
        let from_argument = from.map(|from| format!("--from={from}"));
        let output = directory
            .explain(
                &[&[url, &origin][..], &from_argument.iter().map(String::as_str).collect::<Vec<_>>()]
                    .concat(),
            )
            .await;
        output.assert_contains(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        match (url, from) {
            ("ws://a.localhost:8081/vnc", Some("192.0.2.7")) => {
                output
                    .assert_verdict(1, "would be refused: proxy_header_invalid (closed without a response)");
            }
            _ => output.assert_verdict(0, "would be accepted"),
        }
    }
}

#[tokio::test]
async fn the_route_is_explained() {
    let directory = ConfigDirectory::new(&format!(
        "{PLAIN}{}{}{}[web]\nroot = \"web\"\n",
        "[[route]]\nname = \"desk\"\nhost = \"desk.example\"\npath = \"/vnc/*\"\nbackend = \"tcp://127.0.0.1:1\"\n",
        "[[route]]\nname = \"some\"\npath = \"/vnc/*\"\nbackend = \"tcp://127.0.0.1:1\"\nmissing_origin = \"allow\"\n",
        "[[route]]\nname = \"one\"\npath = \"/vnc/one\"\nbackend = \"tcp://127.0.0.1:1\"\nmissing_origin = \"allow\"\n",
    ));
    fs::create_dir(directory.path("web")).unwrap();
    directory.write("web/page.html", "<!doctype html>");
    let why = "              (a host takes precedence over any host, an exact path over a prefix, a longer prefix over a shorter)";
    let output = directory.explain(&["ws://Desk.example:8080/vnc/one"]).await;
    output.assert_contains(&[
        "route         \"desk\": host desk.example, paths /vnc/*",
        "              takes precedence over \"one\": any host, path /vnc/one; \"some\": any host, paths /vnc/*",
        why,
    ]);
    let output = directory.explain(&["ws://a.localhost:8080/vnc/one"]).await;
    output.assert_contains(&[
        "route         \"one\": any host, path /vnc/one",
        "              takes precedence over \"some\": any host, paths /vnc/*",
        why,
    ]);
    output.assert_verdict(0, "would be accepted");
    let output = directory.explain(&["ws://a.localhost:8080/VNC"]).await;
    output.assert_contains(&["route         none matches this host and path; configured: \"desk\": host desk.example, paths /vnc/*; \
                \"some\": any host, paths /vnc/*; \"one\": any host, path /vnc/one"]);
    output.assert_verdict(1, "would be refused: unknown_route (HTTP 404)");
    let output = directory.explain(&["ws://a.localhost:8080/page.html"]).await;
    output.assert_contains(&["route         none: it is a file of [web] root"]);
    output.assert_verdict(1, "would get a file, not a session (HTTP 200)");
    let output = directory.explain(&[&format!("ws://a.localhost:8080/vnc/{}", "x".repeat(9000))]).await;
    output.assert_contains(&["route         none: the request target is longer than 8 KiB"]);
    output.assert_verdict(1, "would be refused: uri_too_long (HTTP 414)");
    let output = directory.explain(&["ws://attacker.example:8080/vnc/one"]).await;
    output.assert_contains(&[
        "route         none: the listener does not know this host; add it to hosts of the [[listener]]",
    ]);
    output.assert_verdict(1, "would be refused: misdirected (HTTP 421)");
}

#[tokio::test]
async fn subprotocols_backends_and_proxy_headers_are_explained() {
    let several = |balance: &str| {
        let name = balance;
        format!(
            "[[route]]\nname = \"{name}\"\npath = \"/{name}\"\nbackend = [\"tcp://127.0.0.1:1\", \"unix:/run/a.sock\"]\n\
             balance = \"{balance}\"\nmissing_origin = \"allow\"\n"
        )
    };
    let directory = ConfigDirectory::new(&format!(
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
        let output = directory.explain(&[&format!("ws://localhost:8080/{balance}")]).await;
        output.assert_contains(&[
            ANY_SUBPROTOCOL,
            &format!("backend       {words}, and the others if it fails:"),
            "              tcp://127.0.0.1:1",
            "              unix:/run/a.sock",
            NO_HEADER,
        ]);
    }
    let v1 = directory.explain(&["ws://localhost:8080/v1", "--from=192.0.2.7"]).await;
    v1.assert_contains(&[
        "subprotocols  binary, base64: the client's first offer among these; refused if it offers only others",
        "backend       tls://127.0.0.1:1",
        "              at most 5 sessions each",
        "              any certificate is accepted (insecure_no_verify)",
        "PROXY header  version 1: \"PROXY TCP4 192.0.2.7 127.0.0.1 0 8080\", with the client's port instead of 0",
    ]);
    assert!(v1.stderr.contains("tls.insecure_no_verify true accepts any certificate"), "{v1:#?}");
    let v1 = directory.explain(&["ws://localhost:8080/v1"]).await;
    v1.assert_contains(&["PROXY header  version 1, with the client's address and the one it connected to"]);
    let v2 = directory.explain(&["ws://localhost:8080/v2"]).await;
    v2.assert_contains(&["PROXY header  version 2, with the client's address, the one it connected to, TLS, the user and the connection's id"]);
}

#[tokio::test]
async fn a_token_selects_a_backend_and_is_never_shown() {
    let backend = silent_backend().await;
    let directory = ConfigDirectory::new(&format!(
        "{PLAIN}[[route]]\nname = \"desks\"\npath = \"/desk/*\"\nmissing_origin = \"allow\"\n\
         allowed_networks = [\"127.0.0.0/8\"]\n\
         targets = {{ from = \"file\", path = \"tokens.cfg\", unix = \"/nowhere\" }}\n"
    ));
    directory.write(
        "tokens.cfg",
        &format!("hunter2: {backend}\nhunter3: {backend}\nhunter4: unix:/nowhere/hunted\n"),
    );
    let found = format!("backend       tcp://{backend}, selected by the token");
    let dialled = format!("dial          tcp://{backend}: reachable in N ms at {backend}");
    for url in ["ws://localhost:8080/desk/?token=hunter2", "ws://localhost:8080/desk/hunter2"] {
        let output = directory.explain(&[url, "--dial"]).await;
        output.assert_contains(&["route         \"desks\": any host, paths /desk/*"]);
        output.assert_contains(&[&found, NO_HEADER, &dialled, "would be accepted"]);
        assert!(!format!("{output:?}").contains("hunter"), "{output:#?}");
    }
    let output = directory.explain(&["ws://localhost:8080/desk/?token=hunter9", "--dial"]).await;
    output.assert_contains(&["backend       none: the token is not in tokens.cfg", NO_HEADER]);
    output.assert_verdict(1, "would be refused: unknown_route (HTTP 404)");
    assert!(!format!("{output:?}").contains("hunter9"), "{output:#?}");
    let output = directory.explain(&["ws://localhost:8080/desk/"]).await;
    output.assert_contains(&["backend       none: the URL has no token, or several; it belongs in ?token=…, or as the last part of the path"]);
    output.assert_verdict(1, "would be refused: unknown_route (HTTP 404)");
    let output = directory.run(&["check", "--dial"]).await;
    let width = format!("tcp://{backend}").len();
    output.assert_is(
        1,
        &[
            "gateway.toml: good, 1 listener(s), 1 route(s)",
            &format!("desks  tcp://{backend}  reachable in N ms at {backend}"),
            &format!(
                "desks  {:width$}  FAILED: No such file or directory (os error 2)",
                "unix:/nowhere/hunted"
            ),
        ],
    );
    assert_eq!(output.stderr, "portcullis: 1 of 2 backend(s) cannot be reached\n");
}

#[tokio::test]
async fn the_results_of_dials_are_reported() {
    let backend = silent_backend().await;
    let (_socket, dead) = refusing_address();
    let pair = pair(&["localhost", "*.a.example", "127.0.0.1"]);
    let (new, old) = (tls_backend(&pair, "1.3", false).await, tls_backend(&pair, "1.2", false).await);
    let wants = tls_backend(&pair, "1.3", true).await;
    let trusting = "tls = { ca = \"ca.pem\" }\nmissing_origin = \"allow\"\n";
    let lenient = "tls = { insecure_no_verify = true }\nmissing_origin = \"allow\"\n";
    let directory = ConfigDirectory::new(&format!(
        "{PLAIN}{}{}{}{}{}{}{}{}[timeouts]\nconnect = \"2s\"\n",
        route("new", &format!("tls://{new}"), trusting),
        route("old", &format!("tls://{old}"), trusting),
        route("any", &format!("tls://{new}"), lenient),
        route("wants", &format!("tls://{wants}"), trusting),
        route("mute", &format!("tls://{backend}"), trusting),
        route("dead", &format!("tcp://{dead}"), "missing_origin = \"allow\""),
        route("status", &format!("tcp://{dead}"), "missing_origin = \"allow\"\nbackend_failure = \"status\""),
        format_args!(
            "[[route]]\nname = \"both\"\npath = \"/both\"\nmissing_origin = \"allow\"\n\
             backend = [\"tcp://{dead}\", \"unix:{}\"]\n",
            "SOCKET"
        ),
    ));
    let socket = directory.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let config = fs::read_to_string(directory.path("gateway.toml")).unwrap();
    directory.write("gateway.toml", &config.replace("SOCKET", socket.to_str().unwrap()));
    directory.write("ca.pem", &pair.0);
    let certificate = "certificate for localhost; *.a.example; 127.0.0.1, valid until 2096-10-02T07:06:40Z";
    let indent = "              ";
    let of_new = [
        format!("dial          tls://{new}: reachable in N ms at {new}"),
        format!("{indent}TLS 1.3 with TLS13_AES_256_GCM_SHA384"),
        format!("{indent}{certificate}"),
    ];
    let of_old = [
        format!("dial          tls://{old}: reachable in N ms at {old}"),
        format!("{indent}TLS 1.2 with TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
        format!("{indent}{certificate}"),
    ];
    let of_any =
        [of_new[0].clone(), of_new[1].clone(), format!("{} (not checked: insecure_no_verify)", of_new[2])];
    let of_wants =
        [format!("dial          tls://{wants}: FAILED: it refused the TLS handshake: CertificateRequired")];
    let of_mute = [format!(
        "dial          tls://{backend}: FAILED: it did not finish the TLS handshake in time; does it speak TLS on this port?"
    )];
    let refused = format!("FAILED: {dead}: Connection refused (os error 111)");
    let of_dead = [format!("dial          tcp://{dead}: {refused}")];
    let of_both =
        [of_dead[0].clone(), format!("dial          unix:{0}: reachable in N ms at {0}", socket.display())];
    let in_tls = "would be accepted, then closed at once: backend_tls_failed (Close 1011)";
    for (name, lines, code, verdict) in [
        ("new", &of_new[..], 0, "would be accepted"),
        ("old", &of_old, 0, "would be accepted"),
        ("any", &of_any, 0, "would be accepted"),
        ("wants", &of_wants, 1, in_tls),
        ("mute", &of_mute, 1, in_tls),
        ("dead", &of_dead, 1, "would be accepted, then closed at once: backend_refused (Close 1011)"),
        ("status", &of_dead, 1, "would be refused: backend_refused (HTTP 502)"),
        ("both", &of_both, 0, "would be accepted"),
    ] {
        let output = directory.explain(&[&format!("ws://localhost:8080/{name}"), "--dial"]).await;
        let lines: Vec<&str> = lines.iter().map(String::as_str).chain([verdict]).collect();
        output.assert_contains(&[&[NO_HEADER], &lines[..]].concat());
        output.assert_verdict(code, verdict);
    }
    let output = directory.run(&["check", "--dial"]).await;
    let unix = format!("unix:{}", socket.display());
    let width = unix.len().max(format!("tcp://{dead}").len());
    let line = |name: &str, url: &str, words: &str| format!("{name:6}  {url:width$}  {words}");
    let tls = |at: SocketAddr, words: &str| format!("reachable in N ms at {at}; {words}; {certificate}");
    let tls13 = |at| tls(at, "TLS 1.3 with TLS13_AES_256_GCM_SHA384");
    let of_any = format!("{} (not checked: insecure_no_verify)", tls13(new));
    let of_old = tls(old, "TLS 1.2 with TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384");
    let failed = |line: &str| line.split_once(": ").map(|(_, words)| words.to_owned()).unwrap();
    output.assert_is(
        1,
        &[
            "gateway.toml: good, 1 listener(s), 8 route(s)",
            &line("new", &format!("tls://{new}"), &tls13(new)),
            &line("old", &format!("tls://{old}"), &of_old),
            &line("any", &format!("tls://{new}"), &of_any),
            &line("wants", &format!("tls://{wants}"), &failed(&of_wants[0])),
            &line("mute", &format!("tls://{backend}"), &failed(&of_mute[0])),
            &line("dead", &format!("tcp://{dead}"), &refused),
            &line("status", &format!("tcp://{dead}"), &refused),
            &line("both", &format!("tcp://{dead}"), &refused),
            &line("both", &unix, &format!("reachable in N ms at {}", socket.display())),
        ],
    );
    assert!(output.stderr.ends_with("portcullis: 5 of 9 backend(s) cannot be reached\n"), "{output:#?}");
}

#[tokio::test]
async fn a_check_that_reaches_every_backend_succeeds() {
    let backend = silent_backend().await;
    let directory =
        ConfigDirectory::new(&format!("{PLAIN}{}", route("vnc", &format!("tcp://{backend}"), "")));
    let good = "gateway.toml: good, 1 listener(s), 1 route(s)";
    directory.run(&["check"]).await.assert_is(0, &[good]);
    let output = directory.run(&["check", "--dial"]).await;
    output.assert_is(0, &[good, &format!("vnc  tcp://{backend}  reachable in N ms at {backend}")]);
    assert_eq!(output.stderr, "");
}

#[tokio::test]
async fn bad_usage_and_bad_configurations_have_their_exit_codes() {
    let directory = ConfigDirectory::new(&format!("{PLAIN}{}", vnc("")));
    for arguments in [
        &["explain"][..],
        &["explain", "https://desk.example/vnc?token=hunter2"],
        &["explain", "desk.example/vnc?token=hunter2"],
        &["explain", "wss://desk.example/", "--from", "desk"],
        &["explain", "wss://desk.example/", "--origin", "a\nb"],
    ] {
        let output = directory.run(arguments).await;
        output.assert_is(64, &[]);
        assert!(!output.stderr.contains("hunter2"), "{output:#?}");
    }
    let output = directory.explain(&["https://desk.example/vnc"]).await;
    assert_eq!(
        output.stderr,
        "portcullis: a WebSocket URL begins with wss:// or ws://; use wss://host/path\n"
    );
    let output = directory.explain(&["desk.example/vnc"]).await;
    assert_eq!(
        output.stderr,
        "portcullis: not a valid URL: relative URL without a base; use wss://host/path\n"
    );
    directory.explain(&["wss://desk.example/", "--config", "nowhere.toml"]).await.assert_is(78, &[]);
    // A configuration that prevents the start prevents this too.
    directory.write("gateway.toml", &format!("{}{}", tls_listener(8443), vnc("")));
    directory.write("a.key", "nothing");
    directory.explain(&["wss://localhost:8443/vnc"]).await.assert_is(78, &[]);
    directory
        .write("gateway.toml", &format!("{PLAIN}{}", route("a", "tls://a:1", "tls = { ca = \"none.pem\" }")));
    directory.explain(&["ws://localhost:8080/a"]).await.assert_is(78, &[]);
    directory.run(&["check", "--dial"]).await.assert_is(78, &[]);
}

#[tokio::test]
async fn unverified_certificates_cause_a_warning() {
    let directory = ConfigDirectory::new(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n{}",
        route("vnc", "tls://127.0.0.1:1", "tls = { insecure_no_verify = true }")
    ));
    let warning = "gateway.toml:7:30: route \"vnc\": tls.insecure_no_verify true accepts any certificate, so anyone on \
                   the network path can impersonate the backend and read and change the traffic; set ca to its \
                   certificate authority instead.";
    assert_eq!(directory.run(&["check"]).await.stderr, format!("warning: {warning}\n"));
    let mut gateway = directory.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(gateway.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    while let Some(line) = timeout(TEST_TIMEOUT, log.next_line()).await.expect("a log line in time").unwrap()
    {
        let is_ready = line.ends_with("ready");
        seen.push(line);
        if is_ready {
            break;
        }
    }
    let is_warning = |line: &&String| line.contains(" WARN ") && line.contains(warning);
    assert_eq!(seen.iter().filter(is_warning).count(), 1, "{seen:#?}");
    gateway.kill().await.unwrap();
}

/// The status of a gateway's response to a WebSocket handshake.
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
    response_status(gateway, head.as_bytes()).await
}

/// The status of the response to these bytes.
async fn response_status(gateway: SocketAddr, bytes: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut status_line = [0; 12];
    timeout(TEST_TIMEOUT, stream.read_exact(&mut status_line)).await.expect("a response in time").unwrap();
    std::str::from_utf8(&status_line[9..]).unwrap().parse().unwrap()
}

/// The status that an explanation predicts: 101 for a session.
fn predicted_status(output: &ProgramOutput) -> u16 {
    let verdict = output.stdout.lines().last().unwrap_or_default();
    if verdict == "would be accepted" {
        return 101;
    }
    let status = verdict.rsplit_once("(HTTP ").and_then(|(_, rest)| rest.strip_suffix(')')?.parse().ok());
    status.unwrap_or_else(|| panic!("no status in {output:#?}"))
}

#[tokio::test]
async fn a_gateway_responds_as_explain_predicts() {
    let backend = silent_backend().await;
    let config = |trusting: &str, listening: u16, tls: u16| {
        let plain = format!("[[listener]]\naddress = \"127.0.0.1:{listening}\"\n{trusting}");
        let routes = [
            route("same", &format!("tcp://{backend}"), ""),
            route("open", &format!("tcp://{backend}"), "missing_origin = \"allow\""),
            route("listed", &format!("tcp://{backend}"), "origins = [\"https://a.example\"]"),
            "[[route]]\nname = \"t\"\npath = \"/t/*\"\nmissing_origin = \"allow\"\n\
             allowed_networks = [\"127.0.0.0/8\"]\n\
             targets = { from = \"file\", path = \"tokens.cfg\" }\n"
                .to_owned(),
        ];
        format!("{plain}{}{}[web]\nroot = \"web\"\n", tls_listener(tls), routes.concat())
    };
    for trusting in ["", "trusted_proxies = [\"127.0.0.1\"]\n"] {
        let directory = ConfigDirectory::new("");
        fs::create_dir(directory.path("web")).unwrap();
        directory.write("web/page.html", "<!doctype html>");
        directory.write("tokens.cfg", &format!("good: {backend}\n"));
        let file = directory.path("gateway.toml");
        let gateway = Gateway::bind(Config::parse(&config(trusting, 0, 0), &file).unwrap()).await.unwrap();
        let bound: Vec<_> = gateway.addresses().iter().map(|address| address.ip().unwrap()).collect();
        let (address, tls) = (bound[0], bound[1]);
        tokio::spawn(gateway.run(std::future::pending()));
        directory.write("gateway.toml", &config(trusting, address.port(), tls.port()));
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
                let output = directory.explain(&arguments).await;
                let real = status(address, &host, path, origin, from).await;
                assert_eq!(predicted_status(&output), real, "{origin:?}: {output:#?}");
            }
        }
        let output = directory.explain(&[&format!("ws://localhost:{}/open", tls.port())]).await;
        assert_eq!(predicted_status(&output), status(tls, "localhost", "/open", None, None).await);
        if trusting.is_empty() {
            let output = directory.explain(&[&format!("wss://localhost:{}/open", address.port())]).await;
            assert_eq!(
                predicted_status(&output),
                response_status(address, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n").await
            );
        }
    }
}

/// A token that a secret signs, and its parts.
fn token(secret: &[u8], claims: &serde_json::Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

#[tokio::test]
async fn a_token_is_checked_and_never_shown() {
    const SECRET: &[u8] = b"a secret of at least thirty-two bytes";
    let method = "[auth.site]\nkind = \"jwt\"\nalgorithms = [\"HS256\"]\nsecret_file = \"secret\"\nroutes_claim = \"routes\"";
    let config = format!("{PLAIN}{}{method}", vnc("missing_origin = \"allow\"\nauth = \"site\""));
    let directory = ConfigDirectory::new(&config);
    directory.write("secret", std::str::from_utf8(SECRET).unwrap());
    let soon = UNIX_EPOCH.elapsed().unwrap().as_secs() + 3600;
    let claims = |changes: serde_json::Value| {
        let mut claims = serde_json::json!({ "sub": "ann", "exp": soon, "routes": "vnc" });
        for (claim, value) in changes.as_object().unwrap() {
            claims[claim] = value.clone();
        }
        claims
    };
    let url = "ws://127.0.0.1:8080/vnc";
    for (token, line, verdict) in [
        (
            token(SECRET, &claims(serde_json::json!({}))),
            "site: valid: user \"ann\", a session that begins now ends at ",
            None,
        ),
        (
            token(b"another secret of at least thirty-two bytes", &claims(serde_json::json!({}))),
            "site: refused as unauthorized: the signature is not valid",
            Some("unauthorized (HTTP 401)"),
        ),
        (
            token(SECRET, &claims(serde_json::json!({ "exp": 1 }))),
            "site: refused as unauthorized: the token has expired",
            Some("unauthorized (HTTP 401)"),
        ),
        (
            token(SECRET, &claims(serde_json::json!({ "routes": "mail" }))),
            "site: refused as forbidden: the credential is not for this route",
            Some("forbidden (HTTP 403)"),
        ),
        (
            "nonsense".to_owned(),
            "site: refused as unauthorized: the token is no JWT",
            Some("unauthorized (HTTP 401)"),
        ),
    ] {
        let output = directory.explain(&[url, "--token", &token]).await;
        let verdict =
            verdict.map_or("would be accepted".to_owned(), |refused| format!("would be refused: {refused}"));
        output.assert_verdict(i32::from(verdict != "would be accepted"), &verdict);
        assert!(output.stdout.contains(&format!("token         {line}")), "{output:#?}");
        assert!(!format!("{output:?}").contains(&token), "{output:#?}");
        // The same from standard input.
        directory.write("token", &format!("{token}\n"));
        let mut command = directory.command(&["explain", url, "--token", "-"]);
        command.stdin(fs::File::open(directory.path("token")).unwrap());
        let piped = ProgramOutput::new(timeout(TEST_TIMEOUT, command.output()).await.unwrap().unwrap());
        assert_eq!((piped.code, piped.stdout.lines().last()), (output.code, output.stdout.lines().last()));
    }
}

#[tokio::test]
async fn a_user_is_compared_with_the_names_that_certificates_may_have() {
    let backend = "tcp://127.0.0.1:5900";
    let directory = ConfigDirectory::new(&format!(
        "{}client_ca = \"a.crt\"\n{}{}[auth.machines]\nkind = \"client-certificate\"\nnames = [\"*.probes.example.org\"]\n",
        tls_listener(8443),
        route("desk", backend, "missing_origin = \"allow\"\nauth = \"machines\""),
        route("open", backend, "missing_origin = \"allow\""),
    ));
    let desk = "wss://localhost:8443/desk";
    let listed = directory.explain(&[desk, "--user", "a.probes.example.org"]).await;
    let needed = "user          machines: needs a certificate that client_ca has signed for this name";
    listed.assert_contains(&["auth          required: machines", needed]);
    listed.assert_contains(&[
        "              every client must present a certificate that client_ca has signed",
    ]);
    listed.assert_verdict(0, "would be accepted");
    let other = directory.explain(&[desk, "--user", "ann"]).await;
    other.assert_contains(&["user          machines: refused as forbidden: names do not list this name"]);
    other.assert_verdict(1, "would be refused: forbidden (HTTP 403)");
    let open = directory.explain(&["wss://localhost:8443/open", "--user", "ann"]).await;
    open.assert_contains(&["user          not checked: the route requires none"]);
    open.assert_verdict(0, "would be accepted");
    let ticket = directory.explain(&[desk, "--ticket", "hunter2"]).await;
    assert_eq!(ticket.code, Some(1), "{ticket:#?}");
    assert!(
        ticket.stderr.contains("there is no [admin]") && !ticket.stderr.contains("hunter2"),
        "{ticket:#?}"
    );
}

#[tokio::test]
async fn what_only_a_password_or_an_authority_decides_is_not_predicted() {
    let methods = "[auth.team]\nkind = \"basic\"\nfile = \"team.htpasswd\"\n\
         [auth.portal]\nkind = \"forward\"\nurl = \"http://127.0.0.1:1/check?key=x\"\n\
         [auth.either]\nany = [\"team\", \"portal\"]\n";
    let web = "[web]\nroot = \"web\"\nauth = \"team\"\n";
    let route = vnc("missing_origin = \"allow\"\nauth = \"either\"");
    let directory = ConfigDirectory::new(&format!("{PLAIN}{route}{methods}{web}"));
    directory.write("team.htpasswd", "");
    fs::create_dir(directory.path("web")).unwrap();
    directory.write("web/page.html", "<!doctype html>");
    for (url, lines) in [
        (
            "ws://127.0.0.1:8080/vnc",
            &[
                "auth          required: either",
                "              either: one of team, portal",
                "              team: a user and a password of ",
                "              portal: asks 127.0.0.1:1, whose answer cannot be predicted; not asked here",
            ][..],
        ),
        (
            "ws://127.0.0.1:8080/page.html",
            &["auth          required: team", "              team: a user and a password of "],
        ),
    ] {
        let output = directory.explain(&[url]).await;
        for line in lines {
            assert!(output.stdout.lines().any(|shown| shown.starts_with(line)), "no {line:?} in {output:#?}");
        }
        assert!(!output.stdout.contains("key=x"), "{output:#?}");
    }
}
