//! Shrink, expand and own weights against the canonical form.

use super::device::{Buffer, Kernels, Width, all_kernels, kernels};
use super::step::{MIXED_TILES, Parts, Plan, Planes, assert_close, fresh, rows, values};
use super::world::{Spec, World};
use crate::Rng;
use tessera::backend::cuda::args::{Deltas, Expand, RANK_TILE_BYTES, ROW_TILE, Replace, Shrink};

/// Three slots over `sites` sites of one shape. Shards of rows are 1, 2 and 4 where they divide.
fn specs(rank: usize, input: usize, out: usize, sites: usize) -> Vec<Vec<Option<Spec>>> {
    let shards =
        |width: usize, wanted: usize| if width.is_multiple_of(wanted) { wanted } else { 1 };
    let spec = |slot: usize| Spec {
        // Ranks differ between slots.
        rank: if slot == 1 { rank.div_ceil(2) } else { rank },
        input,
        out,
        down_shards: shards(input, 1 << slot),
        up_shards: shards(out, 1 << slot),
        middle: slot != 1,
        end: slot != 2,
        scale: slot != 0,
        shift: slot == 2,
        weight: None,
    };
    let site = |slot: usize, site: usize| (slot + site != 2).then(|| spec(slot));
    (0..3).map(|slot| (0..sites).map(|s| site(slot, s)).collect()).collect()
}

struct Shape {
    rows: Vec<Parts>,
    rank: usize,
    input: usize,
    k_chunk: usize,
    /// x pretends to be the part of a larger one that begins at this row.
    first_row: u32,
    pool_from: u32,
}

fn check_shrink(kernels: &Kernels, rng: &mut Rng, shape: &Shape) {
    let Shape { rank, input, k_chunk, first_row, pool_from, .. } = *shape;
    let (x_width, p) = (kernels.x, kernels.p);
    let sites = [2, 0, 1];
    let world = World::new(rng, p, &specs(rank, input, 24, 3), pool_from);
    let plan = Plan::new(shape.rows.clone(), first_row);
    let x: Vec<f32> =
        rng.vec(plan.rows.len() * input).into_iter().map(|v| x_width.round(v)).collect();
    let x_at = Buffer::of(x_width, &x);
    // One more than x has columns for.
    let splits = input.div_ceil(k_chunk) + 1;
    let rank_stride = rank + 1;
    let plane_stride = plan.entries() * sites.len() * rank_stride + 3;
    let h = Buffer::poison(Width::F32, splits * plane_stride);
    let work = plan.work(&world);
    let (work_at, count_at) = (Buffer::raw(&work), Buffer::raw(&[work.len() as u32]));
    let args = Shrink {
        x: x_at.as_if_from(u64::from(first_row) * input as u64),
        work: work_at.at(),
        work_count: count_at.at(),
        entry_row: plan.entry_row_at.at(),
        entry_slot: plan.entry_slot_at.at(),
        changes: world.changes.at(),
        h: h.at(),
        plane_stride: plane_stride as u64,
        rank_stride: rank_stride as u32,
        linears: 3,
        sites: 3,
        in_features: input as u32,
        k_chunk: k_chunk as u32,
        splits: splits as u32,
        site: [sites[0] as u32, sites[1] as u32, sites[2] as u32, 0],
    };
    // Fewer blocks than work items, as a captured graph may have.
    kernels.launch("delta_shrink", [5, 1, 1], 128, 8192, &args);
    let h = h.floats();
    let mut written = vec![false; h.len()];
    for row in 0..plan.rows.len() {
        for (part, &(slot, _)) in plan.rows[row].iter().enumerate() {
            for (linear, &site) in sites.iter().enumerate() {
                let x = &x[row * input..][..input];
                let at = (plan.entry(row, part) * 3 + linear) * rank_stride;
                for split in 0..splits {
                    let mut only = vec![0.0; input];
                    let range = (split * k_chunk).min(input)..((split + 1) * k_chunk).min(input);
                    only[range.clone()].copy_from_slice(&x[range]);
                    for (r, expected) in world.hidden(slot, site, &only).into_iter().enumerate() {
                        let at = split * plane_stride + at + r;
                        let what = format!("h row {row} slot {slot} site {site} rank {r}");
                        assert_close(h[at], expected, Width::F32, 0.0, &what);
                        written[at] = true;
                    }
                }
            }
        }
    }
    let touched = h.iter().zip(&written).filter(|(h, written)| !**written && !h.is_nan()).count();
    assert_eq!(touched, 0, "numbers written that belong to no rank");
}

