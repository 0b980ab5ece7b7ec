//! LoRA and rsLoRA (arXiv 2106.09685, 2312.03732; peft `tuners/lora/layer.py`):
//! `y = W x + b + s·(B A x + lora_bias)`, `s = alpha / r` or `alpha / √r`, folded into B.

use serde_json::Value;

use super::config::bad;
use super::error::AdapterError;
use super::lowering::Lowering;
use super::method::{Input, Method};
use super::target::{Pattern, targets};
use super::tensors::{Part, named};
use crate::delta::{LowRank, Side};
use crate::ids::ModuleId;
use crate::site::SiteKind;

/// `peft_type = "LORA"`.
pub struct Lora;

/// peft's default for every supported family.
const TARGETS: &[&str] = &["q_proj", "v_proj"];
/// peft's default for `r` and `lora_alpha`.
const DEFAULT: usize = 8;
/// Initialisations that subtract their start from the base: the file alone is then not the
/// adapter. peft's own conversion on save writes `true` instead.
const RESIDUAL_INITS: &[&str] = &["pissa", "olora", "corda", "lora_ga", "loftq"];
/// The name of `lora_bias`, below a module.
const BIAS: &str = "lora_B.bias";
const PLAIN_INITS: &[&str] = &["eva", "gaussian", "orthogonal", "mica"];

impl Method for Lora {
    fn name(&self) -> &'static str {
        "LORA"
    }

    fn reads(&self, peft_type: &str, _: &Input<'_>) -> bool {
        peft_type == "LORA"
    }

    fn lower(&self, input: &Input<'_>, lowering: &mut Lowering<'_>) -> Result<(), AdapterError> {
        check_init(input)?;
        for pair in pairs(input)? {
            pair.push(lowering)?;
        }
        Ok(())
    }
}

/// One module's factors, `B` scaled, in f32.
pub struct Pair {
    /// Where.
    pub module: ModuleId,
    /// Rank.
    pub rank: usize,
    /// A `[rank, in]`.
    pub a: Vec<f32>,
    /// `s·B` transposed, `[rank, out]`.
    pub bt: Vec<f32>,
    /// `s·lora_bias`, `[out]`.
    pub shift: Option<Vec<f32>>,
}

impl Pair {
    /// Adds the pair to the adapter.
    ///
    /// # Errors
    /// When the adapter is too large.
    pub fn push(self, lowering: &mut Lowering<'_>) -> Result<(), AdapterError> {
        let Self { module, rank, a, bt, shift } = self;
        let down = lowering.push_dense(Side::Down, &a, rank)?;
        let up = lowering.push_dense(Side::Up, &bt, rank)?;
        lowering.low_rank(module, &LowRank { rank, down, middle: None, up, end: None });
        if let Some(shift) = shift {
            lowering.shift(module, &shift);
        }
        Ok(())
    }
}

