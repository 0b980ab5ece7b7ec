//! Arguments, variables and the settings file → the command to run, or whose fault it is that
//! there is none.

use std::ffi::OsString;

use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, FromArgMatches};

use super::{Cli, CliError, Command, command, foreign};
use crate::config::{FromFile, describe, with_file};

/// What the names of our variables begin with.
const VARIABLES: &str = "TESSERA_";

/// What a command line asks for.
pub enum Asked {
    /// To run a command.
    Run(Command),
    /// To be shown this text: the settings.
    Settings(String),
}

/// Why nothing is run.
pub enum Unusable {
    /// A text that clap prints and that is no error: help or the version.
    Shown(clap::Error),
    /// Help, since no command was named.
    NoCommand(clap::Error),
    /// What was wrong, in one line.
    Wrong(CliError),
}

/// Parses the arguments, with what variables and the settings file say where they say nothing.
///
/// # Errors
/// [`CliError::Usage`] for what was typed, [`CliError::Config`], which names the variable or the
/// file, for what was not.
pub fn parse(args: &[OsString]) -> Result<Asked, Unusable> {
    let command = with_variables(command(), args);
    let (mut matches, mut cli) = matched(&command, args).map_err(|wrong| blamed(wrong, args))?;
    let Some((name, config)) = cli.command.settings() else {
        return Ok(Asked::Run(cli.command));
    };
    let (path, shows) = (config.config.clone(), config.print_config);
    let mut ids = Vec::new();
    if let Some(path) = &path
        && let Some(own) = command.find_subcommand(name).cloned()
    {
        let of_file = |text| Unusable::Wrong(CliError::Config(text));
        let (own, set) = with_file(own, path).map_err(of_file)?;
        ids = set;
        let command = command.clone().mut_subcommand(name, |_| own);
        // Without the file there was nothing wrong.
        let again = matched(&command, args);
        (matches, cli) = again.map_err(|e| of_file(format!("{}: {}", path.display(), line(&e))))?;
    }
    let own = command.find_subcommand(name).zip(matches.subcommand_matches(name));
    let (Some((own, given)), true) = (own, shows) else {
        return Ok(Asked::Run(cli.command));
    };
    let file = path.as_deref().map(|path| FromFile { path, ids: &ids });
    Ok(Asked::Settings(describe(own, given, file.as_ref())))
}

fn matched(command: &clap::Command, args: &[OsString]) -> Result<(ArgMatches, Cli), clap::Error> {
    let matches = command.clone().try_get_matches_from(args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok((matches, cli))
}

/// Every argument of every command, changed by `change`.
fn each_arg(mut command: clap::Command, change: &impl Fn(Arg) -> Arg) -> clap::Command {
    command = command.mut_args(change);
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    names
        .into_iter()
        .fold(command, |command, name| command.mut_subcommand(name, |own| each_arg(own, change)))
}

fn without_variable(arg: Arg) -> Arg {
    arg.env(None::<&'static str>)
}

/// A variable that is empty counts as not set, as in a Compose file whose `${NAME}` nobody gave;
/// but an empty key opens no server that was to be locked. In a variable that is a list commas
/// stand between its values; a flag is given once for each.
fn with_variables(command: clap::Command, args: &[OsString]) -> clap::Command {
    each_arg(command, &|arg| {
        let Some(name) = arg.get_env() else { return arg };
        let is_secret = arg.is_hide_env_values_set();
        match std::env::var_os(name) {
            Some(value) if value.is_empty() && !is_secret => without_variable(arg),
            Some(_) if is_list(&arg) && !is_typed(&arg, args) => arg.value_delimiter(','),
            _ => arg,
        }
    })
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append) && !arg.is_hide_env_values_set()
}

fn is_typed(arg: &Arg, args: &[OsString]) -> bool {
    let Some(long) = arg.get_long() else { return false };
    args.iter()
        .filter_map(|typed| typed.to_str()?.strip_prefix("--"))
        .any(|typed| typed.split('=').next() == Some(long))
}

/// Variables that are called as ours are and that no command reads, each with the nearest that one
/// does: a key in a misspelt one would lock nothing.
pub fn unknown_variables() -> Vec<(String, String)> {
    let known = variables_of(&command());
    let set = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let unknown = set.filter(|name| name.starts_with(VARIABLES) && !known.contains(name));
    let nearest =
        |name: &str| known.iter().min_by_key(|known| strsim::levenshtein(known, name)).cloned();
    unknown.map(|name| (name.clone(), nearest(&name).unwrap_or_default())).collect()
}

/// The variables that a command and those within it read.
fn variables_of(command: &clap::Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(Arg::get_env);
    let own = own.map(|name| name.to_string_lossy().into_owned());
    own.chain(command.get_subcommands().flat_map(variables_of)).collect()
}

/// Whose fault an error of clap's is.
fn blamed(wrong: clap::Error, args: &[OsString]) -> Unusable {
    if wrong.kind() == ErrorKind::DisplayHelp
        && let Some(text) = hub_flag(args)
    {
        return Unusable::Wrong(CliError::Usage(text));
    }
    if wrong.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Unusable::NoCommand(wrong);
    }
    if !wrong.use_stderr() {
        return Unusable::Shown(wrong);
    }
    let what = |error: &clap::Error| (error.kind(), error.get(ContextKind::InvalidArg).cloned());
    let typed_alone = matched(&each_arg(command(), &without_variable), args);
    let is_typed = typed_alone.err().is_some_and(|typed| what(&typed) == what(&wrong));
    Unusable::Wrong(match is_typed {
        true => CliError::Usage(usage(&wrong, args)),
        false => CliError::Config(match variable(&wrong, args) {
            Some(name) => format!("variable {name}: {}", line(&wrong)),
            None => format!("a variable TESSERA_…: {}", line(&wrong)),
        }),
    })
}

