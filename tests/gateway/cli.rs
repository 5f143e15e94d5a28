//! The command line: output and exit codes of right and wrong usage.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use tempfile::TempDir;

use crate::support::{Identity, run};

const OK: i32 = 0;
const FAILURE: i32 = 1;
const USAGE: i32 = 64;
const CONFIG: i32 = 78;

/// The exit code, stdout and stderr.
fn output_of(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code().expect("an exit, not a signal"), text(&output.stdout), text(&output.stderr))
}

/// Expects that exit code, and all of `words` on stderr without a panic or a backtrace.
#[track_caller]
fn assert_fails(output: &Output, code: i32, words: &[&str]) -> String {
    let (seen, stdout, stderr) = output_of(output);
    assert_eq!(seen, code, "{stdout}{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr:?}");
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
    assert_eq!(stdout, "", "errors go to stderr");
    stderr
}

#[track_caller]
fn assert_one_line(stderr: &str) {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line was expected: {stderr}");
}

fn directory() -> TempDir {
    let directory = TempDir::new().expect("a directory");
    let identity = Identity::shared();
    fs::write(directory.path().join("localhost.crt"), &identity.certificate).expect("a file");
    let key = directory.path().join("localhost.key");
    fs::write(&key, &identity.private_key).expect("a file");
    // A key that every user may read causes a warning.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a file of ours");
    directory
}

const GOOD: &str = r#"
[[listener]]
address = "127.0.0.1:0"
certificate = "localhost.crt"
private_key = "localhost.key"

[[route]]
name = "vnc"
path = "/vnc"
backend = "tcp://127.0.0.1:5900"
"#;

fn configured(directory: &Path, text: &str) {
    fs::write(directory.join("gateway.toml"), text).expect("a file");
}

#[test]
fn help_shows_how_it_is_used() {
    let directory = TempDir::new().unwrap();
    for argument in ["--help", "-h", "help"] {
        let (code, stdout, stderr) = output_of(&run(directory.path(), &[argument]));
        assert_eq!((code, stderr.as_str()), (OK, ""), "{argument}");
        for word in ["run", "check", "cert", "--config"] {
            assert!(stdout.contains(word), "{word} is not in {stdout}");
        }
        if argument == "--help" {
            assert!(
                stdout.contains("portcullis cert") && stdout.contains("portcullis check"),
                "no examples: {stdout}"
            );
        }
    }
    for command in ["run", "check", "cert"] {
        let (code, stdout, _) = output_of(&run(directory.path(), &[command, "--help"]));
        assert_eq!(code, OK);
        assert!(stdout.contains(command), "{stdout}");
    }
}

#[test]
fn version_prints_the_package_version() {
    let directory = TempDir::new().unwrap();
    for argument in ["--version", "-V"] {
        let (code, stdout, _) = output_of(&run(directory.path(), &[argument]));
        assert_eq!((code, stdout.trim_end()), (OK, concat!("portcullis ", env!("CARGO_PKG_VERSION"))));
    }
}

#[test]
fn usage_errors_and_configuration_errors_have_different_exit_codes() {
    let directory = directory();
    for arguments in [
        &["--nonsense"][..],
        &["nonsense"],
        &["run", "--nonsense"],
        &["check", "--config"],
        &["run", "one", "two"],
    ] {
        assert_fails(&run(directory.path(), arguments), USAGE, &["--help"]);
    }
    for arguments in
        [&[][..], &["run"], &["check"], &["--config", "nowhere.toml"], &["check", "--config", "nowhere.toml"]]
    {
        let file = if arguments.len() < 2 { "gateway.toml" } else { "nowhere.toml" };
        let stderr = assert_fails(&run(directory.path(), arguments), CONFIG, &[file]);
        assert_one_line(&stderr);
    }
}

#[test]
fn check_accepts_a_valid_configuration() {
    let directory = directory();
    configured(directory.path(), GOOD);
    let elsewhere = TempDir::new().unwrap();
    let path = directory.path().join("gateway.toml");
    // Paths in it are relative to its directory, wherever the command is run.
    for output in [
        run(directory.path(), &["check"]),
        run(elsewhere.path(), &["check", "--config", path.to_str().unwrap()]),
    ] {
        let (code, stdout, stderr) = output_of(&output);
        assert_eq!(code, OK, "{stdout}{stderr}");
    }
}

