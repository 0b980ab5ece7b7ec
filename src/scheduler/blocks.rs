//! KV blocks: who references them, which are free, which are kept for their content.

use super::prefix::{Key, PrefixCache};
use crate::ids::BlockId;

/// Every block is in one of three states: referenced by sequences, cached without a reference
/// (evicted when nothing is free), or free.
#[derive(Debug)]
pub(super) struct Blocks {
    references: Vec<u32>,
    free: Vec<BlockId>,
    cache: PrefixCache,
}

impl Blocks {
    /// `blocks` free blocks.
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            references: vec![0; blocks],
            free: (0..blocks as u32).rev().map(BlockId).collect(),
            cache: PrefixCache::new(blocks),
        }
    }

    /// A block of no meaningful content with one reference; `None` when all are referenced.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop().or_else(|| self.cache.evict())?;
        self.references[block.0 as usize] = 1;
        Some(block)
    }

    /// The block that holds `key`'s content, with one reference more.
    pub(super) fn share(&mut self, key: &Key) -> Option<BlockId> {
        let block = self.cache.get(key)?;
        if self.references[block.0 as usize] == 0 {
            self.cache.wake(block);
        }
        self.references[block.0 as usize] += 1;
        Some(block)
    }

    /// Takes one reference away. With its last one a block becomes free, or evictable if cached.
    pub(super) fn release(&mut self, block: BlockId) {
        let references = &mut self.references[block.0 as usize];
        assert!(*references > 0, "This is a bug: {block:?} released twice.");
        *references -= 1;
        match (*references, self.cache.holds(block)) {
            (0, true) => self.cache.rest(block),
            (0, false) => self.free.push(block),
            _ => (),
        }
    }

    /// Records that the KV of `key`'s content was computed into `block`.
    pub(super) fn cache(&mut self, key: Key, block: BlockId) {
        self.cache.insert(key, block);
    }

    /// Whether `key`'s content is cached, and whether a sequence references it.
    pub(super) fn lookup(&self, key: &Key) -> Option<bool> {
        self.cache.get(key).map(|block| self.references[block.0 as usize] > 0)
    }

    /// Blocks that [`Blocks::allocate`] can still give.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.cache.idle_len()
    }

    /// Blocks that sequences reference.
    pub(super) fn used(&self) -> usize {
        self.references.len() - self.available()
    }

    /// Blocks kept for their content only.
    pub(super) fn cached(&self) -> usize {
        self.cache.idle_len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::prefix::Before;

    #[test]
    fn a_shared_block_is_free_for_writing_only_after_its_last_reader_and_its_eviction() {
        let mut blocks = Blocks::new(2);
        let key = Key::new(Before::Nothing { salt: None }, None, &[1]);
        let first = blocks.allocate().unwrap();
        blocks.cache(key, first);
        assert_eq!(blocks.share(&key), Some(first));
        blocks.release(first);
        assert_eq!((blocks.used(), blocks.cached(), blocks.available()), (1, 0, 1));
        blocks.release(first);
        assert_eq!((blocks.used(), blocks.cached(), blocks.available()), (0, 1, 2));

        // The free block goes first, the cached one is evicted after it.
        assert_ne!(blocks.allocate(), Some(first));
        assert_eq!(blocks.lookup(&key), Some(false));
        assert_eq!(blocks.allocate(), Some(first));
        assert_eq!(blocks.lookup(&key), None);
        assert_eq!(blocks.allocate(), None);
    }

    #[test]
    fn a_second_block_of_the_same_content_stays_private() {
        let mut blocks = Blocks::new(2);
        let key = Key::new(Before::Nothing { salt: None }, None, &[1]);
        let [first, second] = [(); 2].map(|()| blocks.allocate().unwrap());
        blocks.cache(key, first);
        blocks.cache(key, second);
        blocks.release(second);
        assert_eq!((blocks.used(), blocks.cached(), blocks.available()), (1, 0, 1));
        assert_eq!(blocks.share(&key), Some(first));
    }
}
