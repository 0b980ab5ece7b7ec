//! The prefix cache: which block holds the KV of which (adapter, text).
//!
//! A key is a chain: it covers all tokens up to the end of its block, and the adapter they ran
//! under. The adapter's digest is its only identity, so that an adapter replaced under the same
//! name can never meet the KV of the old one.

use std::collections::BTreeMap;

use crate::ids::{BlockId, Digest, TokenId};

/// Names the content of one full block: everything its KV depends on.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// The key of the block that holds `tokens` and follows `parent` (`None`: the first block).
    pub(super) fn new(parent: Option<&Key>, adapter: Option<Digest>, tokens: &[TokenId]) -> Self {
        let mut content = Vec::with_capacity(128 + size_of_val(tokens));
        // Each field carries its length, so that no two tuples of fields have the same bytes; an
        // absent one has length 0, which no digest has.
        let mut field = |bytes: &[u8]| {
            content.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            content.extend_from_slice(bytes);
        };
        field(b"tessera kv block v1");
        field(parent.map_or(&[], |key| &key.0));
        field(adapter.as_ref().map_or(&[], |digest| &digest.0));
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

    #[test]
    fn a_key_tells_adapter_parent_and_tokens_apart() {
        let [a, b] = [Digest([0; 32]), Digest([1; 32])];
        let root = Key::new(None, None, &[1, 2]);
        let keys = [
            root,
            Key::new(None, Some(a), &[1, 2]),
            Key::new(None, Some(b), &[1, 2]),
            Key::new(None, None, &[2, 1]),
            Key::new(None, None, &[1]),
            Key::new(None, None, &[1, 2, 0]),
            Key::new(Some(&root), None, &[1, 2]),
            Key::new(Some(&root), Some(a), &[1, 2]),
            // The parent's and the adapter's bytes are equal: only the field tells them apart.
            Key::new(Some(&Key(a.0)), None, &[1, 2]),
            // The tokens' bytes are the adapter's.
            Key::new(None, None, &[0; 8]),
        ];
        for (i, x) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|y| x != y), "key {i}");
        }
        assert_eq!(root, Key::new(None, None, &[1, 2]));
    }

    #[test]
    fn the_block_unused_longest_is_evicted_first_and_a_used_one_never() {
        let mut cache = PrefixCache::new(3);
        let keys: Vec<_> = (0..3).map(|t| Key::new(None, None, &[t])).collect();
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