#[test]
fn a_configuration_error_names_file_and_line() {
    let directory = directory();
    for (text, words) in [
        (GOOD.replace("backend =", "bakend ="), &["gateway.toml:10", "bakend", "backend"][..]),
        (GOOD.replace("[[route]]", "[[rout]]"), &["gateway.toml:7", "rout", "route"]),
        (
            GOOD.replace("tcp://127.0.0.1:5900", "udp://127.0.0.1:5900"),
            &["gateway.toml:10", "backend", "tcp://"],
        ),
        (GOOD.replace("127.0.0.1:0", "localhost"), &["gateway.toml:3", "address"]),
        (GOOD.replace("path = \"/vnc\"", "path = \"vnc\""), &["gateway.toml:9", "path"]),
        (format!("{GOOD}\n[timeouts]\nconnect = \"soon\"\n"), &["gateway.toml:13", "connect", "soon"]),
        (format!("{GOOD}\n[timeouts]\nconnect = 5\n"), &["gateway.toml:13", "connect"]),
        (format!("{GOOD}\n[limits.per_ip]\nburst = 0\n"), &["gateway.toml:13", "burst"]),
        (format!("{GOOD}\n[log]\nformat = \"xml\"\n"), &["gateway.toml:13", "format", "json"]),
        (
            format!("{GOOD}\n[admin]\naddress = \"0.0.0.0:1\"\n"),
            &["gateway.toml:13", "not a loopback address"],
        ),
        (format!("{GOOD}origins = [\"https://good.example/path\"]\n"), &["gateway.toml:11", "origins"]),
        (GOOD.replace("\"/vnc\"", "\"/vnc"), &["gateway.toml:9"]),
    ] {
        configured(directory.path(), &text);
        for arguments in [&["check"][..], &["run"], &[]] {
            let stderr = assert_fails(&run(directory.path(), arguments), CONFIG, words);
            assert!(!stderr.contains("listening"), "{stderr}");
        }
    }
}

#[test]
fn an_unusable_certificate_is_a_one_line_error_and_nothing_starts() {
    let directory = directory();
    let other = Identity::make();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("a file");
    write("other.key", &other.private_key);
    write("empty.pem", "");
    write("garbage.pem", "-----BEGIN CERTIFICATE-----\nnot base64 at all!\n-----END CERTIFICATE-----\n");
    let half = &Identity::shared().private_key;
    write("half.key", &half[..half.len() / 2]);
    fs::create_dir(directory.path().join("directory.pem")).expect("a directory");
    // A valid listener comes first: it must not be opened.
    let first = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    for (certificate, private_key, named) in [
        ("missing.crt", "localhost.key", "missing.crt"),
        ("localhost.crt", "missing.key", "missing.key"),
        ("directory.pem", "localhost.key", "directory.pem"),
        ("localhost.crt", "directory.pem", "directory.pem"),
        ("localhost.crt", "other.key", "other.key"),
        ("localhost.crt", "half.key", "half.key"),
        ("localhost.crt", "localhost.crt", "localhost.crt"),
        ("empty.pem", "localhost.key", "empty.pem"),
        ("localhost.crt", "empty.pem", "empty.pem"),
        ("garbage.pem", "localhost.key", "garbage.pem"),
        ("localhost.key", "localhost.key", "localhost.key"),
    ] {
        let text = GOOD.replace("localhost.crt", certificate).replace("localhost.key", private_key);
        // The replacement may have changed the other path too, if both are the same.
        let text = if certificate == private_key {
            GOOD.replace("localhost.crt", certificate)
                .replace("= \"localhost.key\"", &format!("= \"{private_key}\""))
        } else {
            text
        };
        configured(directory.path(), &format!("{first}{text}"));
        for arguments in [&["check"][..], &["run"]] {
            let stderr = assert_fails(&run(directory.path(), arguments), CONFIG, &[named]);
            assert_one_line(&stderr);
            assert!(!stderr.contains("listening"), "{stderr}");
        }
    }
    for (line, words) in [
        ("certificate = \"localhost.crt\"\n", "private_key"),
        ("private_key = \"localhost.key\"\n", "certificate"),
    ] {
        let text = GOOD
            .replace("certificate = \"localhost.crt\"\n", "")
            .replace("private_key = \"localhost.key\"\n", line);
        configured(directory.path(), &text);
        assert_fails(&run(directory.path(), &["check"]), CONFIG, &[words]);
    }
}

#[test]
fn a_missing_web_root_is_a_one_line_error() {
    let directory = directory();
    configured(directory.path(), &format!("{GOOD}\n[web]\nroot = \"nowhere\"\n"));
    for arguments in [&["check"][..], &["run"]] {
        let stderr = assert_fails(&run(directory.path(), arguments), CONFIG, &["web.root", "nowhere"]);
        assert_one_line(&stderr);
    }
}

