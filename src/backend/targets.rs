//! Targets that a client chooses by a token.
//!
//! Owns the tokens of one route: a file in the form that websockify reads, or a directory of such files, and the
//! table that is made of it. Each line is `token: host:port`, `token: unix:/path` or `token:` and a whole backend such
//! as `tls://host:port`; lines that begin with `#` and empty ones say nothing. In a directory, files whose names begin
//! with `.` or end in `~` are not read: they are somebody's copies, with tokens that may have been taken back.
//!
//! Refuses to know requests and sessions: a session keeps the target it was given. Invariants: a lookup reads no
//! file; a client names no host, only a token that somebody wrote down; the table is always one that was read whole,
//! without an error; no token is kept, shown by Debug or written to the log.
//!
//! # Timing
//! What a client sends is never compared with a token. Of both, only a digest under a random key of this process
//! (HMAC-SHA-256) is known. How long the digest takes depends on the length of what the client sent. Where the table
//! then looks, and where two digests begin to differ, depends on bits that a client can neither foresee nor choose,
//! so that no guess can be better than another; and the comparison does not end early anyway. The number of tokens
//! does not matter either, as it would to a comparison with each.

mod file;

use std::{
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac, rand::SystemRandom};
use parking_lot::{Mutex, RwLock};
use tokio::{
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::file::TargetsError;
use self::file::{File, Read, files};
use crate::config::{Backend, RoutePath, Secret, TokenFile};

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// The token that a request shows: that of `?token=…`, or else what `*` stands for in the path of the `route`, from
/// its last slash on. Percent-decoded; a `+` is a `+`, for no token has a space in it. `None` when there is no token,
/// when there are two, or when it is no text.
pub(crate) fn token_of(route: &RoutePath, path: &str, query: Option<&str>) -> Option<Secret> {
    let pairs = query.into_iter().flat_map(|query| query.split('&'));
    let mut values = pairs.filter_map(|pair| pair.strip_prefix("token="));
    let written = match (values.next(), values.next(), route) {
        (Some(value), None, _) => value,
        (None, _, RoutePath::Prefix(prefix)) => path.strip_prefix(prefix.as_str())?.rsplit('/').next()?,
        (Some(_), Some(_), _) | (None, _, RoutePath::Exact(_)) => return None,
    };
    let token = String::from_utf8(percent_decoded(written)?).ok()?;
    (!token.is_empty()).then(|| Secret::new(token))
}

/// RFC 3986 §2.1. `None` when two hexadecimal digits do not follow a percent sign.
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

/// Which token leads where.
pub(crate) struct TokenTable {
    path: PathBuf,
    key: hmac::Key,
    targets: RwLock<Arc<Targets>>,
    watch_state: Mutex<WatchState>,
}

type Targets = HashMap<Digest, Backend>;

impl TokenTable {
    /// Reads the tokens for the first time. An empty file is a table without tokens.
    ///
    /// # Errors
    /// [`TargetsError`] names the file, and the line where there is one.
    pub(crate) fn open(file: &TokenFile) -> Result<Arc<Self>, TargetsError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| TargetsError::NoRandomKey)?;
        let files = files(&file.path)?;
        let targets = Read::of(&files, &key)?.targets;
        Ok(Arc::new(Self {
            path: file.path.clone(),
            key,
            targets: RwLock::new(Arc::new(targets)),
            watch_state: Mutex::new(WatchState { files: Some(files), is_confirmed: false, is_bad: false }),
        }))
    }

    /// Where `token` leads. How long the answer takes tells nothing of any token but this one.
    pub(crate) fn find(&self, token: &Secret) -> Option<Backend> {
        self.current().get(&Digest::of(&self.key, token.expose())).cloned()
    }

    /// Where tokens lead, each target once and in the order of their writing. Nothing tells which token leads where.
    pub(crate) fn backends(&self) -> Vec<Backend> {
        let targets = self.current();
        let mut written: Vec<(String, &Backend)> =
            targets.values().map(|backend| (backend.to_string(), backend)).collect();
        written.sort_by(|one, other| one.0.cmp(&other.0));
        written.dedup_by(|one, other| one.0 == other.0);
        written.into_iter().map(|(_, backend)| backend.clone()).collect()
    }

    /// How many tokens there are.
    pub(crate) fn len(&self) -> usize {
        self.current().len()
    }

    /// Looks once a second whether the files have changed, and reads them if so, until `stop` is cancelled. Files that
    /// have an error in them change nothing; that is logged once, with file and line.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut clock = interval_at(Instant::now() + EVERY, EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let look = async {
            loop {
                clock.tick().await;
                let table = Arc::clone(&self);
                // Files can be far away; a panic has been reported by its hook, and the next look is as good as any.
                let _ = spawn_blocking(move || table.look()).await;
            }
        };
        stop.run_until_cancelled(look).await;
    }

    /// Reads the files if they have changed. Each change is read when it is seen, and once more at the next look:
    /// timestamps are too coarse to tell two changes in quick succession, and what is wrong at first may only be
    /// the beginning of what somebody is still writing.
    fn look(&self) {
        let mut watch_state = self.watch_state.lock();
        let found = files(&self.path);
        let files = found.as_ref().ok().cloned();
        let is_new = files != watch_state.files;
        if !is_new && watch_state.is_confirmed {
            return;
        }
        (watch_state.files, watch_state.is_confirmed) = (files, !is_new);
        match found.and_then(|files| Read::of(&files, &self.key)) {
            Ok(read) if is_new && read.may_go_on => {}
            Ok(read) => {
                let is_news = read.targets != *self.current();
                let tokens = read.targets.len();
                *self.targets.write() = Arc::new(read.targets);
                if std::mem::take(&mut watch_state.is_bad) || is_news {
                    tracing::info!(path = %self.path.display(), tokens, "tokens reloaded");
                }
            }
            Err(_) if is_new => {}
            Err(error) => {
                watch_state.is_bad = true;
                let tokens = self.len();
                tracing::warn!(
                    path = %self.path.display(),
                    tokens,
                    detail = %error,
                    "tokens not reloaded: those read before stay valid until this is mended"
                );
            }
        }
    }

    fn current(&self) -> Arc<Targets> {
        Arc::clone(&self.targets.read())
    }
}

impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("path", &self.path).field("tokens", &self.len()).finish_non_exhaustive()
    }
}

/// A token, as far as it is known here.
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
    // Every part of a digest is as good as all of it.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0[..8]);
    }
}

/// What was read last.
#[derive(Debug)]
struct WatchState {
    /// `None` when there was nothing to read.
    files: Option<Vec<File>>,
    /// Whether it was read twice.
    is_confirmed: bool,
    /// Whether somebody waits to hear that it is good again.
    is_bad: bool,
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::{super::test_log::Log, *};

    fn table(path: PathBuf) -> Arc<TokenTable> {
        TokenTable::open(&TokenFile { path }).unwrap()
    }

    fn find(table: &TokenTable, token: &str) -> Option<String> {
        table.find(&Secret::new(token)).map(|backend| backend.to_string())
    }

    fn leads(table: &TokenTable, token: &str, backend: &str) -> bool {
        find(table, token).as_deref() == Some(backend)
    }

    /// A directory with one token file in it, and its table.
    struct Desk {
        directory: TempDir,
        table: Arc<TokenTable>,
    }

    impl Desk {
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

        /// As careful programs write.
        fn rename_into_place(&self, text: &str) {
            let draft = self.directory.path().join("draft");
            fs::write(&draft, text).unwrap();
            fs::rename(draft, self.file()).unwrap();
        }
    }

    #[test]
    fn a_token_leads_to_its_target_and_nothing_else_leads_anywhere() {
        let desk = Desk::new();
        desk.write("alice: 10.0.0.1:5900\nbob: tls://vnc.example:5901\neve:   unix:/run/eve.sock\n");
        let table = table(desk.file());
        assert_eq!(table.len(), 3);
        assert!(leads(&table, "alice", "tcp://10.0.0.1:5900"));
        assert!(leads(&table, "bob", "tls://vnc.example:5901"));
        assert!(leads(&table, "eve", "unix:/run/eve.sock"));
        for token in
            ["", "Alice", "alice ", "alic", "alicee", "10.0.0.1:5900", "tcp://10.0.0.1:5900", "alice:"]
        {
            assert_eq!(find(&table, token), None, "{token:?}");
        }
    }

    #[test]
    fn targets_are_told_once_each_and_without_their_tokens() {
        let desk = Desk::new();
        desk.write(
            "zoe: 10.0.0.1:5900\nbob: unix:/run/eve.sock\nann: 10.0.0.1:5900\neve: tls://a.example:1\n",
        );
        let told: Vec<String> = table(desk.file()).backends().iter().map(ToString::to_string).collect();
        assert_eq!(told, ["tcp://10.0.0.1:5900", "tls://a.example:1", "unix:/run/eve.sock"]);
    }

    #[test]
    fn a_lookup_reads_no_file() {
        let desk = Desk::new();
        fs::remove_file(desk.file()).unwrap();
        assert!(leads(&desk.table, "old", "tcp://10.0.0.1:5900"));
    }

