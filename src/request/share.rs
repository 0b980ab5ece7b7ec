//! Whose a request is, and what its tenant gets beside others.

use crate::ids::Digest;

/// Whose a request is: plain data that goes with it from its key to the scheduler. The default is
/// everybody's who has no key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Whose it is. Requests of one tenant share what it gets.
    pub tenant: Digest,
    /// What it gets against other tenants of its priority.
    pub weight: ShareWeight,
    /// Tenants of a lower number go before all others.
    pub priority: i64,
}

impl Default for Share {
    fn default() -> Self {
        Self { tenant: Digest([0; 32]), weight: ShareWeight::ONE, priority: 0 }
    }
}

/// Tokens for a tenant, against one for each of weight 1: within [`SHARE_WEIGHT_MIN`] and
/// [`SHARE_WEIGHT_MAX`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShareWeight(f64);

/// The lowest weight. Less is refused, with the range.
pub const SHARE_WEIGHT_MIN: f64 = 0.001;
/// The highest weight. More is refused, with the range.
pub const SHARE_WEIGHT_MAX: f64 = 1000.0;

impl ShareWeight {
    /// What a tenant has that nothing is said of.
    pub const ONE: Self = Self(1.0);

    /// `None` beyond the range.
    pub fn new(weight: f64) -> Option<Self> {
        (SHARE_WEIGHT_MIN..=SHARE_WEIGHT_MAX).contains(&weight).then_some(Self(weight))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }

    /// What a token costs a tenant: the inverse, so large that it is exact to a millionth.
    pub fn cost(self) -> u64 {
        const OF_ONE: f64 = (1u64 << 32) as f64;
        (OF_ONE / self.0).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_costs_the_inverse_of_the_weight_over_the_whole_range() {
        for weight in [SHARE_WEIGHT_MIN, 0.3, 1.0, 3.0, 999.9, SHARE_WEIGHT_MAX] {
            let cost = ShareWeight::new(weight).unwrap().cost() as f64;
            let exact = ShareWeight::ONE.cost() as f64 / weight;
            assert!((cost / exact - 1.0).abs() < 1e-6, "{weight}: {cost}");
        }
        for weight in [0.0, -1.0, 0.000_999, 1000.1, f64::NAN, f64::INFINITY] {
            assert_eq!(ShareWeight::new(weight), None);
        }
    }
}
