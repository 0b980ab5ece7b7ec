//! DoRA (arXiv 2402.09353; peft `tuners/lora/dora.py`):
//! `y = (m / ‖W + s·B A‖) ⊙ (W x + s·B A x) + b`, the norm taken over each output's
//! row of the merged weight. The base's bias is not scaled.

use rayon::prelude::*;

use super::error::AdapterError;
use super::lora::{Pair, check_init, pairs, transpose};
use super::lowering::Lowering;
use super::method::{Input, Method};
use super::tensors::{Part, named};
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

    fn lower(&self, input: &Input<'_>, lowering: &mut Lowering<'_>) -> Result<(), AdapterError> {
        check_init(input)?;
        input.config.flag("use_dora")?;
        if input.config.flag("lora_bias")? {
            let text = "adapter_config.json sets both 'use_dora' and 'lora_bias'; peft has no \
                        meaning for the two together";
            return Err(AdapterError::Invalid(text.into()));
        }
        for pair in pairs(input)? {
            let scale = scale(input, &pair)?;
            let module = pair.module;
            pair.push(lowering)?;
            // The canonical scale multiplies the bias as well: take that back.
            if let Some(bias) = input.base.bias(module)? {
                let kept: Vec<f32> = bias.iter().zip(&scale).map(|(b, s)| b - s * b).collect();
                lowering.shift(module, &kept);
            }
            lowering.scale(module, &scale);
        }
        Ok(())
    }
}

/// `m / ‖W + s·B A‖`, row by row, summed in f64.
fn scale(input: &Input<'_>, pair: &Pair) -> Result<Vec<f32>, AdapterError> {
    let modules = input.base.modules();
    let (name, width_in, width_out) = named(modules, pair.module);
    let plain = format!("{name}.lora_magnitude_vector");
    let with_suffix = format!("{plain}.weight");
    let key = if input.tensors.has(&with_suffix) { with_suffix } else { plain };
    let magnitude = input.tensors.take(
        &key,
        &[width_out],
        name,
        Part::because("magnitude m", "'use_dora' is true"),
    )?;
    let weight = input.base.weight(pair.module)?;
    // An embedding's table is [vocabulary, hidden]; its norms run over the vocabulary.
    let weight = match modules.get(pair.module).kind {
        SiteKind::Embedding => transpose(&weight, width_out),
        SiteKind::Linear | SiteKind::Norm => weight,
    };
    // Rows are independent and a large base has millions: all cores take part.
    let norms: Vec<f64> = (0..width_out)
        .into_par_iter()
        .map_init(Vec::new, |row: &mut Vec<f32>, o| {
            row.clear();
            row.extend_from_slice(&weight[o * width_in..][..width_in]);
            for r in 0..pair.rank {
                let b = pair.bt[r * width_out + o];
                let a = &pair.a[r * width_in..][..width_in];
                row.iter_mut().zip(a).for_each(|(row, a)| *row += b * a);
            }
            row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt()
        })
        .collect();
    if let Some(o) = norms.iter().position(|&norm| norm == 0.0) {
        return Err(AdapterError::Invalid(format!(
            "tensor '{key}': row {o} of the merged weight of {name} is zero, so its direction is \
             undefined"
        )));
    }
    Ok(magnitude.iter().zip(norms).map(|(m, norm)| (f64::from(*m) / norm) as f32).collect())
}
