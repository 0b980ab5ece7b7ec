//! What sequences took, from the arrival of their requests to their ends, by vLLM's names.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::adapters::{AdapterCounts, Listed};
use super::encode::{counted, histogram};
use crate::engine::{Histogram, Progress, TOKEN_S, Ticket};
use crate::http::arrival::Arrival;
use crate::http::spans::RanFor;
use crate::request::Request;

/// vLLM's buckets, in seconds.
const TTFT_S: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const LATENCY_S: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const SAMPLES: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

/// How a sequence ended.
#[derive(Clone, Copy)]
pub enum Finish {
    Stop,
    Length,
    /// The client left, the engine failed, or the server shut down.
    Abort,
}

impl Finish {
    const ALL: [Self; 3] = [Self::Stop, Self::Length, Self::Abort];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// What sequences took.
#[derive(Debug)]
pub struct Sequences {
    finished: [AtomicU64; 3],
    ttft_s: Histogram,
    e2e_s: Histogram,
    queue_s: Histogram,
    prefill_s: Histogram,
    decode_s: Histogram,
    inference_s: Histogram,
    per_token_s: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    generation_tokens_max: Histogram,
    tokens_max: Histogram,
    samples: Histogram,
}

impl Sequences {
    /// Of a model with so many positions.
    pub fn new(context_tokens_max: u32) -> Self {
        let tokens = || Histogram::new(&one_two_five(context_tokens_max));
        let latency = || Histogram::new(&LATENCY_S);
        Self {
            finished: Default::default(),
            ttft_s: Histogram::new(&TTFT_S),
            e2e_s: latency(),
            queue_s: latency(),
            prefill_s: latency(),
            decode_s: latency(),
            inference_s: latency(),
            per_token_s: Histogram::new(&TOKEN_S),
            prompt_tokens: tokens(),
            generation_tokens: tokens(),
            generation_tokens_max: tokens(),
            tokens_max: tokens(),
            samples: Histogram::new(&SAMPLES),
        }
    }
}

/// vLLM's bounds of lengths: 1, 2, 5, 10, … up to `max`.
fn one_two_five(max: u32) -> Vec<f64> {
    let decades = (0..10).map(|exponent| 10u64.pow(exponent));
    let all = decades.flat_map(|ten| [1, 2, 5].map(|n| n * ten));
    all.take_while(|&bound| bound <= max.into()).map(|bound| bound as f64).collect()
}

impl Collector for Sequences {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut encoder;
        let (name, help) = ("vllm:request_success", "Sequences by how they ended.");
        let mut finished = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        // Each is there from the start, so that a rate over it has a beginning.
        for finish in Finish::ALL {
            let label = [("finished_reason", finish.name())];
            let count = self.finished[finish as usize].load(Ordering::Relaxed);
            counted(finished.encode_family(&label)?, count)?;
        }
        let all = [
            ("time_to_first_token_seconds", "Arrival to first token.", &self.ttft_s),
            ("e2e_request_latency_seconds", "Arrival to last token.", &self.e2e_s),
            ("request_queue_time_seconds", "Hand-over to first step.", &self.queue_s),
            ("request_prefill_time_seconds", "First step to first token.", &self.prefill_s),
            ("request_decode_time_seconds", "First token to last.", &self.decode_s),
            ("request_inference_time_seconds", "First step to last token.", &self.inference_s),
            (
                "request_time_per_output_token_seconds",
                "A sequence's mean time from token to token; 0 for one token.",
                &self.per_token_s,
            ),
            ("request_prompt_tokens", "Prompt tokens of a sequence.", &self.prompt_tokens),
            ("request_generation_tokens", "Tokens of a sequence.", &self.generation_tokens),
            (
                "request_max_num_generation_tokens",
                "Tokens of the longest of a prompt's samples.",
                &self.generation_tokens_max,
            ),
            ("request_params_max_tokens", "Tokens that a sequence may have.", &self.tokens_max),
            ("request_params_n", "Samples of a prompt.", &self.samples),
        ];
        for (name, help, values) in all {
            histogram(to, &format!("vllm:{name}"), help, values)?;
        }
        Ok(())
    }
}

/// One sequence's share in the metrics, in its tenant's account and in its request's line of the
/// log. A sequence that is dropped unfinished was aborted.
pub struct Timing {
    sequences: Arc<Sequences>,
    counts: AdapterCounts,
    arrived: Arrival,
    progress: Arc<Progress>,
    /// Until it ends.
    listed: Option<Listed>,
    prompt_tokens: u64,
    /// Of several samples the first pays for the prompt.
    pays_prompt: bool,
    has_begun: bool,
    cached_tokens: u64,
    tokens_max: u32,
    tokens: u64,
    first_token: Option<Duration>,
    is_finished: bool,
}

