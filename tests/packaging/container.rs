//! The container image: what its Containerfile must and must not contain, and the image itself where an engine can
//! build it, else its last stage.

use std::{
    collections::BTreeSet,
    env, fmt, fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::{PROGRAM, installed, output_text, read, root, run_ok, skip};

const CONTAINERFILE: &str = "packaging/container/Containerfile";

/// One instruction, with its continued lines joined.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Instruction {
    line: usize,
    name: String,
    rest: String,
}

impl Instruction {
    /// The words after the name.
    fn words(&self) -> impl Iterator<Item = &str> {
        self.rest.split_whitespace()
    }

    /// The words that are not options such as `--from=build`.
    fn arguments(&self) -> Vec<&str> {
        self.words().skip_while(|word| word.starts_with("--")).collect()
    }

    fn option(&self, name: &str) -> Option<&str> {
        let options = self.words().take_while(|word| word.starts_with("--"));
        options.filter_map(|word| word.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('=')).next()
    }

    /// The words of the exec form, which needs no shell: `["a", "b"]`.
    fn exec(&self, behind: &str) -> Option<Vec<String>> {
        let at = self.rest.find(behind)? + behind.len();
        serde_json::from_str(self.rest[at..].trim()).ok()
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {} {}", self.line, self.name, self.rest)
    }
}

fn parse(text: &str) -> Vec<Instruction> {
    let mut instructions = Vec::<Instruction>::new();
    let mut goes_on = false;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (line, more) = line.strip_suffix('\\').map_or((line, false), |line| (line.trim_end(), true));
        match instructions.last_mut() {
            Some(last) if goes_on => last.rest = format!("{} {line}", last.rest),
            _ => {
                let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
                instructions.push(Instruction {
                    line: number + 1,
                    name: name.to_owned(),
                    rest: rest.trim().to_owned(),
                });
            }
        }
        goes_on = more;
    }
    instructions
}

/// The stages: each begins with FROM.
fn stages(instructions: &[Instruction]) -> Vec<&[Instruction]> {
    let mut stages = Vec::new();
    let mut rest = instructions;
    while let Some(next) = rest.iter().skip(1).position(|instruction| instruction.name == "FROM") {
        let (stage, behind) = rest.split_at(next + 1);
        stages.push(stage);
        rest = behind;
    }
    stages.push(rest);
    stages
}

/// Whether the build context excludes a path: the last matching line of `.dockerignore` decides.
fn is_ignored(path: &str, ignore: &str) -> bool {
    let mut out = false;
    for line in ignore.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (keep, pattern) = line.strip_prefix('!').map_or((false, line), |pattern| (true, pattern));
        if pattern == "*" || Path::new(path).starts_with(pattern) {
            out = !keep;
        }
    }
    out
}

/// Every defect of a Containerfile for this tree.
fn defects(text: &str, ignore: &str, tree: &Path) -> Vec<String> {
    const KNOWN: &[&str] =
        &["FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"];
    let mut wrong = Vec::new();
    let instructions = parse(text);
    for other in instructions.iter().filter(|instruction| !KNOWN.contains(&instruction.name.as_str())) {
        wrong.push(format!("{other}: not one of {KNOWN:?}"));
    }
    let stages = stages(&instructions);
    let mut names = Vec::new();
    for stage in &stages {
        let Some(from) = stage.first().filter(|first| first.name == "FROM") else {
            wrong.push("nothing may stand before the first FROM".to_owned());
            continue;
        };
        wrong.extend(base(from));
        for copy in stage.iter().filter(|instruction| instruction.name == "COPY") {
            wrong.extend(sources(copy, &names, ignore, tree));
        }
        names.extend(from.arguments().get(2).map(|name| (*name).to_owned()));
    }
    if let Some(last) = stages.last() {
        wrong.extend(image(last));
    }
    wrong
}

/// A base is `scratch`, or named in full with the tag of one release.
fn base(from: &Instruction) -> Option<String> {
    let image = from.arguments().first().copied().unwrap_or_default();
    if image == "scratch" {
        return None;
    }
    let (name, tag) = image.rsplit_once(':').unwrap_or((image, ""));
    let pinned = tag.chars().filter(|char| *char == '.').count() >= 2;
    let whole = name.split('/').next().is_some_and(|registry| registry.contains('.')) && name.contains('/');
    (!pinned || !whole)
        .then(|| format!("{from}: not the full name of one release, such as registry.example/name:1.2.3"))
}

/// What COPY takes must exist: in the tree and in the build context, or in an earlier stage.
fn sources(copy: &Instruction, earlier: &[String], ignore: &str, tree: &Path) -> Vec<String> {
    let arguments = copy.arguments();
    let Some((_, from)) = arguments.split_last().filter(|(_, from)| !from.is_empty()) else {
        return vec![format!("{copy}: from where to where?")];
    };
    if let Some(stage) = copy.option("from") {
        let known = earlier.iter().any(|name| name == stage);
        return if known { Vec::new() } else { vec![format!("{copy}: there is no stage {stage} before")] };
    }
    let missing = from.iter().filter(|path| !tree.join(path).exists());
    let mut wrong: Vec<String> = missing.map(|path| format!("{copy}: there is no {path}")).collect();
    let ignored = from.iter().filter(|path| is_ignored(path, ignore));
    wrong.extend(ignored.map(|path| format!("{copy}: .dockerignore leaves {path} out")));
    wrong
}

