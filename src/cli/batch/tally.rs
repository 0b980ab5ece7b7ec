//! How far a batch is, and what came of it.

use std::time::Duration;

use super::answered::Answered;

/// Counts over the lines that are answered.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Lines with an answer of status 200.
    pub good: usize,
    /// Lines with another.
    pub failed: usize,
    /// Index of the first of those, and what is wrong with it.
    pub first_fault: Option<(usize, String)>,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens drawn.
    pub completion_tokens: u64,
    /// Good lines of each model.
    models: Vec<usize>,
}

impl Tally {
    /// Of a batch that names so many models.
    pub fn new(models: usize) -> Self {
        Self { models: vec![0; models], ..Self::default() }
    }

    /// Lines with any answer.
    pub fn done(&self) -> usize {
        self.good + self.failed
    }

    /// Counts the answer of the line at `index`, which names the model at `model`.
    pub fn add(&mut self, model: usize, index: usize, answered: &Answered) {
        if let Some(fault) = answered.fault() {
            self.failed += 1;
            self.first_fault.get_or_insert((index, fault));
            return;
        }
        self.good += 1;
        self.models[model] += 1;
        let usage = answered.response.as_ref().map(|response| &response.body["usage"]);
        let Some(usage) = usage else { return };
        // OpenAI's names, and those of Anthropic's API and of /v1/responses.
        let tokens = |names: [&str; 2]| names.iter().find_map(|name| usage[*name].as_u64());
        self.prompt_tokens += tokens(["prompt_tokens", "input_tokens"]).unwrap_or(0);
        self.completion_tokens += tokens(["completion_tokens", "output_tokens"]).unwrap_or(0);
    }

    /// One line on all of it. `before` is what was there already; `seconds` are this run's.
    pub fn summary(&self, before: &Tally, time: Duration, names: &[(String, usize)]) -> String {
        let Self { good, failed, prompt_tokens, completion_tokens, .. } = self;
        let kept = match before.done() {
            0 => String::new(),
            kept => format!(" ({kept} by earlier runs)"),
        };
        let name = |name: &String| if name.is_empty() { "no model named" } else { name }.to_owned();
        let each = names.iter().zip(&self.models);
        let each: Vec<String> =
            each.map(|((n, _), count)| format!("{} {count}", name(n))).collect();
        format!(
            "{} lines: {good} answered, {failed} failed{kept}; {prompt_tokens} tokens of prompts, \
             {completion_tokens} drawn, {:.1} tokens/s; {}",
            self.done(),
            self.rate(before, time),
            each.join(", ")
        )
    }

    /// Tokens that this run drew, in a second.
    pub fn rate(&self, before: &Tally, time: Duration) -> f64 {
        let drawn = self.completion_tokens - before.completion_tokens;
        drawn as f64 / time.as_secs_f64().max(f64::EPSILON)
    }
}
