//! The Debian package: built as for users, installed into a disposable system, started, stopped,
//! removed and purged.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::{
    PROGRAM, built, generated::commands, installed, output_text, read, root, run_ok, scratch::Scratch,
};

/// How long the program may take for immediate actions.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);
const CONFIG: &str = "/etc/portcullis/gateway.toml";
/// What the unit passes in the environment, for runs without the unit.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY=/etc/portcullis";
/// Installs the package in a scratch system. Triggers would only rebuild the index of manual pages.
pub(crate) const INSTALL: &str = "dpkg --no-triggers --install /run/portcullis_*.deb";

/// The package, built once for all tests. `None`, with a message, where it cannot be built.
pub(crate) fn package() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    for program in ["cargo-deb", "dpkg-deb", "dpkg-shlibdeps", "strip", "gzip"] {
        installed(program, "packaging deb")?;
    }
    // The result of an earlier run.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deb");
    if directory.exists() {
        fs::remove_dir_all(&directory).expect("it can be removed");
    }
    fs::create_dir_all(&directory).expect("a directory");
    let (profile, target) = built();
    let profile = match profile.file_name().expect("a name").to_str().expect("UTF-8") {
        "debug" => "dev",
        name => name,
    };
    run_ok(
        Command::new(root().join("packaging/deb/build"))
            .args(["--profile", profile, "--no-build"])
            // This package is not for download.
            .args(["--fast", "--compress-type", "gz", "--compress-system", "--output"])
            .arg(&directory)
            .env("CARGO_TARGET_DIR", target),
    );
    let mut files = fs::read_dir(&directory)
        .expect("it can be listed")
        .map(|entry| entry.expect("it can be listed").path());
    let package = files.next().expect("a package was built");
    assert_eq!(files.next(), None, "one package, and nothing else");
    Some(package)
}

fn dpkg_deb(arguments: &[&str], package: &Path) -> String {
    run_ok(Command::new("dpkg-deb").args(arguments).arg(package))
}

/// The files in the package, by the path they are installed to.
fn contents(package: &Path) -> BTreeSet<String> {
    let archive =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).output().expect("the program starts");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("files.tar");
    fs::write(&file, archive.stdout).expect("a file");
    let listed = run_ok(Command::new("tar").arg("--list").arg("--file").arg(&file));
    listed
        .lines()
        .filter(|line| !line.ends_with('/'))
        .map(|line| line.trim_start_matches('.').to_owned())
        .collect()
}

#[test]
#[ignore = "needs cargo-deb: tests/run --only packaging"]
fn the_package_has_all_files_and_metadata() {
    let Some(package) = package() else { return };
    let mut wanted: BTreeSet<String> = [
        "/usr/bin/portcullis",
        CONFIG,
        "/etc/logrotate.d/portcullis",
        "/usr/share/bash-completion/completions/portcullis",
        "/usr/share/zsh/vendor-completions/_portcullis",
        "/usr/share/fish/vendor_completions.d/portcullis.fish",
        "/usr/share/man/man1/portcullis.1.gz",
        "/usr/share/doc/portcullis/README.md",
        "/usr/share/doc/portcullis/copyright",
        "/usr/share/doc/portcullis/LICENSE-APACHE",
        "/usr/share/doc/portcullis/LICENSE-MIT",
        "/usr/share/doc/portcullis/changelog.Debian.gz",
    ]
    .map(str::to_owned)
    .into();
    wanted.extend(commands().iter().map(|name| format!("/usr/share/man/man1/portcullis-{name}.1.gz")));
    for (from, to) in [
        ("packaging/observability", "/usr/share/doc/portcullis/observability"),
        ("docs", "/usr/share/doc/portcullis/docs"),
        ("docs/images", "/usr/share/doc/portcullis/docs/images"),
    ] {
        let files = fs::read_dir(root().join(from)).unwrap().map(|entry| entry.unwrap());
        let files = files.filter(|file| file.file_type().unwrap().is_file());
        wanted.extend(files.map(|file| format!("{to}/{}", file.file_name().to_str().unwrap())));
    }
    for file in fs::read_dir(root().join("packaging/systemd")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        // The drop-in is an example to copy.
        let place =
            if name.ends_with(".conf") { "share/doc/portcullis/systemd" } else { "lib/systemd/system" };
        wanted.insert(format!("/usr/{place}/{name}"));
    }
    assert_eq!(contents(package), wanted);

    let field = |name: &str| dpkg_deb(&["--show", "--showformat", &format!("${{{name}}}")], package);
    assert_eq!(field("Package"), "portcullis");
    assert_eq!(field("Version"), format!("{}-1", env!("CARGO_PKG_VERSION")));
    assert!(field("Depends").contains("libc6 (>= "), "no C library: {}", field("Depends"));
    assert!(field("Description").contains("WebSocket-to-TCP gateway"), "{}", field("Description"));
    assert_eq!(dpkg_deb(&["--info"], package).matches("/etc/").count(), 0, "a path in what apt shows");
    let conffiles = run_ok(Command::new("dpkg-deb").arg("--info").arg(package).arg("conffiles"));
    let mut conffiles: Vec<&str> = conffiles.trim().lines().collect();
    conffiles.sort_unstable();
    assert_eq!(conffiles, ["/etc/logrotate.d/portcullis", CONFIG], "what an administrator edits");
    for script in ["postinst", "prerm", "postrm"] {
        let text = run_ok(Command::new("dpkg-deb").arg("--info").arg(package).arg(script));
        assert!(!text.contains("#DEBHELPER#") && text.contains("deb-systemd-"), "{script}: {text}");
    }
}

