//! Rows picked by an index: token embeddings, and the rows that somebody wants.

use super::device::{Buffer, Kernels, Width, all_kernels};
use super::rows::{FAR_ROW, column_tiles, far, grid};
use super::step::{Parts, Plan, assert_close, fresh, values};
use super::world::{Spec, World};
use crate::Rng;
use tessera::backend::cuda::args::{Embed, GatherRows, RANK_TILE_BYTES};

#[derive(Clone, Copy)]
struct Embedded {
    n: usize,
    hidden: usize,
    vocabulary: usize,
    /// Only tokens from here on exist in memory.
    far_token: usize,
}

/// Columns of A and B, scales of every kind, and a table of its own; nothing as large as a
/// vocabulary where tokens are far.
fn table_specs(p: Width, shape: Embedded) -> Vec<Vec<Option<Spec>>> {
    let Embedded { hidden, vocabulary, far_token, .. } = shape;
    let plain = far_token > 0;
    let spec = |slot: usize| Spec {
        rank: if plain { 0 } else { 65 + slot },
        input: vocabulary,
        out: hidden,
        down_shards: usize::from(!plain),
        up_shards: usize::from(!plain),
        middle: slot != 1,
        end: slot != 0,
        scale: slot != 0,
        shift: slot != 2,
        weight: (!plain && slot == 2).then_some((p, vocabulary * hidden)),
    };
    (0..3).map(|slot| vec![Some(spec(slot))]).collect()
}

fn check_embed(kernels: &Kernels, rng: &mut Rng, shape: Embedded) {
    let Embedded { n, hidden, vocabulary, far_token } = shape;
    let world = World::new(rng, kernels.p, &table_specs(kernels.p, shape), 0);
    let kinds: [Parts; 8] = [
        vec![],
        vec![(0, 1.0)],
        vec![(1, 1.0)],
        vec![(2, 1.0)],
        vec![(2, -0.5)],
        vec![(0, 0.5), (1, -2.0)],
        vec![(2, 1.0), (0, 1.0)],
        vec![(1, 0.25), (2, 0.5), (2, 1.5)],
    ];
    let plan = Plan::new((0..n).map(|i| kinds[i % kinds.len()].clone()).collect(), 0);
    let tokens: Vec<u32> = (0..n).map(|_| (far_token + rng.below(vocabulary)) as u32).collect();
    let table = values(rng, kernels.x, vocabulary * hidden);
    let shift = (n % 2 == 1).then(|| rng.vec(hidden));
    let (tokens_at, table_at) = (Buffer::raw(&tokens), Buffer::of(kernels.x, &table));
    let shift_at = shift.as_ref().map(|s| Buffer::of(Width::F32, s));
    let out = Buffer::poison(kernels.x, n * hidden);
    let args = Embed {
        tokens: tokens_at.at(),
        table: table_at.as_if_from(far_token as u64 * hidden as u64),
        shift: shift_at.as_ref().map_or(0, Buffer::at),
        out: out.at(),
        deltas: plan.deltas(&world),
        site: 0,
        hidden: hidden as u32,
    };
    let grid = [n as u32, column_tiles(hidden) as u32, 1];
    kernels.launch("embed", grid, 128, RANK_TILE_BYTES, &args);
    let out = out.floats();
    for (row, parts) in plan.rows.iter().enumerate() {
        let token = tokens[row] as usize - far_token;
        let h = |&(slot, _): &(usize, f32)| {
            let site = world.site(slot, 0).unwrap();
            let of = |r| world.adapters[slot].factor(site, false, r, token);
            (0..world.rank(slot, 0)).map(of).collect()
        };
        let h: Vec<Vec<f64>> = parts.iter().map(h).collect();
        for column in 0..hidden {
            let of_table = |table: &[f32]| {
                let shift = shift.as_ref().map_or(0.0, |s| f64::from(s[column]));
                let value = f64::from(table[token * hidden + column]) + shift;
                (value, value.abs() + shift.abs())
            };
            let base = of_table(&table);
            let own = |slot: usize| {
                let (value, size) = of_table(world.site(slot, 0)?.weight.as_ref()?);
                Some((value, size + base.1))
            };
            let expected = world.output_of(parts, 0, column, base, &h, &own);
            let what = format!("embedding row {row} column {column} {parts:?}");
            assert_close(out[row * hidden + column], expected, kernels.x, 1.0, &what);
        }
    }
}

#[test]
fn an_embedding_row_is_its_tokens_with_its_adapters_columns_and_own_tables() {
    let rng = &mut fresh();
    for kernels in all_kernels("gather.cu") {
        for (n, hidden, vocabulary, far_token) in
            [(0, 8, 5, 0), (1, 1, 3, 0), (33, 36, 40, 0), (7, 77, 10, 400_000_000)]
        {
            check_embed(&kernels, rng, Embedded { n, hidden, vocabulary, far_token });
        }
    }
}

/// `stride`: elements from one row to the next.
fn check_gather(
    kernels: &Kernels,
    rng: &mut Rng,
    picked: Option<&[usize]>,
    [n, cols, stride]: [usize; 3],
    first_row: u32,
) {
    let x = values(rng, kernels.x, n * stride);
    let x_at = Buffer::of(kernels.x, &x);
    let all: Vec<usize> = (0..n).collect();
    let rows = picked.unwrap_or(&all);
    let places: Vec<u32> = rows.iter().map(|&i| i as u32 + first_row).collect();
    let places_at = Buffer::raw(&places);
    let out = Buffer::poison(kernels.x, rows.len() * cols);
    let args = GatherRows {
        x: x_at.as_if_from(far(first_row, stride)),
        out: out.at(),
        rows: picked.map_or(0, |_| places_at.at()),
        x_stride: stride as u64,
        cols: cols as u32,
        reserved: 0,
    };
    kernels.launch("gather_rows", grid(0, rows.len(), column_tiles(cols)), 128, 0, &args);
    let expected: Vec<f32> = rows.iter().flat_map(|i| &x[i * stride..][..cols]).copied().collect();
    assert_eq!(out.floats(), expected);
}

#[test]
fn gathered_rows_are_copied_bit_for_bit() {
    let rng = &mut fresh();
    for kernels in all_kernels("gather.cu") {
        for (m, cols, stride, first_row) in [
            (0, 8, 8, 0),
            (1, 1, 1, 0),
            (33, 48, 48, 0),
            (9, 40, 43, 0),
            (5, 33, 33, FAR_ROW),
            (4, 16, 48, FAR_ROW),
        ] {
            let picked: Vec<usize> = (0..m).map(|_| rng.below(40)).collect();
            check_gather(&kernels, rng, Some(&picked), [40, cols, stride], first_row);
        }
    }
}

#[test]
fn without_an_index_all_rows_are_gathered_in_order() {
    let rng = &mut fresh();
    for kernels in all_kernels("gather.cu") {
        for (n, cols, stride) in [(0, 8, 9), (1, 1, 1), (7, 48, 144), (3, 1030, 1033)] {
            check_gather(&kernels, rng, None, [n, cols, stride], 0);
        }
    }
}
