//! The CPU's linears, norms and elementwise ops against their definitions in f64.

mod reads;

use std::sync::Arc;

use tessera::backend::cpu::simd::Level;
use tessera::backend::cpu::{Cpu, Matrix, Slots};
use tessera::backend::{
    AttentionOps, Device, Embedding, Folding, HostMatrix, Linear, LinearOps, Norm, Outputs,
    RopeTable, RowOps, Rows, Wanted,
};
use tessera::delta::{Delta, DeltaBuilder, Factor, LowRank, Side, SiteDelta};
use tessera::dtype::{Dtype, Values};
use tessera::ids::{BlockId, SiteId, Slot};
use tessera::recipe::{Part, Recipe, Weight};

use crate::Rng;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// What a row carries: slots with weights.
type Parts = Vec<(u32, f32)>;

fn recipe(parts: &[(u32, f32)]) -> Recipe<Slot> {
    let part = |&(slot, weight): &(u32, f32)| Part {
        adapter: Slot(slot),
        weight: Weight::new(weight).unwrap(),
    };
    Recipe::new(parts.iter().map(part).collect())
}

/// The bare base, one adapter as it is, one by a share, or several, of slots 1 … 3.
fn carried(rng: &mut Rng) -> Parts {
    let weight = |rng: &mut Rng| [0.5, -0.75, 1.0, 1.5][rng.below(4)];
    match rng.below(5) {
        0 => vec![],
        1 | 2 => vec![(1 + rng.below(3) as u32, 1.0)],
        parts => {
            (0..parts - 2 + rng.below(2)).map(|_| (1 + rng.below(3) as u32, weight(rng))).collect()
        }
    }
}

/// Sequences of one token each.
fn rows(tokens: &[u32], carried: &[Parts], logit_rows: Vec<u32>) -> Rows {
    let mut rows = Rows::default();
    for (i, (&token, parts)) in tokens.iter().zip(carried).enumerate() {
        rows.push(&[token], 0, &recipe(parts), vec![BlockId(i as u32)]);
    }
    rows.logit_rows = logit_rows;
    rows
}

