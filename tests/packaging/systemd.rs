//! The systemd units match the program, and the program notifies systemd correctly.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use portcullis::{
    config::{Config, Timeouts},
    gateway::Prepared,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis");
/// How long the program may take for immediate actions.
const TIMEOUT: Duration = Duration::from_secs(20);

const PLAIN: &str = r#"
[[listener]]
address = "127.0.0.1:0"

[[route]]
name = "vnc"
path = "/vnc"
backend = "tcp://127.0.0.1:5900"

[log]
format = "json"
"#;

fn unit_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd/portcullis.service")
}

/// The unit's directives; each of those read here must occur once.
fn directives() -> BTreeMap<String, Vec<String>> {
    let mut directives = BTreeMap::<String, Vec<String>>::new();
    let text = fs::read_to_string(unit_file()).expect("the unit is there");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some((key, value)) = line.split_once('=') {
            directives.entry(key.to_owned()).or_default().push(value.to_owned());
        }
    }
    directives
}

fn directive(key: &str) -> String {
    match directives().get(key).map(Vec::as_slice) {
        Some([value]) => value.clone(),
        other => panic!("{key}= should stand once in the unit, found {other:?}"),
    }
}

/// Runs systemd-analyze. `None`, with a message, if it is not installed; with `CI=true` that is a failure.
fn systemd_analyze(arguments: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            let words = format!(
                "skipped: cannot run systemd-analyze ({error}); Debian has it in the package systemd"
            );
            assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{words}");
            eprintln!("{words}");
            None
        }
    }
}

fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn systemd_accepts_the_other_units() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["portcullis.service", "portcullis@.service", "portcullis.socket"] {
        let text = fs::read_to_string(unit_file().with_file_name(name)).unwrap();
        fs::write(directory.path().join(name), text.replace("/usr/bin/portcullis", PROGRAM)).unwrap();
    }
    for name in ["portcullis@.service", "portcullis.socket"] {
        let file = directory.path().join(name);
        let Some(output) = systemd_analyze(&["verify", "--man=no", file.to_str().unwrap()]) else { return };
        assert!(
            output.status.success() && output_text(&output).is_empty(),
            "{name}: {}",
            output_text(&output)
        );
    }
}

#[test]
fn systemd_accepts_the_unit() {
    let text = fs::read_to_string(unit_file()).unwrap();
    let here = text.replace("/usr/bin/portcullis", PROGRAM);
    assert_ne!(text, here, "the unit no longer starts /usr/bin/portcullis");
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("portcullis.service");
    let verify = |text: &str| {
        fs::write(&copy, text).unwrap();
        systemd_analyze(&["verify", "--man=no", copy.to_str().unwrap()])
    };
    let Some(output) = verify(&here) else { return };
    assert!(
        output.status.success() && output_text(&output).is_empty(),
        "{}: {}",
        output.status,
        output_text(&output)
    );
    // A defect would have been reported.
    let wrong = verify(&here.replace("LockPersonality=", "LockPersonalty=")).unwrap();
    assert!(
        output_text(&wrong).contains("LockPersonalty"),
        "a wrong key was not noticed: {}",
        output_text(&wrong)
    );
}

#[test]
fn the_sandbox_has_a_low_exposure_level() {
    let unit = unit_file();
    let security = ["security", "--offline=true", "--threshold=15", "--no-pager", unit.to_str().unwrap()];
    let Some(output) = systemd_analyze(&security) else { return };
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(
        output_text(&output).contains("Overall exposure level"),
        "nothing was rated: {}",
        output_text(&output)
    );
}

#[test]
fn the_unit_has_room_for_the_default_limits() {
    let config = Config::parse(PLAIN, Path::new("gateway.toml")).unwrap();
    let needed = Prepared::load(config).unwrap().descriptors();
    let allowed: u64 = directive("LimitNOFILE").parse().unwrap();
    assert!(allowed >= needed, "LimitNOFILE={allowed} is less than the {needed} that the defaults can need");
    let grouped = format!("{},{:03}", needed / 1000, needed % 1000);
    let text = fs::read_to_string(unit_file()).unwrap();
    assert!(text.contains(&format!("= {grouped}")), "the unit's arithmetic should come to {grouped}");
}

#[test]
fn systemd_waits_for_the_drain() {
    let stop = humantime::parse_duration(&directive("TimeoutStopSec")).unwrap();
    let drain = Timeouts::default().drain;
    assert!(stop > drain, "systemd would kill after {stop:?} what may take {drain:?}");
}

#[test]
fn the_unit_starts_this_program_and_does_not_retry_permanent_errors() {
    let command = directive("ExecStart");
    let mut words = command.split(' ');
    assert_eq!(words.next(), Some("/usr/bin/portcullis"));
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("gateway.toml");
    let arguments: Vec<&str> = words
        .map(|word| if word == "/etc/portcullis/gateway.toml" { missing.to_str().unwrap() } else { word })
        .collect();
    assert!(arguments.contains(&missing.to_str().unwrap()), "{command}");
    let unusable = Command::new(PROGRAM).args(&arguments).output().unwrap();
    let misused = Command::new(PROGRAM).arg("--no-such-option").output().unwrap();
    let prevented = directive("RestartPreventExitStatus");
    for output in [unusable, misused] {
        let code = output.status.code().unwrap().to_string();
        assert!(prevented.split(' ').any(|status| status == code), "{code}: {}", output_text(&output));
    }
    assert_eq!(directives().get("ExecStartPre"), None, "systemd would restart it for ever");
}