#[test]
fn a_shrink_sums_every_split_of_gathered_rows_and_writes_nothing_else() {
    let rng = &mut fresh();
    for kernels in all_kernels("delta.cu") {
        for (n, rank, input, k_chunk) in [
            (0, 16, 64, 32),
            (1, 1, 1, 32),
            (1, 16, 512, 128),
            (33, 3, 40, 32),
            (33, 16, 96, 64),
            (7, 64, 100, 96),
            (5, 17, 333, 64),
        ] {
            let rows = rows(rng, n);
            let shape = Shape { rows, rank, input, k_chunk, first_row: 0, pool_from: 0 };
            check_shrink(&kernels, rng, &shape);
        }
        // More rows of one adapter than one work item takes.
        let rows = vec![vec![(2, 1.0)]; 70];
        let shape = Shape { rows, rank: 16, input: 64, k_chunk: 64, first_row: 0, pool_from: 0 };
        check_shrink(&kernels, rng, &shape);
    }
}

#[test]
fn a_shrink_reaches_rows_and_parameters_beyond_32_bits() {
    let rng = &mut fresh();
    for kernels in all_kernels("delta.cu") {
        let rows = rows(rng, 9);
        let (first_row, pool_from) = (3_000_000_000, 4_294_960_000);
        let shape = Shape { rows, rank: 16, input: 96, k_chunk: 64, first_row, pool_from };
        check_shrink(&kernels, rng, &shape);
    }
}

struct Expanded {
    rows: Vec<Parts>,
    rank: usize,
    out: usize,
    first_row: u32,
    pool_from: u32,
    /// Logits.
    float: bool,
    bias: bool,
    tiles: &'static [usize],
}

const EXPANDED: Expanded = Expanded {
    rows: Vec::new(),
    rank: 5,
    out: 44,
    first_row: 0,
    pool_from: 0,
    float: false,
    bias: true,
    tiles: MIXED_TILES,
};

fn check_expand(kernels: &Kernels, rng: &mut Rng, shape: &Expanded) -> Vec<f32> {
    let Expanded { rank, out, first_row, pool_from, float, bias, tiles, .. } = *shape;
    let width = if float { Width::F32 } else { kernels.x };
    let sites = [0, 1];
    let world = World::new(rng, kernels.p, &specs(rank, 8, out, 2), pool_from);
    let plan = Plan::tiled(shape.rows.clone(), first_row, tiles);
    let planes = Planes::random(rng, &world, &plan, &sites);
    // Outputs of several linears may lie side by side.
    let stride = out + 5;
    let y: Vec<f32> =
        rng.vec(plan.rows.len() * stride).into_iter().map(|v| width.round(v)).collect();
    let bias = bias.then(|| rng.vec(out));
    let y_at = Buffer::of(width, &y);
    let bias_at = bias.as_ref().map(|b| Buffer::of(Width::F32, b));
    let args = Expand {
        y: y_at.as_if_from(u64::from(first_row) * stride as u64),
        bias: bias_at.as_ref().map_or(0, Buffer::at),
        deltas: planes.deltas(&plan, &world),
        y_stride: stride as u64,
        site: 1,
        linear: 1,
        out: out as u32,
        reserved: 0,
    };
    let name = if float { "delta_expand_float" } else { "delta_expand" };
    let shared = RANK_TILE_BYTES * ROW_TILE;
    kernels.launch(name, [plan.blocks(), out.div_ceil(8 * 128) as u32, 1], 128, shared, &args);
    let actual = y_at.floats();
    for (row, parts) in plan.rows.iter().enumerate() {
        let h = planes.row(&world, &plan, row, 1);
        let beside = row * stride + out..(row + 1) * stride;
        assert_eq!(actual[beside.clone()], y[beside], "what stands beside is another's");
        for column in 0..out {
            let at = row * stride + column;
            let base = f64::from(y[at]) + bias.as_ref().map_or(0.0, |b| f64::from(b[column]));
            let expected = world.output(parts, 1, column, base, &h);
            let what = format!("row {row} column {column} {parts:?}");
            assert_close(actual[at], expected, width, 1.0, &what);
        }
    }
    actual
}

