//! Lines that are for the program and not for the model.

/// What a line of the user is.
#[derive(Debug, PartialEq)]
pub enum Command<'a> {
    /// For the model.
    Say(&'a str),
    /// `/model NAME`, or without a name for a list.
    Model(Option<&'a str>),
    /// `/system TEXT`, or without one to see it.
    System(Option<&'a str>),
    /// `/reset`.
    Reset,
    /// `/help`.
    Help,
    /// `/quit`.
    Quit,
    /// Another word after a slash.
    Unknown(&'a str),
    /// Nothing at all.
    Empty,
}

/// What `/help` prints.
pub const HELP: &str = "\
/model NAME   go on with this adapter; without a name, lists them
/system TEXT  what the model is told before all else; without a text, shows it; - takes it away
/reset        forget what was said
/help         this list
/quit         end; so does Ctrl-D, or Ctrl-C twice
//TEXT        say a text that begins with a slash
Ctrl-C stops an answer. What was said of it stays.
";

impl<'a> Command<'a> {
    /// Reads a line.
    pub fn parse(line: &'a str) -> Self {
        let line = line.trim();
        if line.is_empty() {
            return Self::Empty;
        }
        let Some(command) = line.strip_prefix('/') else { return Self::Say(line) };
        if command.starts_with('/') {
            return Self::Say(command);
        }
        let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
        match word {
            "model" => Self::Model(rest),
            "system" => Self::System(rest),
            "reset" => Self::Reset,
            "help" | "?" => Self::Help,
            "quit" | "exit" | "bye" => Self::Quit,
            _ => Self::Unknown(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Command;

    #[test]
    fn a_slash_begins_a_command_and_two_a_text() {
        assert_eq!(Command::parse(" hello /reset "), Command::Say("hello /reset"));
        assert_eq!(Command::parse("/model  pirate "), Command::Model(Some("pirate")));
        assert_eq!(Command::parse("/model"), Command::Model(None));
        assert_eq!(Command::parse("/system be brief"), Command::System(Some("be brief")));
        assert_eq!(Command::parse("//etc/passwd"), Command::Say("/etc/passwd"));
        assert_eq!(Command::parse("/quit"), Command::Quit);
        assert_eq!(Command::parse("/modell x"), Command::Unknown("modell"));
        assert_eq!(Command::parse("  "), Command::Empty);
    }
}
