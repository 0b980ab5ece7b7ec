//! The prefix cache: which block holds the KV of which text, computed by rows that carried what.
//!
//! A key is a chain: each block's covers its own tokens and what its own rows carried, and the
//! block before it. So positions where an adapter is not active yet share the base's blocks. An
//! adapter's digest is its only identity: one replaced under the same name never meets the KV of
//! the old one.

use std::collections::BTreeMap;

use crate::ids::{BlockId, Digest, TokenId};

/// Names the content of one full block: everything its KV depends on.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Key([u8; 32]);

/// What stands before a block.
#[derive(Clone, Copy)]
pub(super) enum Before<'a> {
    /// Nothing but a salt, if the sequence has one.
    Nothing {
        salt: Option<Digest>,
    },
    Block(&'a Key),
}

impl Key {
    /// The key of the block that holds `tokens`, whose rows carried `recipe`
    /// ([`Recipe::block_key`](crate::recipe::Recipe::block_key)), and that follows `before`.
    pub(super) fn new(before: Before<'_>, recipe: Option<Digest>, tokens: &[TokenId]) -> Self {
        let mut content = Vec::with_capacity(128 + size_of_val(tokens));
        // Each field carries its length, so that no two tuples of fields have the same bytes; an
        // absent one has length 0, which no digest has.
        let mut field = |bytes: &[u8]| {
            content.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            content.extend_from_slice(bytes);
        };
        field(b"tessera kv block v2");
        match before {
            Before::Block(key) => field(&key.0),
            Before::Nothing { salt } => {
                field(&[]);
                field(salt.as_ref().map_or(&[], |salt| &salt.0));
            }
        }
        field(recipe.as_ref().map_or(&[], |digest| &digest.0));
        field(&tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<_>>());
        Self(blake3::hash(&content).into())
    }
}

/// Keys of computed blocks, and the order in which unreferenced ones are given up.
#[derive(Debug)]
pub(super) struct PrefixCache {
    blocks: BTreeMap<Key, BlockId>,
    /// By block: the key it is cached under.
    keys: Vec<Option<Key>>,
    /// Cached blocks that no sequence references, by the moment that they became so.
    idle: BTreeMap<u64, BlockId>,
    /// By block: its key in `idle`; meaningless for a block that is not there.
    idle_since: Vec<u64>,
    /// Counts calls of `rest`: the only notion of time here.
    rests: u64,
}

impl PrefixCache {
    /// An empty cache over `blocks` blocks.
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            blocks: BTreeMap::new(),
            keys: vec![None; blocks],
            idle: BTreeMap::new(),
            idle_since: vec![0; blocks],
            rests: 0,
        }
    }

    /// The block that holds `key`'s content.
    pub(super) fn get(&self, key: &Key) -> Option<BlockId> {
        self.blocks.get(key).copied()
    }

    /// Records that `block` holds `key`'s content. The first block to hold a content keeps the
    /// key: a second one stays private to its sequence.
    pub(super) fn insert(&mut self, key: Key, block: BlockId) {
        if self.blocks.contains_key(&key) || self.holds(block) {
            return;
        }
        self.blocks.insert(key, block);
        self.keys[block.0 as usize] = Some(key);
    }

    /// Whether `block` is cached, so that it must not be written.
    pub(super) fn holds(&self, block: BlockId) -> bool {
        self.keys[block.0 as usize].is_some()
    }

    /// A cached block lost its last reference: it may be evicted from now on.
    pub(super) fn rest(&mut self, block: BlockId) {
        self.rests += 1;
        self.idle_since[block.0 as usize] = self.rests;
        self.idle.insert(self.rests, block);
    }

    /// A cached block got its first reference: it may not be evicted.
    pub(super) fn wake(&mut self, block: BlockId) {
        self.idle.remove(&self.idle_since[block.0 as usize]);
    }

    /// Forgets the block that has been unreferenced longest and returns it.
    pub(super) fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.idle.pop_first()?;
        if let Some(key) = self.keys[block.0 as usize].take() {
            self.blocks.remove(&key);
        }
        Some(block)
    }

    /// Cached blocks without a reference.
    pub(super) fn idle_len(&self) -> usize {
        self.idle.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Before<'_> = Before::Nothing { salt: None };

    #[test]
    fn a_key_tells_recipe_parent_salt_and_tokens_apart() {
        let [a, b] = [Digest([0; 32]), Digest([1; 32])];
        let root = Key::new(ROOT, None, &[1, 2]);
        let keys = [
            root,
            Key::new(ROOT, Some(a), &[1, 2]),
            Key::new(ROOT, Some(b), &[1, 2]),
            Key::new(ROOT, None, &[2, 1]),
            Key::new(ROOT, None, &[1]),
            Key::new(ROOT, None, &[1, 2, 0]),
            Key::new(Before::Block(&root), None, &[1, 2]),
            Key::new(Before::Block(&root), Some(a), &[1, 2]),
            // The bytes are the same each time: only the field tells them apart.
            Key::new(Before::Block(&Key(a.0)), None, &[1, 2]),
            Key::new(Before::Nothing { salt: Some(a) }, None, &[1, 2]),
            // The tokens' bytes are the recipe's.
            Key::new(ROOT, None, &[0; 8]),
        ];
        for (i, x) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|y| x != y), "key {i}");
        }
        assert_eq!(root, Key::new(ROOT, None, &[1, 2]));
    }

    #[test]
    fn the_block_unused_longest_is_evicted_first_and_a_used_one_never() {
        let mut cache = PrefixCache::new(3);
        let keys: Vec<_> = (0..3).map(|t| Key::new(ROOT, None, &[t])).collect();
        for (&key, block) in keys.iter().zip([BlockId(2), BlockId(0), BlockId(1)]) {
            cache.insert(key, block);
            cache.rest(block);
        }
        cache.wake(BlockId(2));
        cache.rest(BlockId(2));
        cache.wake(BlockId(1));
        assert_eq!(cache.evict(), Some(BlockId(0)));
        assert_eq!(cache.evict(), Some(BlockId(2)));
        assert_eq!(cache.evict(), None);
        assert_eq!([0, 1, 2].map(|i| cache.get(&keys[i])), [None, None, Some(BlockId(1))]);
    }
}
