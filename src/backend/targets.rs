//! Token files: the backend that a client chooses by a token (the key `targets` of a route).
//!
//! Owns the tokens of one route, read from a file in websockify's format or from a directory of such files, and the
//! table that maps them to backends. Each line is `token: host:port`, `token: unix:/path`, or `token:` and a whole
//! backend such as `tls://host:port`; empty lines and those that begin with `#` are ignored. In a directory, files
//! whose names begin with `.` or end in `~` are not read: they are copies made by editors, with tokens that may have
//! been revoked.
//!
//! Knows nothing of requests and sessions: a session keeps its backend when the table changes. Invariants: a lookup
//! reads no file; a client cannot name a host, only a token that the operator wrote; the table always holds a
//! complete, valid version of the files; no token is stored, shown by Debug or logged.
//!
//! # Timing
//! What a client sends is never compared with a token. Of both, only a digest under a random key of this process
//! (HMAC-SHA-256) is known. How long the digest takes depends on the length of what the client sent. Where the table
//! then looks, and where two digests begin to differ, depends on bits that a client can neither predict nor choose,
//! so that no guess is better than another; and the comparison does not end early anyway. The number of tokens does
//! not matter either, as it would to a comparison with each.

mod file;

use std::{
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    path::{Component, Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac, rand::SystemRandom};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::file::LineError;
pub(crate) use self::file::TargetsError;
#[cfg(any(test, fuzzing))]
pub(crate) use self::file::parse as parse_line;
use self::file::{Contents, File, files};
use super::{
    BackendChoice,
    allowed::{AddressSource, Allowed},
    own::AddressSet,
};
use crate::{
    config::{Backend, Host, RoutePath, Secret, TokenFile},
    session::{CredentialId, Registry, TokenDigest},
    watched_file::{self, CHECK_INTERVAL, ChangeTracker, FileEvent, LoadedFile},
};

/// The token of a request: the value of `?token=…`, or else the last segment of what `*` stands for in the path of
/// `route`. Percent-decoded; a `+` is a `+`, because no token contains a space. `None` if there is no token, if there
/// are two, or if it is not UTF-8.
pub(crate) fn token_of(route: &RoutePath, path: &str, query: Option<&str>) -> Option<Secret> {
    let pairs = query.into_iter().flat_map(|query| query.split('&'));
    let mut values = pairs.filter_map(|pair| pair.strip_prefix("token="));
    let encoded = match (values.next(), values.next(), route) {
        (Some(value), None, _) => value,
        (None, _, RoutePath::Prefix(prefix)) => path.strip_prefix(prefix.as_str())?.rsplit('/').next()?,
        (Some(_), Some(_), _) | (None, _, RoutePath::Exact(_)) => return None,
    };
    let token = String::from_utf8(percent_decoded(encoded)?).ok()?;
    (!token.is_empty()).then(|| Secret::new(token))
}

/// Decodes RFC 3986 §2.1. `None` if a percent sign is not followed by two hexadecimal digits.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

/// What a line of the file may name. Who may write the file does not thereby reach every server of this machine.
#[derive(Debug)]
pub(crate) struct TargetRules {
    /// The rules for addresses.
    allowed: Allowed,
    /// The directory of the Unix sockets that may be named.
    unix: Option<PathBuf>,
}

impl TargetRules {
    pub(crate) fn new(file: &TokenFile, allowed: Allowed) -> Self {
        Self { allowed, unix: file.unix.clone() }
    }

    /// Whether a line may name `target`. The addresses that a name resolves to are checked when it is dialled.
    fn check(&self, target: &Backend, own: &AddressSet) -> Result<(), LineError> {
        let is_allowed = match (target, target.host_and_port()) {
            (_, Some((Host::Address(address), _))) => {
                self.allowed.check_networks(*address, AddressSource::Literal).is_ok()
            }
            (Backend::Unix(path), _) => {
                self.unix.as_deref().is_some_and(|directory| is_below(path, directory))
            }
            _ => true,
        };
        match target {
            _ if own.has_backend(target) => Err(LineError::Own),
            _ if is_allowed => Ok(()),
            Backend::Unix(_) => Err(LineError::UnixNotAllowed),
            _ => Err(LineError::AddressNotAllowed),
        }
    }
}

/// Whether `path` leads to a file below `directory`. With `..` in it, it could lead elsewhere.
fn is_below(path: &Path, directory: &Path) -> bool {
    path.starts_with(directory)
        && path != directory
        && path.components().all(|part| part != Component::ParentDir)
}

/// For how long after a change of the file sessions are looked for whose lines are gone. A request may have found its line
/// before the change, and become a session after its login was checked.
const LATE_SESSIONS: Duration = Duration::from_secs(60);

/// The random key under which tokens are known. A reload keeps it, so that it recognises the tokens of open sessions.
#[derive(Default)]
pub(crate) struct TokenKey(OnceLock<hmac::Key>);

impl TokenKey {
    fn get(&self) -> Result<hmac::Key, TargetsError> {
        if let Some(key) = self.0.get() {
            return Ok(key.clone());
        }
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| TargetsError::NoRandomKey)?;
        Ok(self.0.get_or_init(|| key).clone())
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

/// Maps tokens to backends.
pub(crate) struct TokenTable {
    path: PathBuf,
    key: hmac::Key,
    rules: TargetRules,
    /// Whether the sessions of a line end when it is removed.
    end_sessions: bool,
    targets: RwLock<Arc<Targets>>,
    /// When the file was last read with another content.
    changed: Mutex<Instant>,
    /// Compares the list of files with their stamps; `None` if that cannot be read.
    tracker: Mutex<ChangeTracker<Option<Vec<File>>>>,
}

type Targets = HashMap<Digest, Backend>;

impl TokenTable {
    /// Reads the tokens for the first time. An empty file is a table without tokens.
    ///
    /// # Errors
    /// [`TargetsError`] names the file, and the line where there is one.
    pub(crate) fn open(
        file: &TokenFile,
        rules: TargetRules,
        configured: &AddressSet,
        key: &TokenKey,
    ) -> Result<Arc<Self>, TargetsError> {
        let key = key.get()?;
        let files = files(&file.path)?;
        let targets = Contents::read(&files, &key, |target| rules.check(target, configured))?.targets;
        Ok(Arc::new(Self {
            path: file.path.clone(),
            key,
            rules,
            end_sessions: file.end_sessions,
            targets: RwLock::new(Arc::new(targets)),
            changed: Mutex::new(Instant::now()),
            tracker: Mutex::new(ChangeTracker::new(Some(files), Instant::now())),
        }))
    }

    /// The backend of `token`. The time of a lookup depends on this token only, and on no other.
    pub(crate) fn choose(&self, token: &Secret) -> Option<BackendChoice> {
        let digest = Digest::of(&self.key, token.expose());
        let backend = self.current().get(&digest).cloned()?;
        Some(BackendChoice::This { backend, line: self.end_sessions.then_some(TokenDigest(digest.0)) })
    }

    /// Whether there is this line.
    pub(crate) fn has(&self, line: TokenDigest) -> bool {
        self.current().contains_key(&Digest(line.0))
    }

    /// The backends of all tokens, each once and sorted by their URLs, so that the order reveals nothing about tokens.
    pub(crate) fn backends(&self) -> Vec<Backend> {
        let targets = self.current();
        let mut urls: Vec<(String, &Backend)> =
            targets.values().map(|backend| (backend.to_string(), backend)).collect();
        urls.sort_by(|one, other| one.0.cmp(&other.0));
        urls.dedup_by(|one, other| one.0 == other.0);
        urls.into_iter().map(|(_, backend)| backend.clone()).collect()
    }

    /// Reads the files again when they change (hot reload), until `stop` is cancelled. Invalid files change nothing;
    /// that is logged once, with file and line.
    pub(crate) async fn watch(
        self: Arc<Self>,
        route: String,
        sessions: Arc<Registry>,
        stop: CancellationToken,
    ) {
        let check = move || {
            self.check();
            if self.end_sessions {
                self.end_sessions(&route, &sessions, Instant::now());
            }
        };
        let check = Arc::new(check);
        watched_file::poll(move || check(), stop).await;
    }

    /// Ends the sessions whose lines are gone: from the next check after a change, because the files may have been half of
    /// what was still being written, and for some time after it.
    fn end_sessions(&self, route: &str, sessions: &Registry, now: Instant) {
        let unchanged_for = now.duration_since(*self.changed.lock());
        if !(CHECK_INTERVAL / 2..LATE_SESSIONS).contains(&unchanged_for) {
            return;
        }
        let is_gone = |credential: &CredentialId| match credential {
            CredentialId::TargetToken(line) => !self.has(*line),
            _ => false,
        };
        let ended = sessions.end_revoked(Some(route), is_gone);
        if ended > 0 {
            let path = self.path.display();
            tracing::info!(%path, route, sessions = ended, "ending sessions whose tokens were removed");
        }
    }

    /// Reads the files if they have changed, and installs what they hold if it is valid.
    fn check(&self) {
        let found = files(&self.path);
        let stamps = found.as_ref().ok().cloned();
        let event = self.tracker.lock().check(stamps, Instant::now(), || {
            let own = self.rules.allowed.own.current();
            let Contents { targets, is_partial } =
                Contents::read(&found?, &self.key, |target| self.rules.check(target, &own))?;
            let is_current = targets == *self.current();
            Ok(LoadedFile { value: targets, is_current, is_partial })
        });
        match event {
            FileEvent::None => {}
            FileEvent::Replaced(targets) | FileEvent::Recovered(targets) => {
                let tokens = targets.len();
                *self.targets.write() = Arc::new(targets);
                *self.changed.lock() = Instant::now();
                tracing::info!(path = %self.path.display(), tokens, "tokens reloaded");
            }
            FileEvent::Rejected(error) => {
                let error: TargetsError = error;
                tracing::warn!(
                    path = %self.path.display(),
                    tokens = self.len(),
                    detail = %error,
                    "tokens not reloaded: the previous ones stay valid"
                );
            }
        }
    }

    /// A reload of the configuration has rejected these files and reported that: it is not reported again.
    pub(super) fn mark_rejected(&self) {
        let stamps = files(&self.path).ok();
        self.tracker.lock().mark_rejected(stamps);
    }

    fn len(&self) -> usize {
        self.current().len()
    }

    fn current(&self) -> Arc<Targets> {
        Arc::clone(&self.targets.read())
    }
}

impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTable")
            .field("path", &self.path)
            .field("tokens", &self.len())
            .finish_non_exhaustive()
    }
}