/// The variable that has the value which an error is about.
fn variable(wrong: &clap::Error, args: &[OsString]) -> Option<String> {
    let arg = wrong.get(ContextKind::InvalidArg)?.to_string();
    let of_flag = |known: &&Arg| {
        let long = known.get_long().map(|long| format!("--{long}"));
        arg.split([' ', '=']).next() == long.as_deref()
    };
    let command = command();
    let own = command.find_subcommand(args.get(1)?)?;
    let name = own.get_arguments().find(of_flag)?.get_env()?;
    Some(name.to_string_lossy().into_owned())
}

/// llama-server's `-hf`, which would otherwise be read as `-h` and ask for help.
fn hub_flag(args: &[OsString]) -> Option<String> {
    let typed = args.iter().find(|arg| arg.to_str().is_some_and(|arg| arg.starts_with("-hf")))?;
    foreign::pointer(&[typed.to_string_lossy().into_owned()], "-hf")
}

/// clap's error as one line: what was wrong and its tip, without the usage block; of a flag that
/// another server has, what is written here instead.
fn usage(wrong: &clap::Error, args: &[OsString]) -> String {
    let shown = |kind| wrong.get(kind).map(ToString::to_string);
    let args: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    // Other commands have no such flags: there clap's own tip is better.
    let first = args.get(1).map_or("serve", String::as_str);
    let of = if first.starts_with('-') { "serve" } else { first };
    let serves = ["serve", "chat", "generate", "batch"].contains(&of);
    if let (ErrorKind::UnknownArgument, true) = (wrong.kind(), serves)
        && let Some(flag) = shown(ContextKind::InvalidArg)
        && let Some(pointer) = foreign::pointer(&args, &flag)
    {
        return format!("{pointer}; see tessera {of} --help");
    }
    if wrong.kind() == ErrorKind::InvalidSubcommand
        && let Some(word) = shown(ContextKind::InvalidSubcommand).filter(|w| w.contains('/'))
    {
        return format!("'{word}' is no command; to serve it: tessera serve {word}");
    }
    format!("{}; see tessera --help", line(wrong))
}

/// clap's error as one line, without the usage block.
fn line(wrong: &clap::Error) -> String {
    let text = wrong.to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or(&text);
    let said = said.split("\n\nFor more information").next().unwrap_or(said);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_servers_flag_is_answered_with_what_is_written_here() {
        let said = |args: &[&str]| {
            let args: Vec<OsString> =
                ["tessera"].iter().chain(args).map(|arg| OsString::from(*arg)).collect();
            match parse(&args) {
                Err(Unusable::Wrong(CliError::Usage(text))) => text,
                _ => panic!("accepted: {args:?}"),
            }
        };
        for (args, expected) in [
            (&["serve", "m", "--lora-modules", "a=b"][..], "--adapter NAME=DIR_OR_ID"),
            (&["serve", "--enable-lora"], "leave it out"),
            (&["serve", "--model", "m"], "tessera serve MODEL"),
            (&["--model", "m"], "tessera serve MODEL"),
            (&["serve", "-m", "m.gguf"], "tessera serve MODEL"),
            (&["serve", "m", "-ngl", "99"], "-ngl is a flag of llama-server"),
            (&["serve", "m", "--tensor-parallel-size=2"], "one device"),
            (&["serve", "m", "--max_lora_rank", "64"], "--max-adapter-rank"),
            (&["serve", "m", "--ctx-size", "4096"], "--max-model-len"),
            (&["chat", "--lora-modules", "a=b"], "see tessera chat --help"),
            (&["org/name"], "tessera serve org/name"),
            (&["load", "--max-loras", "2"], "see tessera --help"),
        ] {
            let text = said(args);
            assert!(text.contains(expected) && !text.contains('\n'), "{args:?}: {text}");
        }
    }

    #[test]
    fn a_usage_error_is_one_line_that_says_where_help_is() {
        let wrong = command().try_get_matches_from(["tessera", "inspect"]).unwrap_err();
        let text = usage(&wrong, &["tessera".into(), "inspect".into()]);
        assert!(!text.contains('\n'), "{text}");
        assert!(text.contains("<ADAPTER>") && text.ends_with("see tessera --help"), "{text}");
    }
}
