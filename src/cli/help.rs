//! What `--help` says beside the flags: examples of every command, and exit codes.

use clap::Command;

/// What a process exits with, and when.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "done; serve: stopped by SIGTERM or SIGINT; inspect: the adapter would be served"),
    (
        1,
        "failed in a way that has no code of its own: no healthy server, a disk that is full, a \
         problem that doctor found, a line of a batch that failed",
    ),
    (
        2,
        "no command, a flag that is wrong or names what is not there, or an adapter that would \
         not be served",
    ),
    (3, "a model that cannot be loaded"),
    (4, "another program listens at that address already"),
    (5, "a setting, file of settings or key that cannot be used"),
];

/// Examples of a command by its name; those of the program under no name.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "",
        &[
            ("tessera serve", "a built-in model and five adapters, at http://127.0.0.1:8000"),
            ("tessera serve MODEL --adapter sql=DIR", "your own, by directory or Hub id"),
            ("tessera inspect DIR --model MODEL", "would this adapter be served?"),
            ("tessera doctor", "what this machine has, and what is missing"),
        ],
    ),
    (
        "serve",
        &[
            ("tessera serve", "a built-in model and five adapters: nothing is downloaded"),
            (
                "tessera serve org/base --adapter sql=./sql --adapter chat=org/chat-lora",
                "directories and Hub ids",
            ),
            (
                "tessera serve ./base --adapter-root ./adapters --allow-runtime-adapters",
                "adapters come and go while it serves",
            ),
            (
                "tessera serve ./base --host 0.0.0.0 --api-key KEY",
                "reached from other machines, with a key",
            ),
            ("TESSERA_PORT=9000 tessera serve --config tessera.toml", "every flag is a variable"),
            ("tessera serve --port 9000 --print-config", "what would be, and where it comes from"),
        ],
    ),
    (
        "doctor",
        &[
            ("tessera doctor", "a line for each thing, and exit code 1 if there is a problem"),
            ("tessera doctor --device cuda --port 9000 --json", "with a GPU, for programs"),
        ],
    ),
    (
        "chat",
        &[
            ("tessera chat", "with the built-in model; /model pirate goes on with an adapter"),
            ("tessera chat ./base --adapter sql=./sql --model sql", "with an adapter of your own"),
            ("tessera chat --url http://10.0.0.7:8000/v1 --key KEY", "on a server that runs"),
        ],
    ),
    (
        "generate",
        &[
            ("tessera generate 'The fox' --max-tokens 9", "the built-in model goes on with a text"),
            ("tessera generate ./base --file prompt.txt --n 3 --seed 1", "three texts of a file"),
            ("tessera generate hello --url unix:/run/tessera.sock", "on a server that runs"),
        ],
    ),
    (
        "batch",
        &[
            ("tessera batch in.jsonl -o out.jsonl", "each line names its model; again, it goes on"),
            (
                "tessera batch ./base in.jsonl -o out.jsonl --adapter sql=./sql",
                "your own model and adapter, in this process",
            ),
            (
                "tessera batch in.jsonl -o out.jsonl --url http://10.0.0.7:8000/v1",
                "on a server that runs",
            ),
        ],
    ),
    (
        "inspect",
        &[
            ("tessera inspect ./sql --model org/base", "tensor by tensor"),
            ("tessera inspect org/sql-lora --model ./base --json", "for programs"),
        ],
    ),
    (
        "synth",
        &[
            ("tessera synth model ./base --preset 403m", "a model with random weights"),
            ("tessera synth adapter ./a --model ./base --kind lora --rank 8", "an adapter for it"),
        ],
    ),
    (
        "bench",
        &[
            ("tessera bench", "random weights, 403 M parameters, on the device there is"),
            ("tessera bench ./base --rows 1,16 --cases base,distinct", "your own model's shape"),
        ],
    ),
    (
        "load",
        &[
            ("tessera load", "512 requests over all models of the server on this machine"),
            (
                "tessera load http://10.0.0.7:8000/v1 --model sql --concurrency 8",
                "one adapter of another machine's server",
            ),
        ],
    ),
    (
        "healthcheck",
        &[
            ("tessera healthcheck", "of the server on port 8000 of this machine"),
            ("tessera healthcheck --port 9000 && echo healthy", "the exit code tells"),
        ],
    ),
    (
        "completions",
        &[
            ("source <(tessera completions bash)", "in this bash"),
            ("tessera completions zsh > ~/.zfunc/_tessera", "for zsh, with ~/.zfunc in $fpath"),
            ("tessera completions fish > ~/.config/fish/completions/tessera.fish", "for fish"),
        ],
    ),
    ("man", &[("tessera man ./man && man ./man/tessera-serve.1", "write the pages, read one")]),
];

/// The command line with its examples and exit codes.
pub fn dressed(command: Command) -> Command {
    let names: Vec<String> =
        command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let command = names.into_iter().fold(command, |command, name| {
        let text = examples(&name);
        command.mut_subcommand(&name, |sub| sub.after_help(text))
    });
    let codes = EXIT_CODES.iter().map(|(code, when)| format!("  {code}  {when}\n"));
    let codes: String = codes.collect();
    let more = "'tessera COMMAND --help' says more of a command.";
    command.after_help(format!("{}\n{}{codes}\n{more}", examples(""), heading("Exit codes")))
}

/// As clap writes its own headings; colours go where there is no terminal.
fn heading(text: &str) -> String {
    format!("\x1b[1m\x1b[4m{text}:\x1b[0m\n")
}

fn examples(name: &str) -> String {
    let found = EXAMPLES.iter().find(|(of, _)| *of == name);
    let lines = found.into_iter().flat_map(|(_, lines)| *lines);
    let lines = lines.map(|(line, what)| format!("  # {what}\n  {line}\n"));
    format!("{}{}", heading("Examples"), lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    #[test]
    fn every_command_has_examples_and_every_example_is_of_a_command() {
        let command = command();
        let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name()).collect();
        let of: Vec<_> = EXAMPLES.iter().map(|(name, _)| *name).collect();
        assert_eq!(of[1..], names, "one entry a command, in the order of the commands");
        for (name, lines) in EXAMPLES {
            assert!(lines.iter().all(|(line, _)| line.contains(&format!("tessera {name}"))));
        }
    }

    #[test]
    fn every_example_is_a_command_line_that_is_understood() {
        for (line, _) in EXAMPLES.iter().flat_map(|(_, lines)| *lines) {
            let words = line.split_whitespace().skip_while(|word| word.starts_with("TESSERA_"));
            let words = words.map(|word| word.trim_matches(['<', '(', ')']));
            let words = words.skip_while(|word| *word != "tessera");
            let words = words.take_while(|word| !["&&", ">"].contains(word));
            command().try_get_matches_from(words).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }
}
