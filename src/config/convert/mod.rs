//! From the shape of the file to domain types.
//!
//! Owns every rule of every key, and what is warned about. It knows no TOML syntax: it gets values with their
//! places. Invariant: what leaves it needs no further check.

mod listener;
mod route;
mod tls;
mod upstream;
mod values;

use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;
use tracing::Level;

use super::error::{ConfigWarning, quoted};
use super::raw;
use super::{
    Admin, AdminAddress, Config, Destinations, Identity, Limits, Listener, Log, LogFormat, Route, Timeouts,
    Web,
};
use crate::admission::PerIp;
use values::{
    Result, conflict, duration, duration_or_off, missing, networks, parsed, resolved, value, whole, word,
};

/// More sessions or handshakes than this are a slip of the finger: no machine has the sockets.
const MOST: u32 = 10_000_000;

/// Understands a whole file. Its warnings are returned beside it, still with their places.
pub(super) fn config(raw: raw::File, file: &Path) -> Result<(Config, Vec<ConfigWarning>)> {
    let base = base_of(file);
    let mut remarks = Vec::new();
    let listeners = listener::listeners(raw.listener, base, &mut remarks)?;
    let routes = route::routes(raw.route, base, &mut remarks)?;
    let limits = limits(raw.limits, &mut remarks)?;
    let timeouts = timeouts(raw.timeouts)?;
    let admin = raw.admin.map(|written| admin(written, base)).transpose()?;
    let log = log(raw.log, base)?;
    let web =
        raw.web.map(|written| web(written, file, (&listeners, &routes, &log), &mut remarks)).transpose()?;
    if routes.is_empty() && web.is_none() {
        let wrong = "there is no [[route]] and no [web], so nothing to serve; add a [[route]] with name, path and backend";
        return Err(conflict(0..0, wrong));
    }
    let (file, warnings) = (file.to_path_buf(), Vec::new());
    Ok((Config { file, listeners, routes, limits, timeouts, web, admin, log, warnings }, remarks))
}

fn limits(written: raw::Limits, remarks: &mut Vec<ConfigWarning>) -> Result<Limits> {
    let Limits { max_sessions, max_handshakes, per_ip } = Limits::default();
    let sessions = whole("limits.max_sessions", written.max_sessions, MOST)?;
    let handshakes = whole("limits.max_handshakes", written.max_handshakes, MOST)?;
    let many = u32::MAX;
    Ok(Limits {
        max_sessions: sessions.map_or(max_sessions, |number| number.get() as usize),
        max_handshakes: handshakes.map_or(max_handshakes, |number| number.get() as usize),
        per_ip: PerIp {
            rate: whole("limits.per_ip.rate", written.per_ip.rate, many)?.unwrap_or(per_ip.rate),
            burst: whole("limits.per_ip.burst", written.per_ip.burst, many)?.unwrap_or(per_ip.burst),
            sessions: whole("limits.per_ip.sessions", written.per_ip.sessions, many)?
                .unwrap_or(per_ip.sessions),
            exempt: networks("limits.per_ip.exempt", &written.per_ip.exempt, remarks)?,
        },
    })
}

fn timeouts(written: raw::Timeouts) -> Result<Timeouts> {
    let default = Timeouts::default();
    Ok(Timeouts {
        tls: duration("timeouts.tls", written.tls, default.tls)?,
        request: duration("timeouts.request", written.request, default.request)?,
        connect: duration("timeouts.connect", written.connect, default.connect)?,
        close: duration("timeouts.close", written.close, default.close)?,
        drain: duration("timeouts.drain", written.drain, default.drain)?,
        stall: duration_or_off("timeouts.stall", written.stall, default.stall)?,
        ping: duration_or_off("timeouts.ping", written.ping, default.ping)?,
        pong: duration_or_off("timeouts.pong", written.pong, default.pong)?,
        idle: duration_or_off("timeouts.idle", written.idle, default.idle)?,
        lifetime: duration_or_off("timeouts.lifetime", written.lifetime, default.lifetime)?,
    })
}

