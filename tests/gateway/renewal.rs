//! Certificates that are renewed while the gateway runs, without a reload.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, HandshakeKind};
use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::support::{Backend, Gateway, Identity, Setup, TIMEOUT, TLS, client_config};

/// A certificate as the gateway serves it, and the text of its files.
struct Pair {
    served_certificate: CertificateDer<'static>,
    certificate: String,
    key: String,
}

fn pair() -> Pair {
    pair_with(|_| {})
}

fn pair_with(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Pair {
    let (certificate, key) = Identity::shared().renewed(change);
    let served_certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
    Pair { served_certificate, certificate, key }
}

/// The certificate that a new handshake receives.
async fn served_certificate(gateway: &Gateway) -> CertificateDer<'static> {
    let socket = gateway.tcp(TLS).await;
    let stream = gateway.try_secure(socket, client_config(rustls::ALL_VERSIONS, &[])).await;
    let stream = stream.expect("a handshake with a complete pair");
    stream.get_ref().1.peer_certificates().expect("a chain")[0].clone().into_owned()
}

/// Waits until new handshakes receive `pair`.
async fn until_shown(gateway: &Gateway, pair: &Pair) {
    let start = std::time::Instant::now();
    while served_certificate(gateway).await != pair.served_certificate {
        assert!(start.elapsed() < TIMEOUT, "another certificate is still served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn lines(gateway: &Gateway, message: &str) -> Vec<Value> {
    gateway.lines(|line| begins(line, message).then(|| line.clone()))
}

fn begins(line: &Value, message: &str) -> bool {
    line["message"].as_str().is_some_and(|found| found.starts_with(message))
}

fn write(directory: &Path, pair: &Pair) {
    fs::write(directory.join("localhost.crt"), &pair.certificate).expect("a certificate's file");
    fs::write(directory.join("localhost.key"), &pair.key).expect("a key's file");
}

#[tokio::test]
async fn a_renewed_certificate_is_served_however_its_files_are_written() {
    let gateway = Setup::new().start().await;
    let directory = gateway.path(".");

    // As certbot's deploy hooks do: overwritten, one file after the other.
    let first = pair();
    write(&directory, &first);
    until_shown(&gateway, &first).await;

    // As careful programs do: written beside the old files, then renamed over them.
    let second = pair();
    fs::create_dir(directory.join("new")).unwrap();
    write(&directory.join("new"), &second);
    for name in ["localhost.key", "localhost.crt"] {
        fs::rename(directory.join("new").join(name), directory.join(name)).unwrap();
    }
    until_shown(&gateway, &second).await;

    // As Let's Encrypt does: a symbolic link for each file, into an archive.
    let third = pair();
    fs::create_dir(directory.join("archive")).unwrap();
    write(&directory.join("archive"), &third);
    for name in ["localhost.crt", "localhost.key"] {
        fs::remove_file(directory.join(name)).unwrap();
        symlink(format!("archive/{name}"), directory.join(name)).unwrap();
    }
    until_shown(&gateway, &third).await;

    // As Kubernetes does: a symbolic link to a directory with both files, replaced in one step.
    let fourth = pair();
    let link = directory.join("..data");
    symlink("archive", &link).unwrap();
    for name in ["localhost.crt", "localhost.key"] {
        fs::remove_file(directory.join(name)).unwrap();
        symlink(format!("..data/{name}"), directory.join(name)).unwrap();
    }
    fs::create_dir(directory.join("archive-2")).unwrap();
    write(&directory.join("archive-2"), &fourth);
    symlink("archive-2", directory.join("..next")).unwrap();
    fs::rename(directory.join("..next"), &link).unwrap();
    until_shown(&gateway, &fourth).await;

    let logged = lines(&gateway, "certificate ");
    assert_eq!(logged.len(), 4, "{logged:?}");
    assert!(logged.iter().all(|line| line["message"] == "certificate reloaded" && line["level"] == "INFO"));
    gateway.finish().await;
}

#[tokio::test]
async fn an_invalid_pair_is_not_served_and_logged_once() {
    let gateway = Setup::new().start().await;
    let directory = gateway.path(".");
    let good = pair();
    write(&directory, &good);
    until_shown(&gateway, &good).await;

    let other = pair();
    let expired = pair_with(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = pair_with(|params| params.not_before = rcgen::date_time_ymd(2999, 1, 1));
    let half = Pair { key: other.key[..other.key.len() / 2].to_owned(), ..pair() };
    let cut = Pair { certificate: other.certificate[..other.certificate.len() / 2].to_owned(), ..pair() };
    let mixed = Pair { key: other.key.clone(), ..pair() };
    let empty = Pair { key: String::new(), ..pair() };
    for (number, (bad, words)) in [
        (&mixed, "do not belong together"),
        (&expired, "expired on 2020-01-01T00:00:00Z; renew it"),
        (&half, "holds no private key in PEM form"),
        (&early, "is not valid before 2999-01-01T00:00:00Z"),
        (&cut, "holds no certificate in PEM form"),
        (&empty, "holds no private key in PEM form"),
    ]
    .into_iter()
    .enumerate()
    {
        write(&directory, bad);
        let warning = "certificate not reloaded: the previous one stays in use";
        let line = gateway
            .until(words, |lines| lines.iter().filter(|line| begins(line, warning)).nth(number).cloned())
            .await;
        assert_eq!(line["level"], "WARN");
        let detail = line["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{detail}");
        assert!(served_certificate(&gateway).await == good.served_certificate, "{words}: it is served");
        // An explicit reload fails with the error, and changes nothing either.
        let failed = gateway.reload_again().await.expect_err(words);
        assert!(failed.contains(words), "{failed}");
        assert!(
            served_certificate(&gateway).await == good.served_certificate,
            "{words}: it is served after the reload"
        );
    }
    // Two polls later nothing more is logged.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(lines(&gateway, "certificate not reloaded").len(), 6);

    write(&directory, &good);
    gateway
        .until("the line about the recovery", |lines| {
            lines.iter().any(|line| begins(line, "certificate is good again")).then_some(())
        })
        .await;
    write(&directory, &other);
    until_shown(&gateway, &other).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_reload_refused_for_a_certificate_is_logged_once() {
    let gateway = Setup::new().start().await;
    let before = served_certificate(&gateway).await;
    let (one, other) = (pair(), pair());
    write(&gateway.path("."), &Pair { key: other.key, ..one });
    let failed = gateway.reload_again().await.expect_err("the two do not match");
    assert!(failed.contains("do not belong together"), "{failed}");
    // Enough time for the gateway to poll the files twice.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(lines(&gateway, "certificate not reloaded").len(), 0);
    assert_eq!(lines(&gateway, "not reloaded").len(), 1);
    assert!(served_certificate(&gateway).await == before);
    gateway.finish().await;
}

#[tokio::test]
async fn an_expired_certificate_in_use_does_not_block_a_reload() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let soon = std::time::SystemTime::now() + Duration::from_secs(4);
    let brief = pair_with(|params| params.not_after = soon.into());
    write(&gateway.path("."), &brief);
    until_shown(&gateway, &brief).await;
    while std::time::SystemTime::now() < soon + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let text = gateway.configuration();
    let done = gateway.reload(&text.replace("\"/echo\"", "\"/other\"")).await.expect("a good file");
    assert!(done.ends_with("; 1 warning(s), see the log"), "{done}");
    let warned = gateway.lines(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        (message.contains(" expired on ") && line["level"] == "WARN").then_some(())
    });
    assert_eq!(warned.len(), 1);
    // Before that, no client of this test would accept the certificate.
    let good = pair();
    write(&gateway.path("."), &good);
    gateway
        .until("the valid certificate", |lines| {
            let renewed = lines.iter().filter(|line| begins(line, "certificate reloaded"));
            (renewed.count() == 2).then_some(())
        })
        .await;
    until_shown(&gateway, &good).await;
    gateway.finish().await;
}

#[tokio::test]
async fn tickets_stay_valid_after_a_renewal_and_a_reload() {
    let gateway = Setup::new().start().await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config: Arc<ClientConfig> = client_config(&[version], &["http/1.1"]);
        let handshake = async || {
            let socket = gateway.tcp(TLS).await;
            let mut stream = gateway.try_secure(socket, Arc::clone(&config)).await.expect("a handshake");
            let kind = stream.get_ref().1.handshake_kind();
            // The ticket of TLS 1.3 follows the handshake.
            let request = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut stream, request).await.expect("a request");
            let _ = stream.read(&mut [0; 100]).await;
            kind
        };
        assert_eq!(handshake().await, Some(HandshakeKind::Full));
        assert_eq!(handshake().await, Some(HandshakeKind::Resumed));
        let renewed = pair();
        write(&gateway.path("."), &renewed);
        until_shown(&gateway, &renewed).await;
        assert_eq!(handshake().await, Some(HandshakeKind::Resumed), "after a renewal");
        gateway.reload_again().await.expect("the same file");
        assert_eq!(handshake().await, Some(HandshakeKind::Resumed), "after a reload");
    }
    gateway.finish().await;
}

/// rustls must accept the pairs, or the tests above would prove nothing.
#[test]
fn the_test_pairs_are_valid() {
    let pair = pair();
    assert!(PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).is_ok());
}