    #[test]
    fn what_changes_is_taken_at_the_next_look() {
        let (log, _guard) = Log::capture();
        let desk = Desk::new();
        desk.table.look();
        desk.table.look();
        assert_eq!(log.take(), [""; 0], "nothing has changed");
        for (nth, write) in [Desk::write, Desk::rename_into_place].into_iter().enumerate() {
            write(&desk, &format!("new{nth}: 10.0.0.2:5900\nmore{nth}: 10.0.0.3:5900\n"));
            desk.table.look();
            assert!(leads(&desk.table, &format!("new{nth}"), "tcp://10.0.0.2:5900"));
            assert_eq!(find(&desk.table, "old"), None, "it was taken back");
            let line = format!("INFO tokens reloaded path={} tokens=2", desk.file().display());
            assert_eq!(log.take(), [line]);
            desk.table.look();
            desk.table.look();
            assert_eq!(log.take(), [""; 0], "it was said already");
        }
    }

    #[test]
    fn a_bad_file_changes_nothing_and_is_named_once() {
        let (log, _guard) = Log::capture();
        let desk = Desk::new();
        desk.write("# of today\nsecret-token: 10.0.0.2:5900\nother-secret 10.0.0.3:5900\n");
        for _ in 0..4 {
            desk.table.look();
            assert!(leads(&desk.table, "old", "tcp://10.0.0.1:5900"));
            assert_eq!(find(&desk.table, "secret-token"), None);
        }
        let file = desk.file().display().to_string();
        let lines = log.take();
        assert_eq!(
            lines,
            [format!(
                "WARN tokens not reloaded: those read before stay valid until this is mended path={file} tokens=1 \
                 detail={file}:3: this is not of the form \"token: host:port\"; a colon and a space divide the two"
            )]
        );
        // Another mistake is another line.
        desk.write("secret-token: 10.0.0.2\n");
        (0..3).for_each(|_| desk.table.look());
        let lines = log.take();
        assert!(
            lines.len() == 1 && lines[0].contains("tokens.cfg:1: the target is none: the port"),
            "{lines:?}"
        );
        // Whoever mends it is told so, even if nothing is new.
        desk.write("old: 10.0.0.1:5900\n");
        (0..3).for_each(|_| desk.table.look());
        assert_eq!(log.take(), [format!("INFO tokens reloaded path={file} tokens=1")]);
    }

    #[test]
    fn a_file_that_is_being_written_is_waited_for() {
        let (log, _guard) = Log::capture();
        let desk = Desk::new();
        for half in ["", "new: 10.0.0.2:59", "new: 10.0.0.2:5900\nmore", "new: 10.0.0.2:5900\nmore: 10.0"] {
            desk.write(half);
            desk.table.look();
            assert!(leads(&desk.table, "old", "tcp://10.0.0.1:5900"), "{half:?} was taken");
        }
        assert_eq!(log.take(), [""; 0]);
        desk.write("new: 10.0.0.2:5900\nmore: 10.0.0.3:5900\n");
        desk.table.look();
        assert!(leads(&desk.table, "more", "tcp://10.0.0.3:5900"));
        assert_eq!(find(&desk.table, "old"), None);
    }

    #[test]
    fn a_last_line_without_an_end_is_taken_once_it_stays_so() {
        let desk = Desk::new();
        for (text, tokens) in [("new: 10.0.0.2:5900\nmore: 10.0.0.3:5900", 2), ("", 0)] {
            desk.write(text);
            desk.table.look();
            desk.table.look();
            assert_eq!(desk.table.len(), tokens, "{text:?}");
        }
    }

    #[test]
    fn a_second_change_within_one_tick_of_the_clock_is_not_missed() {
        let desk = Desk::new();
        let before = fs::metadata(desk.file()).unwrap();
        desk.write("new: 10.0.0.2:5900\n");
        desk.table.look();
        // Same size, and as if in the same tick: only what is read says that it has changed.
        desk.write("now: 10.0.0.2:5900\n");
        let mut watch_state = desk.table.watch_state.lock();
        assert_eq!(before.len(), 19);
        watch_state.files = Some(files(&desk.file()).unwrap());
        drop(watch_state);
        desk.table.look();
        assert!(leads(&desk.table, "now", "tcp://10.0.0.2:5900"));
        assert_eq!(find(&desk.table, "new"), None);
    }

