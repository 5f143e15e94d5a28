//! What the benchmarks share: the programs under test, and the client and the backend around them.
//!
//! The client and the backend run in processes of their own (this executable with `--role`), so that their processor time,
//! memory and descriptors do not count as the gateway's.

mod auth;
mod authority;
mod backend;
mod client;
mod driver;
mod flood;
mod herd;
mod live;
mod logins;
mod pipe;
mod process;
mod protocol;
mod request;
mod targets;
mod tls;

use std::path::Path;

use anyhow::{Context, bail};

pub(crate) use self::{
    auth::Issuer,
    driver::{Driver, Operation},
    flood::Flood,
    herd::{Arrival, Herd},
    live::{Latencies, LiveSessions},
    logins::{Hashing, Logins},
    process::Process,
    protocol::Transport,
    request::Request,
    targets::{BASELINE, Bench, Target},
    tls::Handshake,
};

/// Runs the role that `--role` names. Returns false if there is none: then this process is the benchmark itself.
pub(crate) fn run_role() -> anyhow::Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(("--role", rest)) = args.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
        return Ok(false);
    };
    rlimit::increase_nofile_limit(u64::MAX)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    match rest[..] {
        ["backend", socket, certificate, key] => {
            runtime.block_on(backend::serve(Path::new(socket), Path::new(certificate), Path::new(key)))?;
        }
        ["pipe", certificate, key, transport, backend] => {
            let (certificate, key) = (Path::new(certificate), Path::new(key));
            runtime.block_on(pipe::serve(certificate, key, transport.parse()?, backend))?;
        }
        ["driver", protocol, address, certificate, handshake] => {
            let (protocol, address, handshake) = (protocol.parse()?, address.parse()?, handshake.parse()?);
            runtime.block_on(driver::serve(protocol, address, Path::new(certificate), handshake))?;
        }
        ["live", protocol, address, certificate] => {
            runtime.block_on(live::serve(protocol.parse()?, address.parse()?, Path::new(certificate)))?;
        }
        ["authority"] => runtime.block_on(authority::serve())?,
        ["hashing", cost] => logins::hash(cost.parse()?)?,
        ["logins", address, certificate, users] => {
            let (address, certificate) = (address.parse()?, Path::new(certificate));
            runtime.block_on(logins::serve(address, certificate, users.parse()?))?;
        }
        ["flood", address, certificate, handshake, concurrency] => {
            let (address, certificate) = (address.parse()?, Path::new(certificate));
            runtime.block_on(flood::serve(address, certificate, handshake.parse()?, concurrency.parse()?))?;
        }
        ["herd", protocol, address, certificate, handshake] => {
            let (protocol, address, handshake) = (protocol.parse()?, address.parse()?, handshake.parse()?);
            runtime.block_on(herd::serve(protocol, address, Path::new(certificate), handshake))?;
        }
        _ => bail!("unknown role {rest:?}"),
    }
    Ok(true)
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

/// The command line: flags, and options with a number or a path.
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    pub(crate) fn read(known: &[&str]) -> anyhow::Result<Self> {
        // cargo adds --bench.
        let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
        match args.iter().find(|arg| arg.starts_with('-') && !known.contains(&arg.as_str())) {
            Some(unknown) => bail!("unknown option {unknown}; known options: {}", known.join(" ")),
            None => Ok(Self(args)),
        }
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|arg| arg == flag)
    }

    pub(crate) fn number(&self, option: &str, default: u64) -> anyhow::Result<u64> {
        let Some(value) = self.value(option, "a number")? else { return Ok(default) };
        value.parse().with_context(|| format!("{option} {value}: not a number"))
    }

    pub(crate) fn path(&self, option: &str) -> anyhow::Result<Option<&Path>> {
        Ok(self.value(option, "a path")?.map(Path::new))
    }

    fn value(&self, option: &str, kind: &str) -> anyhow::Result<Option<&str>> {
        let Some(index) = self.0.iter().position(|arg| arg == option) else { return Ok(None) };
        let value = self.0.get(index + 1).with_context(|| format!("{option} needs {kind}"))?;
        Ok(Some(value))
    }
}
