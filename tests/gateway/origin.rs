//! The origin check: which pages may open a session.

use std::net::{IpAddr, Ipv4Addr};

use crate::support::{
    Backend, ClientStream, Gateway, ListenerIndex, PLAIN, Request, Setup, TLS, read_to_end, send_request,
};

/// The address of a trusted proxy.
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

async fn accepted(gateway: &Gateway, listener: ListenerIndex, request: &Request) {
    let mut session = gateway.open(gateway.connect(listener).await, request).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
}

async fn refused(gateway: &Gateway, listener: ListenerIndex, request: &Request) {
    let connection = gateway.connect(listener).await;
    let peer = connection.peer();
    refused_on(connection, request).await;
    gateway.refused(peer, "origin_refused").await;
}

async fn refused_on(mut connection: ClientStream, request: &Request) {
    let response = send_request(&mut connection, request).await;
    assert_eq!(response.status, 403, "{request:?} got {response:?}");
    assert!(!response.body.is_empty(), "a refusal has a body");
    assert!(read_to_end(&mut connection).await.0.is_empty(), "nothing follows a refusal");
}

async fn listing(backend: &Backend, origins: &str) -> Gateway {
    Setup::new().route_with("echo", "/echo", backend, &format!("origins = {origins}")).start().await
}

#[tokio::test]
async fn a_foreign_origin_is_refused_before_the_backend_is_dialled() {
    let backend = Backend::echo().await;
    let gateway = listing(&backend, r#"["https://good.example", "http://plain.example:8080"]"#).await;
    let from = |origin: &str| gateway.upgrade(TLS, "/echo").with("Origin", origin);
    for origin in [
        "https://evil.example",
        "https://good.example.evil.com",
        "https://evilgood.example",
        "https://sub.good.example",
        "https://good.exampl",
        "https://good.example.",
        "https://good.example:8443",
        "https://good.example:80",
        "https://good.example:0",
        "https://good.example:443443",
        "https://good.example:",
        "https://good.example:+443",
        "https://good.example:0x1bb",
        "https://good.example/",
        "https://good.example/path",
        "https://good.example?query",
        "https://good.example#fragment",
        "https://good.example\\@evil.example",
        "https://evil.example@good.example",
        "https://good.example@evil.example",
        "https://user:word@good.example",
        "https://good.example https://good.example",
        "https://good.example, https://good.example",
        "https://good.exa\tmple",
        "http://good.example",
        "wss://good.example",
        "ftp://good.example",
        "file://",
        "https:good.example",
        "https:///good.example",
        "//good.example",
        "good.example",
        "https://",
        "https",
        "*",
        "null",
        "NULL",
        "same-origin",
        "",
        "http://plain.example",
        "https://plain.example:8080",
        "http://plain.example:08080",
        "https://127.0.0.1",
        "https://[::1]",
        "https://[::1",
        "https://::1",
        "https://2130706433",
        "https://0x7f.1",
        "https://g\u{f6}\u{f6}d.example",
        "https://%67ood.example",
    ] {
        refused(&gateway, TLS, &from(origin)).await;
    }
    let own = format!("https://{}", gateway.host(TLS));
    refused(&gateway, TLS, &from(&own)).await;
    refused(&gateway, TLS, &from("https://good.example").add("Origin", "https://good.example")).await;
    refused(&gateway, TLS, &from("https://good.example").add("Origin", "https://evil.example")).await;
    refused(&gateway, TLS, &from("https://evil.example").add("oRiGiN", "https://good.example")).await;
    refused(&gateway, TLS, &gateway.upgrade(TLS, "/echo").without("Origin")).await;
    let bytes =
        gateway.upgrade(TLS, "/echo").without("Origin").add_bytes("Origin", b"https://good.example\xff");
    refused(&gateway, TLS, &bytes).await;
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn a_listed_origin_matches_in_every_equivalent_spelling() {
    let backend = Backend::echo().await;
    let origins = r#"["https://good.example", "http://plain.example:8080", "https://xn--bcher-kva.example"]"#;
    let gateway = listing(&backend, origins).await;
    for origin in [
        "https://good.example",
        "https://GOOD.example",
        "HTTPS://good.EXAMPLE",
        "https://good.example:443",
        "http://plain.example:8080",
        "https://xn--bcher-kva.example",
        "https://XN--BCHER-KVA.example",
    ] {
        accepted(&gateway, TLS, &gateway.upgrade(TLS, "/echo").with("Origin", origin)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn an_international_name_is_compared_in_its_ascii_form() {
    let backend = Backend::echo().await;
    let gateway = listing(&backend, "[\"https://b\u{fc}cher.example\"]").await;
    let from = |origin: &str| gateway.upgrade(TLS, "/echo").with("Origin", origin);
    accepted(&gateway, TLS, &from("https://xn--bcher-kva.example")).await;
    refused(&gateway, TLS, &from("https://bucher.example")).await;
    gateway.finish().await;
}

#[tokio::test]
async fn null_and_missing_origins_are_accepted_only_if_the_route_allows_them() {
    let backend = Backend::echo().await;
    let gateway = Setup::new()
        .route_with("null", "/null", &backend, "origins = [\"null\"]")
        .route_with("missing", "/missing", &backend, "missing_origin = \"allow\"")
        .route_with("any", "/any", &backend, "origins = [\"*\"]")
        .start()
        .await;
    let to = |target: &str| gateway.upgrade(TLS, target).without("Origin");
    accepted(&gateway, TLS, &to("/null").add("Origin", "null")).await;
    refused(&gateway, TLS, &to("/null")).await;
    refused(&gateway, TLS, &to("/null").add("Origin", "https://evil.example")).await;
    accepted(&gateway, TLS, &to("/missing")).await;
    accepted(&gateway, TLS, &gateway.upgrade(TLS, "/missing")).await;
    refused(&gateway, TLS, &to("/missing").add("Origin", "null")).await;
    refused(&gateway, TLS, &to("/missing").add("Origin", "https://evil.example")).await;
    refused(&gateway, TLS, &to("/missing").add("Origin", "")).await;
    accepted(&gateway, TLS, &to("/any").add("Origin", "https://whoever.example")).await;
    refused(&gateway, TLS, &to("/any")).await;
    gateway.finish().await;
}

#[tokio::test]
async fn same_origin_means_equal_scheme_host_and_port() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).listener(PLAIN, "hosts = [\"*\"]\n").start().await;
    let port = gateway.address(TLS).port();
    let with = |listener: ListenerIndex, host: &str, origin: &str| {
        gateway.upgrade(listener, "/echo").with("Host", host).with("Origin", origin)
    };
    let here = gateway.host(TLS);
    for (host, origin) in [
        (here.as_str(), format!("https://localhost:{port}")),
        (&here, format!("https://LOCALHOST:{port}")),
        (&here.to_uppercase(), format!("https://localhost:{port}")),
        ("desk.example", "https://desk.example".to_owned()),
        ("desk.example", "https://desk.example:443".to_owned()),
        ("desk.example:443", "https://desk.example".to_owned()),
        ("127.0.0.1:8443", "https://127.0.0.1:8443".to_owned()),
    ] {
        accepted(&gateway, TLS, &with(TLS, host, &origin)).await;
    }
    for (host, origin) in [
        (here.as_str(), format!("http://localhost:{port}")),
        (&here, "https://localhost".to_owned()),
        (&here, format!("https://localhost:{}", port ^ 1)),
        (&here, format!("https://127.0.0.1:{port}")),
        (&here, format!("https://localhost.evil.example:{port}")),
        ("desk.example", "https://desk.example:8443".to_owned()),
        ("desk.example", "http://desk.example".to_owned()),
        ("desk.example:80", "https://desk.example".to_owned()),
        // An IP literal has to be listed.
        ("[::1]:8443", "https://[::1]:8443".to_owned()),
    ] {
        refused(&gateway, TLS, &with(TLS, host, &origin)).await;
    }
    // Without TLS the page's scheme is http.
    accepted(&gateway, PLAIN, &with(PLAIN, "desk.example", "http://desk.example")).await;
    accepted(&gateway, PLAIN, &with(PLAIN, "desk.example:80", "http://desk.example")).await;
    refused(&gateway, PLAIN, &with(PLAIN, "desk.example", "https://desk.example")).await;
    // An untrusted client names the host only by `Host`, not by a forwarding header.
    let forged = with(PLAIN, "desk.example", "https://evil.example");
    for (name, value) in [
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "https"),
        ("Forwarded", "host=evil.example;proto=https"),
    ] {
        refused(&gateway, PLAIN, &forged.clone().add(name, value)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_same_origin_uses_the_forwarded_host() {
    let backend = Backend::echo().await;
    let gateway =
        Setup::echo(&backend).listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n").start().await;
    let client = "203.0.113.7:0";
    let forwarded = |origin: &str| {
        gateway
            .upgrade(PLAIN, "/echo")
            .with("Origin", origin)
            .add("X-Forwarded-For", "203.0.113.7")
            .add("X-Forwarded-Host", "desk.example")
            .add("X-Forwarded-Proto", "https")
    };
    let peer = client.parse().unwrap();

    let connection = gateway.connect_by_proxy(PROXY, client, PLAIN).await;
    let mut session = gateway.open(connection, &forwarded("https://desk.example")).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(peer, "client_closed", Some(1000)).await;

    let own = format!("http://{}", gateway.host(PLAIN));
    for origin in ["http://desk.example", "https://desk.example:8443", "https://evil.example", &own] {
        let connection = gateway.connect_by_proxy(PROXY, client, PLAIN).await;
        refused_on(connection, &forwarded(origin)).await;
        gateway.refused(peer, "origin_refused").await;
    }
    // The same headers from an untrusted client have no effect.
    refused(&gateway, PLAIN, &forwarded("https://desk.example")).await;
    assert_eq!(backend.connections().await, 1);
    drop(session);
    gateway.finish().await;
}
