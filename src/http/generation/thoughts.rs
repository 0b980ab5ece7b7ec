//! What models think before they answer.

use serde_json::Value;

use crate::http::request::ends::Ends;
use crate::http::request::prompt::PromptInput;
use crate::http::settings::ReasoningParser;
use crate::http::state::State;
use crate::ids::TokenId;
use crate::request::{Guide, Invalid};
use crate::structured::{Thinking, ThoughtRules};
use crate::text::{Detokenizer, Opening, ServedText, ThoughtReader, ThoughtSyntax};

/// Where an answer tells of a thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Telling {
    /// In its text, as the model wrote it.
    InText,
    /// Apart from its text.
    Apart,
    /// Nowhere.
    Nowhere,
}

/// What a request says of thoughts.
#[derive(Clone, Copy)]
pub(in crate::http) struct ThoughtFields {
    pub telling: Telling,
    /// Tokens of a thought, after which it is ended.
    pub tokens_max: Option<u32>,
    /// Such a bound is refused where there are no thoughts; else it has nothing to bound there.
    pub must_bind: bool,
}

impl ThoughtFields {
    /// Of a route on which thoughts stand apart.
    pub fn apart(tokens_max: Option<u32>) -> Self {
        Self { telling: Telling::Apart, tokens_max, must_bind: false }
    }
}

/// How a thought is told apart from what is answered.
#[derive(Clone)]
pub(in crate::http) struct ThoughtTerms {
    pub syntax: ThoughtSyntax,
    pub telling: Telling,
    opening: Opening,
    /// Special tokens that are its marks.
    pub shown: Vec<TokenId>,
    /// Blanks after it are the form's.
    keeps_blanks: bool,
}

/// How thoughts are found, and what may be drawn.
type Planned = (Option<ThoughtTerms>, Option<Box<dyn Guide>>);

impl ThoughtFields {
    /// How thoughts are found in the answer to a prompt, if there may be any, and what may be
    /// drawn: of a form that a thought may come before. `begun` is what [`begun`] says.
    ///
    /// # Errors
    /// [`Invalid`] for a bound on the thoughts of a name that has none.
    pub fn plan(
        self,
        state: &State,
        text: &ServedText,
        (prompt, begun): (&[TokenId], Option<String>),
        ends: &Ends,
        form: Option<Box<dyn Guide>>,
    ) -> Result<Planned, Invalid> {
        let Self { telling, tokens_max, must_bind } = self;
        let terms = match telling {
            Telling::InText => None,
            _ => ThoughtTerms::new(text, state.http.reasoning_parser, prompt, begun, telling),
        };
        let Some(mut terms) = terms else {
            return if must_bind { Err(no_thoughts()) } else { Ok((None, form)) };
        };
        if tokens_max.is_some() && terms.syntax.close_tokens(&text.tokenizer).is_empty() {
            return Err(no_thoughts());
        }
        terms.keeps_blanks = form.is_some();
        let is_bound = form.is_some() || tokens_max.is_some();
        if terms.opening == Opening::Closed || !is_bound {
            return Ok((Some(terms), form));
        }
        let detokenizer = Detokenizer::after_prompt(text.tokenizer.clone(), prompt)
            .showing_special(ends.shows_special)
            .showing(terms.shown.clone());
        let rules = ThoughtRules {
            tokenizer: text.tokenizer.clone(),
            vocabulary: state.model.limits.vocabulary_tokens,
            syntax: terms.syntax,
            ends: ends.own().to_vec(),
            tokens_max,
        };
        let guide = Thinking::new(rules, detokenizer, terms.reader(), form);
        Ok((Some(terms), Some(Box::new(guide))))
    }
}

fn no_thoughts() -> Invalid {
    let message = "thinking_token_budget is for models whose thoughts are told apart; this one has \
                   no marks for any (see --reasoning-parser): leave it out";
    Invalid::value("thinking_token_budget", message)
}

impl ThoughtTerms {
    /// None for a name whose answers hold no thoughts.
    fn new(
        text: &ServedText,
        parser: ReasoningParser,
        prompt: &[TokenId],
        begun: Option<String>,
        telling: Telling,
    ) -> Option<Self> {
        let (syntax, begins) = match parser {
            ReasoningParser::None => return None,
            ReasoningParser::Auto => (text.thought_syntax()?, false),
            ReasoningParser::Syntax { syntax, begins } => (syntax, begins),
        };
        let opening = match begun {
            Some(answer) => syntax.opening_within(&answer),
            None => match syntax.opening(&text.tokenizer, prompt) {
                Opening::Free if begins => Opening::Open,
                opening => opening,
            },
        };
        let shown = syntax.special(&text.tokenizer);
        Some(Self { syntax, telling, opening, shown, keeps_blanks: false })
    }

    /// For the first character of an answer.
    pub fn reader(&self) -> ThoughtReader {
        ThoughtReader::new(self.syntax, self.opening).keeping_blanks(self.keeps_blanks)
    }
}

/// The begin of the answer, where the request has one that is to be continued.
pub(in crate::http) fn begun(input: &PromptInput) -> Option<String> {
    let PromptInput::Chat(chat) = input else { return None };
    let last = chat.messages.last().filter(|_| chat.continue_final_message)?;
    let text = match last.get("content")? {
        Value::Array(parts) => parts.iter().rev().find_map(|part| part.get("text"))?.as_str(),
        content => content.as_str(),
    };
    text.filter(|text| !text.trim().is_empty()).map(str::to_owned)
}