/// What `ops` gives in a step.
pub fn in_step<D: Device, R>(
    device: &D,
    rows: &Rows,
    slots: &D::Slots,
    mut ops: impl FnMut(&D::Step<'_>) -> R,
) -> R {
    let mut result = None;
    device.run(rows, slots, |step| {
        result = Some(ops(step));
        Outputs { logits: None, hidden: None }
    });
    result.expect("a step runs its ops")
}

fn matrix(rng: &mut Rng, rows: usize, cols: usize, dtype: Dtype) -> HostMatrix {
    HostMatrix { values: Values::from_f32(rng.vec(rows * cols), dtype), rows, cols }
}

/// Dense, or rows put together from a pool of twice as many shards.
fn factor(
    rng: &mut Rng,
    builder: &mut DeltaBuilder,
    side: Side,
    rank: usize,
    width: usize,
) -> Factor {
    let shards = [1, 2, 3, 4][rng.below(4)];
    if shards == 1 || !width.is_multiple_of(shards) {
        return builder.push_dense(side, &rng.vec(rank * width), rank).unwrap();
    }
    let shard_len = width / shards;
    let pool = 2 * rank * shards;
    let first = builder.push(side, &rng.vec(pool * shard_len)).unwrap();
    let offset = |rng: &mut Rng| first + (rng.below(pool) * shard_len) as u32;
    let offsets = (0..rank * shards).map(|_| offset(rng)).collect();
    DeltaBuilder::gather(side, shard_len, shards, offsets)
}

/// Each part of the form present or absent at random.
fn change(
    rng: &mut Rng,
    builder: &mut DeltaBuilder,
    [inner, outer]: [usize; 2],
    weight_len: usize,
) -> SiteDelta {
    let mut change = SiteDelta::default();
    if rng.below(4) > 0 {
        let rank = [1, 3, 16, 64][rng.below(4)];
        let down = factor(rng, builder, Side::Down, rank, inner);
        let up = factor(rng, builder, Side::Up, rank, outer);
        let middle = (rng.below(2) == 0).then(|| rng.vec(rank));
        let end = (rng.below(2) == 0).then(|| rng.vec(outer));
        change.low_rank = Some(LowRank { rank, down, middle, up, end });
    }
    change.scale = (rng.below(3) == 0).then(|| rng.vec(outer));
    change.shift = (rng.below(3) == 0).then(|| rng.vec(outer));
    let dtype = DTYPES[rng.below(3)];
    change.weight = (rng.below(5) == 0).then(|| Values::from_f32(rng.vec(weight_len), dtype));
    change
}

/// `scale ⊙ (y + end ⊙ B (middle ⊙ A x)) + shift` at output `o`, y given.
fn changed(delta: &Delta, change: &SiteDelta, y: f64, x: &[f32], o: usize) -> f64 {
    let at =
        |v: &Option<Vec<f32>>, i: usize, neutral| v.as_ref().map_or(neutral, |v| f64::from(v[i]));
    let pair = change.low_rank.as_ref().map_or(0.0, |pair| {
        let LowRank { rank, down, middle, up, end } = pair;
        let hidden = |r: usize| {
            let term = |(i, &x): (usize, &f32)| match x {
                0.0 => 0.0,
                x => f64::from(delta.element(down, r, i)) * f64::from(x),
            };
            at(middle, r, 1.0) * x.iter().enumerate().map(term).sum::<f64>()
        };
        let term = |r: usize| f64::from(delta.element(up, r, o)) * hidden(r);
        at(end, o, 1.0) * (0..*rank).map(term).sum::<f64>()
    });
    at(&change.scale, o, 1.0) * (y + pair) + at(&change.shift, o, 0.0)
}

/// `y + Σ w · (what the adapter alone makes of y − y)` at every output; `y(own, o)` is the base's
/// with an adapter's own weight in its place, if given.
fn composed(
    out: usize,
    parts: &[(&Delta, f32)],
    site: SiteId,
    x: &[f32],
    y: &dyn Fn(Option<&Values>, usize) -> f64,
) -> Vec<f64> {
    let at = |o: usize| {
        let base = y(None, o);
        let share = |&(delta, weight): &(&Delta, f32)| {
            let change = delta.site(site)?;
            let mine = changed(delta, change, y(change.weight.as_ref(), o), x, o);
            Some(f64::from(weight) * (mine - base))
        };
        base + parts.iter().filter_map(share).sum::<f64>()
    };
    (0..out).map(at).collect()
}

fn assert_close(found: &[f32], exact: &[f64], what: &str) {
    assert_eq!(found.len(), exact.len(), "{what}");
    let size = exact.iter().fold(1.0, |m: f64, e| m.max(e.abs()));
    for (i, (&found, &exact)) in found.iter().zip(exact).enumerate() {
        let error = (f64::from(found) - exact).abs();
        assert!(error <= size * 2e-5, "{what} [{i}]: {found}, expected {exact}");
    }
}

/// Three linears that share x, and three adapters that change some of them.
struct Case {
    linears: [Linear<Cpu>; 3],
    weights: Vec<Values>,
    biases: Vec<Option<Vec<f32>>>,
    /// Of slots 1 … 3.
    deltas: Vec<Arc<Delta>>,
    inner: usize,
}

fn case(rng: &mut Rng, cpu: &Cpu, inner: usize, dtype: Dtype) -> Case {
    let outs = [1 + rng.below(90), 1 + rng.below(40), 12 * (1 + rng.below(20))];
    let hosts = outs.map(|out| matrix(rng, out, inner, dtype));
    let weights = hosts.iter().map(|m| m.values.clone()).collect();
    let biases = outs.map(|out| (rng.below(2) == 0).then(|| rng.vec(out)));
    let mut sites = 0..;
    let linears = [0, 1, 2].map(|i| Linear {
        weight: Arc::new(cpu.upload(hosts[i].clone())),
        bias: biases[i].as_ref().map(|bias| cpu.upload_vector(bias)),
        site: SiteId(sites.next().unwrap()),
        in_features: inner,
        out_features: outs[i],
    });
    let delta = |rng: &mut Rng| {
        let mut builder = DeltaBuilder::default();
        for (site, &out) in outs.iter().enumerate() {
            if rng.below(4) > 0 {
                let change = change(rng, &mut builder, [inner, out], inner * out);
                *builder.site(SiteId(site as u32)) = change;
            }
        }
        Arc::new(builder.finish(DTYPES[rng.below(3)]))
    };
    let deltas = (0..3).map(|_| delta(rng)).collect();
    Case { linears, weights, biases: biases.into(), deltas, inner }
}

/// The case's adapters in slots 1 … 3.
fn slots(cpu: &Cpu, deltas: &[Arc<Delta>]) -> Slots {
    let mut slots = cpu.slots(4);
    for (slot, delta) in (1..).zip(deltas) {
        cpu.write_slot(&mut slots, Slot(slot), delta.clone()).unwrap();
    }
    slots
}

fn run(cpu: &Cpu, case: &Case, x: &Matrix, carried: &[Parts]) -> [Matrix; 3] {
    let rows = rows(&vec![0; carried.len()], carried, Vec::new());
    let linears = case.linears.each_ref();
    in_step(cpu, &rows, &slots(cpu, &case.deltas), |step| cpu.linears(x, linears, step))
}

impl Case {
    fn exact(&self, linear: usize, x: &[f32], parts: &Parts) -> Vec<f64> {
        let of = |&(slot, weight): &(u32, f32)| (&*self.deltas[slot as usize - 1], weight);
        let parts: Vec<_> = parts.iter().map(of).collect();
        let y = |own: Option<&Values>, o: usize| {
            let weight = own.unwrap_or(&self.weights[linear]);
            let term = |i: usize| f64::from(weight.get(o * x.len() + i)) * f64::from(x[i]);
            let bias = self.biases[linear].as_ref().map_or(0.0, |bias| f64::from(bias[o]));
            (0..x.len()).map(term).sum::<f64>() + bias
        };
        let out = self.linears[linear].out_features;
        composed(out, &parts, SiteId(linear as u32), x, &y)
    }
}

fn check_linears(level: Level, threads: usize, seed: u64) {
    let cpu = Cpu::with_level(threads, level);
    let mut rng = Rng(seed);
    for round in 0..60 {
        let inner = if round < 40 { 1 + rng.below(70) } else { 4 * (20 + rng.below(200)) };
        let case = case(&mut rng, &cpu, inner, DTYPES[round % 3]);
        let n = 1 + rng.below(33);
        let carried: Vec<Parts> = (0..n).map(|_| carried(&mut rng)).collect();
        let x = Matrix::new(rng.vec(n * case.inner), case.inner);
        let together = run(&cpu, &case, &x, &carried);
        for row in 0..n {
            let alone = Matrix::new(x.row(row).to_vec(), case.inner);
            let alone = run(&cpu, &case, &alone, &carried[row..=row]);
            for (site, (together, alone)) in together.iter().zip(&alone).enumerate() {
                let parts = &carried[row];
                let what = format!("{level:?} round {round}, row {row} of {n}, {site}, {parts:?}");
                let bits = |row: &[f32]| row.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(together.row(row)), bits(alone.row(0)), "{what}: alone");
                assert_close(together.row(row), &case.exact(site, x.row(row), parts), &what);
            }
        }
    }
}