#[test]
fn limits_above_the_descriptors_are_reported_with_the_shortage() {
    let directory = directory();
    configured(directory.path(), &format!("{GOOD}\n[limits]\nmax_sessions = 500\nmax_handshakes = 100\n"));
    let check = |descriptors: usize| {
        let shell = format!("ulimit -n {descriptors} && exec \"$0\" check");
        let output = std::process::Command::new("sh")
            .args(["-c", &shell, env!("CARGO_BIN_EXE_portcullis")])
            .current_dir(directory.path())
            .output();
        output_of(&output.expect("a shell"))
    };
    let (code, _, stderr) = check(1_000);
    assert_eq!(code, OK, "{stderr}");
    assert!(stderr.contains("max_sessions") && stderr.contains("1000"), "{stderr}");
    let (code, _, stderr) = check(2_000);
    assert_eq!((code, stderr.as_str()), (OK, ""));
}

#[test]
fn an_address_in_use_is_named_with_its_key() {
    let directory = directory();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    configured(directory.path(), &GOOD.replace("127.0.0.1:0", &address));
    let stderr = assert_fails(&run(directory.path(), &["run"]), FAILURE, &["listener 1: address", &address]);
    assert!(!stderr.contains("INFO ready"), "{stderr}");

    let second =
        format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{}", GOOD.replace("127.0.0.1:0", &address));
    configured(directory.path(), &second);
    assert_fails(&run(directory.path(), &["run"]), FAILURE, &["listener 2: address", &address]);
}

#[test]
fn cert_makes_a_pair_once() {
    let directory = TempDir::new().unwrap();
    let (code, stdout, stderr) = output_of(&run(directory.path(), &["cert"]));
    assert_eq!(code, OK, "{stdout}{stderr}");
    let certificate = directory.path().join("certs/localhost.crt");
    let key = directory.path().join("certs/localhost.key");
    let output = format!("{stdout}{stderr}");
    assert!(output.contains("localhost.crt") && output.contains("localhost.key"), "{output}");
    assert_eq!(fs::metadata(&key).expect("a key").permissions().mode() & 0o7777, 0o600);
    let before = (fs::read(&certificate).expect("a certificate"), fs::read(&key).expect("a key"));

    // It never overwrites, not even one half of a pair.
    let stderr = assert_fails(&run(directory.path(), &["cert"]), FAILURE, &["localhost."]);
    assert_one_line(&stderr);
    assert_eq!(before, (fs::read(&certificate).unwrap(), fs::read(&key).unwrap()));
    fs::remove_file(&certificate).unwrap();
    assert_fails(&run(directory.path(), &["cert"]), FAILURE, &["localhost.key"]);
    assert!(!certificate.exists(), "half a pair was written");
    assert_eq!(before.1, fs::read(&key).unwrap());
    fs::rename(&key, directory.path().join("away")).unwrap();
    fs::write(&certificate, &before.0).unwrap();
    assert_fails(&run(directory.path(), &["cert"]), FAILURE, &["localhost.crt"]);
    assert!(!key.exists(), "half a pair was written");
    assert_eq!(before.0, fs::read(&certificate).unwrap());
}

#[test]
fn the_gateway_runs_with_a_pair_made_by_cert() {
    let directory = TempDir::new().unwrap();
    let arguments = ["cert", "--out", "pair", "--name", "desk.example", "--name", "127.0.0.1"];
    let (code, stdout, stderr) = output_of(&run(directory.path(), &arguments));
    assert_eq!(code, OK, "{stdout}{stderr}");
    let made: Vec<String> = fs::read_dir(directory.path().join("pair"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    let one = |ending: &str| {
        let mut found = made.iter().filter(|name| name.ends_with(ending));
        let name = found.next().unwrap_or_else(|| panic!("no {ending} in {made:?}"));
        assert!(found.next().is_none(), "{made:?}");
        format!("pair/{name}")
    };
    let text = GOOD.replace("localhost.crt", &one(".crt")).replace("localhost.key", &one(".key"));
    configured(directory.path(), &text);
    let (code, stdout, stderr) = output_of(&run(directory.path(), &["check"]));
    assert_eq!(code, OK, "{stdout}{stderr}");
    assert!(!stderr.contains("chmod"), "its own key is private: {stderr}");
}

#[test]
fn cert_with_an_impossible_directory_is_a_one_line_error() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let stderr =
        assert_fails(&run(directory.path(), &["cert", "--out", "file/certs"]), FAILURE, &["file/certs"]);
    assert_one_line(&stderr);
}
