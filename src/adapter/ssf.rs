//! SSF (arXiv 2210.08823): `y = γ ⊙ module(x) + β` after linears and norms.

use super::target::targets;
use super::tensors::named;
use super::{AdapterError, Input, Method};
use crate::delta::DeltaBuilder;

/// `peft_type = "SSF"`, tensors `<module>.ssf_scale` and `<module>.ssf_shift`.
pub struct Ssf;

impl Method for Ssf {
    fn name(&self) -> &'static str {
        "SSF"
    }

    fn reads(&self, peft_type: &str, _: &Input<'_>) -> bool {
        peft_type == "SSF"
    }

    fn lower(&self, input: &Input<'_>, delta: &mut DeltaBuilder) -> Result<(), AdapterError> {
        if input.config.get("target_modules").is_none() {
            let text = "adapter_config.json: 'target_modules' is missing; SSF has no default";
            return Err(AdapterError::Invalid(text.into()));
        }
        let sites = input.base.sites();
        for id in targets(&input.config, sites, &[])? {
            let (name, _, width) = named(sites, id);
            let take = |suffix: &str, part: &str| {
                input.tensors.take(&format!("{name}.{suffix}"), &[width], name, part)
            };
            let (scale, shift) = (take("ssf_scale", "scale γ")?, take("ssf_shift", "shift β")?);
            let change = delta.site(id);
            change.scale = Some(scale);
            change.shift = Some(shift);
        }
        Ok(())
    }
}
