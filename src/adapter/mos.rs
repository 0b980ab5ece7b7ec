//! MoS, mixture of shards (arXiv 2410.00938; Forence1999/MoS `modules/Tied_LoRA.py`): row j of A
//! is the concatenation of l shards of a pool shared by all layers of one module type, and so is
//! row j of Bᵀ, by independent frozen indices; `y = W x + b + (alpha / r)·B (A x)`.
//!
//! Lowered without expanding: each type's two pools are stored once, each layer keeps offsets.

use std::collections::BTreeMap;

use super::error::AdapterError;
use super::lowering::Lowering;
use super::method::{Input, Method};
use super::target::targets;
use super::tensors::{layer_count, layer_of, named};
use crate::delta::{DeltaBuilder, LowRank, Side};
use crate::ids::ModuleId;
use crate::site::SiteKind;

/// `peft_type = "MOS"` (each pool once), or `"LORA"` with `lora_pair_mask` tensors (what the
/// authors' trainer saves: the pools again in every layer).
pub struct Mos;

const DEFAULT_ALPHA: f64 = 16.0;
const MASK: &str = ".lora_pair_mask";

impl Method for Mos {
    fn name(&self) -> &'static str {
        "MOS"
    }

    fn reads(&self, peft_type: &str, input: &Input<'_>) -> bool {
        let masked = || input.tensors.names().any(|name| name.ends_with(MASK));
        peft_type == "MOS" || (peft_type == "LORA" && masked())
    }

    fn lower(&self, input: &Input<'_>, lowering: &mut Lowering<'_>) -> Result<(), AdapterError> {
        let settings = Settings::read(input)?;
        let modules = input.base.modules();
        let mut types: BTreeMap<&str, Vec<ModuleId>> = BTreeMap::new();
        for id in targets(&input.config, modules, &[])? {
            let module = modules.get(id);
            if module.kind != SiteKind::Linear || layer_of(&module.name).is_none() {
                return Err(AdapterError::Invalid(format!(
                    "adapter_config.json: 'target_modules' names {}; MoS shares shards between the \
                     layers of a linear",
                    module.name
                )));
            }
            types.entry(module.leaf()).or_default().push(id);
        }
        let official = input.tensors.names().any(|name| name.ends_with(MASK));
        for (leaf, ids) in types {
            match official {
                true => lower_repeated(input, &settings, &ids, lowering)?,
                false => lower_compact(input, &settings, leaf, &ids, lowering)?,
            }
        }
        Ok(())
    }
}

/// The numbers in the config; the trainer does not always write them, the tensors always imply
/// rank and shards.
struct Settings {
    rank: Option<usize>,
    shards: Option<usize>,
    alpha: f64,
}

impl Settings {
    fn read(input: &Input<'_>) -> Result<Self, AdapterError> {
        let config = &input.config;
        let optional = |key| config.get(key).map(|_| config.count(key, None)).transpose();
        // They sized the pools and drew the indices; both are in the file.
        config.get("valid_param_lora_r");
        config.get("valid_param_private_r");
        if let Some(mode) = config.text("ft_mode")?.filter(|mode| *mode != "mos") {
            return Err(super::config::bad("ft_mode", "\"mos\"", &mode.into()));
        }
        config.flag("enable_lora_vec")?;
        super::lora::check_init(input)?;
        Ok(Self {
            rank: optional("r")?,
            shards: optional("num_chunk_per_vec")?,
            alpha: config.number("lora_alpha", DEFAULT_ALPHA)?,
        })
    }

    /// Checks rank and shards implied by the tensors against the config's.
    fn agree(&self, name: &str, rank: usize, shards: usize) -> Result<(), AdapterError> {
        let pairs = [("r", self.rank, rank), ("num_chunk_per_vec", self.shards, shards)];
        match pairs.into_iter().find(|(_, said, found)| said.is_some_and(|said| said != *found)) {
            None => Ok(()),
            Some((key, said, found)) => Err(AdapterError::Invalid(format!(
                "adapter_config.json: '{key}' is {}, but the tensors of {name} have {found}",
                said.unwrap_or_default()
            ))),
        }
    }
}