#[test]
fn an_expand_gives_the_canonical_form_for_rows_of_one_and_of_several_adapters() {
    let rng = &mut fresh();
    for kernels in all_kernels("delta.cu") {
        for (n, rank, out) in
            [(0, 16, 8), (1, 1, 1), (33, 3, 36), (33, 64, 48), (12, 16, 1100), (3, 65, 77)]
        {
            let (float, bias) = (n % 2 == 0, n % 3 == 0);
            let shape = Expanded { rows: rows(rng, n), rank, out, float, bias, ..EXPANDED };
            check_expand(&kernels, rng, &shape);
        }
    }
}

#[test]
fn an_expand_reaches_rows_and_parameters_beyond_32_bits() {
    let rng = &mut fresh();
    for kernels in all_kernels("delta.cu") {
        let (first_row, pool_from) = (3_000_000_000, 4_294_960_000);
        let shape = Expanded { rows: rows(rng, 9), first_row, pool_from, ..EXPANDED };
        check_expand(&kernels, rng, &shape);
    }
}

#[test]
fn a_rows_bits_do_not_depend_on_its_tile() {
    let seed = fresh().bits();
    for kernels in all_kernels("delta.cu") {
        let expand = |tiles| {
            let rng = &mut Rng(seed);
            let shape = Expanded { rows: rows(rng, 30), rank: 71, out: 50, tiles, ..EXPANDED };
            check_expand(&kernels, rng, &shape)
        };
        let alone = expand(&[1]);
        assert!(expand(&[ROW_TILE]) == alone && expand(MIXED_TILES) == alone);
    }
}

#[test]
fn an_expand_without_adapters_adds_the_bias() {
    let rng = &mut fresh();
    for kernels in all_kernels("delta.cu") {
        let (n, out) = (3, 21);
        let (y, bias) = (values(rng, kernels.x, n * out), rng.vec(out));
        let (y_at, bias_at) = (Buffer::of(kernels.x, &y), Buffer::of(Width::F32, &bias));
        let args = Expand {
            y: y_at.at(),
            bias: bias_at.at(),
            y_stride: out as u64,
            out: out as u32,
            ..Expand::default()
        };
        kernels.launch("delta_expand", [n as u32, 1, 1], 128, RANK_TILE_BYTES * ROW_TILE, &args);
        let sum = |(i, y): (usize, &f32)| kernels.x.round(y + bias[i % out]);
        assert_eq!(y_at.floats(), y.iter().enumerate().map(sum).collect::<Vec<_>>());
    }
}

#[test]
fn nothing_is_written_when_the_work_list_is_empty() {
    let rng = &mut fresh();
    for kernels in kernels("delta.cu", [Width::Bf16; 3]) {
        let world = World::new(rng, kernels.p, &specs(4, 8, 8, 1), 0);
        let plan = Plan::new(vec![vec![]; 4], 0);
        let (h, none) = (Buffer::poison(Width::F32, 64), Buffer::raw(&[0u32]));
        let args = Shrink {
            work_count: none.at(),
            entry_slot: plan.entry_slot_at.at(),
            changes: world.changes.at(),
            h: h.at(),
            ..Shrink::default()
        };
        kernels.launch("delta_shrink", [3, 1, 1], 128, 8192, &args);
        assert!(h.floats().iter().all(|h| h.is_nan()));
        let deltas = Deltas { tile_count: none.at(), ..plan.deltas(&world) };
        let args = Expand { y: h.at(), deltas, y_stride: 8, out: 8, ..Expand::default() };
        kernels.launch("delta_expand", [3, 1, 1], 128, RANK_TILE_BYTES * ROW_TILE, &args);
        assert!(h.floats().iter().all(|h| h.is_nan()));
    }
}

