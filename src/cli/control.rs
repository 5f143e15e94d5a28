//! The commands that control a running gateway through its admin API: sessions, kill, reload, drain, health.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{ArgGroup, Args};
use tokio::time;

use super::{
    exit::FAILURE,
    runtime::block_on,
    terminal::{escaped, escaped_json, print_line},
};
use crate::{
    admin::{
        client::AdminClient,
        kill::KillRequest,
        sessions::{SessionEntry, SessionList},
    },
    config::{AdminAddress, Config},
};

/// The refresh interval of `sessions --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Move the cursor home and erase the screen below it (ECMA-48).
const CLEAR_SCREEN: &str = "\x1b[H\x1b[J";

#[derive(Debug, Args)]
pub(super) struct AdminTarget {
    /// The configuration file of the gateway, for the address in its [admin]
    #[arg(long, short, value_name = "FILE", default_value = "gateway.toml")]
    config: PathBuf,
    /// The admin address, instead of a configuration file: IP:PORT or unix:/PATH
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    admin: Option<AdminAddress>,
}

impl AdminTarget {
    pub(super) fn client(&self) -> anyhow::Result<AdminClient> {
        if let Some(address) = &self.admin {
            return Ok(AdminClient::new(address.clone()));
        }
        let Some(admin) = Config::load(&self.config)?.admin else {
            let file = self.config.display();
            bail!(
                "{file}: there is no [admin], so the gateway has no admin API; add [admin] with address = \
                 \"127.0.0.1:9101\" and restart it"
            );
        };
        Ok(AdminClient::new(admin.address))
    }
}

#[derive(Debug, Args)]
pub(super) struct SessionsArgs {
    /// Only sessions of this route
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Only sessions from this address, or network such as 192.0.2.0/24
    #[arg(long, value_name = "IP")]
    peer: Option<String>,
    /// Only sessions of this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Refresh every second until interrupted
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    target: AdminTarget,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["ids", "route", "peer", "user"]))]
pub(super) struct KillArgs {
    /// Session numbers
    #[arg(value_name = "ID")]
    ids: Vec<u64>,
    /// All sessions of this route
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// All sessions from this address, or network such as 192.0.2.0/24
    #[arg(long, value_name = "IP")]
    peer: Option<String>,
    /// All sessions of this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The reason in the Close frame: one line of at most 123 bytes
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    target: AdminTarget,
}

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Only whether the process responds, ready or not
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    target: AdminTarget,
}

pub(super) fn sessions(args: &SessionsArgs) -> anyhow::Result<()> {
    let client = args.target.client()?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (key, value) in [("route", &args.route), ("peer", &args.peer), ("user", &args.user)] {
        if let Some(value) = value {
            query.append_pair(key, value);
        }
    }
    let query = query.finish();
    let clear = if args.watch && !args.json && io::stdout().is_terminal() { CLEAR_SCREEN } else { "" };
    block_on(async {
        loop {
            let json = client.sessions(&query).await?;
            let text = match args.json {
                true => escaped_json(&json) + "\n",
                false => table(&client.parse_sessions(&json)?),
            };
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all((clear.to_owned() + &text).as_bytes());
            match written.and_then(|()| stdout.flush()) {
                // The reader, such as `head`, has closed the pipe.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.context("cannot write")?,
            }
            drop(stdout);
            if !args.watch {
                return Ok(());
            }
            time::sleep(WATCH_INTERVAL).await;
        }
    })?
}

impl From<KillArgs> for KillRequest {
    fn from(KillArgs { ids, route, peer, user, reason, .. }: KillArgs) -> Self {
        Self { ids: Some(ids).filter(|ids| !ids.is_empty()), route, peer, user, reason }
    }
}