/// Refuses adapters that are relative to a changed base, or do not apply to every token.
pub fn check_init(input: &Input<'_>) -> Result<(), AdapterError> {
    // aLoRA applies from these tokens on. An empty list would be harmless in any other field;
    // here it would mean an adapter that never applies.
    if let Some(tokens) = input.config.get("alora_invocation_tokens") {
        return Err(bad("alora_invocation_tokens", "null (aLoRA is not supported)", tokens));
    }
    let Some(Value::String(init)) = input.config.get("init_lora_weights") else { return Ok(()) };
    if RESIDUAL_INITS.iter().any(|prefix| init.starts_with(prefix)) {
        return Err(AdapterError::Invalid(format!(
            "adapter_config.json: 'init_lora_weights' is '{init}': the adapter is relative to a \
             base that this initialisation changed; convert it when saving (peft: \
             save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )));
    }
    if !PLAIN_INITS.contains(&init.as_str()) {
        let value = Value::String(init.clone());
        return Err(bad("init_lora_weights", "true, false or a known initialisation", &value));
    }
    Ok(())
}

/// Every targeted module's factors. The tensors decide which modules there are; the config must
/// say the same.
pub fn pairs(input: &Input<'_>) -> Result<Vec<Pair>, AdapterError> {
    let config = &input.config;
    let rank = config.count("r", Some(DEFAULT))?;
    let alpha = config.number("lora_alpha", DEFAULT as f64)?;
    let root = config.flag("use_rslora")?;
    let with_bias = config.flag("lora_bias")?;
    let ranks = Pattern::read(config, "rank_pattern")?;
    let alphas = Pattern::read(config, "alpha_pattern")?;
    let modules = input.base.modules();
    let mut found = Vec::new();
    for id in targets(config, modules, TARGETS)? {
        let name = &modules.get(id).name;
        let (rank, field) = match ranks.get(name)? {
            None => (rank, "r"),
            Some(r) if r >= 1.0 && r.fract() == 0.0 => (r as usize, "rank_pattern"),
            Some(r) => return Err(bad("rank_pattern", "whole numbers of at least 1", &r.into())),
        };
        let alpha = alphas.get(name)?.unwrap_or(alpha);
        let divisor = if root { (rank as f64).sqrt() } else { rank as f64 };
        let because = match config.get("target_modules") {
            None => format!("without 'target_modules' {name} is one, and '{field}' is {rank}"),
            Some(_) => format!("'target_modules' names {name}, and '{field}' is {rank}"),
        };
        let scaling = alpha / divisor;
        found.push(pair(input, id, rank, scaling, with_bias, &because)?);
        if let Some(head) = tied_head(input, id)? {
            let because = "'ensure_weight_tying' is true";
            let head = pair(input, head, rank, scaling, false, because)?;
            check_tied(&found[found.len() - 1], &head, scaling)?;
            found.push(head);
        }
    }
    Ok(found)
}

/// Of an embedding with `ensure_weight_tying`, the head that is the same table: peft trains one
/// pair of factors for both, and writes it under both names, the second time turned.
fn tied_head(input: &Input<'_>, id: ModuleId) -> Result<Option<ModuleId>, AdapterError> {
    let Some((_, head)) = input.tied_tables()?.filter(|(table, _)| *table == id) else {
        return Ok(None);
    };
    for field in ["use_dora", "lora_bias"] {
        if input.config.flag(field)? {
            return Err(AdapterError::Invalid(format!(
                "adapter_config.json: 'ensure_weight_tying' with '{field}' on the embedding is \
                 not supported"
            )));
        }
    }
    Ok(Some(head))
}

/// The head's A is the embedding's B turned, and its B the embedding's A turned.
fn check_tied(embedding: &Pair, head: &Pair, scaling: f64) -> Result<(), AdapterError> {
    let scaled = |v: &f32| (f64::from(*v) * scaling) as f32;
    let same = |plain: &[f32], times: &[f32]| plain.iter().map(scaled).eq(times.iter().copied());
    match same(&head.a, &embedding.bt) && same(&embedding.a, &head.bt) {
        true => Ok(()),
        false => Err(AdapterError::Invalid(
            "the factors of lm_head are not those of the embedding, and adapter_config.json sets \
             'ensure_weight_tying': they must be equal"
                .to_owned(),
        )),
    }
}

fn pair(
    input: &Input<'_>,
    id: ModuleId,
    rank: usize,
    scaling: f64,
    with_bias: bool,
    because: &str,
) -> Result<Pair, AdapterError> {
    let modules = input.base.modules();
    let (name, width_in, width_out) = named(modules, id);
    let (a_name, b_name) = match modules.get(id).kind {
        SiteKind::Linear => ("lora_A.weight", "lora_B.weight"),
        SiteKind::Embedding => ("lora_embedding_A", "lora_embedding_B"),
        SiteKind::Norm => {
            return Err(AdapterError::Invalid(format!(
                "adapter_config.json: 'target_modules' names {name}, a norm; LoRA changes linears \
                 and embeddings only"
            )));
        }
    };
    let take = |suffix: &str, shape: &[usize], part: &str| {
        let part = match suffix {
            BIAS => Part::because(part, "'lora_bias' is true"),
            _ => Part::because(part, because),
        };
        input.tensors.take(&format!("{name}.{suffix}"), shape, name, part)
    };
    let scaled = |v: f32| (f64::from(v) * scaling) as f32;
    let a = take(a_name, &[rank, width_in], "A")?;
    let b = take(b_name, &[width_out, rank], "B")?;
    let bt = transpose(&b, rank).into_iter().map(scaled).collect();
    let shift = match with_bias {
        true => Some(take(BIAS, &[width_out], "bias of B")?.into_iter().map(scaled).collect()),
        false => None,
    };
    Ok(Pair { module: id, rank, a, bt, shift })
}

/// `[rows, cols]` → `[cols, rows]`.
pub fn transpose(m: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| m.iter().skip(c).step_by(cols).copied()).collect()
}
