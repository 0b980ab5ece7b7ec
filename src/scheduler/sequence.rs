//! One sequence: its text, how much of it is in KV, and the blocks that hold it.

use std::collections::BTreeSet;

use super::blocks::Blocks;
use super::flows::Place;
use super::plan::{Entry, Extent, NewSequence, PromptRows};
use super::prefix::{Before, Key};
use crate::ids::{BlockId, Digest, SequenceId, TokenId};
use crate::recipe::Recipe;
use crate::request::History;

/// A sequence that waits (no blocks) or runs.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Kept over preemptions.
    pub(super) place: Place,
    recipe: Recipe<Digest>,
    salt: Option<Digest>,
    /// The prompt, then what was generated: the one place where a sequence's text is kept.
    tokens: Vec<TokenId>,
    prompt_tokens: usize,
    wanted: PromptRows,
    /// Where the text ends at the latest.
    text_tokens_max: usize,
    block_tokens: usize,
    /// Leading tokens whose KV is in `blocks`; fewer than `tokens` has.
    computed: usize,
    /// Blocks of positions 0, 1, …, taken as the text gets there.
    blocks: Vec<BlockId>,
    /// Keys of the leading full blocks of `tokens`, as far as anybody asked.
    keys: Vec<Key>,
    /// Prompt tokens that the prefix cache spared, up to the first preemption.
    pub(super) cached_tokens: usize,
    preempted: bool,
    /// Leading tokens of the prompt that its flow has got, or that the prefix cache spared.
    counted: usize,
}

/// Positions with KV of the longest text that a prompt may reach. The last token generated needs
/// none.
fn positions_max(prompt_tokens: usize, text_tokens_max: usize) -> usize {
    text_tokens_max - usize::from(text_tokens_max > prompt_tokens)
}

fn text_tokens_max(new: &NewSequence) -> usize {
    new.prompt.len().saturating_add(new.tokens_max as usize)
}

/// Blocks of the longest text that a sequence may reach.
pub(super) fn blocks_max(new: &NewSequence, block_tokens: usize) -> usize {
    positions_max(new.prompt.len(), text_tokens_max(new)).div_ceil(block_tokens)
}

impl Sequence {
    /// A waiting sequence. `tokens_max` bounds what it generates.
    pub(super) fn new(place: Place, new: NewSequence, block_tokens: usize) -> Self {
        let text_tokens_max = text_tokens_max(&new);
        let NewSequence { id, prompt, recipe, salt, wanted, .. } = new;
        Self {
            id,
            place,
            recipe,
            salt,
            text_tokens_max,
            prompt_tokens: prompt.len(),
            tokens: prompt,
            wanted,
            block_tokens,
            computed: 0,
            blocks: Vec::new(),
            keys: Vec::new(),
            cached_tokens: 0,
            preempted: false,
            counted: 0,
        }
    }

