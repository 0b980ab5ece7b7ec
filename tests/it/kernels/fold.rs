//! Merged mode's weights against the canonical form: a column of W' is what one-hot x gives.

use super::device::{Buffer, Kernels, all_kernels};
use super::rows::column_tiles;
use super::step::{assert_close, fresh, values};
use super::world::{Spec, World};
use crate::Rng;
use tessera::backend::cuda::args::{Change, Fold, RANK_TILE_BYTES};

#[derive(Clone, Copy)]
struct Folded {
    /// Extents of the weight.
    rows: usize,
    cols: usize,
    rank: usize,
    /// A table of tokens, and not a linear's `[out, in]`.
    embedding: bool,
    in_place: bool,
}

/// Slots with both scales of a low-rank pair, a weight of its own, and a scale alone.
fn specs(kernels: &Kernels, shape: Folded) -> Vec<Vec<Option<Spec>>> {
    let Folded { rows, cols, rank, embedding, .. } = shape;
    let (input, out) = if embedding { (rows, cols) } else { (cols, rows) };
    let shards =
        |width: usize, wanted: usize| if width.is_multiple_of(wanted) { wanted } else { 1 };
    let spec = |slot: usize| Spec {
        rank: if slot == 2 { 0 } else { rank },
        input,
        out,
        down_shards: if slot == 2 { 0 } else { shards(input, 1 + slot) },
        up_shards: if slot == 2 { 0 } else { shards(out, 2 - slot) },
        middle: slot == 0,
        end: slot != 1 || rank % 2 == 0,
        scale: slot != 0,
        shift: false,
        weight: (slot == 1).then_some((kernels.p, rows * cols)),
    };
    (0..3).map(|slot| vec![Some(spec(slot))]).collect()
}

fn check_fold(kernels: &Kernels, rng: &mut Rng, shape: Folded) {
    let Folded { rows, cols, embedding, in_place, .. } = shape;
    let world = World::new(rng, kernels.p, &specs(kernels, shape), 0);
    for slot in 0..3 {
        let base = values(rng, kernels.x, rows * cols);
        let from = Buffer::of(kernels.x, &base);
        let merged = Buffer::poison(kernels.x, rows * cols);
        let to = if in_place { &from } else { &merged };
        let args = Fold {
            from: from.at(),
            to: to.at(),
            change: world.changes.at() + (slot * size_of::<Change>()) as u64,
            cols: cols as u32,
            embedding: embedding.into(),
        };
        let grid = [rows as u32, column_tiles(cols) as u32, 1];
        kernels.launch("fold", grid, 128, RANK_TILE_BYTES, &args);
        let actual = to.floats();
        let site = world.site(slot, 0).unwrap();
        for at in 0..rows * cols {
            let (row, column) = (at / cols, at % cols);
            let (input, output) = if embedding { (row, column) } else { (column, row) };
            let of = |r| world.adapters[slot].factor(site, false, r, input);
            let h: Vec<f64> = (0..world.rank(slot, 0)).map(of).collect();
            let y = f64::from(site.weight.as_ref().unwrap_or(&base)[at]);
            let expected = world.output(&[(slot, 1.0)], 0, output, y, &[h]);
            let what = format!("slot {slot} row {row} column {column}, embedding: {embedding}");
            assert_close(actual[at], expected, kernels.x, 1.0, &what);
        }
        if !in_place {
            assert_eq!(from.floats(), base, "the base is left as it was");
        }
    }
}

#[test]
fn a_folded_weight_is_what_its_adapter_makes_of_the_bases() {
    let rng = &mut fresh();
    for kernels in all_kernels("fold.cu") {
        for (rows, cols, rank) in [(1, 1, 1), (12, 36, 5), (7, 77, 66), (3, 1030, 2)] {
            for embedding in [false, true] {
                for in_place in [false, true] {
                    let shape = Folded { rows, cols, rank, embedding, in_place };
                    check_fold(&kernels, rng, shape);
                }
            }
        }
    }
}
