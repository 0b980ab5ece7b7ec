//! What an answer tells of its prompts.

use super::fields::Common;
use super::prompt::PromptInput;
use crate::http::spelling::Spelling;
use crate::ids::TokenId;
use crate::json::or_more;
use crate::request::Invalid;

/// What the fields of a request ask for beside a continuation.
#[derive(Default)]
pub(in crate::http) struct PromptTerms {
    /// The text of each choice begins with its prompt.
    pub echo: bool,
    /// What stands after the text that is asked for.
    pub suffix: Option<String>,
}

impl PromptTerms {
    /// Alternatives that the engine reports of each token of a prompt, if it is to score them. It
    /// must score something where it draws nothing.
    pub fn scores(&self, own: Option<u32>, logprobs: Option<u32>, draws: bool) -> Option<u32> {
        let echoed = if draws { logprobs } else { Some(logprobs.unwrap_or(0)) };
        own.max(echoed.filter(|_| self.echo))
    }
}

/// What is kept of a prompt to tell of it.
pub(in crate::http) struct ToldPrompt {
    pub ids: Vec<TokenId>,
    /// With `echo`: how its choices begin.
    pub echo: Option<Echo>,
}

/// A prompt as a part of the answer's text.
pub(in crate::http) struct Echo {
    pub text: String,
    pub characters: usize,
    /// Its special tokens are parts of it.
    pub shows_special: bool,
}

impl ToldPrompt {
    /// Of a prompt that was given as `given`, if it was a text. A character that the prompt does
    /// not end is held back for what goes on with it, if anything does.
    pub fn echoed(
        spelling: &Spelling,
        ids: Vec<TokenId>,
        given: Option<String>,
        goes_on: bool,
    ) -> Self {
        let shows_special = spelling.shows_special || given.is_some();
        let text = given.unwrap_or_else(|| {
            let mut detokenizer = spelling.detokenizer(shows_special);
            let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
            if !goes_on {
                text += &detokenizer.finish();
            }
            text
        });
        let characters = text.chars().count();
        Self { ids, echo: Some(Echo { text, characters, shows_special }) }
    }
}

/// Choices of a prompt in an answer. More are answered 400.
pub(in crate::http) const SAMPLES_MAX: u32 = 128;
/// Samples that the best are taken from. More are answered 400.
pub(in crate::http) const BEST_OF_MAX: u32 = 20;

/// How often a prompt is continued.
#[derive(Clone, Copy)]
pub(in crate::http) struct Samples {
    /// Sequences that are run.
    pub drawn: usize,
    /// The likeliest of them, which are the answer.
    pub told: usize,
}

impl Samples {
    /// # Errors
    /// [`Invalid`] naming `n` or `best_of`.
    pub fn new(common: &Common, stream: bool) -> Result<Self, Invalid> {
        let n = common.n.unwrap_or(1);
        if !(1..=SAMPLES_MAX).contains(&n) {
            let n = or_more(n);
            let message = format!("n must be between 1 and {SAMPLES_MAX}, got {n}");
            return Err(Invalid::value("n", message));
        }
        let invalid = |message: String| Err(Invalid::value("best_of", message));
        match common.best_of {
            Some(best_of) if best_of < n => {
                invalid(format!("best_of must be at least n, which is {n}, got {best_of}"))
            }
            Some(best_of) if best_of > BEST_OF_MAX => {
                let best_of = or_more(best_of);
                invalid(format!("best_of must be at most {BEST_OF_MAX}, got {best_of}"))
            }
            Some(best_of) if best_of > n && stream => {
                invalid("best_of above n cannot be streamed; leave out stream".to_owned())
            }
            best_of => Ok(Self { drawn: best_of.unwrap_or(n) as usize, told: n as usize }),
        }
    }
}

impl Samples {
    /// Whether the server ever has places for all sequences of a request.
    ///
    /// # Errors
    /// [`Invalid`] naming the field that makes them too many.
    pub fn check(self, prompts: usize, requests_max: usize) -> Result<(), Invalid> {
        let Self { drawn, told } = self;
        if prompts * drawn <= requests_max {
            return Ok(());
        }
        let param = match drawn {
            1 => "prompt",
            _ if drawn == told => "n",
            _ => "best_of",
        };
        let message = format!(
            "this server runs at most {requests_max} sequences at once, waiting ones included; \
             {prompts} prompts of {drawn} samples each are {}; send several requests",
            prompts * drawn
        );
        Err(Invalid::value(param, message))
    }
}

/// The seed of a prompt's sample: the request's own for the first, and for the others one that
/// depends on it. They are far apart, so that those of neighbouring seeds do not meet.
pub(in crate::http) fn sample_seed(seed: u64, sample: usize) -> u64 {
    seed.wrapping_add((sample as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// The texts that prompts were given as, where they are to be told as they are.
pub(in crate::http) fn given(
    input: &PromptInput,
    terms: &PromptTerms,
    is_cut: bool,
) -> Vec<String> {
    match input {
        PromptInput::Texts(texts) if terms.echo && !is_cut => texts.clone(),
        _ => Vec::new(),
    }
}

/// Tokens of prompts, and alternatives of them, that one answer tells of, counted again for each
/// sample. More are answered 400: an answer is made in memory, and each may take 100 bytes there.
const TOLD_TOKENS_MAX: usize = 4 << 20;

/// Bounds what is told of prompts: with `alternatives` of each token, of each of `samples`.
///
/// # Errors
/// [`Invalid`] naming the prompt.
pub(in crate::http) fn check(
    prompts: &[Vec<TokenId>],
    samples: usize,
    alternatives: u32,
) -> Result<(), Invalid> {
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let told = tokens.saturating_mul(samples).saturating_mul(1 + alternatives as usize);
    if told <= TOLD_TOKENS_MAX {
        return Ok(());
    }
    let message = format!(
        "an answer tells of at most {TOLD_TOKENS_MAX} tokens of prompts and their alternatives, \
         got {told} ({tokens} tokens of prompts, {samples} samples, {alternatives} alternatives); \
         send fewer prompts at once, or ask for fewer logprobs"
    );
    Err(Invalid::value("prompt", message))
}

/// What is kept of all prompts; nothing where nothing is to be told of them.
pub(in crate::http) fn told(
    prompts: Vec<Vec<TokenId>>,
    given: Vec<String>,
    terms: &PromptTerms,
    spelling: &Spelling,
    draws: bool,
    returns_ids: bool,
) -> Vec<ToldPrompt> {
    let mut given = given.into_iter();
    let echoed = |prompt| ToldPrompt::echoed(spelling, prompt, given.next(), draws);
    match (terms.echo, returns_ids) {
        (true, _) => prompts.into_iter().map(echoed).collect(),
        (false, true) => prompts.into_iter().map(|ids| ToldPrompt { ids, echo: None }).collect(),
        (false, false) => Vec::new(),
    }
}
