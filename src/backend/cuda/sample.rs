//! Drawing tokens: only ids and what was asked for beside them come back from the card.

use super::args::{Address, LogitEdit, Sample, SampleParams};
use super::kernels;
use super::launch::{Card, Memory, OpenError, Pinned, Stream};
use super::tensor::Tensor;
use super::{Cuda, lock};
use crate::backend::{Changes, Edit, Fault, Sampled, Sampling, Score, Want};
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

/// Changed logits of a step at most, for each sequence that may run. A step with more is drawn in
/// several launches, one after another.
const EDITS_PER_SEQUENCE: usize = 1024;

/// Memory for the draws of one launch. What a step needs beyond it is drawn by further launches, so
/// that any step fits: one row has at most two masks and an edit of each token.
#[derive(Debug)]
pub(super) struct SampleMemory {
    device: Memory,
    host: Pinned,
    rows_max: usize,
    masks_max: usize,
    /// Of one mask.
    mask_words: usize,
    edits_max: usize,
}

const PARAMS_BYTES: usize = size_of::<SampleParams>();
const EDIT_BYTES: usize = size_of::<LogitEdit>();
/// Token, logprob and rank, and the first two of each alternative.
const RESULT_BYTES: usize = 12 + TOP_MAX * 8;

impl SampleMemory {
    /// For `rows_max` rows of a step, of which `sequences_max` draw from `vocabulary` tokens.
    ///
    /// # Errors
    /// [`OpenError::Memory`].
    pub fn new(
        card: &Card,
        rows_max: usize,
        sequences_max: usize,
        vocabulary: usize,
    ) -> Result<Self, OpenError> {
        // What may be drawn, and what the repetition penalty changes.
        let (masks_max, mask_words) = (2 * sequences_max, vocabulary.div_ceil(32));
        let edits_max = vocabulary.max(sequences_max * EDITS_PER_SEQUENCE);
        let bytes = rows_max * (PARAMS_BYTES + RESULT_BYTES)
            + masks_max * mask_words * 4
            + edits_max * EDIT_BYTES;
        let device = card.allocate(bytes as u64, "drawing tokens", "lower --max-num-seqs")?;
        let host = card.pinned(bytes)?;
        Ok(Self { device, host, rows_max, masks_max, mask_words, edits_max })
    }

    /// Where masks, edits and results start, behind the parameters.
    fn starts(&self) -> [usize; 3] {
        let masks = self.rows_max * PARAMS_BYTES;
        let edits = masks + self.masks_max * self.mask_words * 4;
        [masks, edits, edits + self.edits_max * EDIT_BYTES]
    }

    /// Starts a copy to the same place on the card; its address.
    fn upload(&mut self, stream: &Stream, start: usize, bytes: &[u8]) -> Result<Address, Fault> {
        let range = start..start + bytes.len();
        self.host.bytes_mut()[range.clone()].copy_from_slice(bytes);
        let to = self.device.region(start as u64, bytes.len() as u64);
        if !bytes.is_empty() {
            stream.upload(&self.host, range, &to)?;
        }
        Ok(to.address())
    }
}

impl Sampling for Cuda {
    fn sample(&self, logits: &Tensor, wants: &[Want<'_>]) -> Result<Vec<Sampled>, Fault> {
        let is_logits = logits.float && logits.rows == wants.len() && logits.rows > 0;
        assert!(is_logits, "This is a bug: not logits.");
        let mut memory = lock(&self.sampling);
        let Some(memory) = &mut *memory else { return Ok(Vec::new()) };
        let mut out = Vec::with_capacity(wants.len());
        self.attempt(|| self.sample_on_card(logits, wants, memory, &mut out));
        self.settled()?;
        // Not after a failure: what the step started before it still reads the step's tables.
        self.step_is_over();
        Ok(out)
    }
}

/// The rows of one launch.
#[derive(Default)]
struct Round {
    params: Vec<SampleParams>,
    /// One after another.
    masks: Vec<u32>,
    edits: Vec<LogitEdit>,
}

impl Round {
    /// Whether this many masks and edits of one more row fit.
    fn has_room(&self, memory: &SampleMemory, changes: &Changes<'_>) -> bool {
        let Changes { mask, repeated, edits } = changes;
        let masks = usize::from(mask.is_some()) + usize::from(repeated.is_some());
        self.params.len() < memory.rows_max
            && self.masks.len() + masks * memory.mask_words <= memory.masks_max * memory.mask_words
            && self.edits.len() + edits.len() <= memory.edits_max
    }

