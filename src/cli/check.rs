//! The `check` command.

use anyhow::{Context, bail};
use clap::Args;

use super::{
    config_file::ConfigFile,
    runtime::block_on,
    terminal::{print_error, print_line},
};
use crate::{
    config::Config,
    diagnose::{Diagnostics, capacity::Capacity, machine::Machine},
    service::limits,
};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Also connect to every backend of every route, within timeouts.connect; exit 1 if one cannot be reached
    #[arg(long)]
    dial: bool,
    /// Also compute how many sessions this machine can hold and which limit is hit first; exit 1 if that is not
    /// limits.max_sessions
    #[arg(long)]
    capacity: bool,
}

pub(super) fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let (config, prepared) = args.config.prepare()?;
    for warning in prepared.warnings() {
        print_error(format_args!("warning: {warning}"));
    }
    let (listeners, routes) = (config.listeners.len(), config.routes.len());
    let file = args.config.path.display();
    print_line(format_args!("{file}: good, {listeners} listener(s), {routes} route(s)"));
    let shortfall = if args.capacity { print_capacity(&config)? } else { None };
    if args.dial {
        let diagnostics =
            Diagnostics::new(config, prepared.routes(), prepared.files(), prepared.known_hosts());
        let (all, failed) = block_on(diagnostics.dial_all(|line| print_line(line)))?;
        if failed > 0 {
            bail!("{failed} of {all} backend(s) cannot be reached");
        }
    }
    shortfall.map_or(Ok(()), |shortfall| bail!(shortfall))
}

/// Prints how many sessions this machine can hold. Returns the limit that is hit before `limits.max_sessions`.
fn print_capacity(config: &Config) -> anyhow::Result<Option<String>> {
    let descriptors = limits::raise_descriptors().context("cannot raise the descriptor limit")?;
    let machine = Machine::local(descriptors).context("cannot read /proc")?;
    let capacity = Capacity::compute(config, &machine);
    capacity.text().lines().for_each(print_line);
    Ok(capacity.shortfall())
}
