//! Who the client is, when proxies stand before it.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

/// What is known of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The canonical address; port 0 when a header does not say.
    pub address: SocketAddr,
    /// Whether the browser used https, if a trusted proxy said so.
    pub https: Option<bool>,
    /// The host (and port) that the browser asked for, if a trusted proxy said so.
    pub host: Option<String>,
}

/// Whether `address` lies in one of the trusted networks.
pub fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|net| net.contains(&address))
}

/// The client behind `socket`. Headers count only when `socket` is a trusted proxy.
pub fn client(socket: SocketAddr, trusted: &[IpNet], headers: &HeaderMap) -> Client {
    let _ = (trusted, headers);
    Client { address: SocketAddr::new(socket.ip().to_canonical(), socket.port()), https: None, host: None }
}
