//! DoRA (arXiv 2402.09353; peft `tuners/lora/dora.py`): `y = (m / ‖W + s·B A‖) ⊙ (W x + s·B A x) + b`,
//! the norm taken over each output's row of the merged weight. The base's bias is not scaled.

use super::lora::{Pair, check_init, pairs, transpose};
use super::tensors::named;
use super::{AdapterError, Input, Method};
use crate::delta::DeltaBuilder;
use crate::site::SiteKind;

/// `peft_type = "LORA"` with `use_dora`.
pub struct Dora;

impl Method for Dora {
    fn name(&self) -> &'static str {
        "DORA"
    }

    fn reads(&self, peft_type: &str, input: &Input<'_>) -> bool {
        let switched_on = matches!(input.config.flag("use_dora"), Ok(true) | Err(_));
        peft_type == "LORA" && switched_on
    }

    fn lower(&self, input: &Input<'_>, delta: &mut DeltaBuilder) -> Result<(), AdapterError> {
        check_init(input)?;
        input.config.flag("use_dora")?;
        if input.config.flag("lora_bias")? {
            let text = "adapter_config.json sets both 'use_dora' and 'lora_bias'; peft has no \
                        meaning for the two together";
            return Err(AdapterError::Invalid(text.into()));
        }
        for pair in pairs(input)? {
            let scale = scale(input, &pair)?;
            let bias = input.base.bias(pair.site);
            let site = pair.site;
            pair.push(delta);
            let change = delta.site(site);
            // The canonical scale multiplies the bias as well: take that back.
            change.shift = bias.map(|b| b.iter().zip(&scale).map(|(b, s)| b - s * b).collect());
            change.scale = Some(scale);
        }
        Ok(())
    }
}

/// `m / ‖W + s·B A‖`, row by row, accumulated in f64.
fn scale(input: &Input<'_>, pair: &Pair) -> Result<Vec<f32>, AdapterError> {
    let sites = input.base.sites();
    let (name, width_in, width_out) = named(sites, pair.site);
    let plain = format!("{name}.lora_magnitude_vector");
    let with_suffix = format!("{plain}.weight");
    let key = if input.tensors.has(&with_suffix) { with_suffix } else { plain };
    let magnitude = input.tensors.take(&key, &[width_out], name, "magnitude m")?;
    let weight = input.base.weight(pair.site);
    // An embedding's table is [vocabulary, hidden]; its norms run over the vocabulary.
    let weight = match sites.get(pair.site).kind {
        SiteKind::Embedding => transpose(&weight, width_out),
        SiteKind::Linear | SiteKind::Norm => weight,
    };
    let mut row = vec![0f64; width_in];
    let mut scale = Vec::with_capacity(width_out);
    for (o, m) in magnitude.iter().enumerate() {
        let base = &weight[o * width_in..][..width_in];
        row.iter_mut().zip(base).for_each(|(row, &w)| *row = f64::from(w));
        for r in 0..pair.rank {
            let b = f64::from(pair.bt[r * width_out + o]);
            let a = &pair.a[r * width_in..][..width_in];
            row.iter_mut().zip(a).for_each(|(row, &a)| *row += b * f64::from(a));
        }
        let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt();
        if norm == 0.0 {
            return Err(AdapterError::Invalid(format!(
                "tensor '{key}': row {o} of the merged weight of {name} is zero, so its \
                 direction is undefined"
            )));
        }
        scale.push((f64::from(*m) / norm) as f32);
    }
    Ok(scale)
}
