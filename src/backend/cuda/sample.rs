//! Drawing tokens: only ids and what was asked for beside them come back from the card.

use super::args::{Sample, SampleParams};
use super::kernels;
use super::launch::{Card, Memory, OpenError, Pinned};
use super::tensor::Tensor;
use super::{Cuda, lock};
use crate::backend::{Fault, SampleRow, Sampled};

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
}

const PARAMS_BYTES: usize = size_of::<SampleParams>();
/// Token, logprob, and both of each alternative.
const RESULT_BYTES: usize = 8 + TOP_MAX * 8;

impl SampleMemory {
    pub fn new(card: &Card, rows_max: usize) -> Result<Self, OpenError> {
        let bytes = rows_max * (PARAMS_BYTES + RESULT_BYTES);
        let device = card.allocate(bytes as u64, "drawing tokens", "lower --max-num-seqs")?;
        Ok(Self { device, host: card.pinned(bytes)?, rows_max })
    }
}

impl Cuda {
    pub(super) fn sample_rows(
        &self,
        logits: &Tensor,
        rows: &[SampleRow],
    ) -> Result<Vec<Sampled>, Fault> {
        assert!(logits.float && logits.rows == rows.len(), "This is a bug: not logits.");
        let m = rows.len();
        let mut memory = lock(&self.sampling);
        let Some(memory) = &mut *memory else { return Ok(Vec::new()) };
        let mut results = vec![0u32; m * RESULT_BYTES / 4];
        self.attempt(|| {
            if m > memory.rows_max {
                return Err(Fault {
                    message: "a step draws more tokens than the one measured at start".into(),
                    lost: false,
                });
            }
            let params: Vec<SampleParams> = rows.iter().map(kernel_params).collect();
            let params_bytes = m * PARAMS_BYTES;
            memory.host.bytes_mut()[..params_bytes].copy_from_slice(bytemuck::cast_slice(&params));
            let params_at = memory.device.region(0, params_bytes as u64);
            self.stream.upload(&memory.host, 0..params_bytes, &params_at)?;
            let result_bytes = (m * RESULT_BYTES) as u64;
            let results_at =
                memory.device.region((memory.rows_max * PARAMS_BYTES) as u64, result_bytes);
            let part = |numbers_before: usize| results_at.address() + (4 * numbers_before) as u64;
            let args = Sample {
                logits: logits.place.address,
                params: params_at.address(),
                tokens: part(0),
                logprobs: part(m),
                top_tokens: part(2 * m),
                top_logprobs: part((2 + TOP_MAX) * m),
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
        });
        self.settled()?;
        Ok((0..m).map(|i| sampled(&results, m, i, rows[i].logprobs.unwrap_or(0))).collect())
    }
}

fn kernel_params(row: &SampleRow) -> SampleParams {
    let p = &row.params;
    SampleParams {
        temperature: p.temperature,
        top_p: p.top_p,
        min_p: p.min_p,
        top_k: p.top_k,
        seed: p.seed,
        step: row.step,
        top: row.logprobs.unwrap_or(0).min(TOP_MAX as u32),
        reserved: 0,
    }
}

/// Row `i` of `m` rows of results.
fn sampled(results: &[u32], m: usize, i: usize, alternatives: u32) -> Sampled {
    let token = |t: u32| (t != NONE).then_some(t);
    let top = (0..TOP_MAX.min(alternatives as usize)).filter_map(|k| {
        let at = i * TOP_MAX + k;
        let logprob = f32::from_bits(results[(2 + TOP_MAX) * m + at]);
        Some((token(results[2 * m + at])?, logprob))
    });
    Sampled {
        token: token(results[i]),
        logprob: f32::from_bits(results[m + i]),
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
