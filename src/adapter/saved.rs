//! What may accompany any method's tensors (peft `utils/save_and_load.py`): whole modules that were
//! trained and saved (`modules_to_save`), copies of the base's embedding, trained biases.

use super::error::AdapterError;
use super::lowering::Lowering;
use super::method::Input;
use super::target;
use super::tensors::{Part, named};
use crate::dtype::Values;
use crate::ids::ModuleId;
use crate::site::{Module, SiteKind};

/// What asks for whole modules.
const SAVED: &str = "'modules_to_save' names the module";

/// Lowers them, after the method's own tensors.
///
/// # Errors
/// [`AdapterError::Invalid`] naming the tensor or field.
pub fn lower(input: &Input<'_>, lowering: &mut Lowering<'_>) -> Result<(), AdapterError> {
    for id in target::saved(&input.config, input.base.modules())? {
        saved_module(input, id, lowering)?;
    }
    tied(input, lowering)?;
    for (id, module) in input.base.modules().iter() {
        table_copy(input, id, module, lowering)?;
    }
    biases(input, lowering)
}

fn saved_module(
    input: &Input<'_>,
    id: ModuleId,
    lowering: &mut Lowering<'_>,
) -> Result<(), AdapterError> {
    let module = input.base.modules().get(id);
    let name = &module.name;
    let key = saved_key(input, name);
    let weight = input.tensors.take_values(
        &key,
        &module.weight_shape(),
        name,
        Part::because("whole weight", SAVED),
    )?;
    lowering.weight(id, fit(input, module, weight));
    if module.has_bias {
        let bias = input.tensors.take(
            &format!("{name}.bias"),
            &[module.out_features],
            name,
            Part::because("whole bias", SAVED),
        )?;
        let scale = lowering.scale_of(id);
        replace_bias(input, id, &bias, scale.as_deref(), lowering)?;
    }
    Ok(())
}

/// The tensor that holds a saved module's weight; older versions of peft name it otherwise.
fn saved_key(input: &Input<'_>, name: &str) -> String {
    let older = format!("{name}.modules_to_save.weight");
    if input.tensors.has(&older) { older } else { format!("{name}.weight") }
}

/// `ensure_weight_tying`: on a base whose head is the embedding, a saved embedding is the head too.
/// peft writes it under both names; on another base the field says nothing.
fn tied(input: &Input<'_>, lowering: &mut Lowering<'_>) -> Result<(), AdapterError> {
    const HEAD: &str = "lm_head.weight";
    let Some((table_id, head_id)) = input.tied_tables()? else { return Ok(()) };
    let modules = input.base.modules();
    let (table, head) = (modules.get(table_id), modules.get(head_id));
    let changed = |change: &crate::delta::SiteDelta| change.low_rank.is_some();
    if lowering.any(head_id, changed) != lowering.any(table_id, changed) {
        return Err(AdapterError::Invalid(format!(
            "adapter_config.json sets 'ensure_weight_tying', {} and {} are one table in the base \
             model, and only one of them is changed; name {} in 'target_modules'",
            table.name, head.name, table.name
        )));
    }
    if !lowering.any(table_id, |change| change.weight.is_some()) {
        return Ok(());
    }
    let part = || Part::because("whole weight", SAVED);
    let key = saved_key(input, &table.name);
    let weight = input.tensors.take_values(&key, &table.weight_shape(), &table.name, part())?;
    if input.tensors.has(HEAD) {
        let shape = head.weight_shape();
        if input.tensors.take_values(HEAD, &shape, &head.name, part())? != weight {
            return Err(AdapterError::Invalid(format!(
                "tensors '{HEAD}' and '{key}' differ, and adapter_config.json sets \
                 'ensure_weight_tying': they must be equal"
            )));
        }
    }
    lowering.weight(head_id, fit(input, head, weight));
    Ok(())
}

/// Norm weights are kept in f32 by every backend; matrices in the width adapters are kept in.
fn fit(input: &Input<'_>, module: &Module, weight: Values) -> Values {
    match module.kind {
        SiteKind::Norm => Values::F32(weight.to_f32()),
        SiteKind::Linear | SiteKind::Embedding => weight.cast(input.base.adapter_dtype()),
    }
}

