//! Password files, passwords, and the requests that carry them.

use std::{fs, net::SocketAddr, time::SystemTime};

use http::Request;

use super::{
    file::{LineError, Users},
    hash::{HashError, StoredHash},
    *,
};

/// "secret", by PHP's `password_hash`; `htpasswd -B` writes the same form.
const SECRET: &str = "$2y$04$Wra2LL5Zh0hx5Uyte5BQOOop1MrHlP1Bp9nrp5SO9JbKmV49lEM96";
/// "other", by libxcrypt's `crypt`.
const OTHER: &str = "$2b$04$abcdefghijklmnopqrstuu0HtfOlPbTiymk5tcV.3TsFPDd3SYZqu";
/// "secret", by PHP's `password_hash`.
const ARGON2: &str =
    "$argon2id$v=19$m=64,t=1,p=1$bzJFS20wZzNVL2MuSDJjeA$dn/UX0k6oDtn4pzkX69Pcc5K+PPPnzOvfNQ/dyEQFDM";
/// "secret", likewise, with two lanes.
const ARGON2I: &str =
    "$argon2i$v=19$m=64,t=2,p=2$T2ljVkd4azQxSTI3V09oVQ$fS0gulrRJan/49uRfI0lsLskSV7CHrUzgd5SqFJVJjU";

fn hash(text: &str) -> StoredHash {
    StoredHash::parse(text).unwrap()
}

fn method(text: &str) -> (BasicMethod, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("team.htpasswd");
    fs::write(&file, text).unwrap();
    let config = Basic { file, realm: "team".to_owned() };
    (BasicMethod::load(&config, &Arc::default(), None).unwrap(), directory)
}

async fn check(method: &BasicMethod, authorization: &[&str]) -> Result<Grant, Denied> {
    let builder = Request::get("/desk");
    let head =
        authorization.iter().fold(builder, |builder, value| builder.header(AUTHORIZATION, *value)).body(());
    let head = head.unwrap();
    let client = SocketAddr::from(([192, 0, 2, 7], 4711));
    let host = "desk.example";
    let request = AuthRequest {
        head: &head,
        client,
        https: true,
        host,
        certificate: None,
        route: Some("desk"),
        now: SystemTime::now(),
    };
    method.check(&request).await
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

#[test]
fn hashes_of_other_programs_are_verified() {
    for (text, password) in [(SECRET, "secret"), (OTHER, "other"), (ARGON2, "secret"), (ARGON2I, "secret")] {
        assert!(hash(text).verify(password), "{text}");
        for wrong in ["", "Secret", "secret ", "secre", "secret\0"] {
            assert!(!hash(text).verify(wrong), "{text} {wrong:?}");
        }
    }
}

#[test]
fn bcrypt_looks_at_72_bytes_and_a_longer_password_is_wrong() {
    let password = "p".repeat(72);
    let text = bcrypt::hash_with_result(&password, 4).unwrap().to_string();
    assert!(hash(&text).verify(&password));
    assert!(!hash(&text).verify(&password[1..]));
    for longer in [73, 100, 1 << 20] {
        assert!(!hash(&text).verify(&"p".repeat(longer)), "{longer}");
    }
}

#[test]
fn argon2_looks_at_the_whole_password() {
    use argon2::password_hash::PasswordHasher;
    let password = "p".repeat(5000);
    let parameters = argon2::Params::new(64, 1, 1, None).unwrap();
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters);
    let hashed = argon2.hash_password_with_salt(password.as_bytes(), b"0123456789abcdef");
    let text = hashed.unwrap().to_string();
    assert!(hash(&text).verify(&password));
    assert!(!hash(&text).verify(&password[1..]));
}

