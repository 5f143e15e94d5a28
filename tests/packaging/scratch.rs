//! A disposable system: all files of this machine, seen through an overlay that keeps what is written
//! in memory, with its own network. It ends with the test, and leaves nothing behind.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{installed, run_ok, skip};

/// Mounts the system below the directory `$1`, with the file `$2` in it, and keeps it until standard input ends.
const HOLD: &str = r#"
set -eu
mount -t tmpfs -o mode=755 scratch "$1"
cd "$1"
mkdir upper work system
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay system
mount -t proc proc system/proc
mount --rbind /dev system/dev
mount -t tmpfs -o mode=755 run system/run
cp "$2" system/run/
ip link set lo up
echo ready
exec cat
"#;

/// What a package manager writes for itself, and tools that it triggers. It may remain after a removal.
const ITS_OWN: &[&str] = &[
    "var/cache/",
    "var/lib/dpkg/",
    "var/log/",
    // Backups that useradd and userdel make.
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
];

/// The system. Dropping it removes all its mounts.
pub(crate) struct Scratch {
    holder: Child,
    /// On this machine it stays empty: the mounts exist only in the holder's namespace.
    directory: TempDir,
}

impl Scratch {
    /// A system with a copy of this file in `/run`; `None`, with a message, where it cannot be created.
    pub(crate) fn with(file: &Path) -> Option<Self> {
        for program in ["unshare", "nsenter", "ip"] {
            installed(program, "packaging")?;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let mut holder = Command::new("unshare")
            .args(["--mount", "--net", "sh", "-c", HOLD, "sh"])
            .args([directory.path(), file])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line).expect("text");
        if line == "ready\n" {
            return Some(Self { holder, directory });
        }
        let output = holder.wait_with_output().expect("the program starts");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let forbidden = ["Operation not permitted", "ermission denied"].iter().any(|why| words.contains(why));
        assert!(forbidden, "no scratch system: {words}");
        skip(&format!("no scratch system, which needs root: {words}"));
        None
    }

    /// The root directory of the system, as its own processes see it.
    pub(crate) fn system(&self) -> PathBuf {
        self.directory.path().join("system")
    }

    /// A program of this machine in the system's mount and network namespaces.
    pub(crate) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--target", &self.holder.id().to_string()]);
        command
    }

    /// A program in this system, with the environment of a login of root.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = self.enter();
        command.arg("chroot").arg(self.system());
        command.args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]);
        command.args(["DEBIAN_FRONTEND=noninteractive", program]);
        command
    }

    /// The output of a shell line in this system; fails if the line does.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> String {
        run_ok(self.command("sh").args(["-euc", line]))
    }

    /// The files that differ from this machine's, or do not exist on it, except a package manager's own.
    pub(crate) fn changed(&self) -> BTreeSet<PathBuf> {
        let upper = self.directory.path().join("upper");
        let listed =
            run_ok(self.enter().arg("find").arg(&upper).args(["-mindepth", "1", "-printf", "%y %P\\n"]));
        let mut changed = BTreeSet::new();
        for line in listed.lines() {
            let (kind, path) = line.split_once(' ').expect("a type and a path");
            let here = Path::new("/").join(path);
            let same = match kind {
                "d" => here.is_dir(),
                "f" => fs::read(&here).is_ok_and(|bytes| bytes == self.bytes(&upper.join(path))),
                _ => false,
            };
            let its_own = ITS_OWN.iter().any(|own| format!("{path}/").starts_with(own) || path == *own);
            if !same && (!its_own || path.contains("portcullis")) {
                changed.insert(here);
            }
        }
        changed
    }

    fn bytes(&self, path: &Path) -> Vec<u8> {
        let output = self.enter().arg("cat").arg(path).output().expect("the program starts");
        assert!(output.status.success(), "{}: {}", path.display(), output.status);
        output.stdout
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The end of its standard input is enough, but a failed test should not wait for it.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
