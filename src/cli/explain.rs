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
    terminal::{escaped, print_error, print_line},
};
use crate::{
    admin::{
        client::AdminClient,
        tickets::{CheckRequest, CheckResponse, ValidTicket},
    },
    config::{AdminAddress, Secret},
    diagnose::{CredentialReport, Diagnostics, Explanation, Presented, Question},
    outcome::Reason,
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
    /// Also ask the running gateway how this ticket would fare, without using it; - reads it from standard input
    #[arg(long, value_name = "TICKET", value_parser = secret, conflicts_with = "token")]
    ticket: Option<Secret>,
    /// Also say what a user of this name needs and, if the configuration has [admin], how many sessions the user has
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The admin address of the running gateway, instead of that in the configuration: IP:PORT or unix:/PATH
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<AdminAddress>,
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
  portcullis explain wss://desk.example.com/vnc --ticket - < ticket.txt
  portcullis explain wss://desk.example.com/vnc --user ann

Exit codes: 0 would be accepted, 1 would be refused, 64 bad usage, 78 bad configuration.";

/// The longest token or ticket that is read from standard input, in bytes: longer than any that is valid.
const MAX_TOKEN: u64 = 64 << 10;

#[expect(clippy::unnecessary_wraps, reason = "clap asks for a Result")]
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// The credential of the command line or, for `-`, of standard input.
fn credential(written: &Secret) -> anyhow::Result<Secret> {
    if written.expose() != "-" {
        return Ok(written.clone());
    }
    let mut text = String::new();
    let read = io::stdin().take(MAX_TOKEN).read_to_string(&mut text);
    read.context("cannot read the credential from standard input")?;
    Ok(Secret::new(text.trim()))
}

pub(super) fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let question = Question::new(&args.url, args.origin.as_deref(), args.from)?;
    let (config, prepared) = args.config.prepare()?;
    for warning in &config.warnings {
        print_error(format_args!("warning: {warning}"));
    }
    let admin = args.admin.clone().or_else(|| Some(config.admin.as_ref()?.address.clone()));
    let client = admin.map(AdminClient::new);
    let diagnostics = Diagnostics::new(config, prepared.routes(), prepared.files(), prepared.known_hosts());
    let token = args.token.as_ref().map(credential).transpose()?;
    let authenticators = token.as_ref().map(|_| prepared.authenticators());
    let Explanation { lines, is_accepted } = block_on(async {
        let mut examined = Vec::new();
        if let Some(written) = &args.ticket {
            let client = client.as_ref().context(
                "there is no [admin], so the gateway cannot be asked about a ticket; add [admin], or use --admin",
            )?;
            if let Some(route) = diagnostics.route(&question).await {
                examined.push(ticket(client, &credential(written)?, route, args).await?);
            }
        }
        if let Some((user, client)) = args.user.as_ref().zip(client.as_ref()) {
            examined.push(sessions(client, user).await);
        }
        let token = authenticators.as_ref().zip(token.as_ref());
        let presented = Presented { token, user: args.user.as_deref(), examined };
        anyhow::Ok(diagnostics.explain(&question, presented, args.dial).await)
    })??;
    lines.iter().for_each(print_line);
    Ok(if is_accepted { ExitCode::SUCCESS } else { FAILURE.into() })
}

/// Asks the running gateway how a ticket would fare.
async fn ticket(
    client: &AdminClient,
    ticket: &Secret,
    route: String,
    args: &ExplainArgs,
) -> anyhow::Result<CredentialReport> {
    let ticket = ticket.expose().to_owned();
    let request = CheckRequest { ticket, route, origin: args.origin.clone(), address: args.from };
    let mut report = CredentialReport::new("ticket");
    match client.check_ticket(&request).await? {
        CheckResponse::Refused(detail) => {
            report.refusal = Some(Reason::Unauthorized);
            report.lines.push(format!("refused as {}: {}", Reason::Unauthorized, escaped(&detail)));
        }
        CheckResponse::Valid(ValidTicket { id, user, target, address, uses_left, expires, session_for }) => {
            let user = user.map_or("no user".to_owned(), |user| format!("user {user:?}"));
            report.lines.push(format!("valid: {user}, {uses_left} use(s) left until {}", escaped(&expires)));
            report.lines.push(format!("its id is {}", escaped(&id)));
            let length = session_for
                .map_or("ends then".to_owned(), |time| format!("may be open for {}", escaped(&time)));
            report.lines.push(format!("a session {length}"));
            // Which one is not shown: it can be a token.
            report.lines.extend(target.map(|_| "it selects a target".to_owned()));
            let from = address.filter(|_| args.from.is_none());
            report.lines.extend(from.map(|from| format!("only from {} (see --from)", escaped(&from))));
        }
    }
    Ok(report)
}

/// Asks the running gateway how many sessions a user has.
async fn sessions(client: &AdminClient, user: &str) -> CredentialReport {
    let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("user", user).finish();
    let counted = match client.sessions(&query).await {
        Ok(json) => client.parse_sessions(&json).map(|list| list.matching),
        Err(error) => Err(error),
    };
    let mut report = CredentialReport::new("sessions");
    report.lines.push(match counted {
        Ok(count) => format!("{count} of this user are open"),
        Err(error) => format!("not known: {error}"),
    });
    report
}