pub(super) fn kill(args: KillArgs) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    let request = KillRequest::from(args);
    let killed = block_on(client.kill(&request))??;
    let ids = request.ids.unwrap_or_default();
    let missing: Vec<String> =
        ids.iter().filter(|id| !killed.contains(id)).map(ToString::to_string).collect();
    if !killed.is_empty() {
        print_line(format_args!("closing {} session(s)", killed.len()));
    }
    if !missing.is_empty() {
        bail!("no such session: {}", missing.join(", "));
    }
    if killed.is_empty() {
        bail!("no session matches");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn reload(target: &AdminTarget) -> anyhow::Result<()> {
    print_line(block_on(target.client()?.reload())??);
    Ok(())
}

pub(super) fn drain(target: &AdminTarget) -> anyhow::Result<()> {
    print_line(block_on(target.client()?.drain())??);
    Ok(())
}

pub(super) fn health(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let (is_healthy, message) = block_on(args.target.client()?.health(args.live))??;
    print_line(message);
    Ok(if is_healthy { ExitCode::SUCCESS } else { FAILURE.into() })
}

/// The list as text columns.
fn table(list: &SessionList) -> String {
    const HEADERS: [&str; 11] =
        ["ID", "PEER", "ROUTE", "USER", "BACKEND", "AGE", "IN", "OUT", "IN/s", "OUT/s", "PING"];
    /// Text is left-aligned, numbers are right-aligned.
    const IS_LEFT: [bool; 11] = [false, true, true, true, true, false, false, false, false, false, false];
    let rows: Vec<[String; 11]> = list.sessions.iter().map(row).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADERS[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEADERS.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().enumerate().map(|(column, cell)| match IS_LEFT[column] {
            true => format!("{cell:<width$}", width = widths[column]),
            false => format!("{cell:>width$}", width = widths[column]),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&HEADERS.map(str::to_owned));
    text.extend(rows.iter().map(|row| line(row)));
    text + &format!("{} of {} session(s)\n", list.matching, list.live)
}

fn row(session: &SessionEntry) -> [String; 11] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    [
        session.id.to_string(),
        escaped(&session.peer),
        escaped(&session.route),
        or_none(session.user.as_deref().map(escaped)),
        or_none(session.backend.as_deref().map(escaped)),
        humantime::format_duration(Duration::from_secs(session.age_seconds as u64)).to_string(),
        amount(session.bytes_in),
        amount(session.bytes_out),
        or_none(session.rate_in.map(amount)),
        or_none(session.rate_out.map(amount)),
        or_none(session.round_trip_ms.map(|ms| format!("{ms:.1} ms"))),
    ]
}

/// A number of bytes with at most three digits and a unit.
fn amount(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut amount, mut unit) = (bytes as f64, 0);
    while amount >= 999.5 && unit + 1 < UNITS.len() {
        amount /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || amount >= 99.95 { 0 } else { 1 };
    format!("{amount:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_at_most_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (99_949, "99.9 kB"),
            (99_950, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (1_234_567_890, "1.2 GB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }

    #[test]
    fn sessions_are_aligned_in_columns() {
        let session = SessionEntry {
            id: 7,
            peer: "192.0.2.7:4711".into(),
            route: "desk".into(),
            user: Some("ann".into()),
            backend: Some("tcp://127.0.0.1:5900".into()),
            since: "2026-11-20T12:00:00.000Z".into(),
            age_seconds: 3723.9,
            bytes_in: 164,
            bytes_out: 6416,
            rate_in: Some(0),
            rate_out: None,
            round_trip_ms: Some(12.34),
            buffered: 0,
        };
        let hostile = SessionEntry { peer: "a\n\x1b[2J".into(), route: "\u{202e}".into(), ..session.clone() };
        assert_eq!(row(&hostile)[1..3], [r"a\n\u{1b}[2J", r"\u{202e}"]);
        let list = SessionList { live: 2, matching: 1, sessions: vec![session] };
        let expected = "\
ID  PEER            ROUTE  USER  BACKEND                    AGE     IN     OUT  IN/s  OUT/s     PING
 7  192.0.2.7:4711  desk   ann   tcp://127.0.0.1:5900  1h 2m 3s  164 B  6.4 kB   0 B      –  12.3 ms
1 of 2 session(s)
";
        assert_eq!(table(&list), expected);
    }
}
