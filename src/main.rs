//! The `portcullis` program. Everything it does is in the library; see [`portcullis::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullis::cli::main()
}