#[test]
fn linears_agree_with_f64_and_a_batched_row_has_the_bits_of_the_row_alone() {
    for (i, level) in Level::available().into_iter().enumerate() {
        check_linears(level, 1 + i % 2, 11 + i as u64);
    }
    check_linears(Level::detect(), 3, 77);
}

#[test]
fn a_large_batch_has_the_bits_of_its_rows_alone() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(5);
    let case = case(&mut rng, &cpu, 6144, Dtype::BF16);
    let kinds: [Parts; 3] = [vec![], vec![(2, 1.0)], vec![(1, 0.5), (3, -1.0)]];
    let carried: Vec<Parts> = (0..97).map(|i| kinds[i / 40].clone()).collect();
    let x = Matrix::new(rng.vec(97 * case.inner), case.inner);
    let together = run(&cpu, &case, &x, &carried);
    for row in [0, 1, 31, 39, 40, 49, 50, 79, 80, 95, 96] {
        let alone = Matrix::new(x.row(row).to_vec(), case.inner);
        let alone = run(&cpu, &case, &alone, &carried[row..=row]);
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(together.row(row), alone.row(0), "row {row}");
        }
    }
}

#[test]
fn the_head_sees_the_adapters_of_the_rows_whose_logits_are_wanted() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(6);
    let case = case(&mut rng, &cpu, 40, Dtype::F16);
    let carried: [Parts; 5] =
        [vec![(1, 1.0)], vec![], vec![(2, 1.0)], vec![(3, 1.0)], vec![(2, 0.5), (1, 0.5)]];
    let x = Matrix::new(rng.vec(5 * 40), 40);
    let mut rows = rows(&[0; 5], &carried, vec![1, 2, 4]);
    rows.hidden_rows = vec![0, 4];
    let [logits, hidden] = in_step(&cpu, &rows, &slots(&cpu, &case.deltas), |step| {
        let last = cpu.pick_rows(&x, Wanted::Logits, step);
        let hidden = cpu.pick_rows(&x, Wanted::Hidden, step);
        [cpu.head(&last, &case.linears[0], step), hidden]
    });
    let [all, ..] = run(&cpu, &case, &x, &carried);
    assert_eq!((logits.rows(), hidden.rows()), (3, 2));
    for (i, row) in [1, 2, 4].into_iter().enumerate() {
        assert_eq!(logits.row(i), all.row(row));
    }
    assert_eq!((hidden.row(0), hidden.row(1)), (x.row(0), x.row(4)));
}

