//! What may be drawn of a thought, and of the answer after it: the thought is free, and may be
//! bounded; the answer has its form.

use std::fmt;
use std::sync::Arc;

use crate::ids::TokenId;
use crate::request::{Guide, TokenMask};
use crate::text::{Detokenizer, ThoughtReader, ThoughtSyntax, Tokenizer};

/// Told of a sequence in which a thought ends within a token, which no mask allows.
const CROSSED: &str = "the thought did not end where the answer begins. This is a bug.";
/// Told of a mark that the model has no tokens for.
const NO_TOKEN: &str = "the answer cannot go on: the model has no token that goes on with the mark \
                        of a thought";

/// What the thoughts of one request are bound by.
pub struct ThoughtRules {
    /// Their text's tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// Tokens that the model has logits for.
    pub vocabulary: u32,
    /// How they are marked.
    pub syntax: ThoughtSyntax,
    /// Tokens that end the text: where there is a form, not before the thought is over.
    pub ends: Vec<TokenId>,
    /// Tokens of a thought, its first mark among them. One that is longer is ended.
    pub tokens_max: Option<u32>,
}

/// The same, with what follows of them.
struct Rules {
    of: ThoughtRules,
    /// Special tokens that are marks; others are no text.
    shown: Vec<TokenId>,
    /// Tokens that go on after the last character of a mark that ends a thought, and their texts.
    crossing: Vec<(TokenId, String)>,
    /// The mark that ends a thought.
    close: Vec<TokenId>,
}

/// One sequence's place in its thought, and in its form after that.
#[derive(Clone)]
pub struct Thinking {
    rules: Arc<Rules>,
    detokenizer: Detokenizer,
    reader: ThoughtReader,
    /// Tokens so far.
    tokens: u32,
    /// Of the mark that ends the thought, if it must be ended.
    closing: usize,
    /// The form of the answer, at its start until the thought is over.
    form: Option<Box<dyn Guide>>,
    /// The form as far as a text without a thought is in it; none once it cannot be.
    direct: Option<Direct>,
}

#[derive(Clone)]
struct Direct {
    form: Box<dyn Guide>,
    mask: Option<TokenMask>,
}

impl Thinking {
    /// For a sequence whose text comes from `detokenizer` and is taken apart by `reader`, neither
    /// of which has seen a token. `form` begins where the thought ends.
    pub fn new(
        rules: ThoughtRules,
        detokenizer: Detokenizer,
        reader: ThoughtReader,
        form: Option<Box<dyn Guide>>,
    ) -> Self {
        let ThoughtRules { tokenizer, vocabulary, syntax, .. } = &rules;
        let last: Vec<u8> =
            syntax.closes().iter().filter_map(|mark| mark.bytes().next_back()).collect();
        let crosses = |&id: &TokenId| {
            let before = tokenizer.token_bytes(id).split_last().map_or(&[][..], |(_, rest)| rest);
            before.iter().any(|byte| last.contains(byte))
        };
        let crossing = (0..*vocabulary).filter(crosses).map(|id| (id, tokenizer.token_str(id)));
        let is_free = !reader.has_thought() && !reader.is_over();
        let direct = form.clone().filter(|_| is_free).map(|form| Direct { form, mask: None });
        let rules = Rules {
            shown: syntax.special(tokenizer),
            crossing: crossing.collect(),
            close: syntax.close_tokens(tokenizer),
            of: rules,
        };
        Self { rules: Arc::new(rules), detokenizer, reader, tokens: 0, closing: 0, form, direct }
    }

    fn all(&self) -> TokenMask {
        TokenMask::all(self.rules.of.vocabulary as usize)
    }

    /// Takes out tokens that end the thought and go on after that.
    fn remove_crossing(&self, mask: &mut TokenMask) {
        for (id, text) in &self.rules.crossing {
            if !self.reader.may_end(text) {
                continue;
            }
            let mut reader = self.reader.clone();
            let split = reader.push(text);
            if reader.is_over() && reader.has_thought() && !split.text.is_empty() {
                mask.remove(*id);
            }
        }
    }

