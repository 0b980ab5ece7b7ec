//! A profile by CUDA events: how long each kernel of a step takes, in the step itself. What one
//! reads is then as cold as it is when serving, since the weights of a whole model pass between two
//! of its launches.

use std::collections::HashMap;

use super::launch::Event;
use super::{Cuda, lock};
use crate::backend::Fault;

/// The launches of one kernel.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Its name; of a product, `product INPUTS×OUTPUTS`.
    pub kernel: String,
    /// Launches.
    pub launches: usize,
    /// Of all of them, as the card's clock has it; an event before and after each adds about a
    /// microsecond.
    pub seconds: f64,
}

/// Launches with an event before and after.
pub(super) type Launches = Vec<(String, [Event; 2])>;

impl Cuda {
    /// Times every launch of `steps`, which run unrecorded; kernels in the order of their first.
    ///
    /// # Errors
    /// The card's.
    pub fn profile(&self, steps: impl FnOnce() -> Result<(), Fault>) -> Result<Vec<Timed>, Fault> {
        *lock(&self.profile) = Some(Vec::new());
        let outcome = steps();
        let launches = lock(&self.profile).take().unwrap_or_default();
        outcome?;
        let (mut timed, mut place) = (Vec::<Timed>::new(), HashMap::new());
        for (kernel, [start, end]) in launches {
            let index = *place.entry(kernel.clone()).or_insert(timed.len());
            if index == timed.len() {
                timed.push(Timed { kernel, launches: 0, seconds: 0.0 });
            }
            timed[index].launches += 1;
            timed[index].seconds += f64::from(start.milliseconds_to(&end)?) / 1e3;
        }
        Ok(timed)
    }

    pub(super) fn is_profiled(&self) -> bool {
        lock(&self.profile).is_some()
    }

    /// Calls the card, and times what it starts where that was asked for.
    pub(super) fn timed(
        &self,
        name: impl FnOnce() -> String,
        call: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut profile = lock(&self.profile);
        let Some(launches) = &mut *profile else { return call() };
        let start = self.stream.event()?;
        call()?;
        launches.push((name(), [start, self.stream.event()?]));
        Ok(())
    }
}