impl Timing {
    /// Of a sequence that is about to be handed to the engine.
    pub fn new(
        sequences: &Arc<Sequences>,
        counts: &AdapterCounts,
        arrived: &Arrival,
        ticket: &Ticket,
        request: &Request,
        pays_prompt: bool,
    ) -> Self {
        let prompt_tokens = request.prompt().len() as u64;
        counts.sequence(prompt_tokens);
        if pays_prompt {
            counts.account.asked(prompt_tokens);
        }
        Self {
            sequences: sequences.clone(),
            listed: counts.list(ticket.progress()),
            counts: counts.clone(),
            arrived: arrived.clone(),
            progress: ticket.progress().clone(),
            prompt_tokens,
            pays_prompt,
            has_begun: false,
            cached_tokens: 0,
            tokens_max: request.terms().tokens_max,
            tokens: 0,
            first_token: None,
            is_finished: false,
        }
    }

    /// The engine has begun it, with so much of its prompt found in the prefix cache.
    pub fn began(&mut self, cached_tokens: u32) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        self.cached_tokens = cached_tokens.into();
        self.counts.cached(self.cached_tokens);
        if self.pays_prompt {
            self.counts.account.began(self.prompt_tokens, self.cached_tokens);
        }
    }

    pub fn token(&mut self) {
        if self.first_token.is_none() {
            let time = Instant::now() - self.arrived.at;
            self.first_token = Some(time);
            self.sequences.ttft_s.observe(time.as_secs_f64());
            self.counts.first_token(time);
        }
        self.tokens += 1;
        self.counts.token();
        self.counts.account.drew();
    }

    pub fn finish(&mut self, finish: Finish) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        self.listed = None;
        let Sequences { finished, e2e_s, tokens_max, prompt_tokens, .. } = &*self.sequences;
        finished[finish as usize].fetch_add(1, Ordering::Relaxed);
        e2e_s.observe(self.arrived.at.elapsed().as_secs_f64());
        prompt_tokens.observe(self.prompt_tokens as f64);
        if self.tokens_max > 0 {
            self.sequences.generation_tokens.observe(self.tokens as f64);
            tokens_max.observe(self.tokens_max.into());
        }
        self.observe_times();
        let paid = |tokens| if self.pays_prompt { tokens } else { 0 };
        self.arrived.ran(RanFor {
            prompt_tokens: paid(self.prompt_tokens),
            cached_tokens: paid(self.cached_tokens),
            generation_tokens: self.tokens,
            queue: self.progress.queue(),
            first_token: self.first_token,
            finish: finish.name(),
        });
    }

    /// The times that the engine has told: of a sequence that did not come so far there are none.
    fn observe_times(&self) {
        let Sequences { queue_s, prefill_s, decode_s, inference_s, per_token_s, .. } =
            &*self.sequences;
        let observe = |to: &Histogram, time: Duration| to.observe(time.as_secs_f64());
        if let Some(queue) = self.progress.queue() {
            observe(queue_s, queue);
        }
        let Some(prefill) = self.progress.prefill() else { return };
        observe(prefill_s, prefill);
        let decode = self.progress.decode();
        observe(inference_s, prefill + decode.unwrap_or_default());
        if let Some(decode) = decode.filter(|_| self.tokens > 0) {
            observe(decode_s, decode);
            let steps = self.tokens - 1;
            per_token_s.observe(if steps == 0 { 0.0 } else { decode.as_secs_f64() / steps as f64 });
        }
    }

    /// All samples of a prompt are over. Nothing is counted if one was aborted.
    pub fn prompt_ended<'a>(samples: impl Iterator<Item = &'a Self> + Clone) {
        let is_whole = samples.clone().all(|sample| sample.is_finished && sample.tokens_max > 0);
        let longest = samples.clone().map(|sample| sample.tokens).max();
        let (Some(longest), Some(first), true) = (longest, samples.clone().next(), is_whole) else {
            return;
        };
        first.sequences.generation_tokens_max.observe(longest as f64);
        first.sequences.samples.observe(samples.count() as f64);
    }
}

impl Drop for Timing {
    fn drop(&mut self) {
        self.finish(Finish::Abort);
    }
}

#[cfg(test)]
mod tests {
    use super::one_two_five;

    #[test]
    fn bounds_of_lengths_end_with_the_context() {
        assert_eq!(one_two_five(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(one_two_five(499).last(), Some(&200.0));
        assert!(one_two_five(0).is_empty());
        assert_eq!(one_two_five(u32::MAX).len(), 29);
    }
}
