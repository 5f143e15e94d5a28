//! Rendezvous hashing (Thaler and Ravishankar, 1998), for load balancing by the client's address.
//!
//! Each client ranks the backends by a weight of both. When a backend is lost, its clients move to the next one of their
//! own ranking, and no other client moves. The result depends on neither the order of the list nor the process, so that
//! several gateways agree, and one with itself after a restart. That needs hashes without a secret; a client that can
//! choose its address could connect from any of them anyway.

use std::net::IpAddr;

use crate::{admission::canonical, config::Backend};

/// The weight of a backend for a client; the greatest one is the first of the client's ranking.
pub(super) fn weight(backend_hash: u64, client_hash: u64) -> u64 {
    mix(backend_hash ^ client_hash)
}

/// The hash of a backend's URL.
pub(super) fn backend_hash(backend: &Backend) -> u64 {
    fnv(backend.to_string().as_bytes())
}

pub(super) fn client_hash(client: IpAddr) -> u64 {
    match canonical(client) {
        IpAddr::V4(address) => fnv(&address.octets()),
        IpAddr::V6(address) => fnv(&address.octets()),
    }
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finaliser of SplitMix64: each bit of the input changes half of the output.
fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
