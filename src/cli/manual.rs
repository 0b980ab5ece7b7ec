//! What is written of the command line for shells and for `man`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::{Generator, Shell};

use super::{CliError, at, command, print};

/// `tessera completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell.
    shell: KnownShell,
}

/// Shells whose completions are tested.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KnownShell {
    /// As ~/.local/share/bash-completion/completions/tessera.
    Bash,
    /// As _tessera in a folder of $fpath.
    Zsh,
    /// As ~/.config/fish/completions/tessera.fish.
    Fish,
}

/// `tessera man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The directory to write to: tessera.1, tessera-serve.1, …
    dir: PathBuf,
}

/// Prints what a shell reads.
///
/// # Errors
/// As [`print`].
pub fn completions(args: &CompletionsArgs) -> Result<(), CliError> {
    let shell = match args.shell {
        KnownShell::Bash => Shell::Bash,
        KnownShell::Zsh => Shell::Zsh,
        KnownShell::Fish => Shell::Fish,
    };
    let mut command = command();
    command.set_bin_name("tessera");
    command.build();
    let mut text = Vec::new();
    let written = shell.try_generate(&command, &mut text);
    written.map_err(|e| CliError::General(format!("completions cannot be made: {e}")))?;
    print(&String::from_utf8_lossy(&text))
}

/// Writes a page for the program and one for each command.
///
/// # Errors
/// A file that cannot be written.
pub fn man(args: &ManArgs) -> Result<(), CliError> {
    std::fs::create_dir_all(&args.dir).map_err(|e| at(&args.dir, &e))?;
    let command = command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &args.dir).map_err(|e| at(&args.dir, &e))
}