/// The configuration in the package: the one of the tree, with the certificate that the unit passes.
fn shipped() -> String {
    let text = read("gateway.toml");
    let shipped = text
        .replace("\ncertificate = \"certs/localhost.crt\"\n", "\ncertificate = \"credential:tls.crt\"\n")
        .replace("\nprivate_key = \"certs/localhost.key\"\n", "\nprivate_key = \"credential:tls.key\"\n");
    assert_eq!(shipped.matches("= \"credential:").count(), 2, "{shipped}");
    shipped
}

/// A program in a scratch system, stopped with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts the installed program with the installed configuration, and waits until it reports readiness.
    fn start(system: &Scratch) -> Self {
        // The path is the same inside: sockets that this machine creates after the start are visible there.
        let directory =
            tempfile::Builder::new().prefix("notify").tempdir_in("/dev/shm").expect("a directory");
        let path = directory.path().join("socket");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(TIMEOUT)).expect("a deadline");
        let mut command = system.command("env");
        command.arg(format!("NOTIFY_SOCKET={}", path.display())).arg(CREDENTIALS);
        command.args(["/usr/bin/portcullis", "run", "--config", CONFIG]).stderr(Stdio::piped());
        let mut running = Self(command.spawn().expect("the program starts"));
        let mut buffer = [0; 4096];
        match socket.recv(&mut buffer) {
            Ok(_) if buffer.starts_with(b"READY=1") => {}
            other => {
                let _ = running.0.kill();
                panic!("not ready: {other:?}: {}", running.log());
            }
        }
        running
    }

    fn log(&mut self) -> String {
        let mut log = String::new();
        self.0.stderr.take().expect("it is piped").read_to_string(&mut log).expect("text");
        log
    }

    /// Sends SIGTERM, and waits until it has stopped.
    fn stop(mut self) {
        run_ok(Command::new("kill").arg(self.0.id().to_string()));
        let deadline = Instant::now() + TIMEOUT;
        while self.0.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "still running {TIMEOUT:?} after SIGTERM without a session");
            std::thread::yield_now();
        }
        let status = self.0.wait().expect("a child");
        let log = self.log();
        assert!(status.success() && log.contains("stopped"), "{status}: {log}");
    }
}

