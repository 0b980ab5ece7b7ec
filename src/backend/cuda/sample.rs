//! Drawing tokens: only ids and what was asked for beside them come back from the card.

use std::borrow::Cow;

use super::args::{Sample, SampleParams};
use super::kernels;
use super::launch::{Card, Memory, OpenError, Pinned};
use super::tensor::Tensor;
use super::{Cuda, lock};
use crate::backend::{Fault, Sampled, Sampling, Score, Want};
use crate::request::{SamplingParams, TokenMask};

/// Alternatives of one row at most, as OpenAI's chat API allows.
const TOP_MAX: usize = 20;
/// A token that is none.
const NONE: u32 = u32::MAX;
/// Tokens that `kernels/sample.cu` can weigh, and `delta_replace` compute at the head.
const VOCABULARY_MAX: usize = 4 * 65_535;

/// # Errors
/// A model has more tokens than a card draws from.
pub(super) fn check_vocabulary(tokens: usize) -> Result<(), OpenError> {
    if tokens <= VOCABULARY_MAX {
        return Ok(());
    }
    Err(OpenError::Unusable(format!(
        "the model has {tokens} tokens and a GPU draws from at most {VOCABULARY_MAX}"
    )))
}

/// Memory for the draws of one step.
#[derive(Debug)]
pub(super) struct SampleMemory {
    device: Memory,
    host: Pinned,
    rows_max: usize,
    masks_max: usize,
    /// Of one mask.
    mask_words: usize,
}

const PARAMS_BYTES: usize = size_of::<SampleParams>();
/// Token, logprob and rank, and the first two of each alternative.
const RESULT_BYTES: usize = 12 + TOP_MAX * 8;

impl SampleMemory {
    /// For `rows_max` rows of a step, with `masks_max` sets of `vocabulary` tokens: the mask of a
    /// row, and the tokens that its penalty changes.
    ///
    /// # Errors
    /// [`OpenError::Memory`].
    pub fn new(
        card: &Card,
        rows_max: usize,
        masks_max: usize,
        vocabulary: usize,
    ) -> Result<Self, OpenError> {
        let mask_words = vocabulary.div_ceil(32);
        let bytes = rows_max * (PARAMS_BYTES + RESULT_BYTES) + masks_max * mask_words * 4;
        let device = card.allocate(bytes as u64, "drawing tokens", "lower --max-num-seqs")?;
        Ok(Self { device, host: card.pinned(bytes)?, rows_max, masks_max, mask_words })
    }

    /// Where masks and results start, behind the parameters.
    fn starts(&self) -> (usize, usize) {
        let masks = self.rows_max * PARAMS_BYTES;
        (masks, masks + self.masks_max * self.mask_words * 4)
    }
}

