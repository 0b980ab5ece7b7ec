//! Kernels that take a row at a time: norms, gated activation, sum.

use super::device::{Buffer, Grid, Kernels, Width, all_kernels};
use super::step::{MIXED_TILES, Plan, Planes, assert_close, fresh, rows, values};
use super::world::{Spec, World};
use crate::Rng;
use crate::cuda::card::is_real;
use tessera::backend::cuda::args::{
    Add, AddRmsNorm, Deltas, RANK_TILE_BYTES, ROW_TILE, RmsNorm, SiluMul,
};

/// A first row at which row · width is beyond 32 bits even for the narrowest tests.
pub const FAR_ROW: u32 = 2_000_000_000;

/// The first row of a grid of rows: a far one, but on a GPU, which runs whole grids only.
fn far_row() -> u32 {
    if is_real() { 0 } else { FAR_ROW }
}

/// Blocks of `n` rows from `first_row` on.
pub fn grid(first_row: u32, n: usize, y: usize) -> Grid {
    let end = first_row + n as u32;
    Grid { size: [end, y as u32, 1], first: [first_row, 0, 0], end: [end, y as u32, 1] }
}

pub fn far(first_row: u32, cols: usize) -> u64 {
    u64::from(first_row) * cols as u64
}

pub fn column_tiles(cols: usize) -> usize {
    cols.div_ceil(8 * 128)
}

/// Slots 0 … 2 with low-rank parts, scales and shifts at every site, but for one hole.
pub fn linear_specs(rank: usize, outs: &[usize]) -> Vec<Vec<Option<Spec>>> {
    let spec = |slot: usize, out: usize| Spec {
        rank: rank + slot,
        input: 8,
        out,
        down_shards: 1,
        up_shards: if slot == 2 && out.is_multiple_of(2) { 2 } else { 1 },
        middle: slot != 1,
        end: slot != 2,
        scale: slot != 1,
        shift: slot != 0,
        weight: None,
    };
    let sites = |slot: usize| {
        outs.iter().enumerate().map(|(i, &out)| (slot + i != 1).then(|| spec(slot, out))).collect()
    };
    (0..3).map(sites).collect()
}

/// A linear with bias and adapters; its site has its number.
pub struct Linear<'a> {
    pub world: &'a World,
    pub plan: &'a Plan,
    pub planes: &'a Planes,
    /// `[n, cols]`.
    pub y: &'a [f32],
    pub bias: &'a Option<Vec<f32>>,
    pub cols: usize,
    pub linear: usize,
}

impl Linear<'_> {
    /// A row's output, each number with the size of its terms.
    pub fn row(&self, row: usize) -> Vec<(f64, f64)> {
        let h = self.planes.row(self.world, self.plan, row, self.linear);
        let parts = &self.plan.rows[row];
        let at = |column: usize| {
            let base = f64::from(self.y[row * self.cols + column])
                + self.bias.as_ref().map_or(0.0, |b| f64::from(b[column]));
            self.world.output(parts, self.linear, column, base, &h)
        };
        (0..self.cols).map(at).collect()
    }
}

/// Who is in a step: nobody with an adapter, or rows in tiles of these lengths.
pub type Tiles = Option<&'static [usize]>;

pub fn plan(rng: &mut Rng, n: usize, first_row: u32, tiles: Tiles) -> Plan {
    match tiles {
        Some(tiles) => Plan::tiled(rows(rng, n), first_row, tiles),
        None => Plan::new(vec![vec![]; n], first_row),
    }
}

#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    cols: usize,
    first_row: u32,
    tiles: Tiles,
}

