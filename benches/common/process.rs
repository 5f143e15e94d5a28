//! Child processes of the benchmark; they end with it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    time::ClockId,
    unistd::Pid,
};

/// How long to wait for a line of a program's output.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a program may take to stop after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A running program. Dropping it sends SIGTERM, and SIGKILL after [`STOP_TIMEOUT`].
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a program and reads its standard output line by line, or its standard error if `stderr`. The other stream is
    /// discarded if it is standard output, and inherited if it is standard error.
    pub(super) fn start(name: &str, command: &mut Command, stderr: bool) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped());
        if stderr {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        } else {
            command.stdout(Stdio::piped());
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {name} ({command:?})"))?;
        let (sender, lines) = mpsc::channel();
        let output: Box<dyn std::io::Read + Send> = match (child.stdout.take(), child.stderr.take()) {
            (Some(output), _) => Box::new(output),
            (None, Some(output)) => Box::new(output),
            (None, None) => bail!("{name}: no output to read"),
        };
        thread::spawn(move || {
            // Keeps reading even without a receiver: a full pipe would block the program.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self { name: name.to_owned(), child, lines })
    }

    /// Starts this executable in a role.
    pub(super) fn role(role: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        Self::start(role.first().copied().unwrap_or("role"), command.arg("--role").args(role), false)
    }

    /// The same with the lowest priority: it takes no processor time from the others.
    pub(super) fn nice_role(role: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(std::env::current_exe()?).arg("--role").args(role);
        Self::start(role.first().copied().unwrap_or("role"), &mut command, false)
    }

    /// Waits for the next line of output.
    pub(super) fn read_line(&self) -> anyhow::Result<String> {
        match self.lines.recv_timeout(OUTPUT_TIMEOUT) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("{}: no output for {OUTPUT_TIMEOUT:?}", self.name),
            Err(RecvTimeoutError::Disconnected) => bail!("{}: exited early", self.name),
        }
    }

    /// The next line of output, if it is there already.
    pub(super) fn try_read_line(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    pub(super) fn stdin(&mut self) -> anyhow::Result<&mut ChildStdin> {
        self.child.stdin.as_mut().with_context(|| format!("{}: no standard input", self.name))
    }

    /// kill -9, without waiting for its end.
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL)?)
    }

    /// The process ids of the program and all its descendants.
    pub(crate) fn tree(&self) -> Vec<u32> {
        let mut tree = vec![self.child.id()];
        let mut next = 0;
        while let Some(pid) = tree.get(next).copied() {
            next += 1;
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = std::fs::read_to_string(path).unwrap_or_default();
            tree.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        tree
    }
}

impl Process {
    /// The processor time that all processes of the program have used, including those that have exited.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut spent = Duration::ZERO;
        for pid in self.tree() {
            // A child may exit meanwhile; its time then counts as its parent's.
            let Ok(clock) = ClockId::pid_cpu_clock_id(Pid::from_raw(pid as i32)) else { continue };
            if let Ok(own) = clock.now() {
                spent += Duration::from(own);
            }
            spent += time_of_exited_children(pid);
        }
        Ok(spent)
    }
}

/// cutime and cstime, fields 16 and 17 of /proc/PID/stat, in hundredths of a second.
fn time_of_exited_children(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command name, field 2, may contain any character, but it ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 =
        fields.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let end = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
