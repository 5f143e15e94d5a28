//! The `explain` command.

use std::{net::IpAddr, process::ExitCode};

use clap::Args;

use super::{
    config_file::ConfigFile,
    exit::FAILURE,
    runtime::block_on,
    terminal::{print_error, print_line},
};
use crate::diagnose::{Diagnostics, Explanation, Question};

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The URL that the client requests, such as wss://desk.example.com/vnc; a token in it is never printed
    url: String,
    /// The Origin header that the browser sends; without it, the client sends none
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// The source address of the connection: the client's, or that of a proxy in front
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    /// Also connect to the backends that could be chosen, within timeouts.connect
    #[arg(long)]
    dial: bool,
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  portcullis explain wss://desk.example.com/vnc --origin https://desk.example.com
  portcullis explain wss://desk.example.com:8443/vnc --from 192.0.2.7 --dial
  portcullis explain 'wss://desk.example.com/desk?token=…' --config /etc/portcullis/gateway.toml

Exit codes: 0 would be accepted, 1 would be refused, 64 bad usage, 78 bad configuration.";

pub(super) fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let question = Question::new(&args.url, args.origin.as_deref(), args.from)?;
    let (config, prepared) = args.config.prepare()?;
    for warning in &config.warnings {
        print_error(format_args!("warning: {warning}"));
    }
    let diagnostics = Diagnostics::new(config, prepared.routes(), prepared.files(), prepared.known_hosts());
    let Explanation { lines, is_accepted } = block_on(diagnostics.explain(&question, args.dial))?;
    lines.iter().for_each(print_line);
    Ok(if is_accepted { ExitCode::SUCCESS } else { FAILURE.into() })
}
