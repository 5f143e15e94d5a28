//! DNS queries: both address families at once, and the search list.
//!
//! The crate `hickory-resolver` queries the servers: it repeats lost queries, merges equal ones that run at the same
//! time, and caches answers for their time to live.

use std::{net::IpAddr, time::Duration};

use futures_util::future::select;
use hickory_resolver::{
    TokioResolver,
    config::ResolveHosts,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RecordType},
    system_conf::parse_resolv_conf,
};
use tokio::time::timeout;

use super::{Addresses, PendingLookup, ResolveError};

/// How long to wait for IPv6 addresses once there are IPv4 addresses (RFC 8305 §3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// The name servers and the search list.
pub(super) struct Dns {
    servers: TokioResolver,
    search: Vec<Name>,
}

impl Dns {
    pub(super) fn new(resolv_conf: &[u8], port: u16) -> Result<Self, NetError> {
        let (mut config, mut options) = parse_resolv_conf(resolv_conf)?;
        let servers = config.name_servers.iter_mut();
        servers.flat_map(|server| &mut server.connections).for_each(|connection| connection.port = port);
        let search = match config.search.as_slice() {
            [] => config.domain.iter().cloned().collect(),
            search => search.to_vec(),
        };
        // The hosts file was consulted before.
        options.use_hosts_file = ResolveHosts::Never;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Ok(Self { servers: builder.build()?, search })
    }

    /// The addresses of the first name that has any, of those that `name` may stand for (resolv.conf(5), "search").
    pub(super) async fn resolve(&self, name: &Name) -> Result<Addresses, ResolveError> {
        let mut failure = ResolveError::NoSuchName;
        for candidate in self.candidates(name) {
            match self.query_families(candidate).await {
                Ok(addresses) => return Ok(addresses),
                Err(error) => failure = failure.or(error),
            }
        }
        Err(failure)
    }

    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        let searched = self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok());
        if usize::from(name.num_labels()) > self.servers.options().ndots {
            std::iter::once(absolute).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(absolute)).collect()
        }
    }

    /// Queries both families at once; the slower answer does not delay the other (RFC 8305 §3).
    async fn query_families(&self, name: Name) -> Result<Addresses, ResolveError> {
        let (v6, v4) = (self.query(name.clone(), RecordType::AAAA), self.query(name, RecordType::A));
        let (first, mut second) = select(v6, v4).await.into_inner();
        let mut known = match first {
            Ok(known) => known,
            Err(error) => {
                return second.await.map(Addresses::of_name).map_err(|other| error.or(other));
            }
        };
        let delay = if known.iter().all(IpAddr::is_ipv4) { RESOLUTION_DELAY } else { Duration::ZERO };
        match timeout(delay, &mut second).await {
            Ok(more) => {
                known.extend(more.into_iter().flatten());
                Ok(Addresses::of_name(known))
            }
            Err(_) => Ok(Addresses { pending: Some(second), ..Addresses::of_name(known) }),
        }
    }

    /// The addresses of one family, at least one.
    fn query(&self, name: Name, kind: RecordType) -> PendingLookup {
        let servers = self.servers.clone();
        Box::pin(async move {
            let answer = servers.lookup(name, kind).await?;
            let addresses: Vec<IpAddr> =
                answer.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
            if addresses.is_empty() { Err(ResolveError::NoSuchName) } else { Ok(addresses) }
        })
    }
}