#[test]
fn merged_linears_equal_unmerged_ones_and_leave_a_tied_matrix_alone() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(21);
    for round in 0..40 {
        let inner = 1 + rng.below(60);
        let mut case = case(&mut rng, &cpu, inner, Dtype::F32);
        let x = Matrix::new(rng.vec(3 * case.inner), case.inner);
        let unmerged = run(&cpu, &case, &x, &[vec![(1, 1.0)], vec![(1, 1.0)], vec![(1, 1.0)]]);
        let bare: [Parts; 3] = [const { Vec::new() }; 3];
        let before = run(&cpu, &case, &x, &bare);
        let tied = case.linears.each_ref().map(|l| l.weight.clone());
        let delta = case.deltas[0].clone();
        for (site, change) in &delta.sites {
            cpu.fold_linear(&mut case.linears[site.0 as usize], &delta, change);
        }
        let merged = run(&cpu, &case, &x, &bare);
        for (merged, unmerged) in merged.iter().zip(&unmerged) {
            let exact: Vec<f64> =
                cpu.download(unmerged).unwrap().iter().map(|&y| f64::from(y)).collect();
            assert_close(&cpu.download(merged).unwrap(), &exact, &format!("round {round}"));
        }
        for ((linear, weight), bias) in case.linears.iter_mut().zip(tied).zip(&case.biases) {
            linear.weight = weight;
            linear.bias = bias.clone();
        }
        assert_eq!(run(&cpu, &case, &x, &bare), before, "the original was written");
    }
}

#[test]
fn embeddings_agree_with_f64_unmerged_and_merged() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(31);
    let kinds: [Parts; 4] = [vec![], vec![(1, 1.0)], vec![(1, -0.5)], vec![(1, 0.5), (2, 1.5)]];
    for round in 0..60 {
        let (vocabulary, hidden) = (1 + rng.below(50), 1 + rng.below(70));
        let host = matrix(&mut rng, vocabulary, hidden, DTYPES[round % 3]);
        let mut delta = || {
            let mut builder = DeltaBuilder::default();
            let change = change(&mut rng, &mut builder, [vocabulary, hidden], vocabulary * hidden);
            *builder.site(SiteId(0)) = change;
            Arc::new(builder.finish(Dtype::F32))
        };
        let deltas = [delta(), delta()];
        let mut table = Embedding {
            weight: Arc::new(cpu.upload(host.clone())),
            shift: None,
            site: SiteId(0),
            vocabulary,
            hidden,
        };
        let slots = slots(&cpu, &deltas);
        let tokens: Vec<u32> = (0..8).map(|_| rng.below(vocabulary) as u32).collect();
        let carried: Vec<Parts> = (0..8).map(|i| kinds[i % 4].clone()).collect();
        let embed = |table: &Embedding<Cpu>, carried: &[Parts]| {
            let rows = rows(&tokens, carried, Vec::new());
            in_step(&cpu, &rows, &slots, |step| cpu.embed(table, step))
        };
        let exact = |token: u32, parts: &Parts| {
            let of = |&(slot, weight): &(u32, f32)| (&*deltas[slot as usize - 1], weight);
            let parts: Vec<_> = parts.iter().map(of).collect();
            let mut one_hot = vec![0.0; vocabulary];
            one_hot[token as usize] = 1.0;
            let y = |own: Option<&Values>, o: usize| {
                f64::from(own.unwrap_or(&host.values).get(token as usize * hidden + o))
            };
            composed(hidden, &parts, SiteId(0), &one_hot, &y)
        };
        let out = embed(&table, &carried);
        for (row, (&token, parts)) in tokens.iter().zip(&carried).enumerate() {
            assert_close(out.row(row), &exact(token, parts), &format!("round {round} row {row}"));
        }
        if round % 3 == 0 {
            cpu.fold_embedding(&mut table, &deltas[0], &deltas[0].sites[0].1);
            let merged = embed(&table, &[const { Vec::new() }; 8]);
            for (row, &token) in tokens.iter().enumerate() {
                assert_close(merged.row(row), &exact(token, &kinds[1]), "merged");
            }
        }
    }
}

