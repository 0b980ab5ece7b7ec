//! The rotary fields of a `config.json`, merged as transformers merges them
//! (`modeling_rope_utils.py`, `convert_rope_params_to_dict` and `standardize_rope_params`).

use serde_json::{Map, Value};

use super::error::ModelError;
use super::fields::{Fields, bad, quoted};
use super::rope::{Rope, RopeScaling};

/// What the older block is called, and what the newer.
const BLOCKS: [&str; 2] = ["rope_scaling", "rope_parameters"];
const ORIGINAL: &str = "original_max_position_embeddings";
const THETA_DEFAULT: f64 = 10000.0;

/// Rotary positions of a model, and how many of them it is for.
pub struct Rotary {
    /// The rotation.
    pub rope: Rope,
    /// Longest context, in tokens.
    pub positions_max: usize,
}

impl Rotary {
    /// Reads both blocks and what stands beside them. A block that is absent, null, false or
    /// empty says nothing; of two, `rope_scaling` is taken whole. `positions` is
    /// `max_position_embeddings`.
    ///
    /// # Errors
    /// When a field is of the wrong form, or the kind of scaling is not known here.
    pub fn read(
        fields: &Fields<'_>,
        head_dim: usize,
        positions: usize,
        notes: &mut Vec<String>,
    ) -> Result<Self, ModelError> {
        let [older, newer] = [block(fields, BLOCKS[0])?, block(fields, BLOCKS[1])?];
        let empty = Map::new();
        let block = older.or(newer).unwrap_or(&empty);
        let own = Fields::new(block);
        if let Some((kind, _)) = block.iter().find(|(_, value)| value.is_object()) {
            return Err(ModelError::Unsupported(format!(
                "rotary parameters by type of layer ('rope_parameters' holds an object '{kind}')"
            )));
        }
        let theta = theta(fields, &own, notes)?;
        if let (Some(older), Some(newer)) = (older, newer) {
            notes.extend(replaced(older, newer, theta));
        }
        refuse_partial(fields, &own)?;
        let original = original(fields, &own, notes)?.unwrap_or(positions as f64);
        let scaling = scaling(&own, original, notes)?;
        let positions_max = match scaling {
            // vLLM's rule: what is trained times the stretch; llama3's maximum is the long one.
            RopeScaling::Linear { factor } => stretched(original * factor)?,
            RopeScaling::Default | RopeScaling::Llama3 { .. } => positions,
        };
        let unread = own.unread(&[]);
        if !unread.is_empty() {
            notes.push(format!("of the rotary parameters, not read: {}", quoted(&unread)));
        }
        Ok(Self { rope: Rope { theta, scaling, dims: head_dim }, positions_max })
    }
}

fn stretched(positions: f64) -> Result<usize, ModelError> {
    if positions > f64::from(u32::MAX) {
        return Err(ModelError::Config(format!(
            "'factor' stretches the context to {positions} tokens; at most {} are served",
            u32::MAX
        )));
    }
    Ok((positions as usize).max(1))
}

/// What of `newer` is lost where `older` stands in its place.
fn replaced(older: &Map<String, Value>, newer: &Map<String, Value>, theta: f64) -> Option<String> {
    let lost = newer.iter().filter(|(key, value)| {
        let kept = older.get(key.as_str()) == Some(*value);
        let plain = *key == "rope_type" && value.as_str() == Some("default");
        let same_theta = *key == "rope_theta" && value.as_f64() == Some(theta);
        !(kept || plain || same_theta)
    });
    let lost: Vec<_> = lost.map(|(key, value)| format!("'{key}' {value}")).collect();
    (!lost.is_empty()).then(|| {
        format!(
            "'rope_scaling' stands in place of 'rope_parameters', as in transformers, and of the \
             latter {} is not used: say it in 'rope_scaling' to keep it",
            lost.join(", ")
        )
    })
}

fn block<'a>(
    fields: &Fields<'a>,
    key: &'static str,
) -> Result<Option<&'a Map<String, Value>>, ModelError> {
    match fields.raw(key) {
        None | Some(Value::Null | Value::Bool(false)) => Ok(None),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Object(block)) => Ok(Some(block).filter(|block| !block.is_empty())),
        Some(other) => Err(bad(key, "an object", Some(other))),
    }
}

/// Of the block, else of the config.
fn theta(
    fields: &Fields<'_>,
    block: &Fields<'_>,
    notes: &mut Vec<String>,
) -> Result<f64, ModelError> {
    let top = fields.get("rope_theta");
    if block.raw("rope_theta").is_none() {
        return fields.number("rope_theta", Some(THETA_DEFAULT));
    }
    let theta = block.number("rope_theta", None)?;
    match top {
        Some(top) if top.as_f64() != Some(theta) => notes.push(format!(
            "'rope_theta' {top} is not used: the block of rotary parameters says {theta}"
        )),
        _ => {}
    }
    Ok(theta)
}

/// transformers' plain rotation does not look at it, vLLM's does: only 1 means one thing.
fn refuse_partial(fields: &Fields<'_>, block: &Fields<'_>) -> Result<(), ModelError> {
    let key = "partial_rotary_factor";
    for place in [fields, block] {
        if place.get(key).is_some() && place.number(key, None)? != 1.0 {
            let found = place.get(key);
            return Err(bad(key, "1 (rotating a part of a head is not supported)", found));
        }
    }
    Ok(())
}

/// Context of the original training, in tokens: of the config, else of the block.
fn original(
    fields: &Fields<'_>,
    block: &Fields<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<f64>, ModelError> {
    let [top, own] = [fields, block]
        .map(|place| place.raw(ORIGINAL).map(|_| place.number(ORIGINAL, None)).transpose());
    let (top, own) = (top?, own?);
    if let (Some(top), Some(own)) = (top, own)
        && top != own
    {
        let text = format!("'{ORIGINAL}' of the rotary parameters is not used: it is {top} above");
        notes.push(text);
    }
    Ok(top.or(own))
}

fn scaling(
    block: &Fields<'_>,
    original: f64,
    notes: &mut Vec<String>,
) -> Result<RopeScaling, ModelError> {
    let kind = block.get("rope_type").or_else(|| block.get("type"));
    if let Some(older) = block.get("type").filter(|older| kind != Some(*older)) {
        let kind = kind.map_or(String::new(), Value::to_string);
        notes.push(format!("rope 'type' {older} is not used: 'rope_type' says {kind}"));
    }
    match kind.map(|kind| kind.as_str().unwrap_or_default()) {
        None if block.get("factor").is_some() => {
            Err(bad("rope_type", "given beside 'factor'", None))
        }
        None | Some("default") => {
            if let Some(factor) = block.get("factor") {
                notes.push(format!("rope 'factor' {factor} is not used: 'rope_type' is default"));
            }
            Ok(RopeScaling::Default)
        }
        Some("linear") => Ok(RopeScaling::Linear { factor: block.number("factor", None)? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: block.number("factor", None)?,
            low: block.number("low_freq_factor", None)?,
            high: block.number("high_freq_factor", None)?,
            original,
        }),
        Some(other) => Err(ModelError::Unsupported(format!(
            "rope type '{other}' (supported: default, linear, llama3)"
        ))),
    }
}
