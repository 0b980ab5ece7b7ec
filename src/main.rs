//! Flags to a command; no logic.

fn main() -> std::process::ExitCode {
    tessera::cli::run()
}
