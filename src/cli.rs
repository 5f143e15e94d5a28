//! Arguments and exit codes.
//!
//! Owns the command line and the words that reach a terminal. Errors of every room meet here as one sentence.

mod control;
mod generate;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};

use self::generate::{Generate, generate};
use crate::{
    admin::control::{GatewayStatus, ProcessControl},
    config::{Config, ConfigError, Host},
    diagnose::{Diagnostics, Explanation, Question, QuestionError, capacity::Capacity, machine::Machine},
    gateway::{Prepared, StartError},
    service::{
        limits,
        logging::{self, LogError},
        signals::{SignalEvent, Signals},
        systemd,
    },
    transport::{listener::InheritedSockets, self_signed::self_signed},
};

/// Bad usage (sysexits.h EX_USAGE).
const USAGE: u8 = 64;
/// Bad configuration (sysexits.h EX_CONFIG).
const CONFIG: u8 = 78;
/// Everything else.
const FAILURE: u8 = 1;
/// How long the end of the process may wait for what cannot be interrupted.
const LAST_MOMENT: Duration = Duration::from_secs(1);

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
  portcullis check                           look for mistakes in gateway.toml and what it names
  portcullis check --dial                    and whether every server behind it answers
  portcullis check --capacity                and how many sessions this machine can hold
  portcullis explain wss://desk.example.com/vnc --origin https://desk.example.com --from 192.0.2.7
                                             say what would become of this connection, and why
  portcullis                                 run with gateway.toml in this directory
  portcullis run --config /etc/portcullis/gateway.toml
  portcullis reload                          have the running gateway take up what has changed
  portcullis sessions --route vnc            who is connected
  portcullis kill 4711 --reason 'maintenance until noon'

Exit codes: 0 fine, 64 bad usage, 78 bad configuration, 1 anything else.
SIGTERM or SIGINT ends every session within timeouts.drain; a second one ends at once.
SIGHUP reads the configuration and all that it names again; SIGUSR1 opens log files again.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Run(ConfigFile),
    /// Load the configuration and everything it names as `run` does, say what is wrong, and start nothing
    Check(Check),
    /// Say step by step what would become of one connection; 0 if it would be let in, 1 if not
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(Explain),
    /// Have a running gateway read its configuration again; 1 if it refuses, and then nothing has changed
    Reload(control::AdminTarget),
    /// Have a running gateway accept nobody any more and send its sessions away; it goes on answering here
    Drain(control::AdminTarget),
    /// List the sessions of a running gateway
    Sessions(control::List),
    /// End sessions of a running gateway, with Close 1008
    Kill(control::Kill),
    /// Ask a running gateway whether it takes new connections; 0 if it does, 1 if not
    Health(control::Health),
    /// Make a self-signed certificate and its key for development
    Cert(Cert),
    /// Write the manual pages and shell completions that packages carry along
    #[command(hide = true)]
    Generate(Generate),
}

#[derive(Debug, Clone, Args)]
struct ConfigFile {
    /// The configuration file; relative paths in it start from its own directory
    #[arg(long, short, value_name = "FILE", default_value = "gateway.toml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    config: ConfigFile,
    /// Also connect to every server of every route, within timeouts.connect; 1 if any does not answer
    #[arg(long)]
    dial: bool,
    /// Also count how many sessions this machine can hold, and name what gives way first; 1 if that is not
    /// limits.max_sessions
    #[arg(long)]
    capacity: bool,
}

#[derive(Debug, Args)]
struct Explain {
    /// What the client asks for, such as wss://desk.example.com/vnc; a token in it is never shown
    url: String,
    /// The Origin that the page's browser sends; without it, the client sends none
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// The address that the connection comes from: the client's, or that of a proxy in front
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    /// Also connect to the servers that it could be led to, within timeouts.connect
    #[arg(long)]
    dial: bool,
    #[command(flatten)]
    config: ConfigFile,
}

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  portcullis explain wss://desk.example.com/vnc --origin https://desk.example.com
  portcullis explain wss://desk.example.com:8443/vnc --from 192.0.2.7 --dial
  portcullis explain 'wss://desk.example.com/desk?token=…' --config /etc/portcullis/gateway.toml

Exit codes: 0 would be let in, 1 would be refused, 64 bad usage, 78 bad configuration.";