/// The defects of the last stage, which becomes the image.
fn image(stage: &[Instruction]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut once = |name: &str| match stage.iter().filter(|found| found.name == name).collect::<Vec<_>>()[..]
    {
        [one] => Some(one),
        ref other => {
            wrong.push(format!("the image says {name} {} times, and not once", other.len()));
            None
        }
    };
    let (user, expose, health) = (once("USER"), once("EXPOSE"), once("HEALTHCHECK"));
    let (entry, command) = (once("ENTRYPOINT"), once("CMD"));
    for run in stage.iter().filter(|instruction| instruction.name == "RUN") {
        wrong.push(format!("{run}: there is no shell in the image"));
    }
    if let Some(user) = user {
        let numbers: Vec<Option<u32>> = user.rest.split(':').map(|id| id.parse().ok()).collect();
        if !matches!(numbers[..], [Some(1..), Some(1..)]) {
            wrong.push(format!("{user}: not two numbers above 0, which Kubernetes can tell from root"));
        }
    }
    if let Some(expose) = expose.filter(|expose| expose.rest.parse::<u16>().is_err()) {
        wrong.push(format!("{expose}: not one port"));
    }
    if let Some(health) = health {
        let asks = health
            .exec("CMD")
            .filter(|words| words.starts_with(&["/usr/bin/portcullis".to_owned(), "health".to_owned()]));
        if asks.is_none() {
            wrong.push(format!("{health}: does not ask /usr/bin/portcullis health, without a shell"));
        }
        for option in ["interval", "timeout", "start-period", "retries"] {
            if health.option(option).is_none() {
                wrong.push(format!("{health}: says nothing of --{option}"));
            }
        }
    }
    for started in [entry, command].into_iter().flatten() {
        if started.exec("").is_none() {
            wrong.push(format!("{started}: needs a shell"));
        }
    }
    wrong
}

fn good() -> (String, String) {
    (read(CONTAINERFILE), read(".dockerignore"))
}

#[test]
fn the_containerfile_has_no_defects() {
    let (text, ignore) = good();
    let wrong = defects(&text, &ignore, root());
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn defects_of_a_containerfile_are_found() {
    let (text, ignore) = good();
    for (from, to, finding) in [
        ("USER 65532:65532", "USER root", "above 0"),
        ("USER 65532:65532", "USER 0:0", "above 0"),
        ("USER 65532:65532\n", "", "USER 0 times"),
        ("EXPOSE 8443", "EXPOSE all", "not one port"),
        ("rust:1.91.1-slim-bookworm", "rust:latest", "one release"),
        ("docker.io/library/rust:", "rust:", "one release"),
        ("COPY src src", "COPY sources src", "there is no sources"),
        ("COPY src src", "COPY docs docs", ".dockerignore leaves docs out"),
        ("--from=build /image/", "--from=builder /image/", "no stage builder"),
        ("\"health\"", "\"check\"", "does not ask"),
        ("CMD [\"/usr/bin/portcullis\", \"health\"", "CMD /bin/sh -c [\"health\"", "without a shell"),
        ("--retries=3", "", "--retries"),
        ("ENTRYPOINT [\"/usr/bin/portcullis\"]", "ENTRYPOINT /usr/bin/portcullis", "needs a shell"),
        ("EXPOSE 8443", "EXPOSE 8443\nRUN echo hello", "no shell in the image"),
        ("EXPOSE 8443", "EXPOSE 8443\nADD https://example.com/ /", "not one of"),
    ] {
        let wrong = text.replacen(from, to, 1);
        assert_ne!(wrong, text, "{from} is no longer in the Containerfile");
        let defects = defects(&wrong, &ignore, root());
        assert!(
            defects.iter().any(|found| found.contains(finding)),
            "{to}: {finding:?} is not in {defects:?}"
        );
    }
}

#[test]
fn the_image_runs_the_packages_command_at_the_exposed_port() {
    let instructions = parse(&read(CONTAINERFILE));
    let last = *stages(&instructions).last().unwrap();
    let words = |name: &str| last.iter().find(|found| found.name == name).unwrap().exec("").unwrap();
    let line = [words("ENTRYPOINT"), words("CMD")].concat().join(" ");
    assert_eq!(line, "/usr/bin/portcullis run --config /etc/portcullis/gateway.toml");
    // The shipped configuration after the image's own edit.
    let text = read(CONTAINERFILE);
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_suffix(" gateway.toml > /image/etc/portcullis/gateway.toml"));
    let line = line.expect("the configuration that it starts with is not in the image");
    let shell = format!("{line} \"$0\"");
    let made = run_ok(Command::new("sh").args(["-euc", &shell]).arg(root().join("gateway.toml")));
    let made: toml::Table = made.parse().expect("TOML");
    assert_eq!(
        made["admin"]["address"].as_str(),
        Some("127.0.0.1:9101"),
        "the health check uses another address"
    );
    let config: toml::Table = read("gateway.toml").parse().unwrap();
    let shown = last.iter().find(|found| found.name == "EXPOSE").unwrap().rest.clone();
    let listeners = config["listener"].as_array().unwrap();
    let ports: BTreeSet<String> = listeners
        .iter()
        .map(|listener| listener["address"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned())
        .collect();
    assert_eq!(ports, BTreeSet::from([shown]));
}

#[test]
fn the_toolchain_of_the_image_is_recent_enough() {
    let text = read(CONTAINERFILE);
    let (_, behind) = text.split_once("/rust:").expect("it is built in Rust's own image");
    let version = behind.split('-').next().unwrap();
    let parts = |text: &str| text.split('.').map(|part| part.parse().unwrap()).collect::<Vec<u32>>();
    let oldest = parts(env!("CARGO_PKG_RUST_VERSION"));
    assert!(parts(version) >= oldest, "{version} is older than {}", env!("CARGO_PKG_RUST_VERSION"));
}

/// An engine that works.
fn engine() -> Option<&'static str> {
    ["podman", "docker"].into_iter().find(|engine| {
        let asked = Command::new(engine).arg("info").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    })
}