/// A running program, stopped with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_service_manager_is_notified_of_readiness_and_stop() {
    assert_eq!(directive("Type"), "notify");
    assert_eq!(directive("KillSignal"), "SIGTERM");
    let Managed { directory: _directory, socket, mut command, .. } = managed();
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut running = Running(child);

    assert_eq!(notification(&socket), "READY=1");
    // Then the listener is open. The line was logged before systemd was notified.
    let address = listening(&mut log);
    TcpStream::connect_timeout(&address, TIMEOUT).unwrap_or_else(|error| panic!("{address}: {error}"));

    let pid = running.0.id().to_string();
    assert!(Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &pid]).status().unwrap().success());
    assert_eq!(notification(&socket), "STOPPING=1");
    let deadline = Instant::now() + TIMEOUT;
    let status = loop {
        if let Some(status) = running.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "still running {TIMEOUT:?} after SIGTERM without a session");
        thread::yield_now();
    };
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(status.success(), "{status}: {rest}");
}

/// The program with its own configuration, and the notification socket of its service manager.
struct Managed {
    directory: tempfile::TempDir,
    config: PathBuf,
    socket: UnixDatagram,
    command: Command,
}

fn managed() -> Managed {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("gateway.toml");
    fs::write(&config, PLAIN).expect("a file");
    let manager = directory.path().join("notify");
    let socket = UnixDatagram::bind(&manager).expect("a socket");
    socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let mut command = Command::new(PROGRAM);
    command.arg("run").arg("--config").arg(&config).env("NOTIFY_SOCKET", &manager);
    Managed { directory, config, socket, command }
}

/// The next notification other than the status.
fn notification(socket: &UnixDatagram) -> String {
    loop {
        let output_text = next_notification(socket);
        if !output_text.starts_with("STATUS=") {
            return output_text;
        }
    }
}

fn next_notification(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no notification in time: {error}"));
    String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
}

#[test]
fn the_watchdog_is_notified_and_the_status_has_counts() {
    let Managed { directory: _directory, socket, mut command, .. } = managed();
    command.stderr(Stdio::null());
    // systemd would wait for half a second.
    let _running = Running(command.env("WATCHDOG_USEC", "500000").spawn().unwrap());
    let (mut moved, mut status) = (Vec::new(), None);
    while moved.len() < 4 || status.is_none() {
        let output_text = next_notification(&socket);
        match output_text.strip_prefix("STATUS=") {
            Some(words) => status = Some(words.to_owned()),
            None if output_text == "WATCHDOG=1" => moved.push(Instant::now()),
            None => assert_eq!(output_text, "READY=1"),
        }
    }
    let status = status.unwrap();
    assert!(status.starts_with("0 of at most 9000 sessions"), "{status}");
    let pace = (moved[3] - moved[1]) / 2;
    assert!(pace < Duration::from_millis(500), "it notified only every {pace:?}");
}

#[test]
fn the_service_manager_is_notified_of_a_reloads_begin_and_end() {
    let Managed { directory: _directory, config, socket, mut command } = managed();
    command.stderr(Stdio::null());
    let running = Running(command.spawn().unwrap());
    assert_eq!(notification(&socket), "READY=1");
    let pid = running.0.id().to_string();
    let mut before = 0;
    // With either result, systemd waits for the end (systemd.service(5), Type=notify-reload).
    for text in [PLAIN.to_owned(), PLAIN.replace("vnc", "desk"), PLAIN.replace("path", "pth")] {
        fs::write(&config, text).unwrap();
        assert!(Command::new("sh").args(["-c", "kill -HUP \"$1\"", "sh", &pid]).status().unwrap().success());
        let output_text = notification(&socket);
        let since = output_text
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap_or_else(|| panic!("{output_text:?}"));
        let since: u64 = since.parse().unwrap_or_else(|_| panic!("{output_text:?}"));
        assert!(since > before, "the clock of the system only goes forward: {since} after {before}");
        before = since;
        assert_eq!(notification(&socket), "READY=1");
    }
}

#[test]
fn both_services_differ_only_in_their_sockets() {
    let [one, other] = ["portcullis.service", "portcullis@.service"].map(|name| {
        let text = fs::read_to_string(unit_file().with_file_name(name)).unwrap();
        let directives = text.lines().filter(|line| line.contains('=') && !line.starts_with('#'));
        directives.map(str::to_owned).collect::<Vec<_>>()
    });
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).cloned().collect()
    };
    assert_eq!(
        only(&one, &other),
        ["Description=Portcullis, a WebSocket-to-TCP gateway", "WantedBy=multi-user.target"]
    );
    assert_eq!(
        only(&other, &one),
        ["Description=Portcullis, a WebSocket-to-TCP gateway (%i)", "Sockets=portcullis.socket"]
    );
}

/// The address of the first listener, by the log.
fn listening(log: &mut impl BufRead) -> SocketAddr {
    let mut seen = String::new();
    for line in log.lines() {
        let line = line.expect("the log can be read");
        let entry: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        if entry["message"] == "listening" {
            let address = entry["address"].as_str().expect("the line has an address");
            return address.parse().expect("it is a socket's address");
        }
        seen += &line;
    }
    panic!("no listener in the log: {seen}")
}
