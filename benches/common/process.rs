//! Programs that run beside the benchmark and end with it.

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

/// How long a program may take to say what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a program that was told to end may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// A running program; told to end when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a program whose standard output (or standard error, with `stderr`) is read by lines; the other one is
    /// thrown away, or shown if it is standard error.
    pub(super) fn start(name: &str, command: &mut Command, stderr: bool) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped());
        if stderr {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        } else {
            command.stdout(Stdio::piped());
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {name} ({command:?})"))?;
        let (say, lines) = mpsc::channel();
        let output: Box<dyn std::io::Read + Send> = match (child.stdout.take(), child.stderr.take()) {
            (Some(output), _) => Box::new(output),
            (None, Some(output)) => Box::new(output),
            (None, None) => bail!("{name}: no output to read"),
        };
        thread::spawn(move || {
            // Reads on when nobody listens any more: a full pipe would stop the program.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = say.send(line);
            }
        });
        Ok(Self { name: name.to_owned(), child, lines })
    }

    /// Starts this executable again, in a role.
    pub(super) fn role(role: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        Self::start(role.first().copied().unwrap_or("role"), command.arg("--role").args(role), false)
    }

    /// The next line that the program says.
    pub(super) fn line(&self) -> anyhow::Result<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("{}: said nothing for {PATIENCE:?}", self.name),
            Err(RecvTimeoutError::Disconnected) => bail!("{}: ended early", self.name),
        }
    }

    /// A line that the program has said already, if there is one.
    pub(super) fn line_if_any(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Where orders go.
    pub(super) fn stdin(&mut self) -> anyhow::Result<&mut ChildStdin> {
        self.child.stdin.as_mut().with_context(|| format!("{}: takes no orders", self.name))
    }

    /// The program's processes: itself, and those it started.
    pub(crate) fn tree(&self) -> Vec<u32> {
        let mut tree = vec![self.child.id()];
        let mut at = 0;
        while let Some(pid) = tree.get(at).copied() {
            at += 1;
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = std::fs::read_to_string(path).unwrap_or_default();
            tree.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        tree
    }
}

impl Process {
    /// The processor time that the program has used with all its processes, those that have ended included.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut spent = Duration::ZERO;
        for pid in self.tree() {
            // A child may end between two looks; its time is in its parent's then.
            let Ok(clock) = ClockId::pid_cpu_clock_id(Pid::from_raw(pid as i32)) else { continue };
            if let Ok(own) = clock.now() {
                spent += Duration::from(own);
            }
            spent += time_of_ended_children(pid);
        }
        Ok(spent)
    }
}

/// cutime and cstime, fields 16 and 17 of /proc/PID/stat, in hundredths of a second.
fn time_of_ended_children(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, field 2, may hold anything but ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 =
        fields.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let end = Instant::now() + FAREWELL;
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