/// Builds the image and runs the program in it. Takes minutes, and needs the network.
fn build_with(engine: &str) {
    let tag = format!("portcullis-test-{}", std::process::id());
    let build = Command::new(engine)
        .args(["build", "--file", CONTAINERFILE, "--tag", &tag, "."])
        .current_dir(root())
        .output()
        .expect("the engine starts");
    assert!(build.status.success(), "{}", output_text(&build));
    let version =
        Command::new(engine).args(["run", "--rm", &tag, "--version"]).output().expect("the engine starts");
    run_ok(Command::new(engine).args(["image", "rm", "--force", &tag]));
    assert!(output_text(&version).contains(env!("CARGO_PKG_VERSION")), "{}", output_text(&version));
}

/// The last stage of the Containerfile, which takes what the first one would have built from a directory.
fn last_stage() -> String {
    let text = read(CONTAINERFILE);
    let start = text.find("FROM scratch").expect("a stage without a base image");
    text[start..].replace("COPY --from=build /", "COPY build/")
}

/// What the first stage makes, but with the program of this test. It is linked dynamically, so its libraries follow it.
fn first_stage(directory: &Path) {
    let build = directory.join("build");
    let image = build.join("image");
    let copy = |from: &Path, to: &Path| {
        fs::create_dir_all(to.parent().expect("a directory")).expect("it can be made");
        fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    };
    let program = image.join("usr/bin/portcullis");
    fs::create_dir_all(image.join("usr/bin")).expect("it can be made");
    // Without its symbols, because each step of the build copies it.
    run_ok(Command::new("strip").arg("-o").arg(&program).arg(PROGRAM));
    copy(&root().join("gateway.toml"), &image.join("etc/portcullis/gateway.toml"));
    let authorities = "etc/ssl/certs/ca-certificates.crt";
    copy(&Path::new("/").join(authorities), &build.join(authorities));
    let libraries = run_ok(Command::new("ldd").arg(PROGRAM));
    for library in libraries.split_whitespace().filter_map(|word| word.strip_prefix('/')) {
        copy(&Path::new("/").join(library), &image.join(library));
    }
    fs::write(directory.join("Containerfile"), last_stage()).expect("a file");
}

/// Builds the last stage with buildah, which needs no base image, and runs the program in it.
fn build_with_buildah() {
    let Some(program) = installed("buildah", "packaging") else { return };
    if !nix::unistd::geteuid().is_root() {
        return skip("buildah needs root to run a container without a user namespace");
    }
    let directory = tempfile::tempdir().expect("a directory");
    first_stage(directory.path());
    let buildah = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env("BUILDAH_ISOLATION", "chroot").current_dir(directory.path());
        command.args(["--storage-driver", "vfs", "--root"]).arg(directory.path().join("store"));
        command.arg("--runroot").arg(directory.path().join("run")).args(arguments);
        run_ok(&mut command)
    };
    buildah(&["bud", "--format", "docker", "--file", "Containerfile", "--tag", "image", "."]);
    let image = buildah(&["inspect", "--type", "image", "image"]);
    for expected in ["\"User\": \"65532:65532\"", "\"8443/tcp\"", "\"Healthcheck\"", "\"Entrypoint\""] {
        assert!(image.contains(expected), "{expected} is not in {image}");
    }
    buildah(&["from", "--name", "container", "image"]);
    let version = buildah(&["run", "container", "--", "/usr/bin/portcullis", "--version"]);
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
#[ignore = "needs buildah and root, or a container engine: tests/run --only packaging"]
fn the_image_can_be_built_and_runs() {
    match engine() {
        Some(engine) => build_with(engine),
        None => build_with_buildah(),
    }
}