#[test]
fn norms_agree_with_f64_for_whole_rows_and_for_heads() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(41);
    let kinds: [Parts; 4] = [vec![], vec![(1, 1.0)], vec![(1, 0.5)], vec![(2, -0.5), (1, 1.0)]];
    for (width, groups) in [(1, 1), (17, 1), (64, 1), (333, 1), (16, 5), (7, 3), (2048, 20)] {
        let weight = Values::from_f32(rng.vec(width), Dtype::F32);
        let site = SiteId(3);
        let mut norm = Norm::<Cpu> { weight: weight.to_f32(), shift: None, width, eps: 1e-5, site };
        let mut delta = |own: bool| {
            let mut builder = DeltaBuilder::default();
            *builder.site(site) = SiteDelta {
                low_rank: None,
                scale: Some(rng.vec(width)),
                shift: Some(rng.vec(width)),
                weight: own.then(|| Values::from_f32(rng.vec(width), Dtype::F32)),
            };
            Arc::new(builder.finish(Dtype::F32))
        };
        let deltas = [delta(true), delta(false)];
        let slots = slots(&cpu, &deltas);
        let x = rng.vec(kinds.len() * width * groups);
        let run = |norm: &Norm<Cpu>, carried: &[Parts]| {
            let rows = rows(&[0; 4], carried, Vec::new());
            let x = || Matrix::new(x.clone(), width * groups);
            in_step(&cpu, &rows, &slots, |step| {
                let heads = cpu.head_norm(x(), norm, step);
                if groups == 1 {
                    assert_eq!(cpu.rms_norm(&x(), norm, step), heads, "one head is the whole row");
                }
                heads
            })
        };
        let exact = |row: usize, parts: &Parts| -> Vec<f64> {
            let of = |&(slot, weight): &(u32, f32)| (&*deltas[slot as usize - 1], weight);
            let parts: Vec<_> = parts.iter().map(of).collect();
            let group = |x: &[f32]| {
                let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                let factor = 1.0 / (squares / width as f64 + 1e-5).sqrt();
                let y = |own: Option<&Values>, i: usize| {
                    f64::from(x[i]) * factor * f64::from(own.unwrap_or(&weight).get(i))
                };
                composed(width, &parts, site, &[], &y)
            };
            x[row * width * groups..][..width * groups].chunks(width).flat_map(group).collect()
        };
        let out = run(&norm, &kinds);
        for (row, parts) in kinds.iter().enumerate() {
            assert_close(out.row(row), &exact(row, parts), &format!("{parts:?}"));
        }
        cpu.fold_norm(&mut norm, &deltas[0].sites[0].1);
        let merged = run(&norm, &[const { Vec::new() }; 4]);
        assert_close(merged.row(0), &exact(0, &kinds[1]), "merged");
    }
}

#[test]
fn the_gated_activation_and_the_sum_agree_with_f64() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(51);
    for (n, cols) in [(0, 5), (1, 1), (3, 7), (9, 6144)] {
        let gate: Vec<f32> = rng.vec(n * cols).iter().map(|x| x * 20.0).collect();
        let up = rng.vec(n * cols);
        let [of_gate, of_up] = [&gate, &up].map(|x| || Matrix::new(x.clone(), cols));
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let pairs = || gate.iter().zip(&up);
        let exact: Vec<f64> = pairs().map(|(&g, &u)| silu(g.into()) * f64::from(u)).collect();
        assert_close(&cpu.download(&cpu.silu_mul(of_gate(), of_up())).unwrap(), &exact, "silu");
        let exact: Vec<f64> = pairs().map(|(&g, &u)| f64::from(g) + f64::from(u)).collect();
        assert_close(&cpu.download(&cpu.add(of_gate(), of_up())).unwrap(), &exact, "sum");
    }
}

/// cos and sin of position · 10000^(−2i/d).
pub fn rope(half: usize, positions: usize) -> RopeTable {
    let angle = |at: usize| {
        let (position, i) = ((at / half) as f64, (at % half) as f64);
        position * 10000f64.powf(-i / half as f64)
    };
    let cos = (0..positions * half).map(|at| angle(at).cos() as f32).collect();
    let sin = (0..positions * half).map(|at| angle(at).sin() as f32).collect();
    RopeTable { half, cos, sin }
}