#[test]
#[ignore = "needs cargo-deb and root: tests/run --only packaging"]
fn the_package_is_installed_started_stopped_removed_and_purged() {
    let Some(system) = package().and_then(Scratch::with) else { return };
    assert_eq!(system.changed(), BTreeSet::new(), "the system differs before the installation");

    // Advice after the installation; nothing runs, and nothing will at the next boot.
    let words = system.sh(INSTALL);
    let enabled = system.sh("systemctl is-enabled portcullis.service || true");
    assert_eq!(enabled.trim(), "disabled", "it starts before the administrator has configured it");
    assert_eq!(system.sh(&format!("cat {CONFIG}")), shipped());
    assert_eq!(system.sh("portcullis --version"), run_ok(Command::new(PROGRAM).arg("--version")));
    let unit = system.sh("cat /usr/lib/systemd/system/portcullis.service");
    assert_eq!(system.sh("getent passwd portcullis || true"), "", "the unit needs no user");
    let page = system.sh("gzip -dc /usr/share/man/man1/portcullis.1.gz");
    assert!(page.starts_with(".") && page.contains("portcullis\\-check(1)"), "{page}");

    // As the advice says.
    assert!(words.contains(&format!("{CREDENTIALS} portcullis check --config {CONFIG}")), "{words}");
    let good = system.sh(&format!("{CREDENTIALS} portcullis check --config {CONFIG}"));
    assert!(good.contains("good, 1 listener(s), 1 route(s)"), "{good}");
    let handed_over: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("LoadCredential=")?.split_once(':'))
        .map(|(_, file)| file)
        .collect();
    assert!(!handed_over.is_empty(), "the unit passes no credentials: {unit}");
    for file in handed_over {
        assert!(system.sh(&format!("cat {file}")).starts_with("-----BEGIN "), "{file}");
    }
    assert_eq!(system.sh("stat --dereference --format %a /etc/portcullis/tls.key").trim(), "600");

    let running = Running::start(&system);
    let answer = system.command("bash").args(["-c", PLAIN_HTTP]).output().unwrap();
    assert!(output_text(&answer).contains("this port speaks TLS"), "{}", output_text(&answer));
    running.stop();

    system.sh("systemctl enable portcullis.service");
    // As systemd does for the unit.
    system.sh("cd /var/log && mkdir -p private/portcullis && ln -s private/portcullis && touch portcullis/sessions.log");
    system.sh("dpkg --no-triggers --remove portcullis");
    assert_eq!(system.sh("command -v portcullis || true"), "", "removed");
    assert_eq!(system.sh(&format!("cat {CONFIG}")), shipped(), "only a purge removes this");
    system.sh("dpkg --no-triggers --purge portcullis");
    assert_eq!(system.changed(), BTreeSet::new(), "these files remain");
}

/// A plain HTTP request, whose answer shows which program listens at the shipped address.
pub(crate) const PLAIN_HTTP: &str = r#"
exec 3<>/dev/tcp/127.0.0.1/8443
printf 'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n' >&3
cat <&3
"#;

#[test]
#[ignore = "needs cargo-deb and root: tests/run --only packaging"]
fn local_edits_survive_an_upgrade_and_foreign_files_survive_a_purge() {
    let Some(system) = package().and_then(Scratch::with) else { return };
    system.sh(INSTALL);
    system.sh("cd /etc/portcullis && rm tls.key && echo mine > tls.key");
    system.sh(&format!("echo '# mine' >> {CONFIG}"));
    system.sh("systemctl enable portcullis.service");

    // Installing the same version again is an upgrade: it asks no question, and gives no advice.
    let words = system.sh(INSTALL);
    assert!(!words.contains("not started"), "the advice of a first installation: {words}");
    assert_eq!(system.sh("cat /etc/portcullis/tls.key"), "mine\n", "a key is lost");
    assert!(system.sh(&format!("cat {CONFIG}")).ends_with("\n# mine\n"), "an edit is lost");
    assert_eq!(system.sh("systemctl is-enabled portcullis.service").trim(), "enabled");

    system.sh("dpkg --no-triggers --purge portcullis");
    let left = BTreeSet::from(["/etc/portcullis", "/etc/portcullis/tls.key"].map(PathBuf::from));
    assert_eq!(system.changed(), left, "a key that the package did not make, and nothing else");
}
