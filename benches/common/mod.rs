//! What the benchmarks stand on: the programs that are measured, and the client and the backend around them.
//!
//! The client and the backend run in processes of their own (this executable again, with a role), so that neither their
//! processor time nor their memory nor their descriptors count as the gateway's.

mod backend;
mod client;
mod driver;
mod pipe;
mod process;
mod targets;

use std::path::Path;

use anyhow::{Context, bail};

pub(crate) use self::{
    backend::Way,
    client::Handshake,
    driver::{Driver, Order},
    process::Process,
    targets::{Bench, Target},
};

/// Plays a role if this process was started for one. Returns whether it was.
pub(crate) fn play_role() -> anyhow::Result<bool> {
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
        ["pipe", certificate, key, way, backend] => {
            let (certificate, key) = (Path::new(certificate), Path::new(key));
            runtime.block_on(pipe::serve(certificate, key, way.parse()?, backend))?;
        }
        ["driver", speech, address, certificate, handshake] => {
            let speech = speech.parse().map_err(anyhow::Error::msg)?;
            let handshake = handshake.parse().map_err(anyhow::Error::msg)?;
            runtime.block_on(driver::serve(speech, address.parse()?, Path::new(certificate), handshake))?;
        }
        _ => bail!("unknown role {rest:?}"),
    }
    Ok(true)
}

/// The middle one of some values.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

/// What the arguments ask for: flags, and the number behind an option.
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    pub(crate) fn read(known: &[&str]) -> anyhow::Result<Self> {
        // cargo adds --bench.
        let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
        match args.iter().find(|arg| arg.starts_with('-') && !known.contains(&arg.as_str())) {
            Some(unknown) => bail!("unknown option {unknown}; there are {}", known.join(" ")),
            None => Ok(Self(args)),
        }
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|arg| arg == flag)
    }

    pub(crate) fn number(&self, option: &str, default: u64) -> anyhow::Result<u64> {
        let Some(place) = self.0.iter().position(|arg| arg == option) else { return Ok(default) };
        let value = self.0.get(place + 1).with_context(|| format!("{option} needs a number"))?;
        value.parse().with_context(|| format!("{option} {value}: not a number"))
    }
}
