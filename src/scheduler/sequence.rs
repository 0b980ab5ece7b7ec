//! One sequence: its text, how much of it is in KV, and the blocks that hold it.

use super::Entry;
use super::blocks::Blocks;
use super::prefix::Key;
use crate::ids::{BlockId, Digest, SequenceId, TokenId};

/// A sequence that waits (no blocks) or runs.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Older sequences have smaller numbers; kept over preemptions.
    pub(super) arrival: u64,
    adapter: Option<Digest>,
    /// The prompt, then what was generated.
    tokens: Vec<TokenId>,
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
    /// Sequences that arrived later and started while this one could not run.
    pub(super) overtakes: usize,
}

impl Sequence {
    /// A waiting sequence. `tokens_max` bounds what it generates.
    pub(super) fn new(arrival: u64, new: super::NewSequence, block_tokens: usize) -> Self {
        Self {
            id: new.id,
            arrival,
            adapter: new.adapter,
            text_tokens_max: new.prompt.len().saturating_add(new.tokens_max.max(1) as usize),
            tokens: new.prompt,
            block_tokens,
            computed: 0,
            blocks: Vec::new(),
            keys: Vec::new(),
            cached_tokens: 0,
            preempted: false,
            overtakes: 0,
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

    /// Blocks of the longest text it may reach. The last token generated needs no KV.
    pub(super) fn blocks_max(&self) -> usize {
        (self.text_tokens_max - 1).div_ceil(self.block_tokens)
    }

    /// Blocks that it will take soon: for its known text and one block's worth of growth.
    pub(super) fn blocks_wanted(&self) -> usize {
        let soon = (self.tokens.len() + self.block_tokens).min(self.text_tokens_max - 1);
        soon.div_ceil(self.block_tokens).saturating_sub(self.blocks.len())
    }

    /// Blocks that starting takes out of [`Blocks::available`]: those of the known text, without
    /// those that a running sequence shares with it.
    pub(super) fn blocks_to_start(&mut self, blocks: &Blocks, prefix_cache: bool) -> usize {
        let mut shared = 0;
        if prefix_cache {
            let full = (self.tokens.len() - 1) / self.block_tokens;
            self.extend_keys(full);
            let hits = self.keys[..full].iter().map_while(|key| blocks.lookup(key));
            shared = hits.filter(|&referenced| referenced).count();
        }
        self.tokens.len().div_ceil(self.block_tokens) - shared
    }

    /// Takes over cached blocks that continue the computed text; returns the tokens spared. The
    /// last known token is never spared: its row yields the next one.
    pub(super) fn adopt(&mut self, blocks: &mut Blocks) -> usize {
        let before = self.computed;
        loop {
            let index = self.computed / self.block_tokens;
            let end = (index + 1) * self.block_tokens;
            if end >= self.tokens.len() {
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
            samples: end == self.tokens.len(),
        }
    }

    /// Whether `entry` continues the text from where it stands, in the blocks it still has.
    pub(super) fn continues(&self, entry: &Entry) -> bool {
        self.computed == entry.start as usize && self.blocks.starts_with(&entry.block_table)
    }

    /// Records that `rows` rows were computed, and offers the blocks they filled to the cache.
    pub(super) fn advance(&mut self, rows: usize, blocks: &mut Blocks, prefix_cache: bool) {
        let filled = self.computed / self.block_tokens;
        self.computed += rows;
        if prefix_cache {
            let full = self.computed / self.block_tokens;
            self.extend_keys(full);
            for index in filled..full {
                blocks.cache(self.keys[index], self.blocks[index]);
            }
        }
    }

    /// Appends a generated token; returns whether the sequence may not go on.
    pub(super) fn push(&mut self, token: TokenId) -> bool {
        self.tokens.push(token);
        self.tokens.len() >= self.text_tokens_max
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
            let tokens = &self.tokens[start..start + self.block_tokens];
            self.keys.push(Key::new(self.keys.last(), self.adapter, tokens));
        }
    }
}