    #[test]
    fn a_file_that_is_gone_takes_no_token_back_and_may_return() {
        let (log, _guard) = Log::capture();
        let desk = Desk::new();
        fs::remove_file(desk.file()).unwrap();
        (0..3).for_each(|_| desk.table.look());
        assert!(leads(&desk.table, "old", "tcp://10.0.0.1:5900"));
        let lines = log.take();
        assert!(lines.len() == 1 && lines[0].contains("cannot read the tokens in"), "{lines:?}");
        desk.write("new: 10.0.0.2:5900\n");
        desk.table.look();
        assert!(leads(&desk.table, "new", "tcp://10.0.0.2:5900"));
    }

    #[test]
    fn the_files_of_a_directory_are_one_table() {
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
        table.look();
        assert_eq!(["alice", "bob", "carol"].map(|token| find(&table, token).is_some()), [true; 3]);
        fs::remove_file(at("a")).unwrap();
        table.look();
        assert_eq!(["alice", "bob", "carol"].map(|token| find(&table, token).is_some()), [false, true, true]);
    }

    #[test]
    fn a_change_behind_a_link_is_seen() {
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
        table.look();
        assert_eq!(["one", "two"].map(|token| find(&table, token).is_some()), [false, true]);
    }

    #[test]
    fn a_bad_file_at_the_start_is_an_error() {
        let desk = Desk::new();
        desk.write("alice: 10.0.0.1:5900\n\nbob\n");
        let error = TokenTable::open(&TokenFile { path: desk.file() }).unwrap_err().to_string();
        assert!(error.ends_with("tokens.cfg:3: this is not of the form \"token: host:port\"; a colon and a space divide the two"), "{error}");
        let error = TokenTable::open(&TokenFile { path: "/dev/null".into() }).unwrap_err().to_string();
        assert_eq!(error, "/dev/null is neither a file nor a directory; name a file with tokens");
        let error = TokenTable::open(&TokenFile { path: desk.directory.path().join("none") })
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot read the tokens in /") && error.contains("/none: No such file"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_looks_every_second_and_ends_when_it_is_told_to() {
        let desk = Desk::new();
        let stop = CancellationToken::new();
        let watch = tokio::spawn(Arc::clone(&desk.table).watch(stop.clone()));
        desk.write("new: 10.0.0.2:5900\n");
        tokio::time::sleep(EVERY / 2).await;
        assert!(find(&desk.table, "old").is_some(), "it looked too early");
        tokio::time::sleep(EVERY).await;
        assert!(find(&desk.table, "new").is_some(), "it did not look");
        stop.cancel();
        watch.await.unwrap();
        desk.write("late: 10.0.0.2:5900\n");
        tokio::time::sleep(EVERY * 5).await;
        assert!(find(&desk.table, "new").is_some(), "it still looks");
        assert_eq!(Arc::strong_count(&desk.table), 1, "somebody still holds the table");
    }

    #[test]
    fn lookups_and_reloads_do_not_disturb_each_other() {
        let desk = Desk::new();
        thread::scope(|scope| {
            let looks = scope.spawn(|| {
                for round in 0..50 {
                    desk.rename_into_place(&format!(
                        "old: 10.0.0.1:5900\nround: 10.0.0.2:{}\n",
                        1000 + round
                    ));
                    desk.table.look();
                }
            });
            while !looks.is_finished() {
                assert!(leads(&desk.table, "old", "tcp://10.0.0.1:5900"));
            }
        });
        assert!(leads(&desk.table, "round", "tcp://10.0.0.2:1049"));
    }

    #[test]
    fn debug_shows_no_token() {
        let desk = Desk::new();
        let token = token_of(&RoutePath::Prefix("/".into()), "/old", None).unwrap();
        let shown = format!("{:?} {token:?} {:?}", desk.table, desk.table.watch_state);
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
    fn the_token_of_a_query_is_the_only_one_in_it() {
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
    fn the_token_of_a_path_is_what_the_route_leaves_open() {
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
        assert!(token_of(&exact, "/desk/alice", None).is_none(), "the client chose nothing here");
    }

    #[test]
    fn the_query_goes_before_the_path() {
        let route = RoutePath::Prefix("/desk/".into());
        let token = |query| token_of(&route, "/desk/alice", query).map(|token| token.expose().to_owned());
        assert_eq!(token(Some("token=bob")).as_deref(), Some("bob"));
        assert_eq!(token(Some("lang=de")).as_deref(), Some("alice"));
        assert_eq!(token(Some("token=bob&token=eve")), None);
        assert_eq!(token(Some("token=")), None, "not the one of the path");
    }

    proptest! {
        #[test]
        fn whatever_is_percent_encoded_is_decoded_again(token in "\\PC{1,20}", plain in "[a-zA-Z0-9._~-]{1,20}") {
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
