//! SSF (arXiv 2210.08823): `y = γ ⊙ module(x) + β` after linears and norms.

use super::error::AdapterError;
use super::lowering::Lowering;
use super::method::{Input, Method};
use super::target::targets;
use super::tensors::{Part, named};

/// `peft_type = "SSF"`, tensors `<module>.ssf_scale` and `<module>.ssf_shift`.
pub struct Ssf;

impl Method for Ssf {
    fn name(&self) -> &'static str {
        "SSF"
    }

    fn reads(&self, peft_type: &str, _: &Input<'_>) -> bool {
        peft_type == "SSF"
    }

    fn lower(&self, input: &Input<'_>, lowering: &mut Lowering<'_>) -> Result<(), AdapterError> {
        if input.config.get("target_modules").is_none() {
            let text = "adapter_config.json: 'target_modules' is missing; SSF has no default";
            return Err(AdapterError::Invalid(text.into()));
        }
        let modules = input.base.modules();
        for id in targets(&input.config, modules, &[])? {
            let (name, _, width) = named(modules, id);
            let take = |suffix: &str, part: &str| {
                input.tensors.take(
                    &format!("{name}.{suffix}"),
                    &[width],
                    name,
                    Part::because(part, "'target_modules' names the module"),
                )
            };
            lowering.scale(id, &take("ssf_scale", "scale γ")?);
            lowering.shift(id, &take("ssf_shift", "shift β")?);
        }
        Ok(())
    }
}
