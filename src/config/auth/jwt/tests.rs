use super::super::super::Config;
use super::super::AuthKind;
use super::*;

const BEFORE: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"desk\"\npath = \"/\"\nbackend = \"tcp://127.0.0.1:1\"\nauth = \"site\"\n[auth.site]\nkind = \"jwt\"\n";

fn parse(lines: &str) -> std::result::Result<Jwt, String> {
    let text = format!("{BEFORE}{lines}");
    let config = Config::parse(&text, Path::new("/etc/g.toml")).map_err(|error| error.to_string())?;
    match config.auth.into_iter().next().unwrap().kind {
        AuthKind::Jwt(jwt) => Ok(*jwt),
        other => panic!("{other:?}"),
    }
}

/// What is wrong, without the position.
#[track_caller]
fn wrong(lines: &str) -> String {
    let error = parse(lines).unwrap_err();
    error.splitn(4, ':').nth(3).unwrap_or(&error).trim().to_owned()
}

#[test]
fn the_defaults_are_the_header_sub_and_five_seconds() {
    let jwt = parse("algorithms = [\"ES256\"]\nkey = \"site.pem\"").unwrap();
    let expected = Jwt {
        algorithms: vec![Algorithm::ES256],
        keys: JwtKeys::Pem("/etc/site.pem".into()),
        issuer: None,
        audience: Vec::new(),
        leeway: Duration::from_secs(5),
        from: vec![TokenPlace::Header],
        required_claims: BTreeMap::new(),
        user_claim: "sub".into(),
        target_claim: None,
        routes_claim: None,
        max_session_claim: None,
    };
    assert_eq!(jwt, expected);
}

#[test]
fn every_key_is_read() {
    let jwt = parse(
        "algorithms = [\"RS256\", \"PS512\"]\njwks = \"https://id.example.com/keys\"\nca = \"ca.pem\"\nissuer = \"https://id.example.com\"\naudience = [\"a\", \"b\"]\nleeway = \"0s\"\nfrom = [\"cookie:session\", \"query:token\", \"subprotocol:bearer.\"]\nuser_claim = \"email\"\ntarget_claim = \"desk\"\nroutes_claim = \"routes\"\nmax_session_claim = \"max\"\nrequired_claims = { role = [\"staff\", \"admin\"], tenant = \"x\" }",
    )
    .unwrap();
    assert_eq!(jwt.algorithms, [Algorithm::RS256, Algorithm::PS512]);
    let url = "https://id.example.com/keys".parse().unwrap();
    assert_eq!(jwt.keys, JwtKeys::SetUrl { url, ca: Some("/etc/ca.pem".into()) });
    assert_eq!(jwt.issuer.as_deref(), Some("https://id.example.com"));
    assert_eq!((jwt.audience, jwt.leeway), (vec!["a".to_owned(), "b".to_owned()], Duration::ZERO));
    let cookie = TokenPlace::Cookie("session".into());
    assert_eq!((&jwt.from[0], jwt.from.len()), (&cookie, 3));
    assert_eq!(jwt.required_claims["role"], ["staff", "admin"]);
    assert_eq!(jwt.required_claims["tenant"], ["x"]);
    assert_eq!((jwt.user_claim.as_str(), jwt.target_claim.as_deref()), ("email", Some("desk")));
    assert_eq!(
        (jwt.routes_claim.as_deref(), jwt.max_session_claim.as_deref()),
        (Some("routes"), Some("max"))
    );
}

#[test]
fn keys_of_a_table_of_its_own_are_read() {
    let jwt =
        parse("algorithms = [\"HS256\"]\nsecret_file = \"s\"\n[auth.site.required_claims]\nrole = \"staff\"")
            .unwrap();
    assert_eq!(jwt.required_claims["role"], ["staff"]);
    assert_eq!(jwt.keys, JwtKeys::Secret("/etc/s".into()));
}

