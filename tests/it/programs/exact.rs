//! The definitions, in f64: what a program's tensors are.
//!
//! With noise, every result is off by as much as a device's rounding may make it: how far that
//! carries through a program tells how far a device may be from the definitions.

use std::collections::HashMap;
use std::sync::Arc;

use tessera::backend::{Sampled, Wanted};
use tessera::delta::{Delta, Factor, LowRank, SiteDelta};
use tessera::dtype::{Dtype, Values};
use tessera::ids::{SiteId, Slot};
use tessera::recipe::Part;

use super::base::{Base, Matrix};
use super::program::{Machine, Step};
use crate::Rng;

/// How a device rounds.
#[derive(Clone, Copy)]
pub struct Rounding {
    /// Of activations.
    pub activations: Dtype,
    /// Of keys and values.
    pub kv: Dtype,
}

/// Half a place of the last digit, as a share of a number; and of the smallest numbers.
fn unit(dtype: Dtype) -> (f64, f64) {
    let places = match dtype {
        Dtype::F32 => 24,
        Dtype::F16 => 11,
        Dtype::BF16 => 8,
    };
    (0.5f64.powi(places), if dtype == Dtype::F16 { 0.5f64.powi(25) } else { 0.0 })
}

/// What every op's result is off by.
pub struct Noise {
    pub rng: Rng,
    pub rounding: Rounding,
}

impl Noise {
    /// Rounds to `dtype`; sums of f32 are off by the size of what was summed, whatever is left.
    fn add(&mut self, numbers: &mut [f64], dtype: Dtype) {
        let (share, least) = unit(dtype);
        let largest = numbers.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for x in numbers {
            let off = share * x.abs() + least + largest * 0.5f64.powi(22);
            // Of nearly full size either way: few runs then tell how far it may carry.
            let by = f64::from(self.rng.f32());
            *x += by.signum() * (0.7 + 0.3 * by.abs()) * off;
        }
    }
}

/// A factor, gathered.
fn gathered(delta: &Delta, factor: &Factor, rank: usize) -> Vec<Vec<f64>> {
    (0..rank).map(|r| wide(&delta.row(factor, r))).collect()
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

fn wide_values(values: &Values) -> Vec<f64> {
    wide(&values.to_f32())
}

/// One adapter at one site, gathered and widened.
struct Change {
    /// A and Bᵀ by rank, and what multiplies after each.
    low_rank: Option<[Vec<Vec<f64>>; 2]>,
    middle: Option<Vec<f64>>,
    end: Option<Vec<f64>>,
    scale: Option<Vec<f64>>,
    shift: Option<Vec<f64>>,
    weight: Option<Vec<f64>>,
}

impl Change {
    fn new(delta: &Delta, change: &SiteDelta) -> Self {
        let SiteDelta { low_rank, scale, shift, weight } = change;
        let vector = |v: &Option<Vec<f32>>| v.as_deref().map(wide);
        let (mut factors, mut middle_of, mut end_of) = (None, None, None);
        if let Some(LowRank { rank, down, middle, up, end }) = low_rank {
            factors = Some([gathered(delta, down, *rank), gathered(delta, up, *rank)]);
            (middle_of, end_of) = (vector(middle), vector(end));
        }
        Self {
            low_rank: factors,
            middle: middle_of,
            end: end_of,
            scale: vector(scale),
            shift: vector(shift),
            weight: weight.as_ref().map(wide_values),
        }
    }

    /// `scale ⊙ (y + end ⊙ B (middle ⊙ A x)) + shift`; `a_x` of a row of A is that row of A x.
    fn apply(&self, exact: &mut Exact<'_>, y: &mut [f64], a_x: impl Fn(&[f64]) -> f64) {
        if let Some([down, up]) = &self.low_rank {
            let mut b_h = vec![0.0; y.len()];
            for (r, (a, b)) in down.iter().zip(up).enumerate() {
                let h = a_x(a) * self.middle.as_ref().map_or(1.0, |middle| middle[r]);
                b_h.iter_mut().zip(b).for_each(|(b_h, b)| *b_h += b * h);
            }
            let end = |o: usize| self.end.as_ref().map_or(1.0, |end| end[o]);
            b_h.iter_mut().enumerate().for_each(|(o, b_h)| *b_h *= end(o));
            exact.summed(&mut b_h);
            y.iter_mut().zip(&b_h).for_each(|(y, b_h)| *y += b_h);
            exact.summed(y);
        }
        let scale = |o: usize| self.scale.as_ref().map_or(1.0, |scale| scale[o]);
        y.iter_mut().enumerate().for_each(|(o, y)| *y *= scale(o));
        exact.summed(y);
        let shift = |o: usize| self.shift.as_ref().map_or(0.0, |shift| shift[o]);
        y.iter_mut().enumerate().for_each(|(o, y)| *y += shift(o));
    }
}

/// A base widened, and the adapters of a program.
pub struct Definitions<'a> {
    base: &'a Base,
    weights: HashMap<SiteId, Vec<f64>>,
    changes: HashMap<(Slot, SiteId), Change>,
}

