//! The card's roofline: memory bandwidth and FLOP/s at best, which kernels and steps are held
//! against.

use std::time::Instant;

use serde::Serialize;

use super::Cuda;
use super::launch::{Memory, Multiply};
use crate::backend::Fault;
use crate::dtype::{Dtype, Values};

const REPEATS: u32 = 10;
/// More than any card's cache holds.
const COPY_BYTES_MAX: u64 = 1 << 30;
/// A square product of this side keeps any card busy.
const SIDE_MAX: usize = 8192;

/// The best of a few tries.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// Of a large copy within the card, bytes read and written.
    pub copy_bytes_per_second: f64,
    /// Of a large product of random numbers in the model's width.
    pub flops_per_second: f64,
}

impl Cuda {
    /// Measures them; before the card's memory is taken.
    ///
    /// # Errors
    /// Too little memory, or the card fails.
    pub fn ceilings(&self) -> Result<Ceilings, Fault> {
        self.settled()?;
        self.card.bind()?;
        let bytes = (self.weight_bytes() / 8).clamp(1 << 20, COPY_BYTES_MAX);
        let [from, to] = [self.scratch(bytes)?, self.scratch(bytes)?];
        let [from, to] = [from.region(0, bytes), to.region(0, bytes)];
        let copy = self.best(|| self.stream.copy(&from, &to))?;

        // Of zeros a card multiplies more: it stays cooler.
        let side = SIDE_MAX.min(2 * self.width_max());
        let bytes = (side * side * self.dtype.bytes()) as u64;
        let [x, weight, y] = [self.scratch(bytes)?, self.scratch(bytes)?, self.scratch(bytes)?];
        for memory in [&x, &weight] {
            let values = random(side * side, self.dtype);
            self.stream.upload_now(values.as_bytes(), &memory.region(0, bytes))?;
        }
        let call = Multiply {
            x: x.address(),
            weight: weight.address(),
            y: y.address(),
            rows: side,
            inputs: side,
            outputs: side,
            y_f32: false,
        };
        let product = self.best(|| self.products.multiply(&self.stream, &call, true))?;
        Ok(Ceilings {
            copy_bytes_per_second: 2.0 * from.bytes() as f64 / copy,
            flops_per_second: 2.0 * (side as f64).powi(3) / product,
        })
    }

    /// Seconds of the best of a few calls, after a warm-up.
    fn best(&self, call: impl Fn() -> Result<(), Fault>) -> Result<f64, Fault> {
        let mut best = f64::INFINITY;
        for _ in 0..=REPEATS {
            self.stream.synchronize()?;
            let start = Instant::now();
            call()?;
            self.stream.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    fn scratch(&self, bytes: u64) -> Result<Memory, Fault> {
        let memory = self.card.allocate(bytes, "a measurement", "a larger card is needed");
        memory.map_err(|e| Fault { message: e.to_string(), lost: false })
    }
}

/// Between −1 and 1.
fn random(len: usize, dtype: Dtype) -> Values {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    Values::from_f32((0..len).map(|_| next()).collect(), dtype)
}