impl Sampling for Cuda {
    fn sample(&self, logits: &Tensor, wants: &[Want<'_>]) -> Result<Vec<Sampled>, Fault> {
        assert!(logits.float && logits.rows == wants.len(), "This is a bug: not logits.");
        let m = wants.len();
        let mut memory = lock(&self.sampling);
        let Some(memory) = &mut *memory else { return Ok(Vec::new()) };
        let mut results = vec![0u32; m * RESULT_BYTES / 4];
        self.attempt(|| self.sample_on_card(logits, wants, memory, &mut results));
        self.settled()?;
        // Not after a failure: what the step started before it still reads the step's tables.
        self.step_is_over();
        let top = |want: &Want<'_>| want.logprobs().unwrap_or(0);
        Ok(wants.iter().enumerate().map(|(i, want)| sampled(&results, m, i, top(want))).collect())
    }
}

impl Cuda {
    fn sample_on_card(
        &self,
        logits: &Tensor,
        wants: &[Want<'_>],
        memory: &mut SampleMemory,
        results: &mut [u32],
    ) -> Result<(), Fault> {
        let m = wants.len();
        let mut masks = Vec::new();
        let vocabulary = logits.cols;
        let params = wants.iter().map(|want| params(want, vocabulary, &mut masks));
        let params: Vec<SampleParams> = params.collect();
        if m > memory.rows_max || masks.len() > memory.masks_max {
            return Err(Fault {
                message: "a step draws more tokens than the one measured at start".into(),
                lost: false,
            });
        }
        let (masks_start, results_start) = memory.starts();
        let params_bytes = m * PARAMS_BYTES;
        memory.host.bytes_mut()[..params_bytes].copy_from_slice(bytemuck::cast_slice(&params));
        let params_at = memory.device.region(0, params_bytes as u64);
        self.stream.upload(&memory.host, 0..params_bytes, &params_at)?;
        let mask_bytes = memory.mask_words * 4;
        for (i, mask) in masks.iter().enumerate() {
            assert_eq!(mask.words().len(), memory.mask_words, "This is a bug: of another model.");
            let range = masks_start + i * mask_bytes..masks_start + (i + 1) * mask_bytes;
            let words: &[u8] = bytemuck::cast_slice(mask.words());
            memory.host.bytes_mut()[range.clone()].copy_from_slice(words);
            let to = memory.device.region(range.start as u64, mask_bytes as u64);
            self.stream.upload(&memory.host, range, &to)?;
        }
        let results_at = memory.device.region(results_start as u64, (m * RESULT_BYTES) as u64);
        let part = |numbers_before: usize| results_at.address() + (4 * numbers_before) as u64;
        let args = Sample {
            logits: logits.at(),
            params: params_at.address(),
            tokens: part(0),
            logprobs: part(m),
            ranks: part(2 * m),
            masks: memory.device.address() + masks_start as u64,
            top_tokens: part(3 * m),
            top_logprobs: part((3 + TOP_MAX) * m),
            vocabulary: logits.cols as u32,
            top_max: TOP_MAX as u32,
        };
        let kernel = kernels::SAMPLE.with_threads(kernels::sample_threads(logits.cols));
        self.start_kernel(&self.stream, kernel, [m as u32, 1, 1], &args)?;
        let host = &mut memory.host.bytes_mut()[..m * RESULT_BYTES];
        // The one wait of a step.
        self.stream.download_now(&results_at, host)?;
        results.copy_from_slice(bytemuck::cast_slice(host));
        Ok(())
    }
}

/// `masks`: the sets of tokens of the rows before this one; this one's are added.
fn params<'a>(
    want: &Want<'a>,
    vocabulary: usize,
    masks: &mut Vec<Cow<'a, TokenMask>>,
) -> SampleParams {
    let common = SampleParams {
        top: want.logprobs().unwrap_or(0).min(TOP_MAX as u32),
        ranked: want.logprobs().is_some().into(),
        target: NONE,
        mask: NONE,
        seen: NONE,
        ..SampleParams::default()
    };
    let draw = match want {
        Want::Score(Score { target, logprobs: _ }) => {
            return SampleParams { target: *target, ..common };
        }
        Want::Draw(draw) => draw,
    };
    let mut place = |mask: Option<Cow<'a, TokenMask>>| match mask {
        None => NONE,
        Some(mask) => {
            masks.push(mask);
            masks.len() as u32 - 1
        }
    };
    let (mask, seen) = (draw.mask.map(Cow::Borrowed), draw.penalised(vocabulary).map(Cow::Owned));
    let SamplingParams { temperature, top_p, top_k, min_p, repetition_penalty, seed } =
        *draw.params;
    SampleParams {
        temperature,
        top_p,
        min_p,
        top_k,
        seed,
        step: draw.history.generated.len() as u64,
        mask: place(mask),
        seen: place(seen),
        repetition_penalty,
        ..common
    }
}

/// Row `i` of `m` rows of results.
fn sampled(results: &[u32], m: usize, i: usize, alternatives: u32) -> Sampled {
    let token = |t: u32| (t != NONE).then_some(t);
    let top = (0..TOP_MAX.min(alternatives as usize)).filter_map(|k| {
        let at = i * TOP_MAX + k;
        let logprob = f32::from_bits(results[(3 + TOP_MAX) * m + at]);
        Some((token(results[3 * m + at])?, logprob))
    });
    Sampled {
        token: token(results[i]),
        logprob: f32::from_bits(results[m + i]),
        rank: results[2 * m + i],
        top: top.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_that_a_card_cannot_draw_from_is_refused() {
        assert_eq!(check_vocabulary(262_140), Ok(()));
        let refused = check_vocabulary(262_141).unwrap_err().to_string();
        assert_eq!(refused, "the model has 262141 tokens and a GPU draws from at most 262140");
    }
}