    /// Tokens known so far.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Known tokens whose KV is not computed; at least one. Exactly one: the next row decodes.
    pub(super) fn rows_left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The prompt and what was generated.
    pub(super) fn history(&self) -> History<'_> {
        let (prompt, generated) = self.tokens.split_at(self.prompt_tokens);
        History { prompt, generated }
    }

    /// How far it is, and what it holds.
    pub(super) fn extent(&self, is_running: bool) -> Extent {
        Extent {
            is_running,
            cached_tokens: self.cached_tokens,
            computed_tokens: self.computed,
            generated_tokens: self.tokens.len() - self.prompt_tokens,
            blocks: self.blocks.len(),
        }
    }

    /// Whether nothing is left to compute: nothing is generated after the prompt.
    pub(super) fn is_computed(&self) -> bool {
        self.computed == self.tokens.len()
    }

    fn generates(&self) -> bool {
        self.text_tokens_max > self.prompt_tokens
    }

    /// Of the next `rows` rows, those whose logits are wanted.
    pub(super) fn logit_rows(&self, rows: usize) -> usize {
        let end = self.computed + rows;
        let draws = usize::from(self.generates() && end == self.tokens.len());
        let scored = match self.wanted {
            PromptRows::Logits => end.min(self.prompt_tokens - 1).saturating_sub(self.computed),
            PromptRows::Nothing | PromptRows::Hidden => 0,
        };
        draws + scored
    }

    /// As many of its next rows as a step has room for.
    pub(super) fn rows_that_fit(&self, rows_left: usize, logits_left: usize) -> usize {
        let mut rows = self.rows_left().min(rows_left);
        while self.logit_rows(rows) > logits_left {
            rows -= 1;
        }
        rows
    }

    /// Tokens at the start that the prefix cache may spare. The last known token is never spared:
    /// its row yields the next one.
    fn sparable(&self) -> usize {
        match self.wanted {
            PromptRows::Nothing => self.tokens.len() - 1,
            PromptRows::Hidden | PromptRows::Logits => 0,
        }
    }

    /// Blocks that it will take soon: for its known text and one block's worth of growth.
    pub(super) fn blocks_wanted(&self) -> usize {
        let soon = (self.tokens.len() + self.block_tokens)
            .min(positions_max(self.prompt_tokens, self.text_tokens_max));
        soon.div_ceil(self.block_tokens).saturating_sub(self.blocks.len())
    }

    /// Blocks that starting takes out of [`Blocks::available`]: those of the known text, without
    /// those that a running sequence shares with it.
    pub(super) fn blocks_to_start(&mut self, blocks: &Blocks, prefix_cache: bool) -> usize {
        let mut shared = 0;
        if prefix_cache {
            let full = self.sparable() / self.block_tokens;
            self.extend_keys(full);
            let hits = self.keys[..full].iter().map_while(|key| blocks.lookup(key));
            shared = hits.filter(|&referenced| referenced).count();
        }
        self.tokens.len().div_ceil(self.block_tokens) - shared
    }

    /// Whether the block after those that it can take over is one of `filling`.
    pub(super) fn awaits(&mut self, blocks: &Blocks, filling: &BTreeSet<Key>) -> bool {
        if filling.is_empty() {
            return false;
        }
        let full = self.sparable() / self.block_tokens;
        self.extend_keys(full);
        let missing = self.keys[..full].iter().find(|key| blocks.lookup(key).is_none());
        missing.is_some_and(|key| filling.contains(key))
    }

    /// The keys of the blocks that its next `rows` rows fill. None of a prompt that is scored: it
    /// takes more steps than one of which nothing is wanted.
    pub(super) fn filled_by(&mut self, rows: usize) -> &[Key] {
        if self.wanted == PromptRows::Logits {
            return &[];
        }
        let full = (self.computed + rows) / self.block_tokens;
        self.extend_keys(full);
        &self.keys[self.computed / self.block_tokens..full]
    }

    /// Takes over cached blocks that continue the computed text; returns the tokens spared.
    pub(super) fn adopt(&mut self, blocks: &mut Blocks) -> usize {
        let before = self.computed;
        loop {
            let index = self.computed / self.block_tokens;
            let end = (index + 1) * self.block_tokens;
            if end > self.sparable() {
                break;
            }
            self.extend_keys(index + 1);
            let Some(block) = blocks.share(&self.keys[index]) else { break };
            match self.blocks.get_mut(index) {
                Some(own) => blocks.release(std::mem::replace(own, block)),
                None => self.blocks.push(block),
            }
            self.computed = end;
        }
        self.counted = self.counted.max(self.computed);
        let spared = self.computed - before;
        if !self.preempted {
            self.cached_tokens += spared;
        }
        spared
    }

    /// Takes the blocks that `rows` more rows need. False: there were not enough; what was taken
    /// is kept for another try.
    pub(super) fn grow(&mut self, rows: usize, blocks: &mut Blocks) -> bool {
        while self.blocks.len() * self.block_tokens < self.computed + rows {
            let Some(block) = blocks.allocate() else { return false };
            self.blocks.push(block);
        }
        true
    }

    /// The next `rows` rows, at least one, for which it has grown.
    pub(super) fn entry(&self, rows: usize) -> Entry {
        let end = self.computed + rows;
        Entry {
            id: self.id,
            start: self.computed as u32,
            tokens: self.tokens[self.computed..end].to_vec(),
            block_table: self.blocks[..end.div_ceil(self.block_tokens)].to_vec(),
            draws: self.generates() && end == self.tokens.len(),
        }
    }

    /// Whether `entry` continues the text from where it stands, in the blocks it still has.
    pub(super) fn continues(&self, entry: &Entry) -> bool {
        self.computed == entry.start as usize && self.blocks.starts_with(&entry.block_table)
    }

    /// Tokens that it is sure to take of its flow's share.
    pub(super) fn promised(&self) -> usize {
        self.prompt_tokens.saturating_sub(self.counted).max(1)
    }

    /// Records that `rows` rows were computed, and offers the blocks they filled to the cache.
    /// Tokens of the prompt that were among them for the first time.
    pub(super) fn advance(
        &mut self,
        rows: usize,
        blocks: &mut Blocks,
        prefix_cache: bool,
    ) -> usize {
        let filled = self.computed / self.block_tokens;
        self.computed += rows;
        if prefix_cache {
            let full = self.computed / self.block_tokens;
            self.extend_keys(full);
            for index in filled..full {
                blocks.cache(self.keys[index], self.blocks[index]);
            }
        }
        let prompt = self.computed.min(self.prompt_tokens).saturating_sub(self.counted);
        self.counted = self.counted.max(self.computed);
        prompt
    }

    /// Appends generated tokens; returns how many there was room for.
    pub(super) fn push(&mut self, tokens: &[TokenId]) -> usize {
        let taken = tokens.len().min(self.text_tokens_max - self.tokens.len());
        self.tokens.extend(&tokens[..taken]);
        taken
    }

    /// Whether it may not go on.
    pub(super) fn is_full(&self) -> bool {
        self.tokens.len() == self.text_tokens_max
    }

    /// Gives its blocks back; the text stays, to be computed again.
    pub(super) fn preempt(&mut self, blocks: &mut Blocks) {
        // The last block first: then a prefix, which more sequences may share, is evicted later.
        while let Some(block) = self.blocks.pop() {
            blocks.release(block);
        }
        self.computed = 0;
        self.preempted = true;
    }

    fn extend_keys(&mut self, len: usize) {
        for index in self.keys.len()..len {
            let start = index * self.block_tokens;
            let end = start + self.block_tokens;
            let recipe = self.recipe.block_key(start as u32, end as u32);
            let nothing = Before::Nothing { salt: self.salt };
            let before = self.keys.last().map_or(nothing, Before::Block);
            self.keys.push(Key::new(before, recipe, &self.tokens[start..end]));
        }
    }
}
