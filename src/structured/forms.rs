//! Forms to guides: compiled under a guard, and kept for the next request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::compiled::{Compiled, Kept};
use super::form::Form;
use super::limits::FORMS_KEPT_MAX;
use super::vocabulary::Vocabulary;
use crate::ids::{Digest, TokenId};
use crate::request::Guide;
use crate::text::{GUARDED_SECONDS_MAX, Guard, Stopped, Tokenizer};

/// Why a form cannot be followed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FormError {
    /// It is broken, or asks for what is not supported, or for too much.
    #[error("{0}")]
    Refused(String),
    /// It took too long.
    #[error(
        "it could not be compiled within {seconds_max} s, or others like it still are; ask for less"
    )]
    Late {
        /// The bound.
        seconds_max: u64,
    },
    /// The library failed.
    #[error("the library that compiles it failed on it")]
    Failed,
    /// No form can be followed with the model's tokenizer.
    #[error("structured output is not possible with this model's tokenizer: {0}")]
    Tokenizer(String),
}

/// A tokenizer's tree of tokens, made when it is first needed: that takes a second.
#[derive(Default)]
struct Lazy {
    id: u64,
    made: Mutex<Option<Arc<Vocabulary>>>,
}

/// Makes guides. All tokenizers and requests of a server share one.
pub struct Forms {
    /// Tokens that the model has logits for.
    vocabulary_tokens: u32,
    vocabularies: Mutex<Vec<(Weak<Tokenizer>, Arc<Lazy>)>>,
    kept: Mutex<Kept<(u64, Digest)>>,
    next_id: AtomicU64,
    guard: Guard,
}

impl Forms {
    /// For a model with so many logits.
    pub fn new(vocabulary_tokens: u32) -> Self {
        Self {
            vocabulary_tokens,
            vocabularies: Mutex::default(),
            kept: Mutex::default(),
            next_id: AtomicU64::new(0),
            guard: Guard::default(),
        }
    }

    /// A guide at the start of `form`, for text of `tokenizer` that the tokens of `ends` end.
    ///
    /// # Errors
    /// [`FormError`].
    pub fn guide(
        &self,
        tokenizer: &Arc<Tokenizer>,
        form: &Form,
        ends: &[TokenId],
    ) -> Result<Box<dyn Guide>, FormError> {
        form.check_size().map_err(FormError::Refused)?;
        let lazy = self.vocabulary(tokenizer);
        let key = (lazy.id, form.digest());
        // A list of what can be made again is whole whatever happened while it was held.
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept().find(&key);
        let compiled = match found {
            Some(compiled) => compiled,
            None => {
                let compiled = Arc::new(self.compile(tokenizer, &lazy, form)?);
                kept().add(key, compiled.clone(), FORMS_KEPT_MAX);
                compiled
            }
        };
        Ok(Box::new(compiled.matching(ends)))
    }

    fn compile(
        &self,
        tokenizer: &Arc<Tokenizer>,
        lazy: &Lazy,
        form: &Form,
    ) -> Result<Compiled, FormError> {
        let vocabulary = self.make(tokenizer, lazy)?;
        let form = form.clone();
        let compiled = self.guard.run(move || Compiled::new(&form, &vocabulary));
        compiled.map_err(stopped)?.map_err(FormError::Refused)
    }

    /// Others who need the same tree wait here for it.
    fn make(&self, tokenizer: &Arc<Tokenizer>, lazy: &Lazy) -> Result<Arc<Vocabulary>, FormError> {
        let mut made = lazy.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vocabulary) = &*made {
            return Ok(vocabulary.clone());
        }
        let (tokenizer, tokens) = (tokenizer.clone(), self.vocabulary_tokens);
        let vocabulary = self.guard.run(move || Vocabulary::new(&tokenizer, tokens));
        let vocabulary = vocabulary.map_err(stopped)?.map_err(FormError::Tokenizer)?;
        Ok(made.insert(Arc::new(vocabulary)).clone())
    }

    fn vocabulary(&self, tokenizer: &Arc<Tokenizer>) -> Arc<Lazy> {
        let mut held = self.vocabularies.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|(tokenizer, _)| tokenizer.strong_count() > 0);
        let same = |(other, _): &&(Weak<Tokenizer>, _)| other.as_ptr() == Arc::as_ptr(tokenizer);
        if let Some((_, lazy)) = held.iter().find(same) {
            return lazy.clone();
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let lazy = Arc::new(Lazy { id, ..Lazy::default() });
        held.push((Arc::downgrade(tokenizer), lazy.clone()));
        lazy
    }
}

fn stopped(why: Stopped) -> FormError {
    match why {
        Stopped::Late => FormError::Late { seconds_max: GUARDED_SECONDS_MAX },
        Stopped::Failed => FormError::Failed,
    }
}
