//! Logprobs in the forms that clients read.

use crate::engine::PromptScore;
use crate::http::request::told::Echo;
use crate::http::spelling::{Spelling, by_id};
use crate::http::wire::{
    ChatLogprob, ChatLogprobs, LegacyLogprobs, PromptLogprob, PromptLogprobs, PromptRanking,
    Ranking,
};
use crate::ids::TokenId;

/// What stands for minus infinity, which JSON cannot say.
const LOGPROB_MIN: f32 = -9999.0;

/// A token as the engine drew it.
#[derive(Clone, Debug)]
pub(in crate::http) struct Drawn {
    pub token: TokenId,
    pub logprob: f32,
    pub top: Vec<(TokenId, f32)>,
    /// Characters of the drawn text before it.
    pub offset: usize,
    /// It is a part of what is thought.
    pub is_thought: bool,
}

/// The tokens alone.
pub(in crate::http) fn token_ids(drawn: &[Drawn]) -> Vec<TokenId> {
    drawn.iter().map(|drawn| drawn.token).collect()
}

/// What of a logprob is shown: the same f32 everywhere, so that equal ones are equal texts.
pub(in crate::http) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(LOGPROB_MIN) } else { LOGPROB_MIN }
}

/// The form of completions.
pub(in crate::http) struct Legacy<'a> {
    pub spelling: &'a Spelling,
    /// To report at each token.
    pub alternatives: u32,
}

impl Legacy<'_> {
    /// Of the tokens of a prompt that is part of the text. Nothing is known of its first.
    pub fn prompt(&self, ids: &[TokenId], echo: &Echo, scores: &[PromptScore]) -> LegacyLogprobs {
        let mut lists = LegacyLogprobs::default();
        let mut detokenizer = self.spelling.detokenizer(echo.shows_special);
        let mut offset = 0;
        let likely = scores.iter().map(|score| Some((score.logprob, score.top.as_slice())));
        for (&token, likely) in ids.iter().zip([None].into_iter().chain(likely)) {
            let (interrupted, text) = detokenizer.push_told(token);
            self.push(&mut lists, offset + interrupted, token, likely);
            offset += text.chars().count();
        }
        // Tokens that the tokenizer put before a given text are no part of it.
        let before = offset.saturating_sub(echo.characters);
        lists.text_offset.iter_mut().for_each(|offset| *offset = offset.saturating_sub(before));
        lists
    }

    /// Adds drawn tokens, whose text begins after so many characters.
    pub fn drawn(&self, lists: &mut LegacyLogprobs, drawn: &[Drawn], begin: usize) {
        for Drawn { token, logprob, top, offset, .. } in drawn {
            self.push(lists, begin + offset, *token, Some((*logprob, top)));
        }
    }

    fn push(
        &self,
        lists: &mut LegacyLogprobs,
        offset: usize,
        token: TokenId,
        likely: Option<(f32, &[(TokenId, f32)])>,
    ) {
        lists.text_offset.push(offset);
        lists.tokens.push(self.spelling.name(token));
        lists.token_logprobs.push(likely.map(|(logprob, _)| finite(logprob)));
        lists.top_logprobs.push(likely.map(|(logprob, top)| {
            let mut ranking = Ranking::default();
            let top = top.iter().take(self.alternatives as usize);
            let is_among = top.clone().any(|(other, _)| *other == token);
            let own = (!is_among).then_some((token, logprob));
            for (other, logprob) in top.copied().chain(own) {
                let name = self.spelling.name(other);
                // Two tokens of one text cannot both be keys by it.
                let is_taken = ranking.0.iter().any(|(taken, _)| *taken == name);
                let name = if is_taken { by_id(other) } else { name };
                ranking.0.push((name, finite(logprob)));
            }
            ranking
        }));
    }
}

/// The form of chat.
pub(in crate::http) fn chat(spelling: &Spelling, drawn: &[Drawn]) -> ChatLogprobs {
    let entry = |token: TokenId, logprob: f32| ChatLogprob {
        token: spelling.text(token),
        logprob: finite(logprob),
        bytes: spelling.tokenizer.token_bytes(token).to_vec(),
        top_logprobs: None,
    };
    let content = drawn.iter().map(|drawn| ChatLogprob {
        top_logprobs: Some(drawn.top.iter().map(|&(t, logprob)| entry(t, logprob)).collect()),
        ..entry(drawn.token, drawn.logprob)
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

/// vLLM's form of a prompt's: by token id, the prompt's own token first.
pub(in crate::http) fn prompt(
    spelling: &Spelling,
    scores: &[PromptScore],
    alternatives: u32,
) -> PromptLogprobs {
    let entry = |token: TokenId, logprob: f32, rank: u32| {
        let decoded_token = spelling.tokenizer.token_str(token);
        (token, PromptLogprob { logprob: finite(logprob), rank, decoded_token })
    };
    let position = |score: &PromptScore| {
        let top = score.top.iter().take(alternatives as usize).zip(1..);
        let others = top.filter(|((token, _), _)| *token != score.token);
        let others = others.map(|(&(token, logprob), rank)| entry(token, logprob, rank));
        let own = entry(score.token, score.logprob, score.rank);
        PromptRanking([own].into_iter().chain(others).collect())
    };
    [None].into_iter().chain(scores.iter().map(|score| Some(position(score)))).collect()
}
