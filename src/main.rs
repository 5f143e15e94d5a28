//! The `portcullis` program. Its code is in the library; see [`portcullis::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullis::cli::main()
}