fn check_silu_mul(kernels: &Kernels, rng: &mut Rng, shape: Shape) -> Vec<f32> {
    let Shape { n, cols, first_row, tiles } = shape;
    let world = World::new(rng, kernels.p, &linear_specs(7, &[cols, cols]), 0);
    let plan = plan(rng, n, first_row, tiles);
    let planes = Planes::random(rng, &world, &plan, &[0, 1]);
    let [gate, up] = [(); 2].map(|()| values(rng, kernels.x, n * cols));
    let gate_bias = (n % 2 == 1).then(|| rng.vec(cols));
    // Side by side, as one product leaves them.
    let stride = 2 * cols;
    let pairs = gate.chunks(cols).zip(up.chunks(cols));
    let both: Vec<f32> = pairs.flat_map(|(gate, up)| [gate, up].concat()).collect();
    let both = Buffer::of(kernels.x, &both);
    let gate_at = both.as_if_from(far(first_row, stride));
    let up_at = gate_at.wrapping_add((cols * kernels.x.bytes()) as u64);
    let bias_at = gate_bias.as_ref().map(|b| Buffer::of(Width::F32, b));
    let out = Buffer::poison(kernels.x, n * cols);
    let from = far(first_row, cols);
    let args = SiluMul {
        gate: gate_at,
        up: up_at,
        out: out.as_if_from(from),
        gate_bias: bias_at.as_ref().map_or(0, Buffer::at),
        up_bias: 0,
        deltas: tiles.map_or(Deltas::default(), |_| planes.deltas(&plan, &world)),
        stride: stride as u64,
        gate_site: 0,
        up_site: 1,
        cols: cols as u32,
        reserved: 0,
    };
    if tiles.is_some() {
        let grid = [plan.blocks(), column_tiles(cols) as u32, 1];
        kernels.launch("silu_mul_tiles", grid, 128, RANK_TILE_BYTES * ROW_TILE, &args);
    } else {
        kernels.launch("silu_mul", grid(first_row, n, column_tiles(cols)), 128, 0, &args);
    }
    let out = out.floats();
    let linear = |y, bias, linear| Linear {
        world: &world,
        plan: &plan,
        planes: &planes,
        y,
        bias,
        cols,
        linear,
    };
    let (gate, up) = (linear(&gate, &gate_bias, 0), linear(&up, &None, 1));
    for row in 0..n {
        let (gate, up) = (gate.row(row), up.row(row));
        for column in 0..cols {
            let ((g, g_size), (u, u_size)) = (gate[column], up[column]);
            let expected = g / (1.0 + (-g).exp()) * u;
            // silu's slope is below 1.1.
            let size = 1.1 * g_size * u_size + g_size * u.abs();
            let what = format!("silu_mul row {row} column {column}");
            assert_close(out[row * cols + column], (expected, size), kernels.x, 3.0, &what);
        }
    }
    out
}

#[test]
fn silu_mul_applies_both_linears_adapters_first() {
    let rng = &mut fresh();
    for kernels in all_kernels("mlp.cu") {
        for tiles in [None, Some(MIXED_TILES)] {
            for (n, cols) in [(0, 8), (1, 1), (33, 24), (6, 77), (2, 1030)] {
                check_silu_mul(&kernels, rng, Shape { n, cols, first_row: 0, tiles });
            }
            let far = Shape { n: 5, cols: 19, first_row: far_row(), tiles };
            check_silu_mul(&kernels, rng, far);
        }
    }
}

#[test]
fn silu_mul_gives_a_row_the_same_bits_in_any_tile() {
    let seed = fresh().bits();
    for kernels in all_kernels("mlp.cu") {
        let shape = |tiles| Shape { n: 30, cols: 50, first_row: 0, tiles: Some(tiles) };
        let in_tiles = |tiles| check_silu_mul(&kernels, &mut Rng(seed), shape(tiles));
        let alone = in_tiles(&[1]);
        assert!(in_tiles(&[ROW_TILE]) == alone && in_tiles(MIXED_TILES) == alone);
    }
}

#[test]
fn add_adds_in_place() {
    let rng = &mut fresh();
    for kernels in all_kernels("mlp.cu") {
        for (n, cols, first_row) in [(0, 8, 0), (1, 1, 0), (33, 21, 0), (3, 40, far_row())] {
            let [x, y] = [(); 2].map(|()| values(rng, kernels.x, n * cols));
            let [x_at, y_at] = [&x, &y].map(|v| Buffer::of(kernels.x, v));
            let from = far(first_row, cols);
            let args = Add {
                x: x_at.as_if_from(from),
                y: y_at.as_if_from(from),
                cols: cols as u32,
                reserved: 0,
            };
            kernels.launch("add", grid(first_row, n, column_tiles(cols)), 128, 0, &args);
            let sums: Vec<f32> = x.iter().zip(&y).map(|(x, y)| kernels.x.round(x + y)).collect();
            assert_eq!(x_at.floats(), sums);
        }
    }
}

