//! How far one sequence is in its form.

use std::fmt;

use llguidance::Matcher;

use crate::ids::TokenId;
use crate::request::{Guide, TokenMask};

/// Longer messages of the library are cut.
const TOLD_CHARS_MAX: usize = 400;

/// One sequence's place in its form.
pub(super) struct Matching {
    matcher: Matcher,
    /// Tokens that end the text: allowed where the form is whole, and nowhere else.
    ends: Vec<TokenId>,
    /// What stands for the end in the library's masks; the first id that is no token.
    end: TokenId,
}

impl Matching {
    pub fn new(matcher: Matcher, ends: Vec<TokenId>, end: TokenId) -> Self {
        Self { matcher, ends, end }
    }
}

impl fmt::Debug for Matching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matching").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Guide for Matching {
    fn mask(&mut self) -> Result<TokenMask, String> {
        let Self { matcher, ends, end } = self;
        let allowed = matcher.compute_mask_or_eos().map_err(|error| astray(told(error)))?;
        let words = allowed.as_slice().iter().copied().take(end.div_ceil(32) as usize);
        let mut mask = TokenMask::of_words(words.collect());
        let is_whole = allowed.is_allowed(*end);
        mask.remove(*end);
        for &id in ends.iter() {
            match is_whole {
                true => mask.allow(id),
                // As a part of the text it would end it too early.
                false => {
                    mask.remove(id);
                }
            }
        }
        match mask.words().iter().all(|word| *word == 0) {
            true => Err(astray("no token of the model can go on here".to_owned())),
            false => Ok(mask),
        }
    }

    fn accept(&mut self, token: TokenId) -> Result<bool, String> {
        self.matcher.consume_token(token).map_err(|error| astray(told(error)))?;
        Ok(self.matcher.is_stopped())
    }

    fn fork(&self) -> Box<dyn Guide> {
        let Self { matcher, ends, end } = self;
        Box::new(Self::new(matcher.deep_clone(), ends.clone(), *end))
    }
}

fn astray(why: String) -> String {
    format!("the answer cannot go on in the form that was asked for: {why}")
}

/// What the library says of a oneOf that it does not see to be a choice.
const ONE_OF: &str = "oneOf constraints are not supported";
/// What it says where nothing can be drawn.
const NOTHING: &str = "NoExtension";

/// What the library says, for clients: without its stack, its state and its switches.
pub(super) fn told(error: impl fmt::Display) -> String {
    let error = format!("{error:#}");
    if error.contains(ONE_OF) {
        return "oneOf is supported where it is certain that no value fits two of its branches: by \
                type, or by constants of a required property; send anyOf"
            .to_owned();
    }
    // Before the reason it shows the expression, which may be long.
    if let Some((_, reason)) = error.split_once("\nerror: ") {
        return format!("invalid expression: {}", reason.lines().next().unwrap_or_default());
    }
    if error.starts_with(NOTHING) {
        return "there is no text of it that the model's tokens can go on with".to_owned();
    }
    let end = ["\n<backtrace>", "\n<state>", "\n<non-verbose/>"];
    let end = end.iter().filter_map(|mark| error.find(mark)).min().unwrap_or(error.len());
    let error = error[..end].trim();
    match error.char_indices().nth(TOLD_CHARS_MAX) {
        None => error.to_owned(),
        Some((end, _)) => format!("{}…", &error[..end]),
    }
}
