//! How often a number was how large.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts by upper bound. Whoever counts takes no lock, and whoever reads stops nobody.
#[derive(Debug)]
pub struct Histogram {
    bounds: Box<[f64]>,
    /// Of each bound, those up to it and above the one before; then those above all.
    counts: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    /// `bounds` ascend.
    pub fn new(bounds: &[f64]) -> Self {
        debug_assert!(bounds.is_sorted(), "This is a bug: bounds must ascend.");
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds: bounds.into(), counts, sum: AtomicU64::new(0f64.to_bits()) }
    }

    /// Counts a number.
    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let add = |sum| Some((f64::from_bits(sum) + value).to_bits());
        // It always adds: the closure never gives up.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// The sum of all numbers.
    pub fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }

    /// Each bound with how many numbers are between it and the one before. The last is infinite.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect()
    }

    /// How many numbers there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_up_to_its_bound_and_none_is_lost_between_threads() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        [0.0, 1.0, 1.5, 2.0, 2.1].into_iter().for_each(|value| histogram.observe(value));
        assert_eq!(histogram.buckets(), [(1.0, 2), (2.0, 2), (f64::INFINITY, 1)]);
        assert!((histogram.sum() - 6.6).abs() < 1e-9, "{}", histogram.sum());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| histogram.observe(2.0)));
            }
        });
        assert_eq!(histogram.count(), 4005);
        assert!((histogram.sum() - 8006.6).abs() < 1e-6, "{}", histogram.sum());
    }
}
