//! The `cert` command.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;

use super::terminal::print_line;
use crate::{config::Host, transport::self_signed::self_signed};

#[derive(Debug, Args)]
pub(super) struct CertArgs {
    /// The directory to write NAME.crt and NAME.key into; created if missing
    #[arg(long, value_name = "DIR", default_value = "certs")]
    out: PathBuf,
    /// A DNS name or IP address that the certificate is valid for; may be repeated, and the first names the files
    #[arg(long = "name", value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
    names: Vec<String>,
}

pub(super) fn make_certificate(args: &CertArgs) -> anyhow::Result<()> {
    let names: Vec<String> = args.names.iter().map(|name| subject_name(name)).collect::<Result<_, _>>()?;
    let made = self_signed(&names).with_context(|| format!("cannot make a certificate for {names:?}"))?;
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the directory {}", args.out.display()))?;
    let stem = names.first().map_or("localhost", String::as_str).replace('*', "_");
    let path = |extension: &str| args.out.join(format!("{stem}.{extension}"));
    let (certificate, key) = (path("crt"), path("key"));
    for existing in [&certificate, &key] {
        if existing.try_exists().unwrap_or(true) {
            bail!("{} exists and is not overwritten; remove it, or choose another --out", existing.display());
        }
    }
    write_new(&key, 0o600, &made.private_key)?;
    write_new(&certificate, 0o644, &made.certificate)?;
    print_line(format_args!(
        "wrote {} and {} for {}",
        certificate.display(),
        key.display(),
        names.join(", ")
    ));
    print_line("self-signed, for development: browsers show a warning, and it expires in 397 days");
    Ok(())
}

/// A name in the form that certificates use: ASCII, an address without brackets. A DNS name may start with `*.`.
fn subject_name(name: &str) -> anyhow::Result<String> {
    let (wildcard, rest) = name.strip_prefix("*.").map_or(("", name), |rest| ("*.", rest));
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    match rest.parse::<Host>() {
        Ok(Host::Name(ascii)) => Ok(format!("{wildcard}{ascii}")),
        Ok(Host::Address(address)) if wildcard.is_empty() => Ok(address.to_string()),
        Ok(Host::Address(_)) => bail!("--name {name}: a wildcard needs a DNS name, not an address"),
        Err(error) => bail!("--name {name:?}: {error}"),
    }
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_for_names_and_addresses_only() {
        let valid = [
            ("localhost", "localhost"),
            ("*.Desk.example", "*.desk.example"),
            ("::1", "::1"),
            ("[::1]", "::1"),
        ];
        for (name, subject) in valid {
            assert_eq!(subject_name(name).unwrap(), subject);
        }
        assert_eq!(subject_name("bücher.example").unwrap(), "xn--bcher-kva.example");
        for name in ["", "../evil", "a b", "a/b", "*.127.0.0.1", "*"] {
            assert!(subject_name(name).is_err(), "{name}");
        }
    }
}