/// peft saves a copy of the embedding and head beside an adapter that targets them, or whose
/// vocabulary was resized. Equal to the base it says nothing; else it is what peft would load.
fn table_copy(
    input: &Input<'_>,
    id: ModuleId,
    module: &Module,
    lowering: &mut Lowering<'_>,
) -> Result<(), AdapterError> {
    if module.name != "lm_head" && module.kind != SiteKind::Embedding {
        return Ok(());
    }
    if lowering.any(id, |change| change.weight.is_some()) {
        return Ok(());
    }
    let name = &module.name;
    for key in [format!("{name}.base_layer.weight"), format!("{name}.weight")] {
        let Some(found) = input.tensors.shape(&key) else { continue };
        let expected = module.weight_shape();
        if found != expected {
            return Err(AdapterError::Invalid(format!(
                "tensor '{key}' has shape {found:?} and the base model's is {expected:?}: the \
                 adapter was trained with another vocabulary; serve it on a base with that one"
            )));
        }
        let part = "copy of the base's table";
        let copy = input.tensors.take_values(&key, &expected, name, part)?;
        let dtype = input.base.adapter_dtype();
        let base = Values::from_f32(input.base.weight(id)?, dtype);
        let copy = copy.cast(dtype);
        if copy == base {
            input.tensors.ignore(&key, name, "copy of the base's table, equal to it: unused");
        } else if lowering.any(id, |change| change.scale.is_some()) {
            return Err(AdapterError::Invalid(format!(
                "tensor '{key}' differs from the base model's table, and DoRA at {name} is \
                 relative to it; serve the adapter on the base it was trained on"
            )));
        } else {
            lowering.weight(id, copy);
        }
        // A copy under the other spelling as well stays unclaimed, and is refused for that.
        return Ok(());
    }
    Ok(())
}

/// `bias = "lora_only"` saves the targeted modules' trained biases, `"all"` every module's.
fn biases(input: &Input<'_>, lowering: &mut Lowering<'_>) -> Result<(), AdapterError> {
    let mode = input.config.text("bias")?.unwrap_or("none");
    // Only LoRA says what a trained bias means; under a scale (SSF) it could mean two things.
    if mode != "none" && input.config.text("peft_type")? != Some("LORA") {
        return Err(super::config::bad("bias", "none in an adapter of this kind", &mode.into()));
    }
    let all = match mode {
        "none" => return Ok(()),
        "lora_only" => false,
        "all" => true,
        other => {
            return Err(super::config::bad("bias", "none, all or lora_only", &other.into()));
        }
    };
    for (id, module) in input.base.modules().iter() {
        let name = &module.name;
        let spelled = [format!("{name}.base_layer.bias"), format!("{name}.bias")];
        let found = spelled.iter().find(|key| input.tensors.has(key));
        let adapted = || lowering.any(id, |change| change.low_rank.is_some());
        let wanted = module.has_bias && (all || adapted());
        match found {
            None if wanted => {
                return Err(AdapterError::Invalid(format!(
                    "tensor '{}' is missing; 'bias' is '{mode}' and the base model has a bias \
                     there",
                    spelled[0]
                )));
            }
            Some(key) if wanted && !lowering.any(id, |change| change.weight.is_some()) => {
                let (_, _, width) = named(input.base.modules(), id);
                let bias = input.tensors.take(key, &[width], name, "whole bias")?;
                replace_bias(input, id, &bias, None, lowering)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// In canonical form the base's bias is added before the scale; the shift puts the new one in its
/// place. DoRA, the one method that scales an adapted module with a trained bias, leaves the bias
/// unscaled: `shift' = shift + (new − bias)`. A scale at a module saved whole is (IA)³'s input
/// scale of the next linear, which scales the bias as well:
/// `shift' = shift + scale ⊙ (new − bias)`.
fn replace_bias(
    input: &Input<'_>,
    id: ModuleId,
    new: &[f32],
    scale: Option<&[f32]>,
    lowering: &mut Lowering<'_>,
) -> Result<(), AdapterError> {
    let old = input.base.bias(id)?.unwrap_or_else(|| vec![0.0; new.len()]);
    let factor = |i: usize| scale.map_or(1.0, |scale| scale[i]);
    let pairs = new.iter().zip(&old).enumerate();
    let moved: Vec<f32> = pairs.map(|(i, (new, old))| factor(i) * (new - old)).collect();
    lowering.shift(id, &moved);
    Ok(())
}