#[test]
fn other_kinds_of_hashes_are_refused_and_never_shown() {
    for (text, error) in [
        ("$apr1$salt$0123456789abcdefghijkl", HashError::Weak("an MD5 hash")),
        ("{SHA}0123456789abcdefghijklmnop=", HashError::Weak("a SHA-1 hash")),
        ("$6$salt$0123456789", HashError::Weak("a hash of crypt(3)")),
        ("secret", HashError::Unknown),
        ("", HashError::Unknown),
        ("$2x$05$abcdefghijklmnopqrstuuWGOEh8Ld6RjIbYmTUTLrXXUlvJcdEzi", HashError::Unknown),
        ("$y$j9T$salt$0123", HashError::Unknown),
        (&SECRET[..59], HashError::Bcrypt),
        (&format!("{SECRET}x"), HashError::Bcrypt),
        (&SECRET.replace("$04$", "$03$"), HashError::Bcrypt),
        (&SECRET.replace("$04$", "$16$"), HashError::Cost),
        (&SECRET.replace("$04$", "$31$"), HashError::Cost),
        ("$2y$", HashError::Bcrypt),
        ("$argon2id$", HashError::Argon2),
        ("$argon2x$v=19$m=64,t=1,p=1$MDEyMzQ1Njc4OQ$MDEyMzQ1Njc4OTAxMjM0NTY3ODk", HashError::Argon2),
        ("$argon2id$v=19$m=64,t=1,p=1$MDEyMzQ1Njc4OQ", HashError::Argon2),
        ("$argon2id$v=99$m=64,t=1,p=1$MDEyMzQ1Njc4OQ$MDEyMzQ1Njc4OTAxMjM0NTY3ODk", HashError::Argon2),
        ("$argon2id$v=19$m=64,t=1,p=1$MDEy$MDEyMzQ1Njc4OTAxMjM0NTY3ODk", HashError::Argon2),
        (
            "$argon2id$v=19$m=1048576,t=1,p=1$MDEyMzQ1Njc4OQ$MDEyMzQ1Njc4OTAxMjM0NTY3ODk",
            HashError::Parameters,
        ),
        ("$argon2id$v=19$m=64,t=1000,p=1$MDEyMzQ1Njc4OQ$MDEyMzQ1Njc4OTAxMjM0NTY3ODk", HashError::Parameters),
    ] {
        let found = StoredHash::parse(text).unwrap_err();
        assert_eq!(found, error, "{text}");
        assert!(found.to_string().contains("set the password again"), "{found}");
    }
    assert!(!format!("{:?}", hash(SECRET)).contains("2y"), "{:?}", hash(SECRET));
}

#[test]
fn a_line_that_cannot_be_used_is_named_by_its_number() {
    let users = Users::parse(format!("# team\n\nann:{SECRET}\r\nbob:{OTHER}").as_bytes()).unwrap();
    assert_eq!(users.len(), 2);
    let long = "x".repeat(257);
    for (line, expected) in [
        ("cora", LineError::NoColon),
        (":hash", LineError::User),
        (&format!("{long}:{SECRET}"), LineError::User),
        (&format!("a\u{7f}b:{SECRET}"), LineError::User),
        (&format!("ann:{OTHER}"), LineError::Duplicate(1)),
        ("cora:plain", LineError::Hash(HashError::Unknown)),
        (&format!("cora:{SECRET}:x"), LineError::Hash(HashError::Bcrypt)),
    ] {
        let text = format!("ann:{SECRET}\n{line}\nbob:{OTHER}\n");
        assert_eq!(Users::parse(text.as_bytes()).unwrap_err(), (2, expected), "{line}");
    }
    assert_eq!(Users::parse(b"ann:\xff").unwrap_err(), (1, LineError::NotUtf8));
    assert_eq!(Users::parse(b"").unwrap().len(), 0);
}

#[test]
fn an_unknown_user_is_compared_with_the_hash_of_another_always_the_same() {
    let users = Users::parse(format!("ann:{SECRET}\nbob:{OTHER}\n").as_bytes()).unwrap();
    let known = users.comparison("ann").unwrap();
    assert!(known.is_known && known.hash.verify("secret"));
    let mut chosen = std::collections::BTreeSet::new();
    for number in 0..50 {
        let name = format!("stranger {number}");
        let comparison = users.comparison(&name).unwrap();
        assert!(!comparison.is_known);
        assert_eq!(comparison.hash, users.comparison(&name).unwrap().hash);
        chosen.insert(comparison.hash.text().to_owned());
    }
    assert_eq!(chosen.len(), 2, "each hash stands for some unknown users");
    assert!(Users::default().comparison("ann").is_none());
}

