//! Flags that say how an answer is drawn, as fields of a request.

use clap::Args;
use serde_json::{Map, Value, json};

use crate::config::whole;

/// How an answer is drawn.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Answer")]
pub struct SamplingArgs {
    /// Tokens of an answer at most; default: the API's for generate, what is left of the context
    /// for chat.
    #[arg(long, value_name = "TOKENS", value_parser = whole(0, u32::MAX))]
    max_tokens: Option<u32>,
    /// 0 takes the likeliest token each time; default: the model's own.
    #[arg(long, value_name = "NUMBER", value_parser = number, allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Draw from the likeliest tokens that make up this share; default: the model's own.
    #[arg(long, value_name = "SHARE", value_parser = number, allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Equal seeds give equal answers; default: a random one.
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = whole(i64::MIN, i64::MAX),
        allow_negative_numbers = true
    )]
    seed: Option<i64>,
    /// Text that ends an answer and is no part of it. Repeatable.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

/// A finite number: JSON has no others.
fn number(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| "expected a number".into())
}

impl SamplingArgs {
    /// The fields of those that were given; the server checks them.
    pub fn fields(&self) -> Map<String, Value> {
        let Self { max_tokens, temperature, top_p, seed, stop } = self;
        let fields = [
            ("max_tokens", max_tokens.map(|value| json!(value))),
            ("temperature", temperature.map(|value| json!(value))),
            ("top_p", top_p.map(|value| json!(value))),
            ("seed", seed.map(|value| json!(value))),
            ("stop", (!stop.is_empty()).then(|| json!(stop))),
        ];
        let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        given.collect()
    }
}

/// How fast an answer came, for `--stats`.
pub fn speed(tokens: Option<u64>, first_s: Option<f64>, all_s: f64) -> String {
    let Some((tokens, first_s)) = tokens.zip(first_s) else {
        return format!("no token in {all_s:.2} s");
    };
    // The first token ends the prompt; the others are drawn after it.
    let drawn_s = (all_s - first_s).max(f64::EPSILON);
    let rate = match tokens {
        0 | 1 => String::new(),
        more => format!(", then {:.1} tokens/s", (more - 1) as f64 / drawn_s),
    };
    let noun = if tokens == 1 { "token" } else { "tokens" };
    format!("{tokens} {noun}, the first after {:.0} ms{rate}", first_s * 1e3)
}

#[cfg(test)]
mod tests {
    use super::speed;

    #[test]
    fn the_first_token_is_no_part_of_the_rate() {
        assert_eq!(
            speed(Some(11), Some(0.5), 1.5),
            "11 tokens, the first after 500 ms, then 10.0 tokens/s"
        );
        assert_eq!(speed(Some(1), Some(0.25), 0.3), "1 token, the first after 250 ms");
        assert_eq!(speed(None, None, 0.5), "no token in 0.50 s");
    }
}