/// Slots at a norm of `width`: scale; own weight and shift; everything.
pub fn norm_specs(width: usize) -> Vec<Vec<Option<Spec>>> {
    let own = |slot: usize| (slot > 0).then_some((Width::F32, width));
    let spec = |slot: usize| Spec {
        out: width,
        scale: slot != 1,
        shift: slot != 0,
        weight: own(slot),
        ..Spec::default()
    };
    (0..3).map(|slot| vec![Some(spec(slot))]).collect()
}

/// A norm's output at a column of one group.
pub fn normed(
    world: &World,
    parts: &[(usize, f32)],
    site: usize,
    x: &[f64],
    column: usize,
    weight: &[f32],
    shift: Option<&Vec<f32>>,
) -> (f64, f64) {
    let squares: f64 = x.iter().map(|x| x * x).sum();
    let n = x[column] / (squares / x.len() as f64 + 1e-5).sqrt();
    let shift = shift.map_or(0.0, |s| f64::from(s[column]));
    let base = n * f64::from(weight[column]) + shift;
    let (mut y, mut size) = (base, base.abs() + shift.abs());
    for &(slot, share) in parts {
        let Some(site) = world.site(slot, site) else { continue };
        let own = site.weight.as_ref().map_or(weight, |w| w);
        let scale = site.scale.as_ref().map_or(1.0, |s| f64::from(s[column]));
        let added = site.shift.as_ref().map_or(0.0, |s| f64::from(s[column]));
        let mine = scale * (n * f64::from(own[column]) + shift) + added;
        y += f64::from(share) * (mine - base);
        size += f64::from(share).abs() * (mine.abs() + base.abs() + added.abs());
    }
    (y, size)
}

fn norm_threads(width: usize) -> u32 {
    (width.div_ceil(8).next_multiple_of(32) as u32).min(512)
}

#[test]
fn a_norm_takes_each_group_alone_and_each_rows_weight_scale_and_shift() {
    let rng = &mut fresh();
    for kernels in all_kernels("norm.cu") {
        for (n, width, groups, first_row) in [
            (0, 8, 1, 0),
            (1, 1, 1, 0),
            (33, 24, 3, 0),
            (4, 520, 1, 0),
            (2, 4100, 1, 0),
            (3, 37, 2, far_row()),
        ] {
            let cols = width * groups;
            let world = World::new(rng, kernels.p, &norm_specs(width), 0);
            let plan = Plan::new(rows(rng, n), first_row);
            let x = values(rng, kernels.x, n * cols);
            let weight = rng.vec(width);
            let shift = (n % 2 == 1).then(|| rng.vec(width));
            let (x_at, weight_at) = (Buffer::of(kernels.x, &x), Buffer::of(Width::F32, &weight));
            let shift_at = shift.as_ref().map(|s| Buffer::of(Width::F32, s));
            let out = Buffer::poison(kernels.x, n * cols);
            let args = RmsNorm {
                x: x_at.as_if_from(far(first_row, cols)),
                out: out.as_if_from(far(first_row, cols)),
                weight: weight_at.at(),
                shift: shift_at.as_ref().map_or(0, Buffer::at),
                deltas: plan.deltas(&world),
                site: 0,
                cols: cols as u32,
                width: width as u32,
                eps: 1e-5,
            };
            let grid = grid(first_row, n, groups);
            kernels.launch("rms_norm", grid, norm_threads(width), 128, &args);
            let out = out.floats();
            for (i, actual) in out.into_iter().enumerate() {
                let (row, column) = (i / cols, i % width);
                let group: Vec<f64> =
                    x[i / width * width..][..width].iter().map(|&x| f64::from(x)).collect();
                let parts = &plan.rows[row];
                let expected = normed(&world, parts, 0, &group, column, &weight, shift.as_ref());
                assert_close(actual, expected, kernels.x, 1.0, "norm");
            }
        }
    }
}

