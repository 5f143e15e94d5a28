//! Gateways whose routes require authentication, and the credentials that they admit.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::SystemTime,
};

use anyhow::{Context, anyhow, ensure};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyPair,
};
use serde_json::{Value, json};

use super::{
    authority::USER_FIELD,
    process::Process,
    protocol::Transport,
    request::Request,
    targets::{Bench, Target},
    tls::{CLIENT_CERTIFICATE, CLIENT_KEY},
};

/// What a token has to name.
const ISSUER: &str = "https://id.example.org";
const AUDIENCE: &str = "portcullis";
/// How long credentials are valid, in seconds: longer than a benchmark takes.
const VALIDITY: u64 = 3600;

/// The password of every user.
pub(super) const PASSWORD: &str = "correct horse battery staple";

/// The user with this number.
pub(super) fn user(number: u64) -> String {
    format!("user{number:06}@example.org")
}

/// Issues credentials that a gateway of [`Bench::portcullis_with_auth`] admits.
pub(crate) struct Issuer {
    key: KeyPair,
    /// The gateway's admin address.
    admin: PathBuf,
    _authority: Process,
}

impl Bench {
    /// Portcullis with a route for each method that looks at the request: JWT (ES256), ticket and forward; `/bench` needs none.
    pub(crate) fn portcullis_with_auth(&self, name: &str, tls: bool) -> anyhow::Result<(Target, Issuer)> {
        let (key, authority) = (KeyPair::generate()?, Process::role(&["authority"])?);
        let public_key = self.write("site.pem", &key.public_key_pem())?;
        let admin = public_key.with_file_name("admin.sock");
        let tables = format!(
            "{}{}{}[auth.jwt]\nkind = \"jwt\"\nalgorithms = [\"ES256\"]\nkey = {public_key:?}\nissuer = \"{ISSUER}\"\n\
             audience = \"{AUDIENCE}\"\n[auth.ticket]\nkind = \"ticket\"\n[auth.forward]\nkind = \"forward\"\n\
             url = \"http://{}/check\"\nuser_header = \"{USER_FIELD}\"\n[admin]\naddress = \"unix:{}\"\n",
            self.route("jwt")?,
            self.route("ticket")?,
            self.route("forward")?,
            authority.read_line()?,
            admin.display()
        );
        let target = self.portcullis_with(name, tls, "", &tables)?;
        Ok((target, Issuer { key, admin, _authority: authority }))
    }

    /// Portcullis whose listener asks for certificates, which the route `/certificate` requires. Makes one for the client.
    pub(crate) fn portcullis_with_certificates(&self) -> anyhow::Result<Target> {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "machines");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate()?;
        let authorities = self.write("machines.pem", &authority.self_signed(&authority_key)?.pem())?;
        let (mut machine, key) =
            (CertificateParams::new(["probe1.example.org".to_owned()])?, KeyPair::generate()?);
        machine.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let machine = machine.signed_by(&key, &Signer::new(authority, authority_key))?;
        self.write(CLIENT_CERTIFICATE, &machine.pem())?;
        self.write(CLIENT_KEY, &key.serialize_pem())?;
        let listener = format!("client_ca = {authorities:?}\nclient_certificate = \"required\"\n");
        let method = "[auth.certificate]\nkind = \"client-certificate\"\nnames = [\"*.example.org\"]\n";
        let tables = format!("{}{method}", self.route("certificate")?);
        self.portcullis_with("Portcullis, certificates", true, &listener, &tables)
    }

    /// Portcullis with a route `/password` for so many users, whose passwords are hashed by bcrypt with this cost.
    pub(crate) fn portcullis_with_passwords(&self, users: u64, cost: u32) -> anyhow::Result<Target> {
        // The same for all of them: a gateway that has compared one password knows nothing of another user's.
        let hash = bcrypt::hash(PASSWORD, cost).map_err(|error| anyhow!("--cost {cost}: {error}"))?;
        let lines: String = (0..users).map(|number| format!("{}:{hash}\n", user(number))).collect();
        let file = self.write("team.htpasswd", &lines)?;
        let method = format!("[auth.password]\nkind = \"basic\"\nfile = {file:?}\n");
        self.portcullis_with("Portcullis", true, "", &format!("{}{method}", self.route("password")?))
    }

    /// A route that requires the method of the same name.
    fn route(&self, name: &str) -> anyhow::Result<String> {
        let backend = self.backend_address(Transport::Tcp)?;
        Ok(format!(
            "[[route]]\nname = \"{name}\"\npath = \"/{name}\"\nbackend = \"tcp://{backend}\"\nmissing_origin = \"allow\"\n\
             auth = \"{name}\"\n"
        ))
    }
}

impl Issuer {
    /// Requests with tokens, each of another user.
    pub(crate) fn tokens(&self, count: u64) -> anyhow::Result<Vec<Request>> {
        let key = EncodingKey::from_ec_der(self.key.serialized_der());
        let expires = SystemTime::UNIX_EPOCH.elapsed()?.as_secs() + VALIDITY;
        let token = |number| {
            let claims = json!({ "sub": user(number), "iss": ISSUER, "aud": AUDIENCE, "exp": expires });
            let token = encode(&Header::new(Algorithm::ES256), &claims, &key)?;
            Ok(Request::new("/jwt").with_authorization(&format!("Bearer {token}")))
        };
        (0..count).map(token).collect()
    }

    /// Requests with new tickets, each of another user and for one session.
    pub(crate) fn tickets(&self, count: u64) -> anyhow::Result<Vec<Request>> {
        (0..count).map(|number| Ok(Request::new(&self.ticket(&user(number))?))).collect()
    }

    /// The link of a new ticket.
    fn ticket(&self, user: &str) -> anyhow::Result<String> {
        let terms =
            json!({ "route": "ticket", "user": user, "session_for": format!("{VALIDITY}s") }).to_string();
        let mut gateway = UnixStream::connect(&self.admin).context("the admin address")?;
        let length = terms.len();
        write!(
            gateway,
            "POST /api/tickets HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{terms}"
        )?;
        let mut answer = String::new();
        gateway.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        ensure!(head.contains(" 201 "), "the gateway issues no ticket: {answer}");
        let ticket: Value = serde_json::from_str(body)?;
        Ok(ticket["url"].as_str().context("a ticket without a link")?.to_owned())
    }

    /// A request that the authority of `forward` admits. Its credential is as long as one of a site.
    pub(crate) fn login(&self) -> Request {
        Request::new("/forward").with_authorization("Bearer 4f1c2a9e6b7d4e0f8a3c5d1b2e6f7a90")
    }
}