#[derive(Debug, Args)]
struct Cert {
    /// The directory to write NAME.crt and NAME.key into; made if missing
    #[arg(long, value_name = "DIR", default_value = "certs")]
    out: PathBuf,
    /// What the certificate is for: a DNS name or an IP address; may be repeated, and the first names the files
    #[arg(long = "name", value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
    names: Vec<String>,
}

/// Runs the program and says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are not errors; they go to standard output.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return code.into();
        }
    };
    let good = |()| ExitCode::SUCCESS;
    let done = match cli.command {
        None => run(&cli.config.config).map(good),
        Some(Command::Run(file)) => run(&file.config).map(good),
        Some(Command::Check(asked)) => check(&asked).map(good),
        Some(Command::Explain(asked)) => explain(&asked),
        Some(Command::Reload(place)) => control::reload(&place).map(good),
        Some(Command::Drain(place)) => control::drain(&place).map(good),
        Some(Command::Sessions(asked)) => control::sessions(&asked).map(good),
        Some(Command::Kill(asked)) => control::kill(asked),
        Some(Command::Health(asked)) => control::health(&asked),
        Some(Command::Cert(cert)) => make_certificate(&cert).map(good),
        Some(Command::Generate(asked)) => generate(&asked, &Cli::command()).map(good),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("portcullis: {error:#}");
            exit_code(&error).into()
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let config = error.is::<ConfigError>()
        || error.is::<LogError>()
        || error.downcast_ref::<StartError>().is_some_and(StartError::is_config);
    match config {
        true => CONFIG,
        false if error.is::<QuestionError>() => USAGE,
        false => FAILURE,
    }
}

