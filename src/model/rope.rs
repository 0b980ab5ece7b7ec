//! Rotary positions (arXiv 2104.09864), and how they reach beyond the trained context.

use crate::backend::RopeTable;

/// One way of rotating heads; layers may differ in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Their stretching.
    pub scaling: RopeScaling,
    /// Columns of a head that are rotated, the first ones; even.
    pub dims: usize,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// Long wavelengths divided, short ones kept, the ones between blended (transformers
    /// `modeling_rope_utils.py`, `_compute_llama3_parameters`).
    Llama3 {
        /// Divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low: f64,
        /// Wavelengths below `original / high` are short.
        high: f64,
        /// Context of the original training, in tokens.
        original: f64,
    },
}

impl Rope {
    /// One frequency a pair of columns: `theta^(-2i / dims)`, stretched.
    pub fn frequencies(&self) -> Vec<f64> {
        let plain =
            (0..self.dims / 2).map(|i| self.theta.powf(-((2 * i) as f64) / self.dims as f64));
        let stretch = |f: f64| match self.scaling {
            RopeScaling::Default => f,
            RopeScaling::Linear { factor } => f / factor,
            RopeScaling::Llama3 { factor, low, high, original } => {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                if wavelength > original / low {
                    f / factor
                } else if wavelength < original / high {
                    f
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            }
        };
        plain.map(stretch).collect()
    }

    /// Cosines and sines of `positions` positions. Angles are rounded to f32 before the cosine, as
    /// transformers does.
    pub fn table(&self, positions: usize) -> RopeTable {
        let frequencies: Vec<f32> = self.frequencies().iter().map(|&f| f as f32).collect();
        let half = frequencies.len();
        let angles = |p: usize| frequencies.iter().map(move |f| f64::from(p as f32 * f));
        let cos = (0..positions).flat_map(|p| angles(p).map(|a| a.cos() as f32)).collect();
        let sin = (0..positions).flat_map(|p| angles(p).map(|a| a.sin() as f32)).collect();
        RopeTable { half, cos, sin }
    }
}