    fn thought_mask(&self) -> TokenMask {
        let Rules { of, close, .. } = &*self.rules;
        if of.tokens_max.is_some_and(|max| self.tokens >= max) {
            let mut mask = TokenMask::none(of.vocabulary as usize);
            let next = close.get(self.closing).filter(|&&id| id < of.vocabulary);
            next.into_iter().for_each(|&id| mask.allow(id));
            return mask;
        }
        let mut mask = self.all();
        if self.form.is_some() {
            for &id in &of.ends {
                mask.remove(id);
            }
            self.remove_crossing(&mut mask);
        }
        mask
    }

    /// Allows what begins a thought or goes on with its mark.
    fn allow_opening(&self, mask: &mut TokenMask) {
        let Rules { of: ThoughtRules { tokenizer, vocabulary, .. }, shown, .. } = &*self.rules;
        let rests: Vec<&[u8]> = self.reader.rests().map(str::as_bytes).collect();
        for id in 0..*vocabulary {
            let bytes = tokenizer.token_bytes(id);
            let is_hidden = tokenizer.is_special(id) && !shown.contains(&id);
            if bytes.is_empty() || is_hidden {
                continue;
            }
            let opens = |rest: &&[u8]| rest.starts_with(bytes) || bytes.starts_with(rest);
            if rests.iter().any(opens) {
                mask.allow(id);
            }
        }
        self.remove_crossing(mask);
    }

    /// Of a text that may become a thought or an answer.
    fn free_mask(&mut self) -> Result<TokenMask, String> {
        if self.form.is_none() {
            return Ok(self.all());
        }
        let mut mask = TokenMask::none(self.rules.of.vocabulary as usize);
        if let Some(direct) = &mut self.direct {
            mask = direct.form.mask()?;
            direct.mask = Some(mask.clone());
        }
        self.allow_opening(&mut mask);
        Ok(mask)
    }
}

impl fmt::Debug for Thinking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reader, form, .. } = self;
        f.debug_struct("Thinking").field("reader", reader).field("form", form).finish()
    }
}

impl Guide for Thinking {
    fn mask(&mut self) -> Result<TokenMask, String> {
        let is_over = self.reader.is_over();
        if let Some(form) = self.form.as_mut().filter(|_| is_over) {
            return form.mask();
        }
        let mask = match (is_over, self.reader.has_thought()) {
            (true, _) => self.all(),
            (false, true) => self.thought_mask(),
            (false, false) => self.free_mask()?,
        };
        match mask.words().iter().all(|word| *word == 0) {
            true => Err(NO_TOKEN.to_owned()),
            false => Ok(mask),
        }
    }

    fn accept(&mut self, token: TokenId) -> Result<bool, String> {
        if self.reader.is_over() {
            return self.form.as_mut().map_or(Ok(false), |form| form.accept(token));
        }
        if self.rules.of.tokens_max.is_some_and(|max| self.tokens >= max) {
            self.closing += usize::from(self.reader.has_thought());
        }
        self.tokens += 1;
        let text = self.detokenizer.push(token);
        let split = self.reader.push(&text);
        if self.reader.has_thought() {
            self.direct = None;
            let is_whole = split.text.is_empty() || self.form.is_none();
            return if is_whole { Ok(false) } else { Err(CROSSED.to_owned()) };
        }
        let allows = |direct: &Direct| direct.mask.as_ref().is_none_or(|m| m.allows(token));
        let mut direct = self.direct.take().filter(allows);
        let is_whole = match &mut direct {
            Some(direct) => direct.form.accept(token)?,
            None => false,
        };
        match direct {
            // The text is no thought.
            Some(direct) if self.reader.is_over() => self.form = Some(direct.form),
            direct => self.direct = direct,
        }
        Ok(is_whole)
    }

    fn fork(&self) -> Box<dyn Guide> {
        Box::new(self.clone())
    }
}