/// Where a type's pools start in the adapter's pool, and the lengths of their shards.
struct Pools {
    a: u32,
    b: u32,
    shard_in: usize,
    shard_out: usize,
}

impl Pools {
    /// Stores `a [n, in / l]` and `b [n, out / l]`, b scaled.
    ///
    /// # Errors
    /// When the adapter is too large.
    fn push(
        lowering: &mut Lowering<'_>,
        a: &[f32],
        b: &[f32],
        n: usize,
        scaling: f64,
    ) -> Result<Self, AdapterError> {
        let b: Vec<f32> = b.iter().map(|&b| (f64::from(b) * scaling) as f32).collect();
        let (shard_in, shard_out) = (a.len() / n, b.len() / n);
        let (a, b) = (lowering.push(Side::Down, a)?, lowering.push(Side::Up, &b)?);
        Ok(Self { a, b, shard_in, shard_out })
    }

    /// One layer's gathers; both index lists are `[rank, l]`.
    fn gather(
        &self,
        lowering: &mut Lowering<'_>,
        id: ModuleId,
        rank: usize,
        a: &[usize],
        b: &[usize],
    ) {
        let factor = |side: Side, start: u32, shard_len: usize, indices: &[usize]| {
            // Within 32 bits: the pool that they point into is.
            let offset = |&i: &usize| start + (i * shard_len) as u32;
            let shards = indices.len() / rank;
            DeltaBuilder::gather(side, shard_len, shards, indices.iter().map(offset).collect())
        };
        let down = factor(Side::Down, self.a, self.shard_in, a);
        let up = factor(Side::Up, self.b, self.shard_out, b);
        lowering.low_rank(id, &LowRank { rank, down, middle: None, up, end: None });
    }
}

fn lower_compact(
    input: &Input<'_>,
    settings: &Settings,
    leaf: &str,
    ids: &[ModuleId],
    lowering: &mut Lowering<'_>,
) -> Result<(), AdapterError> {
    let modules = input.base.modules();
    let layers = layer_count(modules);
    let (name, width_in, width_out) = named(modules, ids[0]);
    if ids.len() != layers {
        return Err(AdapterError::Invalid(format!(
            "adapter_config.json: the targets hold {leaf} of {} layers; the base model has \
             {layers} and MoS indices are for all of them",
            ids.len()
        )));
    }
    let key = |suffix: &str| format!("mos.{leaf}.{suffix}");
    let index_shape = shape(input, &key("index_A"), 3)?;
    let (rank, l) = (index_shape[1], index_shape[2]);
    settings.agree(leaf, rank, l)?;
    let n = shape(input, &key("pool_A"), 2)?[0];
    let shard = check_shards(name, width_in, width_out, rank, l, n)?;
    let tensors = &input.tensors;
    let a = tensors.take(&key("pool_A"), &[n, shard.0], "", "pool of A")?;
    let b = tensors.take(&key("pool_B"), &[n, shard.1], "", "pool of B")?;
    let index =
        |side: &str, part: &str| tensors.take_indices(&key(side), &[layers, rank, l], n, "", part);
    let (index_a, index_b) = (index("index_A", "shards of A")?, index("index_B", "shards of B")?);
    let pools = Pools::push(lowering, &a, &b, n, settings.alpha / rank as f64)?;
    for &id in ids {
        let layer = layer_of(&modules.get(id).name).unwrap_or_default();
        let of_layer = layer * rank * l..(layer + 1) * rank * l;
        pools.gather(lowering, id, rank, &index_a[of_layer.clone()], &index_b[of_layer]);
    }
    Ok(())
}

