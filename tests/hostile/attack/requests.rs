//! Rows 61, 62 and 71: requests that a proxy and the gateway could read differently, and hosts that nobody configured.

use super::site;
use crate::support::{Backend, Gateway, ListenerIndex, PLAIN, Request, Setup, TLS, send_request};

const PROXY: &str = "127.0.0.9";

/// Sends a request on a new connection, which ends with its response.
async fn refused(gateway: &Gateway, listener: ListenerIndex, request: &Request, status: u16, reason: &str) {
    let mut connection = gateway.connect(listener).await;
    let peer = connection.peer();
    let response = send_request(&mut connection, request).await;
    assert_eq!(response.status, status, "{request:?} got {response:?}");
    drop(connection);
    gateway.refused(peer, reason).await;
}

async fn accepted(gateway: &Gateway, listener: ListenerIndex, request: &Request) {
    let mut session = gateway.open(gateway.connect(listener).await, request).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
}

#[tokio::test]
async fn row_61_a_crooked_target_reaches_neither_a_route_nor_a_file() {
    let backend = Backend::echo().await;
    let (_directory, root) = site();
    let gateway = Setup::new()
        .route_with("chat", "/chat", &backend, "")
        .route_with("desk", "/desk/*", &backend, "")
        .web(&root)
        .start()
        .await;
    for target in [
        "/desk/../chat",
        "/chat/../desk/one",
        "/desk/%2e%2e/chat",
        "/desk/.%2E/chat",
        "/desk/./one",
        "/./chat",
        "//chat",
        "/desk//one",
        "/desk/one/..",
        "/desk/one/.",
        "/desk/..%2fchat",
        "/desk/one%2Ftwo",
        "/desk\\one",
        "/desk/..\\chat",
        "/desk/one%5ctwo",
        "/desk/one%00",
        "/../index.html",
        "/chat/../index.html",
        "//index.html",
        "/index.html%00",
    ] {
        for listener in [TLS, PLAIN] {
            refused(&gateway, listener, &gateway.upgrade(listener, target), 400, "bad_request").await;
        }
        let file = Request::new(&format!("GET {target} HTTP/1.1")).add("Host", "localhost");
        refused(&gateway, PLAIN, &file, 400, "bad_request").await;
    }
    assert_eq!(backend.connections().await, 0);
    for target in ["/chat", "/desk/", "/desk/a..b", "/desk/one?a=/../b//c%2e"] {
        accepted(&gateway, PLAIN, &gateway.upgrade(PLAIN, target)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn row_62_an_absolute_target_must_name_the_host_of_the_host_field() {
    let [one, two] = [Backend::echo().await, Backend::echo().await];
    let gateway = Setup::new()
        .route_with("one", "/echo", &one, "")
        .route_with("two", "/echo", &two, "host = \"two.example\"")
        .start()
        .await;
    let own = gateway.host(PLAIN);
    let to = |authority: &str| {
        gateway.upgrade(PLAIN, "/echo").line(&format!("GET http://{authority}/echo HTTP/1.1"))
    };
    accepted(&gateway, PLAIN, &to(&own)).await;
    accepted(&gateway, PLAIN, &to(&own.to_uppercase())).await;
    for (authority, host) in [
        ("two.example", own.as_str()),
        (&own, "two.example"),
        ("localhost", &own),
        ("localhost:1", &own),
        (&format!("two.example@{own}"), &own),
    ] {
        refused(&gateway, PLAIN, &to(authority).with("Host", host), 400, "bad_request").await;
    }
    assert_eq!(two.connections().await, 0);
    // From a client, no forwarding field chooses the route.
    for (name, value) in [("X-Forwarded-Host", "two.example"), ("Forwarded", "host=two.example")] {
        accepted(&gateway, PLAIN, &gateway.upgrade(PLAIN, "/echo").add(name, value)).await;
    }
    assert_eq!(two.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn row_62_an_https_target_is_answered_over_tls_only() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    for (listener, scheme, refusal) in [
        (TLS, "https", None),
        (TLS, "http", None),
        (PLAIN, "http", None),
        (PLAIN, "https", Some((421, "misdirected"))),
        (PLAIN, "HTTPS", Some((421, "misdirected"))),
        (PLAIN, "ws", Some((400, "bad_request"))),
        (TLS, "wss", Some((400, "bad_request"))),
        (TLS, "ftp", Some((400, "bad_request"))),
    ] {
        let line = format!("GET {scheme}://{}/echo HTTP/1.1", gateway.host(listener));
        let request = gateway.upgrade(listener, "/echo").line(&line);
        match refusal {
            None => accepted(&gateway, listener, &request).await,
            Some((status, reason)) => refused(&gateway, listener, &request, status, reason).await,
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn row_71_a_plain_loopback_listener_refuses_hosts_that_it_does_not_know() {
    let backend = Backend::echo().await;
    let (_directory, root) = site();
    let gateway = Setup::echo(&backend)
        .route_with("known", "/known", &backend, "host = \"desk.example\"")
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .web(&root)
        .start()
        .await;
    let of = |listener: ListenerIndex, host: &str, origin: Option<&str>| {
        let request = gateway.upgrade(listener, "/echo").with("Host", host).without("Origin");
        origin.map_or(request.clone(), |origin| request.add("Origin", origin))
    };
    for host in
        ["attacker.example", "attacker.example:8080", "localhost.attacker.example", "192.0.2.1", "[::2]", "a"]
    {
        let own = format!("http://{host}");
        for origin in [Some(own.as_str()), Some("http://localhost"), None] {
            refused(&gateway, PLAIN, &of(PLAIN, host, origin), 421, "misdirected").await;
        }
        let file = Request::new("GET /index.html HTTP/1.1").add("Host", host);
        refused(&gateway, PLAIN, &file, 421, "misdirected").await;
    }
    assert_eq!(backend.connections().await, 0);
    for host in ["localhost", "app.localhost:80", "127.0.0.1", "127.0.0.7:1234", "desk.example"] {
        accepted(&gateway, PLAIN, &of(PLAIN, host, Some(&format!("http://{host}")))).await;
    }
    // With TLS an attacker has no certificate for the name. A proxy is asked for the public name.
    accepted(&gateway, TLS, &of(TLS, "public.example", Some("https://public.example"))).await;
    let client = "203.0.113.7:0";
    let connection = gateway.connect_by_proxy(PROXY.parse().unwrap(), client, PLAIN).await;
    let request =
        of(PLAIN, "public.example", Some("http://public.example")).add("X-Forwarded-For", "203.0.113.7");
    let mut session = gateway.open(connection, &request).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(client.parse().unwrap(), "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn row_71_a_list_of_hosts_holds_for_tls_and_for_proxies_too() {
    let backend = Backend::echo().await;
    let hosts = "hosts = [\"desk.example\", \"*.lab.example\", \"localhost\"]\n";
    let gateway = Setup::echo(&backend)
        .listener(TLS, hosts)
        .listener(PLAIN, &format!("{hosts}trusted_proxies = [\"127.0.0.9/32\"]\n"))
        .start()
        .await;
    let of = |listener: ListenerIndex, scheme: &str, host: &str| {
        gateway.upgrade(listener, "/echo").with("Host", host).with("Origin", &format!("{scheme}://{host}"))
    };
    for (listener, scheme) in [(TLS, "https"), (PLAIN, "http")] {
        for host in ["desk.example", "DESK.example:1", "one.lab.example"] {
            accepted(&gateway, listener, &of(listener, scheme, host)).await;
        }
        for host in ["127.0.0.1", "lab.example", "a.b.lab.example", "attacker.example"] {
            refused(&gateway, listener, &of(listener, scheme, host), 421, "misdirected").await;
        }
    }
    let client = "203.0.113.7:0";
    let mut connection = gateway.connect_by_proxy(PROXY.parse().unwrap(), client, PLAIN).await;
    let request = of(PLAIN, "http", "desk.example")
        .add("X-Forwarded-For", "203.0.113.7")
        .add("X-Forwarded-Host", "attacker.example");
    assert_eq!(send_request(&mut connection, &request).await.status, 421);
    drop(connection);
    gateway.refused(client.parse().unwrap(), "misdirected").await;
    gateway.finish().await;
}