#[test]
fn an_own_weight_stands_in_for_the_bases() {
    let rng = &mut fresh();
    for kernels in all_kernels("delta.cu") {
        let (input, out, n, first_row) = (83, 21, 14, 1_000_000_000u32);
        let own = |slot: usize| {
            let weight = (slot != 1).then_some((kernels.p, input * out));
            vec![Some(Spec { input, out, weight, ..Spec::default() })]
        };
        let world = World::new(rng, kernels.p, &[own(0), own(1), own(2)], 0);
        let rows = (0..n).map(|i| vec![(i % 3, 1.0); usize::from(i % 4 != 0)]).collect();
        let plan = Plan::new(rows, first_row);
        let x: Vec<f32> = rng.vec(n * input).into_iter().map(|v| kernels.x.round(v)).collect();
        let y: Vec<f32> = rng.vec(n * out).into_iter().map(|v| kernels.x.round(v)).collect();
        let (x_at, y_at) = (Buffer::of(kernels.x, &x), Buffer::of(kernels.x, &y));
        let args = Replace {
            x: x_at.as_if_from(u64::from(first_row) * input as u64),
            weight: 0,
            y: y_at.as_if_from(u64::from(first_row) * out as u64),
            deltas: plan.deltas(&world),
            y_stride: out as u64,
            site: 0,
            in_features: input as u32,
            out: out as u32,
            reserved: 0,
        };
        let grid = [plan.blocks(), out.div_ceil(4) as u32, 1];
        kernels.launch("delta_replace", grid, 128, 0, &args);
        let actual = y_at.floats();
        for (row, parts) in plan.rows.iter().enumerate() {
            let weight = parts.first().and_then(|&(slot, _)| world.site(slot, 0)?.weight.as_ref());
            for column in 0..out {
                let at = row * out + column;
                let Some(weight) = weight else {
                    assert_eq!(actual[at], y[at], "row {row} has no weight of its own");
                    continue;
                };
                let term = |k: usize| {
                    f64::from(weight[column * input + k]) * f64::from(x[row * input + k])
                };
                let value = (0..input).map(term).sum();
                let size = (0..input).map(|k| term(k).abs()).sum();
                assert_close(actual[at], (value, size), kernels.x, 1.0, "own weight");
            }
        }
    }
}

/// Adapters at site 1: own weights, both scales of a low-rank pair, one without a weight, and one
/// that does nothing there.
fn mixed_specs(p: Width, input: usize, out: usize) -> Vec<Vec<Option<Spec>>> {
    let spec = |slot: usize| Spec {
        rank: [5, 66, 0][slot],
        input,
        out,
        down_shards: usize::from(slot != 2),
        up_shards: usize::from(slot != 2),
        middle: slot == 1,
        end: slot == 0,
        scale: slot != 1,
        shift: slot != 0,
        weight: (slot != 1).then_some((p, input * out)),
    };
    let mut all: Vec<_> = (0..3).map(|slot| vec![None, Some(spec(slot))]).collect();
    all.push(vec![None, None]);
    all
}

/// Bare rows, as those before a recipe's first position are; adapters as they are; others.
fn mixed_rows(rng: &mut Rng, n: usize) -> Vec<Parts> {
    let kinds = [
        vec![],
        vec![(0, 1.0)],
        vec![(1, 1.0)],
        vec![(0, 0.5)],
        vec![(2, -1.25)],
        vec![(1, 0.25)],
        vec![(0, 1.0), (2, 1.0)],
        vec![(2, 0.75), (1, -0.5)],
        vec![(0, 0.5), (0, 0.5)],
        vec![(1, 1.5), (0, -0.75), (2, 0.5)],
        vec![(3, 2.0), (0, 0.25)],
    ];
    (0..n).map(|_| kinds[rng.below(kinds.len())].clone()).collect()
}

/// Rows of a matrix times x, with the sum of the terms' sizes.
fn product(weight: &[f32], x: &[f32], column: usize) -> (f64, f64) {
    let terms = weight[column * x.len()..].iter().zip(x);
    let term = |(w, x): (&f32, &f32)| f64::from(*w) * f64::from(*x);
    terms.map(term).fold((0.0, 0.0), |(value, size), t| (value + t, size + t.abs()))
}

struct Mixed {
    n: usize,
    input: usize,
    out: usize,
    first_row: u32,
    /// Logits.
    float: bool,
    bias: bool,
}