    fn push(&mut self, want: &Want<'_>, changes: &Changes<'_>) {
        let Changes { mask, repeated, edits } = changes;
        let (mask, seen) = (self.place(mask.as_deref()), self.place(repeated.as_ref()));
        let (edits_first, count) = (self.edits.len() as u32, edits.len() as u32);
        self.edits.extend(edits.iter().map(|&Edit { token, add, repeat, take }| LogitEdit {
            token,
            add,
            repeat,
            take,
        }));
        self.params.push(SampleParams { mask, seen, edits_first, edits: count, ..params(want) });
    }

    /// The number of a mask among those of the launch.
    fn place(&mut self, mask: Option<&TokenMask>) -> u32 {
        let Some(words) = mask.map(TokenMask::words) else { return NONE };
        self.masks.extend(words);
        (self.masks.len() / words.len()) as u32 - 1
    }
}

impl Cuda {
    fn sample_on_card(
        &self,
        logits: &Tensor,
        wants: &[Want<'_>],
        memory: &mut SampleMemory,
        out: &mut Vec<Sampled>,
    ) -> Result<(), Fault> {
        let changes = |want| match want {
            &Want::Draw(draw) => draw.changes(logits.cols),
            Want::Score(_) => Changes { mask: None, repeated: None, edits: Vec::new() },
        };
        let mut rows = wants.iter().map(|want| (want, changes(want))).peekable();
        while out.len() < wants.len() {
            let mut round = Round::default();
            while let Some((want, changes)) = rows.next_if(|(_, row)| round.has_room(memory, row)) {
                round.push(want, &changes);
            }
            let (first, m) = (out.len(), round.params.len());
            assert!(m > 0, "This is a bug: a vocabulary that no memory was taken for.");
            let results = self.launch_round(logits, first, &round, memory)?;
            let of = |(i, want): (usize, &Want<'_>)| {
                sampled(&results, m, i, want.logprobs().unwrap_or(0))
            };
            out.extend(wants[first..first + m].iter().enumerate().map(of));
        }
        Ok(())
    }

    /// Rows of `logits` from `first` on.
    fn launch_round(
        &self,
        logits: &Tensor,
        first: usize,
        round: &Round,
        memory: &mut SampleMemory,
    ) -> Result<Vec<u32>, Fault> {
        let m = round.params.len();
        let [masks_start, edits_start, results_start] = memory.starts();
        let params = memory.upload(&self.stream, 0, bytemuck::cast_slice(&round.params))?;
        let masks = bytemuck::cast_slice(&round.masks);
        let masks = memory.upload(&self.stream, masks_start, masks)?;
        let edits = bytemuck::cast_slice(&round.edits);
        let edits = memory.upload(&self.stream, edits_start, edits)?;
        let results_at = memory.device.region(results_start as u64, (m * RESULT_BYTES) as u64);
        let part = |numbers_before: usize| results_at.address() + (4 * numbers_before) as u64;
        let args = Sample {
            logits: logits.at() + (first * logits.cols * 4) as u64,
            params,
            tokens: part(0),
            logprobs: part(m),
            ranks: part(2 * m),
            masks,
            edits,
            top_tokens: part(3 * m),
            top_logprobs: part((3 + TOP_MAX) * m),
            vocabulary: logits.cols as u32,
            top_max: TOP_MAX as u32,
        };
        let kernel = kernels::SAMPLE.with_threads(kernels::sample_threads(logits.cols));
        self.start_kernel(&self.stream, kernel, [m as u32, 1, 1], &args)?;
        let host = &mut memory.host.bytes_mut()[..m * RESULT_BYTES];
        // The one wait of a step that is drawn at once.
        self.stream.download_now(&results_at, host)?;
        Ok(bytemuck::cast_slice(host).to_vec())
    }
}

/// Without masks and edits.
fn params(want: &Want<'_>) -> SampleParams {
    let common = SampleParams {
        top: want.logprobs().unwrap_or(0).min(TOP_MAX as u32),
        ranked: want.logprobs().is_some().into(),
        target: NONE,
        ..SampleParams::default()
    };
    let draw = match want {
        Want::Score(Score { target, logprobs: _ }) => {
            return SampleParams { target: *target, ..common };
        }
        Want::Draw(draw) => draw,
    };
    // The rest of them is in the row's changes.
    let SamplingParams { temperature, top_p, top_k, min_p, repetition_penalty, seed, .. } =
        *draw.params;
    let step = draw.history.generated.len() as u64;
    SampleParams { temperature, top_p, min_p, top_k, seed, step, repetition_penalty, ..common }
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
