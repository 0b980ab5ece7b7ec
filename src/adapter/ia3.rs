//! (IA)³ (arXiv 2205.05638; peft `tuners/ia3/layer.py`): `y = l ⊙ (W x + b)`, or `W (l ⊙ x) + b`
//! on feed-forward modules.

use super::error::AdapterError;
use super::lowering::Lowering;
use super::method::{Input, Method};
use super::target::{FeedForward, targets};
use super::tensors::{Part, named};
use crate::ids::SiteId;
use crate::site::{SiteKind, SiteMap};

/// `peft_type = "IA3"`.
pub struct Ia3;

/// What asks for a scale of inputs.
const INPUT: &str = "'target_modules' and 'feedforward_modules' name the module";
/// What asks for a scale of outputs.
const OUTPUT: &str = "'target_modules' names the module, 'feedforward_modules' does not";
/// peft's default for the Llama family.
const TARGETS: &[&str] = &["k_proj", "v_proj", "down_proj"];

impl Method for Ia3 {
    fn name(&self) -> &'static str {
        "IA3"
    }

    fn reads(&self, peft_type: &str, _: &Input<'_>) -> bool {
        peft_type == "IA3"
    }

    fn lower(&self, input: &Input<'_>, lowering: &mut Lowering<'_>) -> Result<(), AdapterError> {
        let modules = input.base.modules();
        let feed_forward = FeedForward::read(&input.config)?;
        for id in targets(&input.config, modules, TARGETS)? {
            let (name, width_in, width_out) = named(modules, id);
            if modules.get(id).kind != SiteKind::Linear {
                return Err(AdapterError::Invalid(format!(
                    "adapter_config.json: 'target_modules' names {name}; IA3 changes linears only"
                )));
            }
            let key = format!("{name}.ia3_l");
            if feed_forward.matches(name)? {
                let l = input.tensors.take(
                    &key,
                    &[1, width_in],
                    name,
                    Part::because("input scale l", INPUT),
                )?;
                lowering.scale_site(input_scaled_at(input.base.sites(), name)?, &l);
            } else {
                let l = input.tensors.take(
                    &key,
                    &[width_out, 1],
                    name,
                    Part::because("output scale l", OUTPUT),
                )?;
                lowering.scale(id, &l);
            }
        }
        Ok(())
    }
}

/// The site whose *output* scale equals scaling the input of module `name`: in a gated MLP,
/// `l ⊙ (silu(gate) ⊙ up) = silu(gate) ⊙ (l ⊙ up)`. Elsewhere the input is shared with other
/// modules (q, k, v; gate, up) or with other heads (o), and there is no such site.
fn input_scaled_at(sites: &SiteMap, name: &str) -> Result<SiteId, AdapterError> {
    let up = name.strip_suffix("down_proj").map(|mlp| format!("{mlp}up_proj"));
    up.and_then(|up| sites.find(&up)).ok_or_else(|| {
        AdapterError::Invalid(format!(
            "adapter_config.json: 'feedforward_modules' includes {name}; an input scale is \
             supported on down_proj only"
        ))
    })
}