/// All that is kept of a token.
#[derive(Clone, Copy)]
struct Digest([u8; 32]);

impl Digest {
    fn of(key: &hmac::Key, token: &str) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(hmac::sign(key, token.as_bytes()).as_ref());
        Self(digest)
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for Digest {}

impl Hash for Digest {
    // The bits of a digest are uniformly distributed: any of them are as good as all.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0[..8]);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        task::{Context, Waker},
        thread,
        time::SystemTime,
    };

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::{super::test_log::CapturedLog, *};
    use crate::session::{Identity, SessionInfo};

    fn table(path: PathBuf) -> Arc<TokenTable> {
        open(path).unwrap()
    }

    /// A table for which everything is allowed.
    fn open(path: PathBuf) -> Result<Arc<TokenTable>, TargetsError> {
        let file = TokenFile { path, unix: Some("/".into()), end_sessions: false };
        let networks = Some(vec!["0.0.0.0/0".parse().unwrap()]);
        let rules = TargetRules::new(&file, Allowed { networks, ..Allowed::default() });
        TokenTable::open(&file, rules, &AddressSet::default(), &TokenKey::default())
    }

    fn find(table: &TokenTable, token: &str) -> Option<String> {
        match table.choose(&Secret::new(token))? {
            BackendChoice::This { backend, line: None } => Some(backend.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn has(table: &TokenTable, token: &str, backend: &str) -> bool {
        find(table, token).as_deref() == Some(backend)
    }

    /// A directory with one token file in it, and the table of that file.
    struct Fixture {
        directory: TempDir,
        table: Arc<TokenTable>,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("tokens.cfg");
            fs::write(&path, "old: 10.0.0.1:5900\n").unwrap();
            Self { table: table(path), directory }
        }

        fn file(&self) -> PathBuf {
            self.directory.path().join("tokens.cfg")
        }

        fn write(&self, text: &str) {
            fs::write(self.file(), text).unwrap();
        }

        /// Replaces the file atomically.
        fn rename_into_place(&self, text: &str) {
            let draft = self.directory.path().join("draft");
            fs::write(&draft, text).unwrap();
            fs::rename(draft, self.file()).unwrap();
        }
    }

    #[test]
    fn only_an_exact_token_has_a_backend() {
        let fixture = Fixture::new();
        fixture.write("alice: 10.0.0.1:5900\nbob: tls://vnc.example:5901\neve:   unix:/run/eve.sock\n");
        let table = table(fixture.file());
        assert_eq!(table.len(), 3);
        assert!(has(&table, "alice", "tcp://10.0.0.1:5900"));
        assert!(has(&table, "bob", "tls://vnc.example:5901"));
        assert!(has(&table, "eve", "unix:/run/eve.sock"));
        for token in
            ["", "Alice", "alice ", "alic", "alicee", "10.0.0.1:5900", "tcp://10.0.0.1:5900", "alice:"]
        {
            assert_eq!(find(&table, token), None, "{token:?}");
        }
    }

    #[test]
    fn row_70_each_line_must_be_allowed() {
        let fixture = Fixture::new();
        let own: AddressSet = ["127.0.0.1:9101", "unix:/run/desks/own.sock"]
            .map(|text| text.parse().unwrap())
            .into_iter()
            .collect();
        let attempt = |target: &str, networks: Option<&str>, unix: Option<&str>| {
            fixture.write(&format!("# desks\nsecret: {target}\n"));
            let file = TokenFile { path: fixture.file(), unix: unix.map(PathBuf::from), end_sessions: false };
            let networks = networks.map(|network| vec![network.parse().unwrap()]);
            let rules = TargetRules::new(&file, Allowed { networks, by_token: true, ..Allowed::default() });
            let error = TokenTable::open(&file, rules, &own, &TokenKey::default()).err()?.to_string();
            assert!(error.contains("tokens.cfg:2: ") && !error.contains("secret"), "{error}");
            Some(error.split_once(":2: ").unwrap().1.split(' ').take(4).collect::<Vec<_>>().join(" "))
        };
        let (address, socket, gateway) =
            (Some("this address is not"), Some("this Unix socket is"), Some("this gateway itself listens"));
        for (target, networks, unix, error) in [
            ("10.0.0.1:5900", None, None, address),
            ("10.0.0.1:5900", Some("10.0.0.0/8"), None, None),
            ("127.0.0.1:5900", Some("10.0.0.0/8"), None, address),
            ("127.0.0.1:5900", Some("127.0.0.0/8"), None, None),
            ("0.0.0.0:5900", Some("10.0.0.0/8"), None, address),
            ("[::]:5900", Some("127.0.0.0/8"), None, address),
            ("169.254.169.254:80", Some("10.0.0.0/8"), None, address),
            ("tls://10.0.0.1:5900", None, None, address),
            ("desk.example:5900", None, None, None),
            ("unix:/run/desks/a.sock", None, None, socket),
            ("unix_socket:/run/desks/a.sock", Some("0.0.0.0/0"), None, socket),
            ("unix:/run/desks/a.sock", None, Some("/run/desks"), None),
            ("unix:/run/desks/floor/a.sock", None, Some("/run/desks"), None),
            ("unix:/run/desks", None, Some("/run/desks"), socket),
            ("unix:/run/desks2/a.sock", None, Some("/run/desks"), socket),
            ("unix:/run/desks/../admin.sock", None, Some("/run/desks"), socket),
            ("unix:/run/desks/own.sock", None, Some("/run/desks"), gateway),
            ("127.0.0.1:9101", Some("127.0.0.0/8"), None, gateway),
            ("0.0.0.0:9101", Some("127.0.0.0/8"), None, gateway),
        ] {
            let seen = attempt(target, networks, unix);
            assert_eq!(seen.is_some(), error.is_some(), "{target} {networks:?} {unix:?}: {seen:?}");
            assert!(seen.unwrap_or_default().starts_with(error.unwrap_or_default()), "{target}");
        }
    }

    #[test]
    fn rejection_by_a_reload_is_not_logged_again() {
        let (log, _guard) = CapturedLog::capture();
        let fixture = Fixture::new();
        fixture.write("bob\n");
        fixture.table.mark_rejected();
        (0..3).for_each(|_| fixture.table.check());
        assert_eq!(log.take(), [""; 0]);
        fixture.write("old: 10.0.0.1:5900\n");
        (0..3).for_each(|_| fixture.table.check());
        assert_eq!(log.take(), [format!("INFO tokens reloaded path={} tokens=1", fixture.file().display())]);
    }

    #[test]
    fn backends_are_listed_once_each_without_tokens() {
        let fixture = Fixture::new();
        fixture.write(
            "zoe: 10.0.0.1:5900\nbob: unix:/run/eve.sock\nann: 10.0.0.1:5900\neve: tls://a.example:1\n",
        );
        let listed: Vec<String> = table(fixture.file()).backends().iter().map(ToString::to_string).collect();
        assert_eq!(listed, ["tcp://10.0.0.1:5900", "tls://a.example:1", "unix:/run/eve.sock"]);
    }

    #[test]
    fn a_lookup_reads_no_file() {
        let fixture = Fixture::new();
        fs::remove_file(fixture.file()).unwrap();
        assert!(has(&fixture.table, "old", "tcp://10.0.0.1:5900"));
    }

    #[test]
    fn change_is_loaded_at_the_next_check() {
        let (log, _guard) = CapturedLog::capture();
        let fixture = Fixture::new();
        fixture.table.check();
        fixture.table.check();
        assert_eq!(log.take(), [""; 0], "nothing has changed");
        for (nth, write) in [Fixture::write, Fixture::rename_into_place].into_iter().enumerate() {
            write(&fixture, &format!("new{nth}: 10.0.0.2:5900\nmore{nth}: 10.0.0.3:5900\n"));
            fixture.table.check();
            assert!(has(&fixture.table, &format!("new{nth}"), "tcp://10.0.0.2:5900"));
            assert_eq!(find(&fixture.table, "old"), None, "it was revoked");
            let line = format!("INFO tokens reloaded path={} tokens=2", fixture.file().display());
            assert_eq!(log.take(), [line]);
            fixture.table.check();
            fixture.table.check();
            assert_eq!(log.take(), [""; 0], "it was logged already");
        }
    }

    #[test]
    fn invalid_file_changes_nothing_and_is_logged_once() {
        let (log, _guard) = CapturedLog::capture();
        let fixture = Fixture::new();
        fixture.write("# of today\nsecret-token: 10.0.0.2:5900\nother-secret 10.0.0.3:5900\n");
        for _ in 0..4 {
            fixture.table.check();
            assert!(has(&fixture.table, "old", "tcp://10.0.0.1:5900"));
            assert_eq!(find(&fixture.table, "secret-token"), None);
        }
        let file = fixture.file().display().to_string();
        let lines = log.take();
        assert_eq!(
            lines,
            [format!(
                "WARN tokens not reloaded: the previous ones stay valid path={file} tokens=1 \
                 detail={file}:3: this is not of the form \"token: host:port\"; separate the two by a colon and a space"
            )]
        );
        // Another mistake is logged again.
        fixture.write("secret-token: 10.0.0.2\n");
        (0..3).for_each(|_| fixture.table.check());
        let lines = log.take();
        assert!(lines.len() == 1 && lines[0].contains("tokens.cfg:1: invalid target: the port"), "{lines:?}");
        // Recovery is logged even if the tokens are the same as before.
        fixture.write("old: 10.0.0.1:5900\n");
        (0..3).for_each(|_| fixture.table.check());
        assert_eq!(log.take(), [format!("INFO tokens reloaded path={file} tokens=1")]);
    }

    #[test]
    fn half_written_file_is_not_used() {
        let (log, _guard) = CapturedLog::capture();
        let fixture = Fixture::new();
        for half in ["", "new: 10.0.0.2:59", "new: 10.0.0.2:5900\nmore", "new: 10.0.0.2:5900\nmore: 10.0"] {
            fixture.write(half);
            fixture.table.check();
            assert!(has(&fixture.table, "old", "tcp://10.0.0.1:5900"), "{half:?} was used");
        }
        assert_eq!(log.take(), [""; 0]);
        fixture.write("new: 10.0.0.2:5900\nmore: 10.0.0.3:5900\n");
        fixture.table.check();
        assert!(has(&fixture.table, "more", "tcp://10.0.0.3:5900"));
        assert_eq!(find(&fixture.table, "old"), None);
    }

    #[test]
    fn last_line_without_newline_is_used_after_the_second_read() {
        let fixture = Fixture::new();
        for (text, tokens) in [("new: 10.0.0.2:5900\nmore: 10.0.0.3:5900", 2), ("", 0)] {
            fixture.write(text);
            fixture.table.check();
            fixture.table.check();
            assert_eq!(fixture.table.len(), tokens, "{text:?}");
        }
    }

    #[test]
    fn second_change_within_one_timestamp_is_not_missed() {
        let fixture = Fixture::new();
        let before = fs::metadata(fixture.file()).unwrap();
        fixture.write("new: 10.0.0.2:5900\n");
        fixture.table.check();
        // Same size, and as if with the same timestamp: only the contents tell that it has changed.
        fixture.write("now: 10.0.0.2:5900\n");
        assert_eq!(before.len(), 19);
        fixture.table.tracker.lock().set_stamps(Some(files(&fixture.file()).unwrap()));
        fixture.table.check();
        assert!(has(&fixture.table, "now", "tcp://10.0.0.2:5900"));
        assert_eq!(find(&fixture.table, "new"), None);
    }

    #[test]
    fn missing_file_revokes_no_token_and_may_come_back() {
        let (log, _guard) = CapturedLog::capture();
        let fixture = Fixture::new();
        fs::remove_file(fixture.file()).unwrap();
        (0..3).for_each(|_| fixture.table.check());
        assert!(has(&fixture.table, "old", "tcp://10.0.0.1:5900"));
        let lines = log.take();
        assert!(lines.len() == 1 && lines[0].contains("cannot read the tokens in"), "{lines:?}");
        fixture.write("new: 10.0.0.2:5900\n");
        fixture.table.check();
        assert!(has(&fixture.table, "new", "tcp://10.0.0.2:5900"));
    }

    #[test]
    fn files_of_a_directory_are_one_table() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("a"), "alice: 10.0.0.1:5900\n").unwrap();
        fs::create_dir(at("nested")).unwrap();
        fs::write(at("nested/c"), "carol: 10.0.0.3:5900\n").unwrap();
        fs::write(at(".b.swp"), "\u{1}").unwrap();
        fs::write(at("a~"), "mallory: 10.0.0.9:5900\n").unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
        let table = table(directory.path().to_owned());
        assert_eq!(table.len(), 1);
        fs::write(at("b"), "bob: 10.0.0.2:5900\n").unwrap();
        std::os::unix::fs::symlink(at("nested/c"), at("c")).unwrap();
        table.check();
        assert_eq!(["alice", "bob", "carol"].map(|token| find(&table, token).is_some()), [true; 3]);
        fs::remove_file(at("a")).unwrap();
        table.check();
        assert_eq!(["alice", "bob", "carol"].map(|token| find(&table, token).is_some()), [false, true, true]);
    }

