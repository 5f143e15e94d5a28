//! The Debian package on a running system: systemd starts the service, and the maintainer scripts talk to
//! systemd.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    deb::{INSTALL, PLAIN_HTTP, TIMEOUT, package},
    installed, output_text, run_ok,
    scratch::Scratch,
};

/// How long a system may take to boot.
const BOOT: Duration = Duration::from_secs(120);

/// A scratch system with systemd as its first process, in a container of its own.
pub(crate) struct Booted {
    nspawn: Child,
    /// The process id of the first process, as seen from this machine.
    first: String,
    _system: Scratch,
}

impl Booted {
    pub(crate) fn new(system: Scratch) -> Option<Self> {
        installed("systemd-nspawn", "packaging")?;
        // Services of this machine stay off, and no policy forbids those of packages.
        system.sh(
            "rm -rf /etc/systemd/system/*.wants /usr/sbin/policy-rc.d; mkdir -p /opt; cp /run/portcullis_*.deb /opt
             echo 0123456789abcdef0123456789abcdef > /etc/machine-id",
        );
        // Containers mount these themselves.
        let theirs = ["dev", "proc", "run"].map(|name| system.system().join(name));
        run_ok(system.enter().args(["umount", "--lazy"]).args(theirs));
        let mut command = system.enter();
        command.arg("systemd-nspawn").arg("--directory").arg(system.system());
        command.args([
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "--console=pipe",
        ]);
        let mut nspawn = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let console = nspawn.stdout.take().expect("it is piped");
        // Drain the console, which must not block.
        thread::spawn(move || BufReader::new(console).lines().for_each(drop));
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        let mut booted = Self { nspawn, first: String::new(), _system: system };
        let deadline = Instant::now() + BOOT;
        let mut seen = String::new();
        while Instant::now() < deadline {
            if let Some(status) = booted.nspawn.try_wait().expect("a child") {
                let words = std::io::read_to_string(booted.nspawn.stderr.take().expect("it is piped"));
                panic!("the container has ended: {status}: {words:?}");
            }
            booted.first = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            if !booted.first.is_empty() && !booted.first.contains(' ') {
                let asked = booted
                    .command("systemctl")
                    .arg("is-system-running")
                    .output()
                    .expect("the program starts");
                seen = output_text(&asked).trim().to_owned();
                if ["running", "degraded"].contains(&seen.as_str()) {
                    return Some(booted);
                }
            }
            thread::yield_now();
        }
        panic!("not booted in {BOOT:?}: {seen:?}")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        command.args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", program]);
        command
    }

    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> String {
        run_ok(self.command("sh").args(["-euc", line]))
    }

    /// Installs the package, which starts nothing.
    #[track_caller]
    pub(crate) fn install(&self) {
        self.sh(&INSTALL.replace("/run/", "/opt/"));
    }

    /// The process id of the first process, as seen from this machine.
    pub(crate) fn first(&self) -> &str {
        &self.first
    }

    /// Writes a file, and creates its directory.
    #[track_caller]
    pub(crate) fn write(&self, path: &str, text: &str) {
        let mut command = self.command("sh");
        command.args(["-euc", "mkdir -p \"$(dirname \"$1\")\" && cat > \"$1\"", "sh", path]);
        let mut writing = command.stdin(Stdio::piped()).spawn().expect("a shell");
        let mut input = writing.stdin.take().expect("it is piped");
        std::io::Write::write_all(&mut input, text.as_bytes()).expect("a shell that reads");
        drop(input);
        assert!(writing.wait().expect("a shell").success(), "{path} cannot be written");
    }

    /// Polls until a condition holds.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !holds() {
            let seen = || self.sh("systemctl status --no-pager --full portcullis.service || true");
            assert!(Instant::now() < deadline, "{what}: not within {TIMEOUT:?}: {}", seen());
        }
    }

    /// The process id of the running service.
    #[track_caller]
    pub(crate) fn running(&self) -> String {
        let status = self.sh("systemctl status --no-pager --full portcullis.service || true");
        let process =
            self.sh("systemctl show --property MainPID --value portcullis.service").trim().to_owned();
        assert!(process != "0" && status.contains("active (running)"), "{status}");
        process
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // When its first process ends, all others in the container end too.
        if !self.first.is_empty() && matches!(self.nspawn.try_wait(), Ok(None)) {
            let _ = Command::new("kill").args(["-KILL", &self.first]).status();
        }
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline && !matches!(self.nspawn.try_wait(), Ok(Some(_)) | Err(_)) {
            thread::yield_now();
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

#[test]
#[ignore = "needs cargo-deb, systemd-nspawn and root: tests/run --only packaging"]
fn systemd_runs_the_installed_service_until_the_package_is_removed() {
    let Some(machine) = package().and_then(Scratch::with).and_then(Booted::new) else { return };
    let install = INSTALL.replace("/run/", "/opt/");
    machine.sh(&install);
    let idle = machine.sh("systemctl is-active portcullis.service portcullis.socket || true");
    assert_eq!(idle, "inactive\ninactive\n", "it starts before the administrator has configured it");

    machine.sh("systemctl enable --now portcullis.service");
    let first = machine.running();
    let user = machine.sh(&format!("stat --format %u /proc/{first}"));
    assert_ne!(user.trim(), "0", "it runs as root");
    let answer = machine.command("bash").args(["-c", PLAIN_HTTP]).output().unwrap();
    assert!(output_text(&answer).contains("this port speaks TLS"), "{}", output_text(&answer));
    machine.sh("portcullis check --config /etc/portcullis/gateway.toml");

    machine.sh(&install);
    assert_ne!(machine.running(), first, "the upgrade did not restart it");

    // With every running unit, even one beside the service.
    for unit in ["portcullis.service", "portcullis@2.service"] {
        machine.sh(&format!("{install}; systemctl start {unit}; systemctl is-active {unit}"));
        machine.sh("dpkg --no-triggers --remove portcullis");
        assert_eq!(machine.sh("pidof portcullis || true"), "", "{unit} still runs after the removal");
        assert_eq!(
            machine.sh("systemctl is-active portcullis.socket || true"),
            "inactive\n",
            "the socket is open without a service"
        );
    }
    machine.sh("dpkg --no-triggers --purge portcullis");
    let left = machine.sh(
        "find /etc /run /usr /var -xdev -name '*portcullis*' -not -path '/run/log/*' -not -path '/var/tmp/*'",
    );
    assert_eq!(left, "", "these files remain");
}