fn lower_repeated(
    input: &Input<'_>,
    settings: &Settings,
    ids: &[ModuleId],
    lowering: &mut Lowering<'_>,
) -> Result<(), AdapterError> {
    let modules = input.base.modules();
    let mut first: Option<(Pools, Vec<f32>, Vec<f32>, usize)> = None;
    for &id in ids {
        let (name, width_in, width_out) = named(modules, id);
        let key = |suffix: &str| format!("{name}.{suffix}");
        let pool = shape(input, &key("lora_A.weight"), 2)?;
        let (n, shard_in) = (pool[0], pool[1]);
        if shard_in == 0 || !width_in.is_multiple_of(shard_in) {
            return Err(AdapterError::Invalid(format!(
                "tensor '{}' has shards of {shard_in}; they must divide {width_in}",
                key("lora_A.weight")
            )));
        }
        let l = width_in / shard_in;
        let picks = shape(input, &key("lora_pair_mask"), 1)?[0];
        if !picks.is_multiple_of(l) {
            return Err(AdapterError::Invalid(format!(
                "tensor '{}' picks {picks} shards; expected whole rows of {l}",
                key("lora_pair_mask")
            )));
        }
        let rank = picks / l;
        settings.agree(name, rank, l)?;
        let (_, shard_out) = check_shards(name, width_in, width_out, rank, l, n)?;
        let take = |suffix: &str, shape: &[usize], part: &str| {
            input.tensors.take(&key(suffix), shape, name, part)
        };
        let a = take("lora_A.weight", &[n, shard_in], "pool of A")?;
        let b = take("lora_B.weight", &[shard_out, n], "pool of B, transposed")?;
        let vector = take("lora_A_vec", &[rank], "factor that its anti-vector undoes")?;
        let undo = take("lora_A_anti_vec", &[rank], "anti-vector")?;
        if let Some(j) = vector.iter().zip(&undo).position(|(v, u)| (v * u - 1.0).abs() > 1e-6) {
            return Err(AdapterError::Invalid(format!(
                "tensors '{}' and '{}' must multiply to 1; at {j} they give {}",
                key("lora_A_vec"),
                key("lora_A_anti_vec"),
                vector[j] * undo[j]
            )));
        }
        let index = |suffix: &str, part: &str| {
            input.tensors.take_indices(&key(suffix), &[rank * l], n, name, part)
        };
        let ia = index("lora_pair_mask", "shards of A")?;
        let ib = index("lora_pair_mask_B", "shards of B")?;
        if first.is_none() {
            let b = super::lora::transpose(&b, n);
            let pools = Pools::push(lowering, &a, &b, n, settings.alpha / rank as f64)?;
            first = Some((pools, a.clone(), b, rank));
        }
        let Some((pools, first_a, first_b, first_rank)) = &first else { continue };
        let same_b = || super::lora::transpose(&b, n) == *first_b;
        if rank != *first_rank || a != *first_a || !same_b() {
            let leaf = modules.get(id).leaf();
            return Err(AdapterError::Invalid(format!(
                "the pools or ranks of {leaf} differ between layers (found at {name}); MoS shares \
                 one pool among all layers of a module type"
            )));
        }
        pools.gather(lowering, id, rank, &ia, &ib);
    }
    Ok(())
}

/// The shape of a tensor that must be there with `dims` extents, none of them zero.
fn shape<'a>(input: &Input<'a>, name: &str, dims: usize) -> Result<&'a [usize], AdapterError> {
    match input.tensors.shape(name) {
        None => Err(AdapterError::Invalid(format!(
            "tensor '{name}' is missing; expected it with {dims} extents"
        ))),
        Some(shape) if shape.len() != dims || shape.contains(&0) => Err(AdapterError::Invalid(
            format!("tensor '{name}' has shape {shape:?}; expected {dims} extents, none zero"),
        )),
        Some(shape) => Ok(shape),
    }
}

/// Lengths of A's and B's shards.
fn check_shards(
    name: &str,
    width_in: usize,
    width_out: usize,
    rank: usize,
    l: usize,
    n: usize,
) -> Result<(usize, usize), AdapterError> {
    if rank == 0 || l == 0 || !width_in.is_multiple_of(l) || !width_out.is_multiple_of(l) {
        return Err(AdapterError::Invalid(format!(
            "MoS at {name}: rank {rank} with {l} shards a row does not fit {width_in} inputs and \
             {width_out} outputs; the shards must divide both"
        )));
    }
    let elements = n.checked_mul(width_in.max(width_out)).filter(|&e| e <= u32::MAX as usize);
    match elements {
        Some(_) => Ok((width_in / l, width_out / l)),
        None => {
            Err(AdapterError::Invalid(format!("MoS at {name}: a pool of {n} shards is too big")))
        }
    }
}
