//! What a row carries: a list of adapters with weights, the same type from the request to the row.
//!
//! A request holds a recipe of adapters, the scheduler one of digests (its key in the prefix
//! cache), a row one of slots. Without parts it is the bare base; one part of weight 1 is the
//! adapter as its author meant it.

use crate::ids::Digest;

/// One adapter of a recipe.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Part<A> {
    /// The adapter, by whatever names it in this layer.
    pub adapter: A,
    /// How much of what it changes is added to the base; finite, not 0.
    pub weight: Weight,
}

/// A finite number other than 0, equal and hashed by its bits.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Weight(u32);

impl Weight {
    /// The adapter as it is.
    pub const ONE: Weight = Weight(0x3f80_0000);

    /// `None` for 0 and for what is not finite: the one would do nothing, the other no good.
    pub fn new(value: f32) -> Option<Self> {
        (value.is_finite() && value != 0.0).then(|| Self(value.to_bits()))
    }

    /// The number.
    pub fn get(self) -> f32 {
        f32::from_bits(self.0)
    }
}

/// Adapters with weights, and the position from which a sequence's rows carry them.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Recipe<A> {
    parts: Vec<Part<A>>,
    /// Rows before this position run the bare base.
    from: u32,
}

impl<A> Default for Recipe<A> {
    fn default() -> Self {
        Self { parts: Vec::new(), from: 0 }
    }
}

impl<A> Recipe<A> {
    /// The bare base.
    pub fn base() -> Self {
        Self::default()
    }

    /// One adapter as it is.
    pub fn one(adapter: A) -> Self {
        Self { parts: vec![Part { adapter, weight: Weight::ONE }], from: 0 }
    }

    /// These parts in this order, which is that of their sum.
    pub fn new(parts: Vec<Part<A>>) -> Self {
        Self { parts, from: 0 }
    }

    /// The same, carried by rows from `position` on.
    pub fn active_from(mut self, position: u32) -> Self {
        self.from = position;
        self
    }

    /// The adapters, in the order of their sum.
    pub fn parts(&self) -> &[Part<A>] {
        &self.parts
    }

    /// The position from which rows carry them.
    pub fn from(&self) -> u32 {
        self.from
    }

    /// Whether rows run the bare base.
    pub fn is_base(&self) -> bool {
        self.parts.is_empty()
    }

    /// The same recipe by other names of its adapters.
    pub fn map<B>(&self, mut name: impl FnMut(&A) -> B) -> Recipe<B> {
        let part = |part: &Part<A>| Part { adapter: name(&part.adapter), weight: part.weight };
        Recipe { parts: self.parts.iter().map(part).collect(), from: self.from }
    }
}

impl Recipe<Digest> {
    /// What the KV of a block depends on beside its tokens and the blocks before it, for the
    /// positions from `start` to before `end`: `None` where all its rows run the bare base, so that
    /// the base and every adapter that is not active yet share the block.
    pub fn block_key(&self, start: u32, end: u32) -> Option<Digest> {
        if self.is_base() || end <= self.from {
            return None;
        }
        let mut hash = blake3::Hasher::new();
        hash.update(b"tessera recipe 1");
        hash.update(&self.from.saturating_sub(start).to_le_bytes());
        for Part { adapter, weight } in &self.parts {
            hash.update(&adapter.0).update(&weight.0.to_le_bytes());
        }
        Some(Digest(hash.finalize().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    #[test]
    fn a_blocks_key_tells_adapters_weights_order_and_the_first_active_position_apart() {
        let part = |n: u8, w: f32| Part { adapter: digest(n), weight: Weight::new(w).unwrap() };
        let one = Recipe::one(digest(1));
        let keys = [
            Recipe::base().block_key(0, 16),
            one.block_key(0, 16),
            Recipe::one(digest(2)).block_key(0, 16),
            Recipe::new(vec![part(1, 0.5)]).block_key(0, 16),
            Recipe::new(vec![part(1, 0.5), part(2, 0.5)]).block_key(0, 16),
            Recipe::new(vec![part(2, 0.5), part(1, 0.5)]).block_key(0, 16),
            one.clone().active_from(3).block_key(0, 16),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|other| other != key), "key {i}");
        }
        let late = one.clone().active_from(16);
        assert_eq!(late.block_key(0, 16), None, "not active yet: the base's block");
        assert_eq!(late.block_key(16, 32), one.block_key(16, 32), "active throughout");
        assert_eq!(
            one.block_key(0, 16),
            one.block_key(16, 32),
            "the position is the tokens' place"
        );
    }

    #[test]
    fn a_weight_of_nothing_or_of_no_number_is_none() {
        for bad in [0.0, -0.0, f32::NAN, f32::INFINITY] {
            assert_eq!(Weight::new(bad), None);
        }
        assert_eq!((Weight::new(1.0), Weight::ONE.get()), (Some(Weight::ONE), 1.0));
    }
}
