//! What the scheduler is given and what it gives.

use crate::ids::{BlockId, Digest, SequenceId, TokenId};
use crate::recipe::Recipe;
use crate::request::Share;

/// Why a sequence was not admitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The caller may come again later.
    #[error("the queue is full: {queue_requests_max} requests wait")]
    QueueFull {
        /// The limit reached.
        queue_requests_max: usize,
    },
    /// No wait helps: prompt and completion are longer than the whole KV cache.
    #[error("the request needs {blocks_needed} KV blocks, but there are only {blocks}")]
    NeverFits {
        /// For the prompt and the longest completion.
        blocks_needed: usize,
        /// All there are.
        blocks: usize,
    },
}

/// What [`Scheduler::admit`](super::Scheduler::admit) takes.
#[derive(Clone, Debug)]
pub struct NewSequence {
    /// Not in use.
    pub id: SequenceId,
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// What its rows carry: with the tokens, and the salt, what its KV depends on.
    pub recipe: Recipe<Digest>,
    /// Sequences of another salt share no block with it.
    pub salt: Option<Digest>,
    /// Whose it is, and what that tenant gets beside others.
    pub share: Share,
    /// Lower ones of the tenant go first, whenever they come. Who waits behind ever new lower ones
    /// of its own tenant waits for as long as they come.
    pub priority: i32,
    /// Tokens to generate. The sequence ends there if not before; at 0, with its prompt.
    pub tokens_max: u32,
    /// What is wanted of the prompt's rows.
    pub wanted: PromptRows,
}

/// What is wanted of the rows of a prompt, beside the first drawn token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PromptRows {
    /// Nothing: those that the prefix cache has are spared.
    Nothing,
    /// The hidden state of each: all are computed.
    Hidden,
    /// The logits of each but the last: all are computed.
    Logits,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Decode rows in order, then prefill chunks in order; each sequence at most once.
    pub entries: Vec<Entry>,
    /// Sequences that lost their blocks and wait again.
    pub preempted: Vec<SequenceId>,
}

/// The rows of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The sequence they belong to.
    pub id: SequenceId,
    /// Position of the first row; the KV of all before it is in the blocks.
    pub start: u32,
    /// Token of each row.
    pub tokens: Vec<TokenId>,
    /// Blocks of positions 0 to `start + tokens.len() - 1`.
    pub block_table: Vec<BlockId>,
    /// Whether the last row yields the sequence's next token.
    pub draws: bool,
}

/// What a step made of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The sequence.
    pub id: SequenceId,
    /// Tokens that follow its text: usually the one drawn.
    pub tokens: Vec<TokenId>,
    /// Whether they end it.
    pub finished: bool,
}

/// How far a sequence is, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent {
    /// Whether it has a place in the batch.
    pub is_running: bool,
    /// Prompt tokens that the prefix cache spared before any preemption.
    pub cached_tokens: usize,
    /// Tokens whose KV is there.
    pub computed_tokens: usize,
    /// Tokens behind the prompt.
    pub generated_tokens: usize,
    /// Blocks that it references.
    pub blocks: usize,
}

/// Gauges and counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Sequences that wait.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// All KV blocks: used, cached and free.
    pub blocks_total: usize,
    /// Blocks that running sequences reference.
    pub blocks_used: usize,
    /// Blocks kept for their content only; evicted when nothing is free.
    pub blocks_cached: usize,
    /// Times that a sequence lost its blocks.
    pub preemptions_total: u64,
    /// Tokens that the prefix cache spared.
    pub prefix_hit_tokens_total: u64,
    /// Tokens that were looked up: the known text at every start.
    pub prefix_query_tokens_total: u64,
}