/// A linear's whole epilogue, in the host's order: own weights of adapters alone, bias and
/// adapters, own weights in mixes.
fn check_mix(kernels: &Kernels, rng: &mut Rng, shape: &Mixed) {
    let Mixed { n, input, out, first_row, float, bias } = *shape;
    let width = if float { Width::F32 } else { kernels.x };
    let world = World::new(rng, kernels.p, &mixed_specs(kernels.p, input, out), 0);
    let plan = Plan::new(mixed_rows(rng, n), first_row);
    let planes = Planes::random(rng, &world, &plan, &[0, 1]);
    let (x, weight) = (values(rng, kernels.x, n * input), values(rng, kernels.x, out * input));
    let bias = bias.then(|| rng.vec(out));
    let base = |row: usize, column: usize| product(&weight, &x[row * input..][..input], column);
    // Outputs of several linears may lie side by side.
    let stride = out + 3;
    let y = (0..n * stride).map(|i| match i % stride {
        column if column < out => width.round(base(i / stride, column).0 as f32),
        _ => 7.0,
    });
    let y_at = Buffer::of(width, &y.collect::<Vec<_>>());
    let (x_at, weight_at) = (Buffer::of(kernels.x, &x), Buffer::of(kernels.x, &weight));
    let bias_at = bias.as_ref().map(|b| Buffer::of(Width::F32, b));
    let (deltas, far) = (planes.deltas(&plan, &world), u64::from(first_row));
    let y_from = y_at.as_if_from(far * stride as u64);
    let replace = Replace {
        x: x_at.as_if_from(far * input as u64),
        weight: weight_at.at(),
        y: y_from,
        deltas,
        y_stride: stride as u64,
        site: 1,
        in_features: input as u32,
        out: out as u32,
        reserved: 0,
    };
    let expand = Expand {
        y: y_from,
        bias: bias_at.as_ref().map_or(0, Buffer::at),
        deltas,
        y_stride: stride as u64,
        site: 1,
        linear: 1,
        out: out as u32,
        reserved: 0,
    };
    let name = |name: &str| format!("{name}{}", if float { "_float" } else { "" });
    let by_warps = [plan.blocks(), out.div_ceil(4) as u32, 1];
    let by_columns = [plan.blocks(), out.div_ceil(8 * 128) as u32, 1];
    kernels.launch(&name("delta_replace"), by_warps, 128, 0, &replace);
    let shared = RANK_TILE_BYTES * ROW_TILE;
    kernels.launch(&name("delta_expand"), by_columns, 128, shared, &expand);
    let before = y_at.floats();
    kernels.launch(&name("delta_mix"), by_warps, 128, 0, &replace);
    let actual = y_at.floats();
    for (row, parts) in plan.rows.iter().enumerate() {
        let is_mixed = !matches!(parts[..], [] | [(_, 1.0)]);
        let left = row * stride + if is_mixed { out } else { 0 }..(row + 1) * stride;
        assert_eq!(actual[left.clone()], before[left], "not mixed, or another's: {parts:?}");
        let h = planes.row(&world, &plan, row, 1);
        let x = &x[row * input..][..input];
        for column in 0..out {
            let add = bias.as_ref().map_or(0.0, |b| f64::from(b[column]));
            let whole = |(value, size): (f64, f64)| (value + add, size + add.abs());
            let base = whole(base(row, column));
            let own = |slot: usize| {
                let weight = world.site(slot, 1)?.weight.as_ref()?;
                let (value, size) = whole(product(weight, x, column));
                Some((value, size + base.1))
            };
            let expected = world.output_of(parts, 1, column, base, &h, &own);
            let what = format!("row {row} column {column} {parts:?}");
            assert_close(actual[row * stride + column], expected, width, 3.0, &what);
        }
    }
}

#[test]
fn a_mix_is_the_base_and_each_adapters_share_of_what_it_alone_changes() {
    let rng = &mut fresh();
    for kernels in all_kernels("delta.cu") {
        for (n, input, out) in [(0, 8, 8), (1, 1, 1), (60, 33, 21), (24, 300, 5), (6, 16, 130)] {
            for float in [false, true] {
                let shape = Mixed { n, input, out, first_row: 0, float, bias: n % 2 == 0 };
                check_mix(&kernels, rng, &shape);
            }
        }
        let (first_row, float, bias) = (1_000_000_000, false, true);
        let far = Mixed { n: 20, input: 83, out: 21, first_row, float, bias };
        check_mix(&kernels, rng, &far);
    }
}
