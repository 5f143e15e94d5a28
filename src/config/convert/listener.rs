//! The rules of `[[listener]]`.

use std::path::Path;

use toml::Spanned;

use super::values::{Result, TLS_VERSIONS, bare, conflict, missing, networks, resolved, value, word};
use crate::config::error::ConfigWarning;
use crate::config::explain::listener_key;
use crate::config::raw;
use crate::config::{Address, Identity, Listener};

pub(super) fn listeners(
    written: Vec<Spanned<raw::Listener>>,
    base: &Path,
    remarks: &mut Vec<ConfigWarning>,
) -> Result<Vec<Listener>> {
    if written.is_empty() {
        let wrong =
            "there is no [[listener]]; add one with address = \"0.0.0.0:8443\", certificate and private_key";
        return Err(conflict(0..0, wrong));
    }
    let mut listeners: Vec<Listener> = Vec::with_capacity(written.len());
    for (index, table) in written.into_iter().enumerate() {
        let listener = listener(index, table, base, &listeners, remarks)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn listener(
    index: usize,
    table: Spanned<raw::Listener>,
    base: &Path,
    before: &[Listener],
    remarks: &mut Vec<ConfigWarning>,
) -> Result<Listener> {
    let key = |name| listener_key(index, name);
    let at = table.span();
    let written = table.into_inner();
    let Some(text) = written.address else {
        return Err(missing(at, key("address"), "add address = \"0.0.0.0:8443\""));
    };
    let parsed = text.get_ref().parse::<Address>();
    let address = match parsed.map_err(|error| value(key("address"), &text, error.to_string()))? {
        Address::Unix(path) => Address::Unix(base.join(path)),
        address => address,
    };
    if let Some(other) = before.iter().position(|other| other.address.collides_with(&address)) {
        let wrong = match address {
            Address::Ip(_) => {
                format!("listener {} has this address and port already; choose another port", other + 1)
            }
            _ => format!("listener {} has this address already; choose another", other + 1),
        };
        return Err(value(key("address"), &text, wrong));
    }
    let identity = identity(index, written.certificate, written.private_key, base)?;
    if identity.is_none() && !address.is_local() {
        let sentence = format!(
            "{} {address} is reachable from other machines without TLS, so anyone on the way can read and change \
             everything; add certificate and private_key, or listen on 127.0.0.1 behind a TLS proxy.",
            key("address")
        );
        remarks.push(ConfigWarning { at: text.span(), sentence });
    }
    let min_tls_at = written.min_tls.as_ref().filter(|_| identity.is_none()).map(Spanned::span);
    if let Some(at) = min_tls_at {
        let sentence = format!("{} means nothing on a listener without a certificate.", key("min_tls"));
        remarks.push(ConfigWarning { at, sentence });
    }
    let min_tls = word(&key("min_tls"), written.min_tls, &TLS_VERSIONS)?.unwrap_or_default();
    let trusted_proxies = networks(&key("trusted_proxies"), &written.trusted_proxies, remarks)?;
    for (net, text) in trusted_proxies.iter().zip(&written.trusted_proxies) {
        if net.prefix_len() == 0 {
            let sentence = format!(
                "{} {net} trusts everyone, so every client can claim any address; list your proxies only.",
                key("trusted_proxies")
            );
            remarks.push(ConfigWarning { at: text.span(), sentence });
        }
    }
    let proxy_protocol = written.proxy_protocol.as_ref().is_some_and(|on| *on.get_ref());
    if let Some(on) = written.proxy_protocol.filter(|on| *on.get_ref() && trusted_proxies.is_empty()) {
        let wrong = "anyone could send a PROXY header and claim any address; list your proxies, such as \
                     trusted_proxies = [\"10.0.0.0/8\"]";
        return Err(bare(key("proxy_protocol"), on.span(), true, wrong));
    }
    Ok(Listener { address, identity, min_tls, trusted_proxies, proxy_protocol })
}

fn identity(
    index: usize,
    certificate: raw::Maybe<String>,
    private_key: raw::Maybe<String>,
    base: &Path,
) -> Result<Option<Identity>> {
    let key = |name| listener_key(index, name);
    match (certificate, private_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(private_key)) => Ok(Some(Identity::Files {
            certificate: resolved(&key("certificate"), &certificate, base)?,
            private_key: resolved(&key("private_key"), &private_key, base)?,
        })),
        (Some(certificate), None) => {
            let advice =
                "a certificate needs its key; add private_key = \"….key\", or leave both out for plain ws://";
            Err(missing(certificate.span(), key("private_key"), advice))
        }
        (None, Some(private_key)) => {
            let advice =
                "a key needs its certificate; add certificate = \"….crt\", or leave both out for plain ws://";
            Err(missing(private_key.span(), key("certificate"), advice))
        }
    }
}