fn run(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let log = config.log.clone();
    let prepared = Prepared::load(config)?;
    let (logging, _last_lines) = logging::start(&log).with_context(|| format!("{}", file.display()))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %file.display(), "starting");
    for warning in prepared.warnings() {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    let done = runtime.block_on(async {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        let inherited = InheritedSockets::from_env()
            .context("cannot use the sockets that the service manager handed over")?;
        let gateway = prepared.bind(inherited).await?;
        let control = gateway.control();
        control.log_by(logging.clone());
        tracing::info!("ready");
        systemd::ready();
        let shown = control.clone();
        let informing = systemd::report_status(move || status(&shown.status()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let running = gateway.run(async { drop(stopped.await) });
        let stopping = async {
            let mut stop = Some(stop);
            loop {
                match signals.next().await {
                    SignalEvent::Stop => match stop.take() {
                        Some(stop) => {
                            systemd::stopping();
                            let _ = stop.send(());
                        }
                        None => break,
                    },
                    // In a task of its own: whatever it waits for, a second signal must end the process. The log says how
                    // it went.
                    SignalEvent::Reload => {
                        let control = control.clone();
                        tokio::spawn(async move { control.reload().await.is_ok() });
                    }
                    SignalEvent::Reopen => logging.reopen(),
                }
            }
        };
        tokio::select! {
            () = running => tracing::info!("stopped"),
            () = stopping => bail!("stopped at once by a second signal; sessions were cut"),
            never = informing => match never {},
        }
        Ok(())
    });
    // Drops what is left, which writes its closing lines. A lookup or a file read that hangs must not keep the process.
    runtime.shutdown_timeout(LAST_MOMENT);
    done
}

/// The line of `systemctl status`.
fn status(status: &GatewayStatus) -> String {
    let GatewayStatus { sessions: (sessions, most), handshakes: (handshakes, _), .. } = status;
    let draining = if status.draining { "draining; " } else { "" };
    format!("{draining}{sessions} of at most {most} sessions, {handshakes} being set up")
}

fn check(asked: &Check) -> anyhow::Result<()> {
    let file = &asked.config.config;
    let (config, prepared) = loaded(file)?;
    for warning in prepared.warnings() {
        eprintln!("warning: {warning}");
    }
    let (listeners, routes) = (config.listeners.len(), config.routes.len());
    println!("{}: good, {listeners} listener(s), {routes} route(s)", file.display());
    let shortfall = if asked.capacity { count_capacity(&config)? } else { None };
    if asked.dial {
        let desk = Diagnostics::new(config, prepared.routes(), prepared.files());
        let (all, failed) = block_on(desk.dial_all(|line| println!("{line}")))?;
        if failed > 0 {
            bail!("{failed} of {all} backend(s) cannot be reached");
        }
    }
    shortfall.map_or(Ok(()), |shortfall| bail!(shortfall))
}

/// Says how many sessions this machine can hold. Returns what gives way before it should.
fn count_capacity(config: &Config) -> anyhow::Result<Option<String>> {
    let descriptors = limits::raise_descriptors().context("cannot raise the descriptor limit")?;
    let machine = Machine::this_one(descriptors).context("cannot read /proc")?;
    let capacity = Capacity::count(config, &machine);
    print!("{}", capacity.text());
    Ok(capacity.shortfall())
}

fn explain(asked: &Explain) -> anyhow::Result<ExitCode> {
    let question = Question::new(&asked.url, asked.origin.as_deref(), asked.from)?;
    let (config, prepared) = loaded(&asked.config.config)?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    let desk = Diagnostics::new(config, prepared.routes(), prepared.files());
    let Explanation { text, is_let_in } = block_on(desk.explain(&question, asked.dial))?;
    print!("{text}");
    Ok(if is_let_in { ExitCode::SUCCESS } else { FAILURE.into() })
}

/// A configuration, and what it names: all that `run` looks at before it listens.
fn loaded(file: &Path) -> anyhow::Result<(Config, Prepared)> {
    let config = Config::load(file)?;
    let prepared = Prepared::load(config.clone())?;
    Ok((config, prepared))
}

fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let done = runtime.block_on(work);
    // A file read that hangs must not keep the process.
    runtime.shutdown_background();
    Ok(done)
}

fn make_certificate(cert: &Cert) -> anyhow::Result<()> {
    let names: Vec<String> = cert.names.iter().map(|name| certified(name)).collect::<Result<_, _>>()?;
    let made = self_signed(&names).with_context(|| format!("cannot make a certificate for {names:?}"))?;
    fs::create_dir_all(&cert.out)
        .with_context(|| format!("cannot make the directory {}", cert.out.display()))?;
    let stem = names.first().map_or("localhost", String::as_str).replace('*', "_");
    let path = |extension: &str| cert.out.join(format!("{stem}.{extension}"));
    let (certificate, key) = (path("crt"), path("key"));
    for existing in [&certificate, &key] {
        if existing.try_exists().unwrap_or(true) {
            bail!("{} exists and is not overwritten; remove it, or choose another --out", existing.display());
        }
    }
    write_new(&key, 0o600, &made.private_key)?;
    write_new(&certificate, 0o644, &made.certificate)?;
    println!("wrote {} and {} for {}", certificate.display(), key.display(), names.join(", "));
    println!("self-signed, for development: browsers warn once, and it ends in 397 days");
    Ok(())
}

/// A name as a certificate holds it: in ASCII, an address without brackets. `*.` may stand in front of a DNS name.
fn certified(name: &str) -> anyhow::Result<String> {
    let (wildcard, rest) = name.strip_prefix("*.").map_or(("", name), |rest| ("*.", rest));
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    match rest.parse::<Host>() {
        Ok(Host::Name(ascii)) => Ok(format!("{wildcard}{ascii}")),
        Ok(Host::Address(address)) if wildcard.is_empty() => Ok(address.to_string()),
        Ok(Host::Address(_)) => bail!("--name {name}: a wildcard stands in front of a DNS name only"),
        Err(error) => bail!("--name {name:?}: {error}"),
    }
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default_and_takes_the_same_option() {
        let cli = Cli::try_parse_from(["portcullis", "--config", "a.toml"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.config.config, Path::new("a.toml"));
        // An option of one place must not be lost in another.
        assert!(Cli::try_parse_from(["portcullis", "--config", "a.toml", "check"]).is_err());
    }

    #[test]
    fn a_certificate_is_for_names_and_addresses_only() {
        let good = [
            ("localhost", "localhost"),
            ("*.Diagnostics.example", "*.desk.example"),
            ("::1", "::1"),
            ("[::1]", "::1"),
        ];
        for (name, written) in good {
            assert_eq!(certified(name).unwrap(), written);
        }
        assert_eq!(certified("bücher.example").unwrap(), "xn--bcher-kva.example");
        for name in ["", "../evil", "a b", "a/b", "*.127.0.0.1", "*"] {
            assert!(certified(name).is_err(), "{name}");
        }
    }
}
