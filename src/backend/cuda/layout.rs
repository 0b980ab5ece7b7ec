//! What an adapter's memory on the card holds, and where.

use super::arena::ALIGNMENT_BYTES;
use super::args::{Address, Change};
use crate::delta::{Delta, LowRank, SiteDelta};
use crate::dtype::{Dtype, Values};
use crate::ids::SiteId;
use crate::site::SiteKind;

/// What a stretch of an adapter's memory is filled with.
pub(super) enum Content<'a> {
    Values(&'a Values, Dtype),
    Words(&'a [u32]),
    Floats(&'a [f32]),
}

impl Content<'_> {
    /// What to copy.
    pub(super) fn with_bytes<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Content::Words(words) => f(bytemuck::cast_slice(words)),
            Content::Floats(floats) => f(bytemuck::cast_slice(floats)),
            Content::Values(values, dtype) if values.dtype() == *dtype => f(values.as_bytes()),
            Content::Values(values, dtype) => f(Values::clone(values).cast(*dtype).as_bytes()),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let bytes = match self {
            Content::Values(values, dtype) => values.len() * dtype.bytes(),
            Content::Words(words) => size_of_val(*words),
            Content::Floats(floats) => size_of_val(*floats),
        };
        bytes as u64
    }
}

/// Where an adapter's parts stand within its memory.
pub(super) struct Layout<'a> {
    pub(super) contents: Vec<(u64, Content<'a>)>,
    /// By site; addresses count from the start of the memory, plus 1: 0 stays null. Those of pools
    /// are numbers of pools, plus 1.
    changes: Vec<(SiteId, Change)>,
    /// Of all but the pools.
    pub(super) bytes: u64,
    /// Of each pool.
    pub(super) pool_bytes: Vec<u64>,
}

impl<'a> Layout<'a> {
    pub(super) fn new(delta: &'a Delta, kinds: &[SiteKind], dtype: Dtype) -> Self {
        let Delta { pools, sites } = delta;
        let pool_bytes =
            pools.iter().map(|pool| Content::Values(&pool.values, dtype).bytes()).collect();
        let mut layout = Self { contents: Vec::new(), changes: Vec::new(), bytes: 0, pool_bytes };
        for (site, change) in sites {
            let lowered = layout.change(change, kinds[site.0 as usize], dtype);
            layout.changes.push((*site, lowered));
        }
        layout
    }

    /// One site's, its parts put into the memory.
    fn change(&mut self, change: &'a SiteDelta, kind: SiteKind, dtype: Dtype) -> Change {
        let SiteDelta { low_rank, scale, shift, weight } = change;
        // Kernels read a norm's weight in f32, as they read the base's.
        let weight_dtype = if kind == SiteKind::Norm { Dtype::F32 } else { dtype };
        let mut lowered = Change {
            scale: self.floats(scale),
            shift: self.floats(shift),
            weight: weight.as_ref().map_or(0, |w| self.put(Content::Values(w, weight_dtype))),
            ..Change::default()
        };
        if let Some(LowRank { rank, down, middle, up, end }) = low_rank {
            lowered = Change {
                down_pool: down.pool.index() as u64 + 1,
                up_pool: up.pool.index() as u64 + 1,
                down: self.put(Content::Words(&down.offsets)),
                up: self.put(Content::Words(&up.offsets)),
                middle: self.floats(middle),
                end: self.floats(end),
                rank: *rank as u32,
                down_shard: down.shard_len as u32,
                down_shards: down.shards as u32,
                up_shard: up.shard_len as u32,
                up_shards: up.shards as u32,
                ..lowered
            };
        }
        lowered
    }

    fn floats(&mut self, floats: &'a Option<Vec<f32>>) -> u64 {
        floats.as_ref().map_or(0, |floats| self.put(Content::Floats(floats)))
    }

    fn put(&mut self, content: Content<'a>) -> u64 {
        let at = self.bytes;
        self.bytes = (at + content.bytes()).next_multiple_of(ALIGNMENT_BYTES);
        self.contents.push((at, content));
        at + 1
    }

    /// One slot's row of the table of changes, for an adapter whose memory starts at `base` and
    /// whose pools are at `pools`.
    pub(super) fn row(&self, base: Address, pools: &[Address], sites: usize) -> Vec<Change> {
        let mut row = vec![Change::default(); sites];
        let absolute = |at: u64| if at == 0 { 0 } else { base + at - 1 };
        let pool = |number: u64| if number == 0 { 0 } else { pools[number as usize - 1] };
        for (site, change) in &self.changes {
            row[site.0 as usize] = Change {
                down_pool: pool(change.down_pool),
                up_pool: pool(change.up_pool),
                down: absolute(change.down),
                up: absolute(change.up),
                middle: absolute(change.middle),
                end: absolute(change.end),
                scale: absolute(change.scale),
                shift: absolute(change.shift),
                weight: absolute(change.weight),
                ..*change
            };
        }
        row
    }
}
