//! Manual pages and shell completions for packages, generated from the command line's definition.
//!
//! Owns the layout of a page. Knows nothing of the commands themselves, so a page cannot differ from `--help`. Commands
//! hidden from `--help` are in neither.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct GenerateArgs {
    /// The directory to write portcullis.1 and a page for each command into; created if missing
    #[arg(long, value_name = "DIR")]
    man: Option<PathBuf>,
    /// The directory to write completions for bash, zsh and fish into, under the file names they expect; created if missing
    #[arg(long, value_name = "DIR")]
    completions: Option<PathBuf>,
}

/// The shells that the Debian package has completions for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

const NAME: &str = env!("CARGO_PKG_NAME");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The manual's title in the header of each page.
const MANUAL: &str = "Portcullis manual";

pub(super) fn generate(args: &GenerateArgs, command: &clap::Command) -> anyhow::Result<()> {
    let visible = without_hidden(command);
    if let Some(directory) = &args.man {
        create(directory)?;
        let mut whole = visible.clone().disable_help_subcommand(true);
        whole.build();
        write_pages(directory, &whole, None)?;
    }
    if let Some(directory) = &args.completions {
        create(directory)?;
        for shell in SHELLS {
            clap_complete::generate_to(shell, &mut visible.clone(), NAME, directory)
                .with_context(|| format!("cannot write completions into {}", directory.display()))?;
        }
    }
    Ok(())
}

fn create(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create the directory {}", directory.display()))
}

/// The command without its hidden subcommands, which completions would offer otherwise.
fn without_hidden(command: &clap::Command) -> clap::Command {
    let mut visible = clap::Command::new(NAME)
        .version(VERSION)
        .args(command.get_arguments().cloned())
        .subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned());
    if let Some(about) = command.get_about() {
        visible = visible.about(about.clone());
    }
    if let Some(after) = command.get_after_help() {
        visible = visible.after_help(after.clone());
    }
    visible
}

/// Writes a page for a command and for each of its subcommands.
fn write_pages(directory: &Path, command: &clap::Command, parent: Option<&str>) -> anyhow::Result<()> {
    let title = title(command);
    let path = directory.join(format!("{title}.1"));
    let written = File::create(&path).and_then(|mut file| write_page(&mut file, command, parent));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    for subcommand in command.get_subcommands() {
        write_pages(directory, subcommand, Some(&title))?;
    }
    Ok(())
}

fn title(command: &clap::Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn write_page(out: &mut impl Write, command: &clap::Command, parent: Option<&str>) -> io::Result<()> {
    // Not empty, or roff would read the next argument as the date.
    let man = Man::new(command.clone()).date(" ").source(format!("{NAME} {VERSION}")).manual(MANUAL);
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(out)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    if let Some(after) = command.get_after_help() {
        after_help(&after.to_string()).to_writer(out)?;
    }
    references(parent).to_writer(out)
}

/// The text after the options, as the usual sections of a manual page.
fn after_help(text: &str) -> Roff {
    let mut roff = Roff::new();
    for paragraph in text.split("\n\n") {
        let (heading, body) = match paragraph.strip_prefix("Examples:\n") {
            Some(body) => ("EXAMPLES", body),
            None => ("EXIT STATUS", paragraph),
        };
        roff.control("SH", [heading]);
        // Unfilled, line by line as in --help: examples are in columns.
        roff.control("nf", []);
        for line in body.lines() {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        roff.control("fi", []);
    }
    roff
}

/// The FILES and SEE ALSO sections.
fn references(parent: Option<&str>) -> Roff {
    let mut roff = Roff::new();
    if let Some(parent) = parent {
        roff.control("SH", ["SEE ALSO"]);
        roff.control("BR", [parent, "(1)"]);
        return roff;
    }
    roff.control("SH", ["FILES"]);
    roff.control("TP", []);
    roff.control("I", ["/etc/portcullis/gateway.toml"]);
    roff.text([roman("The configuration of the service. Its comments describe every key.")]);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("The manual: /usr/share/doc/portcullis")]);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> clap::Command {
        clap::Command::new(NAME)
            .about("A program")
            .after_help("Examples:\n  portcullis open    open it\n\nExit codes: 0 fine.\nMore.")
            .arg(clap::Arg::new("config").long("config").help("The file"))
            .subcommand(clap::Command::new("open").about("Opens it"))
            .subcommand(clap::Command::new("spell").about("Hidden").hide(true))
    }

    fn generated(args: impl Fn(&Path) -> GenerateArgs) -> Vec<(String, String)> {
        let directory = tempfile::tempdir().unwrap();
        // A directory that does not exist yet.
        let inside = directory.path().join("deep/inside");
        generate(&args(&inside), &command()).unwrap();
        let entries = fs::read_dir(&inside).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<(String, String)> = entries
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(&path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn every_visible_command_has_a_page() {
        let pages =
            generated(|directory| GenerateArgs { man: Some(directory.to_owned()), completions: None });
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["portcullis-open.1", "portcullis.1"]);
        let (open, whole) = (&pages[0].1, &pages[1].1);
        let head = format!(".TH portcullis 1 \" \" \"{NAME} {VERSION}\" \"{MANUAL}\"");
        assert!(whole.contains(&head), "{head:?} is missing: {whole}");
        assert!(open.contains(".BR portcullis (1)"), "the reference to the parent is missing: {open}");
        for section in [
            ".SH EXAMPLES\n.nf\nportcullis open    open it\n.fi",
            ".SH \"EXIT STATUS\"\n.nf\nExit codes: 0 fine.\nMore.",
        ] {
            assert!(whole.contains(section), "{section:?} is missing: {whole}");
        }
        assert!(whole.contains("portcullis\\-open(1)") && !whole.contains("spell"), "{whole}");
    }

    #[test]
    fn completions_omit_hidden_commands() {
        let files =
            generated(|directory| GenerateArgs { man: None, completions: Some(directory.to_owned()) });
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["_portcullis", "portcullis.bash", "portcullis.fish"]);
        for (name, text) in &files {
            assert!(text.contains("open") && text.contains("config"), "{name}: {text}");
            assert!(!text.contains("spell"), "{name} offers a hidden command: {text}");
        }
    }
}
