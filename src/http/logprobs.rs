//! Logprobs in the two forms that clients read.

use super::wire::{ChatLogprob, ChatLogprobs, LegacyLogprobs, Ranking};
use crate::ids::TokenId;
use crate::text::Tokenizer;

/// What stands for minus infinity, which JSON cannot say.
const LOGPROB_MIN: f32 = -9999.0;

/// A token as the engine drew it.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    pub token: TokenId,
    pub logprob: f32,
    pub top: Vec<(TokenId, f32)>,
}

/// The tokens alone.
pub(super) fn token_ids(drawn: &[Drawn]) -> Vec<TokenId> {
    drawn.iter().map(|drawn| drawn.token).collect()
}

/// What of a logprob is shown: the same f32 everywhere, so that equal ones are equal texts.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(LOGPROB_MIN) } else { LOGPROB_MIN }
}

/// The form of completions; `offset` is where the first token's text begins, in characters, and
/// moves past the last.
pub(super) fn legacy(tokenizer: &Tokenizer, drawn: &[Drawn], offset: &mut usize) -> LegacyLogprobs {
    let mut lists = LegacyLogprobs::default();
    for Drawn { token, logprob, top } in drawn {
        let text = tokenizer.token_str(*token);
        let mut ranking = Ranking::default();
        // The drawn token is always among them. Tokens of one text (parts of characters) cannot
        // all be keys of one object: the likeliest stays.
        for (other, logprob) in top.iter().chain([&(*token, *logprob)]) {
            let other = tokenizer.token_str(*other);
            if !ranking.0.iter().any(|(text, _)| *text == other) {
                ranking.0.push((other, finite(*logprob)));
            }
        }
        lists.text_offset.push(*offset);
        *offset += text.chars().count();
        lists.token_logprobs.push(finite(*logprob));
        lists.tokens.push(text);
        lists.top_logprobs.push(ranking);
    }
    lists
}

/// The form of chat.
pub(super) fn chat(tokenizer: &Tokenizer, drawn: &[Drawn]) -> ChatLogprobs {
    let entry = |token: TokenId, logprob: f32| ChatLogprob {
        token: tokenizer.token_str(token),
        logprob: finite(logprob),
        bytes: tokenizer.token_bytes(token).to_vec(),
        top_logprobs: None,
    };
    let content = drawn.iter().map(|drawn| ChatLogprob {
        top_logprobs: Some(drawn.top.iter().map(|&(t, logprob)| entry(t, logprob)).collect()),
        ..entry(drawn.token, drawn.logprob)
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}
