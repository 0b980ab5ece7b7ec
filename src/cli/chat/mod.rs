//! `tessera chat`: a talk with a model and its adapters, in this process or on a server that runs.

mod command;
mod lines;
mod talk;

use std::time::Instant;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use self::command::{Command, HELP};
use self::lines::{Lines, Said};
use self::talk::Talk;
use super::CliError;
use super::answering::Answering;
use super::runtime::runtime;
use super::sampling::{SamplingArgs, speed};
use super::terminal::{Screen, complain, harmless, one_line, remark};

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Flags of `tessera chat`.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// The model, as for serve: a directory or a Hub id. Without one: the built-in demo.
    #[arg(value_name = "MODEL")]
    model_dir: Option<String>,
    /// Name to talk to at first: an adapter's, or the base's. Default: the base's.
    #[arg(long = "model", value_name = "NAME")]
    name: Option<String>,
    /// What the model is told before all else.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Say after each answer how fast it was.
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Who answers.
    #[command(flatten)]
    pub answering: Answering,
}

/// Runs the command.
///
/// # Errors
/// One line that says what is wrong and how to mend it.
pub fn run(args: &ChatArgs) -> Result<(), CliError> {
    let answering = args.answering.with_model(args.model_dir.as_deref())?;
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let client = answering.client()?;
        let names = client.models().await?;
        let Some(first) = args.name.clone().or_else(|| names.first().cloned()) else {
            return Err(CliError::General("the server has no model".to_owned()));
        };
        let mut talk = Talk::new(client, names, args.sampling.fields(), args.system.clone());
        talk.switch(&first).await?;
        let chat = Chat { talk, lines: Lines::open()?, screen: Screen::new(), stats: args.stats };
        chat.run().await
    });
    runtime.shutdown_background();
    done
}

struct Chat {
    talk: Talk,
    lines: Lines,
    screen: Screen,
    stats: bool,
}

impl Chat {
    async fn run(mut self) -> Result<(), CliError> {
        if self.lines.is_prompted() {
            self.note(&format!("talking to {}; /help lists commands", self.talk.model()))?;
        }
        // Of Ctrl-C in a row, an answer that was stopped included.
        let mut interrupts = 0;
        loop {
            let prompt = format!("{}> ", one_line(self.talk.model()));
            let line = match self.lines.next(&prompt)? {
                Said::Line(line) => line,
                Said::End => return Ok(()),
                Said::Interrupt if interrupts > 0 => return Ok(()),
                Said::Interrupt => {
                    interrupts += 1;
                    self.note("Ctrl-C again, or Ctrl-D, ends")?;
                    continue;
                }
            };
            interrupts = 0;
            match Command::parse(&line) {
                Command::Quit => return Ok(()),
                Command::Say(text) => match self.answer(text).await {
                    Ok(Ended::Whole) => {}
                    Ok(Ended::Stopped) => interrupts = 1,
                    Ok(Ended::Unread) => return Ok(()),
                    Err(error) => self.failed(error)?,
                },
                command => {
                    if let Err(error) = self.obey(command).await {
                        self.failed(error)?;
                    }
                }
            }
        }
    }

    /// A person reads what is wrong and goes on; a script ends.
    fn failed(&mut self, error: CliError) -> Result<(), CliError> {
        if !self.lines.is_prompted() {
            return Err(error);
        }
        self.screen.end_line()?;
        complain(&format!("error: {error}"));
        Ok(())
    }

    /// Something that is no part of the talk: dim on a terminal, else on standard error.
    fn note(&mut self, text: &str) -> Result<(), CliError> {
        self.screen.end_line()?;
        match self.lines.is_prompted() {
            true => {
                let text = format!("{DIM}{}{PLAIN}\n", harmless(text));
                self.screen.raw(&text)?;
            }
            false => remark(text),
        }
        Ok(())
    }

    async fn obey(&mut self, command: Command<'_>) -> Result<(), CliError> {
        match command {
            Command::Model(None) => {
                self.talk.look_again().await?;
                let current = self.talk.model();
                let mark = |name: &String| if name == current { '*' } else { ' ' };
                let names = self.talk.names().iter();
                let list: Vec<String> =
                    names.map(|name| format!("{} {name}", mark(name))).collect();
                self.note(&list.join("\n"))
            }
            Command::Model(Some(name)) => {
                self.talk.switch(name).await?;
                self.note(&format!("{} goes on", self.talk.model()))
            }
            Command::System(None) => {
                let text = self.talk.system().unwrap_or("(nothing is said)").to_owned();
                self.note(&text)
            }
            Command::System(Some(text)) => {
                self.talk.set_system(Some(text).filter(|text| *text != "-"));
                Ok(())
            }
            Command::Reset => {
                self.talk.reset();
                self.note("forgotten")
            }
            Command::Help => self.note(HELP.trim_end()),
            Command::Unknown(word) => Err(CliError::Usage(format!(
                "there is no /{word}; /help lists commands, and //{word} says it to the model"
            ))),
            // Handled where they come.
            Command::Say(_) | Command::Quit | Command::Empty => Ok(()),
        }
    }

    /// Says a text and writes the answer as it comes.
    async fn answer(&mut self, text: &str) -> Result<Ended, CliError> {
        // One for each answer: it hears of nothing that was pressed before.
        let mut interrupt = match self.lines.is_prompted() {
            true => signal(SignalKind::interrupt()).ok(),
            // Without a handler, Ctrl-C ends the process.
            false => None,
        };
        let start = Instant::now();
        let mut first_s = None;
        let mut said = self.talk.say(text);
        let mut is_thinking = false;
        let ended = loop {
            let part = tokio::select! {
                part = said.next() => part?,
                () = pressed(interrupt.as_mut()) => break Ended::Stopped,
            };
            let Some(part) = part else { break Ended::Whole };
            if !(part.text.is_empty() && part.thought.is_empty()) {
                first_s.get_or_insert_with(|| start.elapsed().as_secs_f64());
            }
            if self.lines.is_prompted() && !part.thought.is_empty() {
                let begin = if is_thinking { "" } else { DIM };
                is_thinking = true;
                self.screen.raw(begin)?;
                self.screen.say(&part.thought)?;
            }
            if !part.text.is_empty() {
                if std::mem::take(&mut is_thinking) {
                    self.screen.raw(PLAIN)?;
                    self.screen.raw("\n")?;
                }
                if !self.screen.say(&part.text)? {
                    return Ok(Ended::Unread);
                }
            }
        };
        let tokens = said.end();
        if is_thinking {
            self.screen.raw(PLAIN)?;
        }
        self.screen.raw("\n")?;
        if self.stats && matches!(ended, Ended::Whole) {
            self.note(&speed(tokens, first_s, start.elapsed().as_secs_f64()))?;
        }
        Ok(ended)
    }
}

/// How an answer ended.
enum Ended {
    Whole,
    /// By Ctrl-C.
    Stopped,
    /// Nobody reads standard output any more.
    Unread,
}

/// Resolves when Ctrl-C is pressed, if somebody listens for it.
async fn pressed(interrupt: Option<&mut tokio::signal::unix::Signal>) {
    match interrupt {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
