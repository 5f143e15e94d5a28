//! The `explain` command.

use std::{
    convert::Infallible,
    io::{self, Read},
    net::IpAddr,
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;

use super::{
    config_file::ConfigFile,
    exit::FAILURE,
    runtime::block_on,
    terminal::{print_error, print_line},
};
use crate::{
    config::Secret,
    diagnose::{Diagnostics, Explanation, Question},
};

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
    /// Also check this token with the methods of the route's auth; - reads it from standard input, so that it is in no list of
    /// processes
    #[arg(long, value_name = "TOKEN", value_parser = secret)]
    token: Option<Secret>,
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
  portcullis explain wss://desk.example.com/vnc --token - < token.txt

Exit codes: 0 would be accepted, 1 would be refused, 64 bad usage, 78 bad configuration.";

/// The longest token that is read from standard input, in bytes: longer than any that is valid.
const MAX_TOKEN: u64 = 64 << 10;

#[expect(clippy::unnecessary_wraps, reason = "clap asks for a Result")]
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// The token of the command line or, for `-`, of standard input.
fn token(written: &Secret) -> anyhow::Result<Secret> {
    if written.expose() != "-" {
        return Ok(written.clone());
    }
    let mut text = String::new();
    let read = io::stdin().take(MAX_TOKEN).read_to_string(&mut text);
    read.context("cannot read the token from standard input")?;
    Ok(Secret::new(text.trim()))
}

pub(super) fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let question = Question::new(&args.url, args.origin.as_deref(), args.from)?;
    let (config, prepared) = args.config.prepare()?;
    for warning in &config.warnings {
        print_error(format_args!("warning: {warning}"));
    }
    let diagnostics = Diagnostics::new(config, prepared.routes(), prepared.files(), prepared.known_hosts());
    let token = args.token.as_ref().map(token).transpose()?;
    let authenticators = token.as_ref().map(|_| prepared.authenticators());
    let Explanation { lines, is_accepted } =
        block_on(diagnostics.explain(&question, authenticators.as_ref().zip(token.as_ref()), args.dial))?;
    lines.iter().for_each(print_line);
    Ok(if is_accepted { ExitCode::SUCCESS } else { FAILURE.into() })
}