impl<'a> Definitions<'a> {
    pub fn new(base: &'a Base, deltas: &[Arc<Delta>]) -> Self {
        let matrices = base.tables.iter().chain(&base.linears).chain(&base.heads);
        let weights = matrices.map(|m| (m.site, wide_values(&m.weight))).collect();
        let mut changes = HashMap::new();
        for (slot, delta) in (0..).zip(deltas) {
            let of_delta = delta.sites.iter().map(|(site, c)| (*site, Change::new(delta, c)));
            changes.extend(of_delta.map(|(site, change)| ((Slot(slot), site), change)));
        }
        Self { base, weights, changes }
    }
}

/// A tensor.
pub struct Table {
    rows: Vec<Vec<f64>>,
    cols: usize,
}

/// A key and a value.
type Cell = [Vec<f64>; 2];

/// The definitions on one step's rows.
pub struct Exact<'a> {
    pub definitions: &'a Definitions<'a>,
    pub step: &'a Step,
    /// Cells of each layer by page and place in it.
    pub kv: [HashMap<(u32, usize), Cell>; 2],
    pub noise: Option<Noise>,
    /// Results are f32 whatever the width: logits.
    pub is_float: bool,
}

impl<'a> Exact<'a> {
    fn rounded(&mut self, mut numbers: Vec<f64>) -> Vec<f64> {
        if let Some(noise) = &mut self.noise {
            let dtype = if self.is_float { Dtype::F32 } else { noise.rounding.activations };
            noise.add(&mut numbers, dtype);
        }
        numbers
    }

    /// Numbers that are summed on in f32.
    fn summed(&mut self, numbers: &mut [f64]) {
        if let Some(noise) = &mut self.noise {
            noise.add(numbers, Dtype::F32);
        }
    }

    fn each(
        &mut self,
        x: &Table,
        cols: usize,
        mut f: impl FnMut(&mut Self, usize, &[f64]) -> Vec<f64>,
    ) -> Table {
        let rows = x.rows.iter().enumerate().map(|(row, x)| f(self, row, x)).collect();
        Table { rows, cols }
    }

    /// `y_base + Σ w (y_adapter − y_base)` of a row; `alone`: what an adapter alone makes of it.
    fn compose(
        &mut self,
        row: usize,
        site: SiteId,
        base: Vec<f64>,
        mut alone: impl FnMut(&mut Self, &Change) -> Vec<f64>,
    ) -> Vec<f64> {
        let mut y = base.clone();
        self.summed(&mut y);
        for Part { adapter, weight } in &self.step.carried[row] {
            let definitions = self.definitions;
            let Some(change) = definitions.changes.get(&(*adapter, site)) else { continue };
            let mut own = alone(self, change);
            self.summed(&mut own);
            for ((y, own), base) in y.iter_mut().zip(&own).zip(&base) {
                *y += f64::from(weight.get()) * (own - base);
            }
        }
        self.rounded(y)
    }