    #[test]
    fn change_behind_a_link_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (version, token) in [("1", "one"), ("2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("tokens"), format!("{token}: 10.0.0.1:5900\n")).unwrap();
        }
        std::os::unix::fs::symlink(at("1"), at("current")).unwrap();
        let table = table(at("current/tokens"));
        assert!(find(&table, "one").is_some());
        std::os::unix::fs::symlink(at("2"), at("next")).unwrap();
        fs::rename(at("next"), at("current")).unwrap();
        table.check();
        assert_eq!(["one", "two"].map(|token| find(&table, token).is_some()), [false, true]);
    }

    #[test]
    fn invalid_file_at_startup_is_an_error() {
        let fixture = Fixture::new();
        fixture.write("alice: 10.0.0.1:5900\n\nbob\n");
        let error = open(fixture.file()).unwrap_err().to_string();
        assert!(error.ends_with("tokens.cfg:3: this is not of the form \"token: host:port\"; separate the two by a colon and a space"), "{error}");
        let error = open("/dev/null".into()).unwrap_err().to_string();
        assert_eq!(error, "/dev/null is neither a file nor a directory; name a file with tokens");
        let error = open(fixture.directory.path().join("none")).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read the tokens in /") && error.contains("/none: No such file"),
            "{error}"
        );
    }

    /// Sessions of two lines and one without, the table of both, and what the sessions are asked.
    #[test]
    fn sessions_end_with_their_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.cfg");
        fs::write(&path, "old: 10.0.0.1:5900\nkept: 10.0.0.1:5900\n").unwrap();
        let key = TokenKey::default();
        let open = || {
            let file = TokenFile { path: path.clone(), unix: None, end_sessions: true };
            let networks = Some(vec!["0.0.0.0/0".parse().unwrap()]);
            let rules = TargetRules::new(&file, Allowed { networks, ..Allowed::default() });
            TokenTable::open(&file, rules, &AddressSet::default(), &key).unwrap()
        };
        let table = open();
        let registry = Arc::<Registry>::default();
        let session = |route, token: Option<&str>| {
            let credential = token.map(|token| {
                let line = table.choose(&Secret::new(token)).unwrap().line().unwrap();
                CredentialId::TargetToken(line).and(Some(CredentialId::Jwt("4711".into())))
            });
            let identity = Some(Identity { user: None, credential });
            let peer = ([192, 0, 2, 7], 4711).into();
            registry.open(SessionInfo { peer, route, since: SystemTime::UNIX_EPOCH, identity })
        };
        let sessions = [
            session("desk", Some("old")),
            session("desk", Some("kept")),
            session("desk", None),
            session("chat", Some("old")),
        ];
        let ended = || {
            let mut context = Context::from_waker(Waker::noop());
            sessions.each_ref().map(|session| session.poll_end(&mut context).is_ready())
        };
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let later = || table.end_sessions("desk", &registry, at(1));
        later();
        assert_eq!(ended(), [false; 4]);
        fs::write(&path, "kept: 10.0.0.1:5900\n").unwrap();
        table.check();
        assert!(table.choose(&Secret::new("old")).is_none());
        // The files have just changed.
        let changed = *table.changed.lock();
        table.end_sessions("desk", &registry, changed);
        assert_eq!(ended(), [false; 4]);
        table.end_sessions("desk", &registry, at(100));
        assert_eq!(ended(), [false; 4], "long after the change");
        later();
        assert_eq!(ended(), [true, false, false, false]);

        // A reload of the configuration knows the tokens of open sessions.
        let reloaded = open();
        reloaded.end_sessions("desk", &registry, at(2));
        assert_eq!(ended(), [true, false, false, false]);
        fs::write(&path, "other: 10.0.0.1:5900\n").unwrap();
        open().end_sessions("desk", &registry, at(2));
        assert_eq!(ended(), [true, true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn watch_checks_every_second_and_ends_when_stopped() {
        let fixture = Fixture::new();
        let stop = CancellationToken::new();
        let table = Arc::clone(&fixture.table);
        let watch = tokio::spawn(table.watch("desk".to_owned(), Arc::default(), stop.clone()));
        fixture.write("new: 10.0.0.2:5900\n");
        tokio::time::sleep(CHECK_INTERVAL / 2).await;
        assert!(find(&fixture.table, "old").is_some(), "checked too early");
        tokio::time::sleep(CHECK_INTERVAL).await;
        assert!(find(&fixture.table, "new").is_some(), "not checked");
        stop.cancel();
        watch.await.unwrap();
        fixture.write("late: 10.0.0.2:5900\n");
        tokio::time::sleep(CHECK_INTERVAL * 5).await;
        assert!(find(&fixture.table, "new").is_some(), "still checking");
        assert_eq!(Arc::strong_count(&fixture.table), 1, "the table is still referenced");
    }

    #[test]
    fn lookups_and_reloads_run_concurrently() {
        let fixture = Fixture::new();
        thread::scope(|scope| {
            let checks = scope.spawn(|| {
                for round in 0..50 {
                    fixture.rename_into_place(&format!(
                        "old: 10.0.0.1:5900\nround: 10.0.0.2:{}\n",
                        1000 + round
                    ));
                    fixture.table.check();
                }
            });
            while !checks.is_finished() {
                assert!(has(&fixture.table, "old", "tcp://10.0.0.1:5900"));
            }
        });
        assert!(has(&fixture.table, "round", "tcp://10.0.0.2:1049"));
    }

    #[test]
    fn debug_shows_no_token() {
        let fixture = Fixture::new();
        let token = token_of(&RoutePath::Prefix("/".into()), "/old", None).unwrap();
        let shown = format!("{:?} {token:?} {:?}", fixture.table, fixture.table.tracker);
        assert!(shown.contains("tokens: 1") && !shown.contains("old"), "{shown}");
    }

    fn exact(query: &str) -> Option<String> {
        token_of(&RoutePath::Exact("/websockify".into()), "/websockify", Some(query))
            .map(|token| token.expose().to_owned())
    }

    fn last_segment(path: &str) -> Option<String> {
        token_of(&RoutePath::Prefix("/desk/".into()), path, None).map(|token| token.expose().to_owned())
    }

    #[test]
    fn token_of_a_query_must_be_unique() {
        for (query, token) in [
            ("token=alice", Some("alice")),
            ("a=b&token=alice&c", Some("alice")),
            ("token=%61li%63e", Some("alice")),
            ("token=b%C3%BCro", Some("büro")),
            ("token=a+b%2Bc=", Some("a+b+c=")),
            ("token=host%3A5900", Some("host:5900")),
            ("", None),
            ("token", None),
            ("token=", None),
            ("Token=alice", None),
            ("xtoken=alice", None),
            ("token=alice&token=alice", None),
            ("token=alice&token=", None),
            ("token=alice%", None),
            ("token=%6", None),
            ("token=%6g", None),
            ("token=%+6", None),
            ("token=%ff", None),
        ] {
            assert_eq!(exact(query).as_deref(), token, "{query:?}");
        }
    }

    #[test]
    fn token_of_a_path_is_its_last_segment() {
        for (path, token) in [
            ("/desk/alice", Some("alice")),
            ("/desk/b%C3%BCro", Some("büro")),
            ("/desk/floor/3/alice", Some("alice")),
            ("/desk/", None),
            ("/desk/alice/", None),
            ("/desk", None),
            ("/other/alice", None),
            ("/desk/%zz", None),
        ] {
            assert_eq!(last_segment(path).as_deref(), token, "{path}");
        }
        let exact = RoutePath::Exact("/desk/alice".into());
        assert!(token_of(&exact, "/desk/alice", None).is_none(), "an exact route has no token in its path");
    }

    #[test]
    fn query_takes_precedence_over_path() {
        let route = RoutePath::Prefix("/desk/".into());
        let token = |query| token_of(&route, "/desk/alice", query).map(|token| token.expose().to_owned());
        assert_eq!(token(Some("token=bob")).as_deref(), Some("bob"));
        assert_eq!(token(Some("lang=de")).as_deref(), Some("alice"));
        assert_eq!(token(Some("token=bob&token=eve")), None);
        assert_eq!(token(Some("token=")), None, "not the one of the path");
    }

    proptest! {
        #[test]
        fn percent_encoding_round_trips(token in "\\PC{1,20}", plain in "[a-zA-Z0-9._~-]{1,20}") {
            let encoded: String = token.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(exact(&format!("token={encoded}")), Some(token.clone()));
            prop_assert_eq!(last_segment(&format!("/desk/{encoded}")), Some(token));
            prop_assert_eq!(exact(&format!("token={plain}")), Some(plain.clone()));
            prop_assert_eq!(last_segment(&format!("/desk/{plain}")), Some(plain));
        }

        #[test]
        fn no_request_panics(path in "\\PC{0,30}|/desk/[%0-9a-f/]{0,20}", query in "\\PC{0,30}|(token=|%|&|[0-9a-f]){0,12}") {
            let _ = token_of(&RoutePath::Prefix("/desk/".into()), &path, Some(&query));
        }
    }
}