/// `sharing`: blocks that share a tile's rows.
fn check_add_rms_norm(kernels: &Kernels, rng: &mut Rng, shape: Shape, sharing: u32) -> Vec<f32> {
    let Shape { n, cols, first_row, tiles } = shape;
    let mut specs = linear_specs(66, &[cols]);
    for (slot, norm) in specs.iter_mut().zip(norm_specs(cols)) {
        slot.extend(norm);
    }
    let world = World::new(rng, kernels.p, &specs, 0);
    let plan = plan(rng, n, first_row, tiles);
    let planes = Planes::random(rng, &world, &plan, &[0]);
    let [residual, y] = [(); 2].map(|()| values(rng, kernels.x, n * cols));
    let (bias, weight) = (Some(rng.vec(cols)), rng.vec(cols));
    let residual_at = Buffer::of(kernels.x, &residual);
    let y_at = Buffer::of(kernels.x, &y);
    let bias_at = Buffer::of(Width::F32, bias.as_ref().unwrap());
    let weight_at = Buffer::of(Width::F32, &weight);
    let out = Buffer::poison(kernels.x, n * cols);
    let from = far(first_row, cols);
    let norm = RmsNorm {
        x: 0,
        out: out.as_if_from(from),
        weight: weight_at.at(),
        shift: 0,
        deltas: tiles.map_or(Deltas::default(), |_| plan.deltas(&world)),
        site: 1,
        cols: cols as u32,
        width: cols as u32,
        eps: 1e-5,
    };
    let args = AddRmsNorm {
        residual: residual_at.as_if_from(from),
        y: y_at.as_if_from(from),
        bias: bias_at.at(),
        deltas: tiles.map_or(Deltas::default(), |_| planes.deltas(&plan, &world)),
        site: 0,
        linear: 0,
        norm,
    };
    let launch = |args| {
        let threads = norm_threads(cols);
        if tiles.is_some() {
            let (grid, shared) = ([plan.blocks(), sharing, 1], RANK_TILE_BYTES * ROW_TILE + 128);
            kernels.launch("add_rms_norm_tiles", grid, threads, shared, args);
        } else {
            kernels.launch("add_rms_norm", grid(first_row, n, 1), threads, 128, args);
        }
    };
    launch(&args);
    let (sums, out) = (residual_at.floats(), out.floats());
    let linear =
        Linear { world: &world, plan: &plan, planes: &planes, y: &y, bias: &bias, cols, linear: 0 };
    for row in 0..n {
        // The norm is of the residual as it is stored.
        let stored: Vec<f64> = sums[row * cols..][..cols].iter().map(|&x| f64::from(x)).collect();
        for (column, (value, size)) in linear.row(row).into_iter().enumerate() {
            let i = row * cols + column;
            let sum = (value + f64::from(residual[i]), size + f64::from(residual[i]).abs());
            assert_close(sums[i], sum, kernels.x, 2.0, "residual");
            let expected = normed(&world, &plan.rows[row], 1, &stored, column, &weight, None);
            assert_close(out[i], expected, kernels.x, 1.0, "norm of the residual");
        }
    }
    // Without a norm only the sum is made.
    launch(&AddRmsNorm { norm: RmsNorm { out: 0, ..norm }, ..args });
    out
}

#[test]
fn the_residual_takes_the_linear_with_its_adapters_and_is_then_normed() {
    let rng = &mut fresh();
    for kernels in all_kernels("norm.cu") {
        for (tiles, sharing) in [(None, 1), (Some(MIXED_TILES), 1), (Some(MIXED_TILES), 3)] {
            for (n, cols) in [(0, 8), (1, 1), (33, 40), (5, 300), (2, 4200)] {
                let shape = Shape { n, cols, first_row: 0, tiles };
                check_add_rms_norm(&kernels, rng, shape, sharing);
            }
            let far = Shape { n: 3, cols: 50, first_row: far_row(), tiles };
            check_add_rms_norm(&kernels, rng, far, sharing);
        }
    }
}

#[test]
fn a_normed_row_has_the_same_bits_in_any_tile_and_block() {
    let seed = fresh().bits();
    for kernels in all_kernels("norm.cu") {
        let run = |tiles, sharing| {
            let shape = Shape { n: 30, cols: 50, first_row: 0, tiles: Some(tiles) };
            check_add_rms_norm(&kernels, &mut Rng(seed), shape, sharing)
        };
        let alone = run(&[1], 1);
        for sharing in 1..=ROW_TILE as u32 {
            assert!(run(&[ROW_TILE], sharing) == alone, "{sharing} blocks a tile");
        }
    }
}
