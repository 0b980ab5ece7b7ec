//! Limits of a schedule.

/// Sizes; [`Scheduler::new`](super::Scheduler::new) checks them.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Sequences that run at once; others wait.
    pub sequences_max: usize,
    /// Rows of one step; above `sequences_max`. What does not fit runs in later steps.
    pub batch_tokens_max: usize,
    /// Positions of one KV block.
    pub block_tokens: usize,
    /// KV blocks there are. When they run out, the last sequence in order is preempted.
    pub blocks: usize,
    /// Sequences that wait; at the limit new ones are refused. Preempted ones always come back.
    pub queue_requests_max: usize,
    /// Rows of one step whose logits are wanted; at least `sequences_max`. Prompts that are scored
    /// share what drawing leaves, in as many steps as it takes.
    pub logit_rows_max: usize,
    /// Whether full blocks are kept and shared.
    pub prefix_cache: bool,
}

/// Sizes with which no schedule works.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidConfig {
    /// A size is zero.
    #[error("{0} must be at least 1, got 0")]
    Zero(&'static str),
    /// Decode rows alone could fill every step, and prompts would wait for ever.
    #[error(
        "batch_tokens_max must be above sequences_max ({sequences_max}), got {batch_tokens_max}"
    )]
    BatchTooSmall {
        /// As configured.
        batch_tokens_max: usize,
        /// As configured.
        sequences_max: usize,
    },
    /// Sequences that draw could need more logits than a step has.
    #[error(
        "logit_rows_max must be at least sequences_max ({sequences_max}), got {logit_rows_max}"
    )]
    TooFewLogits {
        /// As configured.
        logit_rows_max: usize,
        /// As configured.
        sequences_max: usize,
    },
    /// Positions are 32 bits wide.
    #[error("blocks × block_tokens must be below 2^32, got {blocks} × {block_tokens}")]
    TooManyPositions {
        /// As configured.
        blocks: usize,
        /// As configured.
        block_tokens: usize,
    },
}

impl SchedulerConfig {
    /// The same, if sequences cannot wait for ever.
    ///
    /// # Errors
    /// [`InvalidConfig`].
    pub(super) fn validated(self) -> Result<Self, InvalidConfig> {
        let Self { sequences_max, batch_tokens_max, block_tokens, blocks, .. } = self;
        let sizes = [
            ("sequences_max", sequences_max),
            ("block_tokens", block_tokens),
            ("blocks", blocks),
            ("queue_requests_max", self.queue_requests_max),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(InvalidConfig::Zero(name));
        }
        if batch_tokens_max <= sequences_max {
            return Err(InvalidConfig::BatchTooSmall { batch_tokens_max, sequences_max });
        }
        let logit_rows_max = self.logit_rows_max;
        if logit_rows_max < sequences_max {
            return Err(InvalidConfig::TooFewLogits { logit_rows_max, sequences_max });
        }
        if blocks.checked_mul(block_tokens).is_none_or(|n| n > u32::MAX as usize) {
            return Err(InvalidConfig::TooManyPositions { blocks, block_tokens });
        }
        Ok(self)
    }
}