#[tokio::test]
async fn the_right_password_admits_and_everything_else_is_the_same_refusal() {
    let (method, _directory) = method(&format!("ann:{SECRET}\nÄnne:{ARGON2}\n"));
    for user in ["ann", "Änne"] {
        // The second time from the cache.
        for _ in 0..2 {
            let grant = check(&method, &[&basic(user, "secret")]).await.unwrap();
            assert_eq!(grant, Grant::of_user(user).unwrap());
        }
    }
    let encoded = BASE64_STANDARD.encode("ann:secret");
    assert!(check(&method, &[&format!("bAsIc   {encoded} ")]).await.is_ok());
    assert!(check(&method, &["Bearer x", &basic("ann", "secret")]).await.is_ok());
    for (what, fields) in [
        ("a wrong password", vec![basic("ann", "Secret")]),
        ("an unknown user", vec![basic("bob", "secret")]),
        ("another letter case", vec![basic("Ann", "secret")]),
        ("no password", vec![basic("ann", "")]),
        ("no user", vec![basic("", "secret")]),
        ("a longer password", vec![basic("ann", "secret2")]),
        ("a NUL", vec![basic("ann", "secret\0")]),
        ("a control character", vec![basic("ann", "secret\n")]),
        ("a long password", vec![basic("ann", &"x".repeat(10_000))]),
        ("the hash", vec![basic("ann", SECRET)]),
        ("no colon", vec![format!("Basic {}", BASE64_STANDARD.encode("ann"))]),
        ("no base64", vec!["Basic ann:secret".to_owned()]),
        ("no UTF-8", vec![format!("Basic {}", BASE64_STANDARD.encode(b"ann:\xff"))]),
        ("no padding", vec![format!("Basic {}", encoded.trim_end_matches('='))]),
        ("nothing", vec!["Basic ".to_owned()]),
        ("twice", vec![basic("ann", "secret"), basic("ann", "secret")]),
    ] {
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        if what == "no padding" && !encoded.ends_with('=') {
            continue;
        }
        match check(&method, &fields).await {
            Err(Denied::Unauthorized { attempted: true, detail }) => {
                assert!(!detail.contains("secret") && !detail.contains(&encoded), "{what}: {detail}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    for question in [&[][..], &["Bearer x"], &["Basic"]] {
        let denied = check(&method, question).await.unwrap_err();
        assert!(denied.is_question(), "{question:?}: {denied:?}");
    }
}

#[tokio::test]
async fn a_password_that_is_changed_is_not_taken_from_the_cache() {
    let (mut method, directory) = method(&format!("ann:{SECRET}\n"));
    let authorization = basic("ann", "secret");
    assert!(check(&method, &[&authorization]).await.is_ok());
    for text in [format!("ann:{OTHER}\n"), format!("bob:{SECRET}\n"), String::new()] {
        let path = directory.path().join("team.htpasswd");
        fs::write(&path, text).unwrap();
        method.file = Arc::new(PasswordFile::open(&path).unwrap());
        assert!(check(&method, &[&authorization]).await.is_err());
    }
}

#[tokio::test]
async fn a_wrong_password_is_never_cached() {
    let (method, _directory) = method(&format!("ann:{SECRET}\n"));
    for _ in 0..3 {
        for (user, password) in [("ann", "wrong"), ("bob", "secret")] {
            assert!(check(&method, &[&basic(user, password)]).await.is_err());
        }
    }
}

#[test]
fn an_unusable_file_names_file_line_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("team.htpasswd");
    let config = Basic { file: file.clone(), realm: "team".to_owned() };
    let load = || BasicMethod::load(&config, &Arc::default(), None).map(|_| ()).unwrap_err();
    assert!(load().starts_with(&format!("file: cannot read {}", file.display())), "{}", load());
    fs::write(&file, format!("ann:{SECRET}\nbob:{{SHA}}0123456789=\n")).unwrap();
    let expected = format!(
        "file: {}:2: this is a SHA-1 hash, which is fast to guess; set the password again with htpasswd -B",
        file.display()
    );
    assert_eq!(load(), expected);
    fs::write(&file, vec![b'#'; (4 << 20) + 1]).unwrap();
    assert!(load().contains("is larger than"), "{}", load());
}

#[test]
fn the_challenge_asks_for_utf_8() {
    let (method, _directory) = method("");
    assert_eq!(method.challenge(), "Basic realm=\"team\", charset=\"UTF-8\"");
}
