//! The command line: arguments, commands, exit codes.
//!
//! Owns the arguments and everything printed to a terminal. Errors of all modules end here as one line on standard error.

mod cert;
mod check;
mod config_file;
mod control;
mod exit;
mod explain;
mod generate;
mod run;
mod runtime;
mod terminal;
mod ticket;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::config_file::ConfigFile;

/// A WebSocket-to-TCP gateway: wss:// in, TCP out, bytes piped both ways.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigFile,
}

const EXAMPLES: &str = "\
Examples:
  portcullis cert                            make certs/localhost.crt and .key for development
  portcullis check                           validate gateway.toml and every file it names
  portcullis check --dial                    and connect to every backend
  portcullis check --capacity                and compute how many sessions this machine can hold
  portcullis explain wss://desk.example.com/vnc --origin https://desk.example.com --from 192.0.2.7
                                             show what would happen to this connection, and why
  portcullis                                 run with gateway.toml in this directory
  portcullis run --config /etc/portcullis/gateway.toml
  portcullis reload                          reload the configuration of the running gateway
  portcullis sessions --route vnc            list open sessions
  portcullis kill 4711 --reason 'maintenance until noon'
  portcullis ticket --route vnc --user ann --session-for 8h
                                             print a link by which ann may connect once

Exit codes: 0 success, 64 bad usage, 78 bad configuration, 1 any other failure.
SIGTERM or SIGINT closes every session within timeouts.drain; a second one exits at once.
SIGHUP reloads the configuration and every file it names; SIGUSR1 reopens log files.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Run(ConfigFile),
    /// Validate the configuration and every file it names, as `run` does, without starting
    Check(check::CheckArgs),
    /// Show step by step what would happen to one connection; exit 0 if it would be accepted, 1 if not
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::ExplainArgs),
    /// Reload the configuration of a running gateway; exit 1 if it is invalid, and then nothing has changed
    Reload(control::AdminTarget),
    /// Stop accepting and close sessions; the admin API stays up
    Drain(control::AdminTarget),
    /// List the sessions of a running gateway
    Sessions(control::SessionsArgs),
    /// Close sessions of a running gateway, with Close 1008
    Kill(control::KillArgs),
    /// Issue or revoke a ticket: a link by which a user may connect, once or a few times
    Ticket(ticket::TicketArgs),
    /// Show whether a running gateway accepts new connections; exit 0 if so, 1 if not
    Health(control::HealthArgs),
    /// Make a self-signed certificate and its key for development
    Cert(cert::CertArgs),
    /// Write the manual pages and shell completions for packages
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
}

/// Runs the program. Returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are not errors; they go to standard output.
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return code.into();
        }
    };
    let success = |()| ExitCode::SUCCESS;
    let result = match cli.command {
        None => run::run(&cli.config).map(success),
        Some(Command::Run(config)) => run::run(&config).map(success),
        Some(Command::Check(args)) => check::check(&args).map(success),
        Some(Command::Explain(args)) => explain::explain(&args),
        Some(Command::Reload(target)) => control::reload(&target).map(success),
        Some(Command::Drain(target)) => control::drain(&target).map(success),
        Some(Command::Sessions(args)) => control::sessions(&args).map(success),
        Some(Command::Kill(args)) => control::kill(args),
        Some(Command::Ticket(args)) => ticket::ticket(args).map(success),
        Some(Command::Health(args)) => control::health(&args),
        Some(Command::Cert(args)) => cert::make_certificate(&args).map(success),
        Some(Command::Generate(args)) => generate::generate(&args, &Cli::command()).map(success),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            terminal::print_error(format_args!("portcullis: {error:#}"));
            exit::code_of(&error).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default_command_with_the_same_option() {
        let cli = Cli::try_parse_from(["portcullis", "--config", "a.toml"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.config.path, std::path::Path::new("a.toml"));
        // An option before the command must not be silently ignored.
        assert!(Cli::try_parse_from(["portcullis", "--config", "a.toml", "check"]).is_err());
    }
}