#[test]
fn each_wrong_combination_names_the_key_and_what_to_do() {
    for (lines, expected) in [
        ("key = \"a\"", "auth.site.algorithms is missing; add algorithms = "),
        ("algorithms = []\nkey = \"a\"", "auth.site.algorithms []: an empty list; "),
        (
            "algorithms = [\"none\"]\nkey = \"a\"",
            "auth.site.algorithms \"none\": a token without a signature",
        ),
        (
            "algorithms = [\"NONE\"]\nkey = \"a\"",
            "auth.site.algorithms \"NONE\": a token without a signature",
        ),
        ("algorithms = [\"ES265\"]\nkey = \"a\"", "auth.site.algorithms \"ES265\": must be \"HS256\", "),
        ("algorithms = [\"ES256\", \"ES256\"]\nkey = \"a\"", "auth.site.algorithms \"ES256\": listed twice"),
        (
            "algorithms = [\"ES256\", \"HS256\"]\nkey = \"a\"",
            "auth.site.algorithms \"HS256\": HS algorithms use",
        ),
        (
            "algorithms = [\"HS256\", \"RS256\"]\nkey = \"a\"",
            "auth.site.algorithms \"RS256\": HS algorithms use",
        ),
        ("algorithms = [\"ES256\"]", "auth.site.key is missing; add one of key, jwks and secret_file"),
        ("algorithms = [\"ES256\"]\nkey = \"a\"\njwks = \"b\"", "auth.site.jwks \"b\": there is key already"),
        ("algorithms = [\"HS256\"]\nkey = \"a\"", "auth.site.key \"a\": HS algorithms use a secret"),
        ("algorithms = [\"HS256\"]\njwks = \"a\"", "auth.site.jwks \"a\": HS algorithms use a secret"),
        (
            "algorithms = [\"RS256\"]\nsecret_file = \"a\"",
            "auth.site.secret_file \"a\": these algorithms use",
        ),
        (
            "algorithms = [\"ES256\"]\nkey = \"a\"\nca = \"b\"",
            "auth.site.ca \"b\": there is no jwks with an https",
        ),
        (
            "algorithms = [\"ES256\"]\njwks = \"http://127.0.0.1/\"\nca = \"b\"",
            "auth.site.ca \"b\": jwks does not use https",
        ),
        ("algorithms = [\"ES256\"]\njwks = \"http://id.example/\"", "http is for loopback addresses"),
        ("algorithms = [\"ES256\"]\njwks = \"http://localhost/\"", "http is for loopback addresses"),
        ("algorithms = [\"ES256\"]\njwks = \"http://127.0.0.1.example/\"", "http is for loopback addresses"),
        ("algorithms = [\"ES256\"]\njwks = \"file:///etc/keys\"", "the scheme is not https"),
        ("algorithms = [\"ES256\"]\njwks = \"https://\"", "not a URL"),
        ("algorithms = [\"ES256\"]\njwks = \"https://u:p@id.example/\"", "a user, a password or a fragment"),
        (
            "algorithms = [\"ES256\"]\nkey = \"a\"\nleeway = \"-5s\"",
            "auth.site.leeway \"-5s\": not a duration",
        ),
        (
            "algorithms = [\"ES256\"]\nkey = \"a\"\nleeway = \"6m\"",
            "auth.site.leeway \"6m\": must be at most \"5m\"",
        ),
        (
            "algorithms = [\"ES256\"]\nkey = \"a\"\nleeway = -5",
            "auth.site.leeway must be a duration in quotes",
        ),
        ("algorithms = [\"ES256\"]\nkey = \"a\"\nfrom = []", "auth.site.from []: an empty list"),
        (
            "algorithms = [\"ES256\"]\nkey = \"a\"\nfrom = [\"body\"]",
            "auth.site.from \"body\": write \"header\"",
        ),
        ("algorithms = [\"ES256\"]\nkey = \"a\"\nfrom = [\"header\", \"header\"]", "listed twice"),
        ("algorithms = [\"ES256\"]\nkey = \"a\"\naudience = []", "auth.site.audience []: an empty list"),
        (
            "algorithms = [\"ES256\"]\nkey = \"a\"\naudience = [\"\"]",
            "auth.site.audience \"\": the text is empty",
        ),
        ("algorithms = [\"ES256\"]\nkey = \"a\"\nissuer = \"\"", "auth.site.issuer \"\": the text is empty"),
        (
            "algorithms = [\"ES256\"]\nkey = \"a\"\nrequired_claims = { role = [] }",
            "auth.site.required_claims.role []: an empty list",
        ),
        ("algorithms = [\"ES256\"]\nkey = \"a\"\nrequired_claims = \"role\"", "a table of claims such as"),
        (
            "algorithms = [\"ES256\"]\nkey = \"a\"\nany = [\"site\"]",
            "auth.site.kind \"jwt\": a method has either",
        ),
    ] {
        let wrong = wrong(lines);
        assert!(wrong.contains(expected), "{lines}\n{wrong}");
    }
}
