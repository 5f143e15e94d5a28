//! The `ticket` command: issues a ticket through the admin API, or revokes one.

use clap::Args;

use super::{
    control::AdminTarget,
    runtime::block_on,
    terminal::{escaped, escaped_json, print_line},
};
use crate::admin::tickets::TicketRequest;

#[derive(Debug, Args)]
pub(super) struct TicketArgs {
    /// The route that the ticket is for
    #[arg(long, value_name = "NAME", required_unless_present = "revoke")]
    route: Option<String>,
    /// The user, for the access log and the list of sessions
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How often it may be used [default: 1]
    #[arg(long, value_name = "NUMBER")]
    uses: Option<u32>,
    /// How long it may be used [default: 1m]
    #[arg(long, value_name = "DURATION")]
    valid_for: Option<String>,
    /// How long a session may be open; without it, until the ticket expires
    #[arg(long, value_name = "DURATION")]
    session_for: Option<String>,
    /// The only Origin that may use it, such as https://desk.example.com
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// The only address that may use it, or network such as 192.0.2.0/24
    #[arg(long, value_name = "IP")]
    address: Option<String>,
    /// The target to connect to: a token, or the URL of one of the route's backends
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// What the link begins with, such as wss://desk.example.com
    #[arg(long, value_name = "URL")]
    base: Option<String>,
    /// Print JSON: the id, the ticket, the link, and when it expires
    #[arg(long, conflicts_with = "revoke")]
    json: bool,
    /// Revoke the ticket with this id, and end the sessions that it opened
    #[arg(long, value_name = "ID", conflicts_with_all = [
        "route", "user", "uses", "valid_for", "session_for", "origin", "address", "target", "base",
    ])]
    revoke: Option<String>,
    #[command(flatten)]
    gateway: AdminTarget,
}

pub(super) fn ticket(args: TicketArgs) -> anyhow::Result<()> {
    let client = args.gateway.client()?;
    if let Some(id) = &args.revoke {
        let id: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
        let ended = block_on(client.revoke_ticket(&id))??;
        print_line(format_args!("revoked, closing {ended} session(s)"));
        return Ok(());
    }
    let json = args.json;
    let answer = block_on(client.issue_ticket(&TicketRequest::from(args)))??;
    match json {
        true => print_line(escaped_json(&answer)),
        false => print_line(escaped(&client.parse_ticket(&answer)?.url)),
    }
    Ok(())
}

impl From<TicketArgs> for TicketRequest {
    fn from(args: TicketArgs) -> Self {
        let TicketArgs { route, user, uses, valid_for, session_for, origin, address, target, base, .. } =
            args;
        let route = route.unwrap_or_default();
        Self { route, target, user, origin, address, uses, valid_for, session_for, base }
    }
}
