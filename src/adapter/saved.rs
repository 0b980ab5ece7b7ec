//! What may accompany any method's tensors (adapters.md §3.4): whole modules that were trained
//! and saved (`modules_to_save`), copies of the base's embedding, trained biases.

use super::target;
use super::tensors::named;
use super::{AdapterError, Input};
use crate::delta::{DeltaBuilder, SiteDelta};
use crate::dtype::Values;
use crate::ids::SiteId;
use crate::site::{Site, SiteKind};

/// Lowers them into `delta`, after the method's own tensors.
///
/// # Errors
/// [`AdapterError::Invalid`] naming the tensor or field.
pub fn lower(input: &Input<'_>, delta: &mut DeltaBuilder) -> Result<(), AdapterError> {
    for id in target::saved(&input.config, input.base.sites())? {
        saved_module(input, id, delta)?;
    }
    for (id, site) in input.base.sites().iter() {
        table_copy(input, id, site, delta)?;
    }
    biases(input, delta)
}

fn saved_module(
    input: &Input<'_>,
    id: SiteId,
    delta: &mut DeltaBuilder,
) -> Result<(), AdapterError> {
    let site = input.base.sites().get(id);
    let name = &site.name;
    let older = format!("{name}.modules_to_save.weight");
    let key = if input.tensors.has(&older) { older } else { format!("{name}.weight") };
    let weight = input.tensors.take_values(&key, &site.weight_shape(), name, "whole weight")?;
    delta.site(id).weight = Some(fit(input, site, weight));
    if site.has_bias {
        let bias = input.tensors.take(
            &format!("{name}.bias"),
            &[site.out_features],
            name,
            "whole bias",
        )?;
        let change = delta.site(id);
        let scale = change.scale.clone();
        replace_bias(input, id, &bias, scale.as_deref(), change);
    }
    Ok(())
}

/// Norm weights are kept in f32 by every backend; matrices in the width adapters are kept in.
fn fit(input: &Input<'_>, site: &Site, weight: Values) -> Values {
    match site.kind {
        SiteKind::Norm => Values::F32(weight.to_f32()),
        SiteKind::Linear | SiteKind::Embedding => weight.cast(input.base.adapter_dtype()),
    }
}

/// peft saves a copy of the embedding and head beside an adapter that targets them, or whose
/// vocabulary was resized. Equal to the base it says nothing; else it is what peft would load.
fn table_copy(
    input: &Input<'_>,
    id: SiteId,
    site: &Site,
    delta: &mut DeltaBuilder,
) -> Result<(), AdapterError> {
    if site.name != "lm_head" && site.kind != SiteKind::Embedding {
        return Ok(());
    }
    if delta.site_has_weight(id) {
        return Ok(());
    }
    let name = &site.name;
    for key in [format!("{name}.base_layer.weight"), format!("{name}.weight")] {
        let Some(found) = input.tensors.shape(&key) else { continue };
        let expected = site.weight_shape();
        if found != expected {
            return Err(AdapterError::Invalid(format!(
                "tensor '{key}' has shape {found:?} and the base model's is {expected:?}: the \
                 adapter was trained with another vocabulary; serve it on a base with that one"
            )));
        }
        let part = "copy of the base's table";
        let copy = input.tensors.take_values(&key, &expected, name, part)?;
        let dtype = input.base.adapter_dtype();
        let base = Values::from_f32(input.base.weight(id), dtype);
        let copy = copy.cast(dtype);
        if copy == base {
            input.tensors.ignore(&key, name, "copy of the base's table, equal to it: unused");
        } else if delta.site(id).scale.is_some() {
            return Err(AdapterError::Invalid(format!(
                "tensor '{key}' differs from the base model's table, and DoRA at {name} is \
                 relative to it; serve the adapter on the base it was trained on"
            )));
        } else {
            delta.site(id).weight = Some(copy);
        }
        // A copy under the other spelling as well stays unclaimed, and is refused for that.
        return Ok(());
    }
    Ok(())
}

/// `bias = "lora_only"` saves the targeted modules' trained biases, `"all"` every module's.
fn biases(input: &Input<'_>, delta: &mut DeltaBuilder) -> Result<(), AdapterError> {
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
    for (id, site) in input.base.sites().iter() {
        let name = &site.name;
        let spelled = [format!("{name}.base_layer.bias"), format!("{name}.bias")];
        let found = spelled.iter().find(|key| input.tensors.has(key));
        let wanted = site.has_bias && (all || delta.has_factors(id));
        match found {
            None if wanted => {
                return Err(AdapterError::Invalid(format!(
                    "tensor '{}' is missing; 'bias' is '{mode}' and the base model has a bias \
                     there",
                    spelled[0]
                )));
            }
            Some(key) if wanted && !delta.site_has_weight(id) => {
                let (_, _, width) = named(input.base.sites(), id);
                let bias = input.tensors.take(key, &[width], name, "whole bias")?;
                replace_bias(input, id, &bias, None, delta.site(id));
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
    id: SiteId,
    new: &[f32],
    scale: Option<&[f32]>,
    change: &mut SiteDelta,
) {
    let old = input.base.bias(id).unwrap_or_else(|| vec![0.0; new.len()]);
    let factor = |i: usize| scale.map_or(1.0, |scale| scale[i]);
    let pairs = new.iter().zip(&old).enumerate();
    let moved: Vec<f32> = pairs.map(|(i, (new, old))| factor(i) * (new - old)).collect();
    change.shift = Some(match change.shift.take() {
        None => moved,
        Some(shift) => shift.iter().zip(moved).map(|(s, m)| s + m).collect(),
    });
}
