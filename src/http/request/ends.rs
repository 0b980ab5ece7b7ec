//! Where a text ends before its length, and what an answer says of that.

use super::fields::{Common, Stops, TokenIds};
use crate::http::wire::StopReason;
use crate::ids::TokenId;
use crate::json::or_more;
use crate::request::{Invalid, Limits};
use crate::text::ServedText;

/// What ends a text, and whether it is shown.
pub(in crate::http) struct Ends {
    /// Strings of `stop`.
    pub strings: Vec<String>,
    /// Tokens that end a sequence: the name's own, those of `stop_token_ids`, and those that a
    /// stop string spells, of which a special one is no part of the text that is searched for it.
    pub tokens: Vec<TokenId>,
    /// How many of them are the name's own: these are no wish of the request.
    own: usize,
    /// Special tokens by the string that spells them.
    spelled: Vec<(TokenId, String)>,
    /// What ends the text is a part of it.
    pub included: bool,
    /// Special tokens are parts of the text.
    pub shows_special: bool,
}

impl Ends {
    /// # Errors
    /// [`Invalid`] naming `stop_token_ids`.
    pub fn new(text: &ServedText, common: &mut Common, limits: &Limits) -> Result<Self, Invalid> {
        let strings = common.stop.take().map_or_else(Vec::new, |Stops(strings)| strings);
        let mut tokens = match common.ignore_eos {
            Some(true) => Vec::new(),
            _ => text.eos_tokens.clone(),
        };
        let own = tokens.len();
        let asked = common.stop_token_ids.take().map_or_else(Vec::new, |TokenIds(ids)| ids);
        let max = limits.vocabulary_tokens;
        if let Some(id) = asked.iter().find(|&&id| id >= max) {
            let message = format!("token ids must be below {max}, got {}", or_more(*id));
            return Err(Invalid::value("stop_token_ids", message));
        }
        let tokenizer = &text.tokenizer;
        let special = |string: &String| {
            let id = tokenizer.token_id(string).filter(|&id| tokenizer.is_special(id))?;
            Some((id, string.clone()))
        };
        let spelled: Vec<(TokenId, String)> = strings.iter().filter_map(special).collect();
        tokens.extend(asked.into_iter().chain(spelled.iter().map(|(id, _)| *id)));
        Ok(Self {
            strings,
            tokens,
            own,
            spelled,
            included: common.include_stop_str_in_output.unwrap_or(false),
            shows_special: !common.skip_special_tokens.unwrap_or(true),
        })
    }

    /// A further token that ends every text.
    pub fn push_own(&mut self, token: TokenId) {
        self.tokens.insert(self.own, token);
        self.own += 1;
    }

    /// The tokens that end every text.
    pub fn own(&self) -> &[TokenId] {
        &self.tokens[..self.own]
    }

    /// The string of `stop` that a token is.
    pub fn spelled(&self, token: TokenId) -> Option<&String> {
        self.spelled.iter().find(|(id, _)| *id == token).map(|(_, string)| string)
    }

    /// Why a text ends with a token that is one of these.
    pub fn reason(&self, token: TokenId) -> Option<StopReason> {
        if self.own().contains(&token) {
            return None;
        }
        let string = self.spelled(token).map(|string| StopReason::Text(string.clone()));
        Some(string.unwrap_or(StopReason::Token(token)))
    }
}
