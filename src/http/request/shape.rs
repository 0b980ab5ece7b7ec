//! Prompts as the model reads them: filled in around, and cut to what it takes.

use super::fields::Common;
use super::prompt::PromptInput;
use super::told::PromptTerms;
use crate::http::error::RequestError;
use crate::ids::TokenId;
use crate::request::{Invalid, Limits, RequestParams};
use crate::text::{Infill, ServedText};

/// What becomes of the tokens of each prompt.
pub(in crate::http) struct Shape {
    /// Tokens to keep, the last ones.
    pub keep: Option<usize>,
    /// What stands after the text that is asked for, and the tokens that say so.
    infill: Option<(Infill, String)>,
}

impl Shape {
    /// `tokens_max` is what the request asks for.
    ///
    /// # Errors
    /// [`Invalid`] naming `suffix` or `truncate_prompt_tokens`.
    pub fn new(
        common: &Common,
        terms: &PromptTerms,
        text: &ServedText,
        tokens_max: Option<u32>,
        limits: &Limits,
    ) -> Result<Self, Invalid> {
        let limit = limits.context_tokens_max;
        let keep = common.truncate_prompt_tokens.map(|keep| match keep {
            // What leaves room for the answer.
            -1 => Ok(limit.saturating_sub(tokens_max.unwrap_or(1)).max(1) as usize),
            1.. if keep <= i64::from(limit) => Ok(keep as usize),
            _ => Err(Invalid::value(
                "truncate_prompt_tokens",
                format!(
                    "truncate_prompt_tokens must be -1 (what the context takes) or an integer \
                     from 1 to {limit}, this model's context length, got {keep}"
                ),
            )),
        });
        let keep = keep.transpose()?;
        let Some(suffix) = &terms.suffix else { return Ok(Self { keep, infill: None }) };
        let invalid = |message: &str| Err(Invalid::value("suffix", message));
        if terms.echo || keep.is_some() {
            return invalid("suffix cannot be given with echo or truncate_prompt_tokens");
        }
        match Infill::of(&text.tokenizer) {
            Some(infill) => Ok(Self { keep, infill: Some((infill, suffix.clone())) }),
            None => invalid(
                "suffix must be left out or empty: this model's tokenizer has no tokens for \
                 filling in the middle of a text",
            ),
        }
    }

    /// A token that ends what is filled in.
    pub fn end(&self) -> Option<TokenId> {
        self.infill.as_ref().and_then(|(infill, _)| infill.end)
    }

    /// Checks what costs little, of all prompts, as [`PromptInput::check`] does.
    ///
    /// # Errors
    /// Those of [`PromptInput::check`].
    pub fn check(
        &self,
        input: &PromptInput,
        text: &ServedText,
        params: &RequestParams,
        limits: &Limits,
    ) -> Result<(), RequestError> {
        // Of what is cut or filled in around only the whole can be checked.
        let is_whole = self.infill.is_none() && self.keep.is_none();
        let check = |ids: &[TokenId]| match is_whole {
            true => params.check_prompt(ids, limits),
            false => Ok(()),
        };
        input.check(text, limits.context_tokens_max, self.infill.is_some(), check)
    }

    /// The tokens of each prompt, each checked as soon as it is there; slow for long texts.
    ///
    /// # Errors
    /// Those of [`PromptInput::encode`] and [`RequestParams::check_prompt`].
    pub fn encode(
        &self,
        input: PromptInput,
        text: &ServedText,
        adds_special: Option<bool>,
        params: &RequestParams,
        limits: &Limits,
    ) -> Result<Vec<Vec<TokenId>>, RequestError> {
        let context_tokens_max = limits.context_tokens_max;
        // What the tokenizer puts before any text stays there.
        let has_front = matches!(input, PromptInput::Texts(_)) && adds_special.unwrap_or(true);
        let is_whole = self.infill.is_none() && self.keep.is_none();
        let front = match has_front && !is_whole {
            true => text.tokenizer.encode("", true).unwrap_or_default(),
            false => Vec::new(),
        };
        let after = self.infill.as_ref().map(|(infill, suffix)| {
            let after = infill.encode_suffix(&text.tokenizer, suffix);
            let param = "suffix";
            after.map_err(|error| RequestError::Text { param, error, context_tokens_max })
        });
        let after = after.transpose()?.unwrap_or_default();
        input.encode(text, context_tokens_max, adds_special, |mut prompt| {
            if let Some((infill, _)) = &self.infill {
                prompt = infill.prompt(&front, &prompt, &after);
            }
            if let Some(keep) = self.keep {
                cut(&mut prompt, keep, &front);
            }
            params.check_prompt(&prompt, limits).map(|()| prompt)
        })
    }
}

/// Keeps the last tokens of a prompt, and `front` where it begins with that.
fn cut(prompt: &mut Vec<TokenId>, keep: usize, front: &[TokenId]) {
    let is_kept = front.len() < keep && prompt.starts_with(front);
    let front = if is_kept { front.len() } else { 0 };
    if prompt.len() > keep {
        prompt.drain(front..prompt.len() - (keep - front));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_end_of_a_prompt_is_kept_and_what_every_text_begins_with() {
        let cut = |keep, front: &[u32]| {
            let mut prompt = vec![0, 1, 2, 3, 4];
            super::cut(&mut prompt, keep, front);
            prompt
        };
        assert_eq!(cut(3, &[]), [2, 3, 4]);
        assert_eq!(cut(3, &[0]), [0, 3, 4]);
        assert_eq!(cut(1, &[0]), [4]);
        assert_eq!(cut(3, &[7]), [2, 3, 4]);
        assert_eq!(cut(5, &[0]), [0, 1, 2, 3, 4]);
        assert_eq!(cut(9, &[0]), [0, 1, 2, 3, 4]);
    }
}