    fn linear_row(&mut self, row: usize, linear: &Matrix, x: &[f64]) -> Vec<f64> {
        let bias = |o: usize| linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[o]));
        let product = |this: &mut Self, weight: &[f64]| {
            let dots = weight.chunks(linear.cols).map(|w| dot(w, x)).collect();
            let mut y = this.rounded(dots);
            y.iter_mut().enumerate().for_each(|(o, y)| *y += bias(o));
            y
        };
        let definitions = self.definitions;
        let base = product(self, &definitions.weights[&linear.site]);
        let of_base = base.clone();
        self.compose(row, linear.site, base, |this, change| {
            let own = change.weight.as_ref().map(|weight| product(this, weight));
            let mut y = own.unwrap_or_else(|| of_base.clone());
            change.apply(this, &mut y, |a| dot(a, x));
            y
        })
    }

    fn norm_group(&mut self, row: usize, norm: usize, x: &[f64]) -> Vec<f64> {
        let norm = &self.definitions.base.norms[norm];
        let mean = dot(x, x) / x.len() as f64;
        let factor = 1.0 / (mean + f64::from(norm.eps)).sqrt();
        let shift = |o: usize| norm.shift.as_ref().map_or(0.0, |shift| f64::from(shift[o]));
        let with = |weight: &[f64]| -> Vec<f64> {
            x.iter().enumerate().map(|(o, x)| x * factor * weight[o] + shift(o)).collect()
        };
        let base = with(&wide(&norm.weight));
        let of_base = base.clone();
        self.compose(row, norm.site, base, |this, change| {
            let mut y = change.weight.as_deref().map_or_else(|| of_base.clone(), &with);
            change.apply(this, &mut y, |_| 0.0);
            y
        })
    }

    fn rotated(&mut self, row: usize, x: &[f64]) -> Vec<f64> {
        let base = self.definitions.base;
        let (half, head_dim) = (base.rope.half, base.shape.head_dim);
        let position = self.step.rows.positions[row] as usize;
        let mut y = x.to_vec();
        for head in y.chunks_mut(head_dim) {
            for i in 0..half {
                let at = position * half + i;
                let (c, s) = (f64::from(base.rope.cos[at]), f64::from(base.rope.sin[at]));
                let (low, high) = (head[i], head[i + half]);
                (head[i], head[i + half]) = (low * c - high * s, high * c + low * s);
            }
        }
        y
    }

    /// Where a position of a row's sequence is kept.
    fn place(&self, row: usize, position: usize) -> (u32, usize) {
        let tokens = self.definitions.base.kv.block_tokens;
        let spans = &self.step.rows.spans;
        let span = spans.iter().find(|span| (span.start..span.start + span.len).contains(&row));
        let page = span.expect("spans cover all rows").block_table[position / tokens];
        (page.0, position % tokens)
    }

    fn attend(&mut self, row: usize, q: &[f64], layer: usize, window: Option<u32>) -> Vec<f64> {
        let shape = self.definitions.base.shape;
        let end = self.step.rows.positions[row] as usize + 1;
        let first = end.saturating_sub(window.map_or(end, |window| window as usize));
        let places: Vec<_> = (first..end).map(|position| self.place(row, position)).collect();
        let mut out = Vec::new();
        for (head, q) in q.chunks(shape.head_dim).enumerate() {
            let start = head / (shape.heads / shape.kv_heads) * shape.head_dim;
            let part = |numbers: &'_ [f64]| numbers[start..start + shape.head_dim].to_vec();
            let cell = |place| &self.kv[layer][place];
            let score = |place| dot(q, &part(&cell(place)[0])) * f64::from(shape.scale);
            let scores: Vec<f64> = places.iter().map(score).collect();
            let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - best).exp()).collect();
            let sum: f64 = weights.iter().sum();
            // Tensor cores take them in the width of activations.
            let shares = self.rounded(weights.iter().map(|weight| weight / sum).collect());
            let mut y = vec![0.0; shape.head_dim];
            for (share, place) in shares.iter().zip(&places) {
                let value = part(&self.kv[layer][place][1]);
                y.iter_mut().zip(value).for_each(|(y, v)| *y += share * v);
            }
            out.extend(y);
        }
        self.rounded(out)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Machine for Exact<'_> {
    type T = Table;

    fn embed(&mut self, table: usize) -> Table {
        let definitions = self.definitions;
        let table = &definitions.base.tables[table];
        let shift = |o: usize| table.bias.as_ref().map_or(0.0, |bias| f64::from(bias[o]));
        let rows = (0..self.step.rows.len()).map(|row| {
            let token = self.step.rows.tokens[row] as usize;
            let look_up = |weight: &[f64]| -> Vec<f64> {
                let row = &weight[token * table.cols..][..table.cols];
                row.iter().enumerate().map(|(o, x)| x + shift(o)).collect()
            };
            let base = look_up(&definitions.weights[&table.site]);
            self.compose(row, table.site, base.clone(), |this, change| {
                let mut y = change.weight.as_deref().map_or_else(|| base.clone(), look_up);
                change.apply(this, &mut y, |a| a[token]);
                y
            })
        });
        Table { rows: rows.collect(), cols: table.cols }
    }

    fn rms_norm(&mut self, x: &Table, norm: usize) -> Table {
        self.each(x, x.cols, |this, row, x| this.norm_group(row, norm, x))
    }

    fn silu_mul(&mut self, gate: Table, up: Table) -> Table {
        self.each(&gate, gate.cols, |this, row, gate| {
            let pairs = gate.iter().zip(&up.rows[row]);
            let y = pairs.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            this.rounded(y)
        })
    }

    fn add(&mut self, x: Table, y: Table) -> Table {
        self.each(&x, x.cols, |this, row, x| {
            let sum = x.iter().zip(&y.rows[row]).map(|(x, y)| x + y).collect();
            this.rounded(sum)
        })
    }

    fn pick(&mut self, x: &Table, wanted: Wanted) -> Table {
        let rows = match wanted {
            Wanted::Logits => &self.step.rows.logit_rows,
            Wanted::Hidden => &self.step.rows.hidden_rows,
        };
        let rows = rows.iter().map(|&row| x.rows[row as usize].clone()).collect();
        Table { rows, cols: x.cols }
    }

    fn linears(&mut self, x: &Table, linears: &[usize]) -> Vec<Table> {
        let base = self.definitions.base;
        let one = |&linear: &usize| {
            let linear = &base.linears[linear];
            self.each(x, linear.rows, |this, row, x| this.linear_row(row, linear, x))
        };
        linears.iter().map(one).collect()
    }

    fn head(&mut self, x: &Table, head: usize) -> Table {
        let head = &self.definitions.base.heads[head];
        self.is_float = true;
        let logits = self.each(x, head.rows, |this, row, x| {
            this.linear_row(this.step.rows.logit_rows[row] as usize, head, x)
        });
        self.is_float = false;
        logits
    }

    fn head_norm(&mut self, x: Table, norm: usize) -> Table {
        let width = self.definitions.base.norms[norm].weight.len();
        self.each(&x, x.cols, |this, row, x| {
            x.chunks(width).flat_map(|group| this.norm_group(row, norm, group)).collect()
        })
    }

    fn store(&mut self, [q, k, v]: [Table; 3], layer: usize) -> Table {
        for row in 0..self.step.rows.len() {
            let mut cell = [self.rotated(row, &k.rows[row]), v.rows[row].clone()];
            if let Some(noise) = &mut self.noise {
                let dtype = noise.rounding.kv;
                cell.iter_mut().for_each(|numbers| noise.add(numbers, dtype));
            }
            let place = self.place(row, self.step.rows.positions[row] as usize);
            self.kv[layer].insert(place, cell);
        }
        self.each(&q, q.cols, |this, row, q| {
            let rotated = this.rotated(row, q);
            this.rounded(rotated)
        })
    }

    fn attention(&mut self, q: &Table, layer: usize, window: Option<u32>) -> Table {
        self.each(q, q.cols, |this, row, q| this.attend(row, q, layer, window))
    }

    /// Draws are held against the device's own logits.
    fn sample(&mut self, _: &Table, _: u64) -> Vec<Sampled> {
        Vec::new()
    }

    fn download(&mut self, x: &Table) -> (Vec<f64>, usize) {
        (x.rows.concat(), x.cols)
    }
}
