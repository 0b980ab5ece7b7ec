//! Forms that are compiled, each once.

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::form::Form;
use super::matching::{Matching, told};
use super::vocabulary::Vocabulary;
use crate::ids::TokenId;

/// One form for one tokenizer, with its first mask worked out.
pub(super) struct Compiled {
    matcher: Mutex<Matcher>,
    end: TokenId,
}

impl Compiled {
    /// # Errors
    /// What of the form is not understood or not supported, or which limit it exceeds.
    pub fn new(form: &Form, vocabulary: &Vocabulary) -> Result<Self, String> {
        form.check_size()?;
        let grammar = form.grammar()?;
        let parser = vocabulary.factory.create_parser(grammar).map_err(told)?;
        let mut matcher = Matcher::new(Ok(parser));
        // What the library would otherwise serve by halves.
        if let (Form::Json { .. } | Form::Calls(_), Some(warning)) =
            (form, matcher.grammar_warnings().first())
        {
            return Err(told(warning));
        }
        let end = vocabulary.end();
        if !matcher.is_stopped() {
            let first = matcher.compute_mask().map_err(told)?;
            try_out(matcher.deep_clone(), &first, end)?;
        }
        Ok(Self { matcher: Mutex::new(matcher), end })
    }

    /// For a sequence that the tokens of `ends` end.
    pub fn matching(&self, ends: &[TokenId]) -> Matching {
        // Copying leaves the original whole, whatever happens.
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = ends.iter().copied().filter(|&id| id < self.end).collect();
        Matching::new(matcher.deep_clone(), ends, self.end)
    }
}

/// Draws the first token that may come, twice: what a form asks for at its start is often what is
/// too much, and then better known before an answer has begun.
fn try_out(mut matcher: Matcher, first: &SimpleVob, end: TokenId) -> Result<(), String> {
    let mut mask = first.clone();
    for _ in 0..2 {
        let token = mask.first_bit_set().map(|token| token as TokenId);
        let Some(token) = token.filter(|&token| token != end) else { return Ok(()) };
        matcher.consume_token(token).map_err(told)?;
        if matcher.is_stopped() {
            return Ok(());
        }
        mask = matcher.compute_mask().map_err(told)?;
    }
    Ok(())
}

/// What was compiled lately, newest last.
pub(super) struct Kept<K> {
    forms: Vec<(K, Arc<Compiled>)>,
}

impl<K> Default for Kept<K> {
    fn default() -> Self {
        Self { forms: Vec::new() }
    }
}

impl<K: PartialEq> Kept<K> {
    /// Finds one, and makes it the newest.
    pub fn find(&mut self, key: &K) -> Option<Arc<Compiled>> {
        let at = self.forms.iter().position(|(other, _)| other == key)?;
        let found = self.forms.remove(at);
        let form = found.1.clone();
        self.forms.push(found);
        Some(form)
    }

    /// Adds one; of more than `count_max` the oldest go.
    pub fn add(&mut self, key: K, form: Arc<Compiled>, count_max: usize) {
        self.forms.retain(|(other, _)| *other != key);
        self.forms.push((key, form));
        let over = self.forms.len().saturating_sub(count_max);
        self.forms.drain(..over);
    }
}