fn web(
    written: Spanned<raw::Web>,
    file: &Path,
    (listeners, routes, log): (&[Listener], &[Route], &Log),
    remarks: &mut Vec<ConfigWarning>,
) -> Result<Web> {
    const KEY: &str = "web.root";
    let at = written.span();
    let Some(text) = written.into_inner().root else {
        return Err(missing(at, KEY, "add root = \"web\", or leave [web] out"));
    };
    let root = resolved(KEY, &text, base_of(file))?;
    match fs::metadata(&root) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => {
            return Err(value(
                KEY,
                &text,
                "this is not a directory; name the directory that holds the files",
            ));
        }
        Err(error) => {
            let wrong = format!("{}: {error}; create the directory, or leave [web] out", root.display());
            return Err(value(KEY, &text, wrong));
        }
    }
    if let Some((what, secret)) = secrets(listeners, routes).find(|(_, secret)| lies_in(secret, &root)) {
        let name = secret.display();
        let wrong =
            format!("everyone could download the {what} {name} from this directory; keep it elsewhere");
        return Err(value(KEY, &text, wrong));
    }
    if let Some(sessions) = log.sessions.as_deref().filter(|sessions| will_lie_in(sessions, &root)) {
        let name = sessions.display();
        let wrong = format!("everyone could download the log {name} from this directory; keep it elsewhere");
        return Err(value(KEY, &text, wrong));
    }
    if lies_in(file, &root) {
        let written = quoted(text.get_ref());
        let sentence = format!(
            "{KEY} {written} publishes this configuration file; give the pages a directory of their own."
        );
        remarks.push(ConfigWarning { at: text.span(), sentence });
    }
    Ok(Web { root })
}

fn admin(written: Spanned<raw::Admin>, base: &Path) -> Result<Admin> {
    const KEY: &str = "admin.address";
    let at = written.span();
    let Some(text) = written.into_inner().address else {
        let advice =
            "add address = \"127.0.0.1:9101\" or \"unix:/run/portcullis/admin.sock\", or leave [admin] out";
        return Err(missing(at, KEY, advice));
    };
    Ok(Admin { address: parsed::<AdminAddress>(KEY, &text)?.below(base) })
}

/// The files that nobody else may read, and what they are.
fn secrets<'a>(
    listeners: &'a [Listener],
    routes: &'a [Route],
) -> impl Iterator<Item = (&'static str, &'a PathBuf)> {
    let of_listener = |listener: &'a Listener| match &listener.identity {
        Some(Identity::Files { private_key, .. }) => Some(("private key", private_key)),
        _ => None,
    };
    let of_route = |route: &'a Route| {
        let tokens = match &route.upstream.destinations {
            Destinations::Tokens(tokens) => Some(("tokens in", &tokens.path)),
            Destinations::Fixed(_) => None,
        };
        let client = route.upstream.tls.client.as_ref();
        client.map(|(_, private_key)| ("private key", private_key)).into_iter().chain(tokens)
    };
    listeners.iter().filter_map(of_listener).chain(routes.iter().flat_map(of_route))
}

/// Whether a file lies below a directory. One that does not exist lies nowhere.
fn lies_in(file: &Path, directory: &Path) -> bool {
    let real = |path| fs::canonicalize(path).ok();
    real(file).zip(real(directory)).is_some_and(|(file, directory)| file.starts_with(directory))
}

/// Whether a file lies below a directory, or will once it is made.
fn will_lie_in(file: &Path, directory: &Path) -> bool {
    lies_in(file, directory) || file.parent().is_some_and(|parent| lies_in(parent, directory))
}

/// Where relative paths start.
fn base_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

fn log(written: raw::Log, base: &Path) -> Result<Log> {
    let default = Log::default();
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json), ("journald", LogFormat::Journald)];
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let sessions = written.sessions.map(|path| resolved("log.sessions", &path, base)).transpose()?;
    Ok(Log {
        sessions,
        refused_per_second: whole("log.refused_per_second", written.refused_per_second, u32::MAX)?
            .unwrap_or(default.refused_per_second),
        format: word("log.format", written.format, &formats)?.unwrap_or(default.format),
        level: word("log.level", written.level, &levels)?.unwrap_or(default.level),
    })
}
