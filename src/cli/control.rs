//! The commands that ask a running gateway: sessions, kill, reload, drain, health.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{ArgGroup, Args};
use tokio::time;

use super::{FAILURE, block_on};
use crate::{
    admin::client::{Client, KillRequest, SessionEntry, SessionList},
    config::{AdminAddress, Config},
};

/// How often a list that is watched is written anew.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Back to the first line, and forget what is below (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

#[derive(Debug, Args)]
pub(super) struct AdminTarget {
    /// The configuration file of the gateway; its [admin] says where to ask
    #[arg(long, short, value_name = "FILE", default_value = "gateway.toml")]
    config: PathBuf,
    /// Where to ask, without looking into a configuration: IP:PORT or unix:/PATH
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    admin: Option<AdminAddress>,
}

impl AdminTarget {
    fn client(&self) -> anyhow::Result<Client> {
        if let Some(address) = &self.admin {
            return Ok(Client::new(address.clone()));
        }
        let Some(admin) = Config::load(&self.config)?.admin else {
            let file = self.config.display();
            bail!(
                "{file}: there is no [admin], so the gateway cannot be asked; add [admin] with address = \
                 \"127.0.0.1:9101\" and start it anew"
            );
        };
        Ok(Client::new(admin.address))
    }
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only those on this route
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Only those from this address, or network such as 192.0.2.0/24
    #[arg(long, value_name = "IP")]
    peer: Option<String>,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    target: AdminTarget,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["ids", "route", "peer"]))]
pub(super) struct Kill {
    /// The numbers of the sessions
    #[arg(value_name = "ID")]
    ids: Vec<u64>,
    /// All on this route
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// All from this address, or network such as 192.0.2.0/24
    #[arg(long, value_name = "IP")]
    peer: Option<String>,
    /// What to tell the clients, in the Close frame: one line, 123 bytes at most
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    target: AdminTarget,
}

#[derive(Debug, Args)]
pub(super) struct Health {
    /// Whether it answers at all, not whether it takes new connections
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    target: AdminTarget,
}

pub(super) fn sessions(asked: &List) -> anyhow::Result<()> {
    let client = asked.target.client()?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (key, value) in [("route", &asked.route), ("peer", &asked.peer)] {
        if let Some(value) = value {
            query.append_pair(key, value);
        }
    }
    let query = query.finish();
    let clear = if asked.watch && !asked.json && io::stdout().is_terminal() { CLEAR } else { "" };
    block_on(async {
        loop {
            let said = client.sessions(&query).await?;
            let text = match asked.json {
                true => said + "\n",
                false => table(&client.understand(&said)?),
            };
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all((clear.to_owned() + &text).as_bytes());
            match written.and_then(|()| stdout.flush()) {
                // Whoever reads has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.context("cannot write")?,
            }
            drop(stdout);
            if !asked.watch {
                return Ok(());
            }
            time::sleep(WATCH_INTERVAL).await;
        }
    })?
}

pub(super) fn kill(asked: &Kill) -> anyhow::Result<ExitCode> {
    let client = asked.target.client()?;
    let sentence = KillRequest {
        ids: asked.ids.clone(),
        route: asked.route.clone(),
        peer: asked.peer.clone(),
        reason: asked.reason.clone(),
    };
    let killed = block_on(client.kill(sentence))??;
    let missing: Vec<String> =
        asked.ids.iter().filter(|id| !killed.contains(id)).map(ToString::to_string).collect();
    if !killed.is_empty() {
        println!("told {} session(s) to end", killed.len());
    }
    if !missing.is_empty() {
        bail!("no such session: {}", missing.join(", "));
    }
    if killed.is_empty() {
        bail!("there is no such session");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn reload(target: &AdminTarget) -> anyhow::Result<()> {
    println!("{}", block_on(target.client()?.reload())??);
    Ok(())
}

pub(super) fn drain(target: &AdminTarget) -> anyhow::Result<()> {
    println!("{}", block_on(target.client()?.drain())??);
    Ok(())
}

pub(super) fn health(asked: &Health) -> anyhow::Result<ExitCode> {
    let (well, words) = block_on(asked.target.client()?.health(asked.live))??;
    println!("{words}");
    Ok(if well { ExitCode::SUCCESS } else { FAILURE.into() })
}

/// Sessions for people.
fn table(listed: &SessionList) -> String {
    const HEADS: [&str; 10] = ["ID", "PEER", "ROUTE", "BACKEND", "AGE", "IN", "OUT", "IN/s", "OUT/s", "PING"];
    /// Text stands left, numbers right.
    const LEFT: [bool; 10] = [false, true, true, true, false, false, false, false, false, false];
    let rows: Vec<[String; 10]> = listed.sessions.iter().map(row).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADS[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().enumerate().map(|(column, cell)| match LEFT[column] {
            true => format!("{cell:<width$}", width = widths[column]),
            false => format!("{cell:>width$}", width = widths[column]),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&HEADS.map(str::to_owned));
    text.extend(rows.iter().map(|row| line(row)));
    text + &format!("{} of {} session(s)\n", listed.matching, listed.live)
}

fn row(session: &SessionEntry) -> [String; 10] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    [
        session.id.to_string(),
        session.peer.clone(),
        session.route.clone(),
        or_none(session.backend.clone()),
        humantime::format_duration(Duration::from_secs(session.age_seconds as u64)).to_string(),
        amount(session.bytes_in),
        amount(session.bytes_out),
        or_none(session.rate_in.map(amount)),
        or_none(session.rate_out.map(amount)),
        or_none(session.round_trip_ms.map(|took| format!("{took:.1} ms"))),
    ]
}

/// Bytes for people: three digits, and what they are.
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
    fn sessions_stand_in_columns() {
        let session = SessionEntry {
            id: 7,
            peer: "192.0.2.7:4711".into(),
            route: "desk".into(),
            backend: Some("tcp://127.0.0.1:5900".into()),
            age_seconds: 3723.9,
            bytes_in: 164,
            bytes_out: 6416,
            rate_in: Some(0),
            rate_out: None,
            round_trip_ms: Some(12.34),
        };
        let listed = SessionList { live: 2, matching: 1, sessions: vec![session] };
        let expected = "\
ID  PEER            ROUTE  BACKEND                    AGE     IN     OUT  IN/s  OUT/s     PING
 7  192.0.2.7:4711  desk   tcp://127.0.0.1:5900  1h 2m 3s  164 B  6.4 kB   0 B      –  12.3 ms
1 of 2 session(s)
";
        assert_eq!(table(&listed), expected);
    }
}
