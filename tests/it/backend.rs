//! The CPU's linears, norms and elementwise ops against their definitions in f64.

use std::sync::Arc;

use tessera::backend::cpu::simd::Level;
use tessera::backend::cpu::{Cpu, Matrix};
use tessera::backend::{
    Adapters, Backend, Embedding, HostMatrix, Linear, Norm, RopeTable, Rows, Span,
};
use tessera::delta::{Delta, DeltaBuilder, Factor, SiteDelta};
use tessera::dtype::{Dtype, Values};
use tessera::ids::{BlockId, SiteId, Slot};

use crate::Rng;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// One sequence of `slots.len()` rows.
fn rows(tokens: Vec<u32>, slots: Vec<Slot>, logit_rows: Vec<u32>) -> Rows {
    let n = slots.len();
    let span = Span { start: 0, len: n, block_table: vec![BlockId(0)] };
    Rows { tokens, positions: (0..n as u32).collect(), slots, spans: vec![span], logit_rows }
}

fn matrix(rng: &mut Rng, rows: usize, cols: usize, dtype: Dtype) -> HostMatrix {
    HostMatrix { values: Values::from_f32(rng.vec(rows * cols), dtype), rows, cols }
}

/// Dense, or rows put together from a pool of twice as many shards.
fn factor(rng: &mut Rng, builder: &mut DeltaBuilder, rank: usize, width: usize) -> Factor {
    let shards = [1, 2, 3, 4][rng.below(4)];
    if shards == 1 || !width.is_multiple_of(shards) {
        return builder.push_dense(&rng.vec(rank * width), rank);
    }
    let shard_len = width / shards;
    let pool = 2 * rank * shards;
    let first = builder.push(&rng.vec(pool * shard_len));
    let offset = |rng: &mut Rng| first + (rng.below(pool) * shard_len) as u32;
    Factor { rank, shard_len, offsets: (0..rank * shards).map(|_| offset(rng)).collect() }
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
        change.down = Some(factor(rng, builder, rank, inner));
        change.up = Some(factor(rng, builder, rank, outer));
    }
    change.scale = (rng.below(3) == 0).then(|| rng.vec(outer));
    change.shift = (rng.below(3) == 0).then(|| rng.vec(outer));
    let dtype = DTYPES[rng.below(3)];
    change.weight = (rng.below(5) == 0).then(|| Values::from_f32(rng.vec(weight_len), dtype));
    change
}

/// `scale ⊙ (base + B h) + shift` at output `o`, where h is given.
fn changed(change: &SiteDelta, pool: &Values, base: f64, h: &[f64], o: usize) -> f64 {
    let mut y = base;
    if let Some(up) = &change.up {
        y += (0..up.rank).map(|r| f64::from(up.get(pool, r, o)) * h[r]).sum::<f64>();
    }
    let at = |v: &Option<Vec<f32>>, neutral| v.as_ref().map_or(neutral, |v| f64::from(v[o]));
    at(&change.scale, 1.0) * y + at(&change.shift, 0.0)
}

/// The whole formula at one linear for one row.
fn exact_linear(
    weight: &Values,
    bias: Option<&[f32]>,
    x: &[f32],
    out: usize,
    change: Option<(&SiteDelta, &Values)>,
) -> Vec<f64> {
    let own = change.and_then(|(change, _)| change.weight.as_ref());
    let weight = own.unwrap_or(weight);
    let hidden = |(change, pool): (&SiteDelta, &Values)| match &change.down {
        Some(down) => (0..down.rank)
            .map(|r| (0..x.len()).map(|i| f64::from(down.get(pool, r, i) * x[i])).sum())
            .collect(),
        None => Vec::new(),
    };
    let h: Vec<f64> = change.map_or(Vec::new(), hidden);
    (0..out)
        .map(|o| {
            let term = |i: usize| f64::from(weight.get(o * x.len() + i)) * f64::from(x[i]);
            let dot: f64 = (0..x.len()).map(term).sum();
            let y = dot + bias.map_or(0.0, |bias| f64::from(bias[o]));
            change.map_or(y, |(change, pool)| changed(change, pool, y, &h, o))
        })
        .collect()
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

fn run(cpu: &Cpu, case: &Case, x: &Matrix, slots: &[Slot]) -> [Matrix; 3] {
    let mut pool = cpu.pool(4);
    for (slot, delta) in case.deltas.iter().enumerate() {
        cpu.write_slot(&mut pool, Slot(slot as u32 + 1), delta.clone()).unwrap();
    }
    let batch = cpu.batch(rows(vec![0; slots.len()], slots.to_vec(), Vec::new()));
    let linears = case.linears.each_ref();
    cpu.linears(x, linears, &batch, Adapters { pool: &pool })
}

fn check_linears(level: Level, threads: usize, seed: u64) {
    let cpu = Cpu::with_level(threads, level);
    let mut rng = Rng(seed);
    for round in 0..60 {
        let inner = if round < 40 { 1 + rng.below(70) } else { 4 * (20 + rng.below(200)) };
        let case = case(&mut rng, &cpu, inner, DTYPES[round % 3]);
        let n = 1 + rng.below(33);
        let slots: Vec<Slot> =
            (0..n).map(|_| [Slot::BASE, Slot(1), Slot(2), Slot(3)][rng.below(4)]).collect();
        let x = Matrix::new(rng.vec(n * case.inner), case.inner);
        let together = run(&cpu, &case, &x, &slots);
        for row in 0..n {
            let alone = Matrix::new(x.row(row).to_vec(), case.inner);
            let alone = run(&cpu, &case, &alone, &slots[row..=row]);
            for (site, (together, alone)) in together.iter().zip(&alone).enumerate() {
                let what = format!("{level:?} round {round}, row {row} of {n}, linear {site}");
                let bits = |row: &[f32]| row.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(together.row(row)), bits(alone.row(0)), "{what}: alone");
                let delta =
                    (slots[row] != Slot::BASE).then(|| &case.deltas[slots[row].0 as usize - 1]);
                let change = delta.and_then(|d| Some((d.site(SiteId(site as u32))?, &d.pool)));
                let bias = case.biases[site].as_deref();
                let out = together.cols();
                let exact = exact_linear(&case.weights[site], bias, x.row(row), out, change);
                assert_close(together.row(row), &exact, &what);
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
    let slots: Vec<Slot> = (0..97).map(|i| [Slot::BASE, Slot(2)][i / 50]).collect();
    let x = Matrix::new(rng.vec(97 * case.inner), case.inner);
    let together = run(&cpu, &case, &x, &slots);
    for row in [0, 1, 31, 49, 50, 95, 96] {
        let alone = Matrix::new(x.row(row).to_vec(), case.inner);
        let alone = run(&cpu, &case, &alone, &slots[row..=row]);
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
    let mut pool = cpu.pool(4);
    for (slot, delta) in case.deltas.iter().enumerate() {
        cpu.write_slot(&mut pool, Slot(slot as u32 + 1), delta.clone()).unwrap();
    }
    let slots = vec![Slot(1), Slot::BASE, Slot(2), Slot(3), Slot(2)];
    let x = Matrix::new(rng.vec(5 * 40), 40);
    let batch = cpu.batch(rows(vec![0; 5], slots.clone(), vec![1, 2, 4]));
    let last = cpu.last_rows(&x, &batch);
    let logits = cpu.head(&last, &case.linears[0], &batch, Adapters { pool: &pool });
    let [all, ..] = run(&cpu, &case, &x, &slots);
    assert_eq!(logits.rows(), 3);
    for (i, row) in [1, 2, 4].into_iter().enumerate() {
        assert_eq!(logits.row(i), all.row(row));
    }
}

#[test]
fn merged_linears_equal_unmerged_ones_and_leave_a_tied_matrix_alone() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(21);
    for round in 0..40 {
        let inner = 1 + rng.below(60);
        let mut case = case(&mut rng, &cpu, inner, Dtype::F32);
        let x = Matrix::new(rng.vec(3 * case.inner), case.inner);
        let unmerged = run(&cpu, &case, &x, &[Slot(1); 3]);
        let before = run(&cpu, &case, &x, &[Slot::BASE; 3]);
        let tied = case.linears.each_ref().map(|l| l.weight.clone());
        let delta = case.deltas[0].clone();
        for (site, change) in &delta.sites {
            cpu.fold_linear(&mut case.linears[site.0 as usize], change, &delta.pool);
        }
        let merged = run(&cpu, &case, &x, &[Slot::BASE; 3]);
        for (merged, unmerged) in merged.iter().zip(&unmerged) {
            let exact: Vec<f64> =
                cpu.download(unmerged).unwrap().iter().map(|&y| f64::from(y)).collect();
            assert_close(&cpu.download(merged).unwrap(), &exact, &format!("round {round}"));
        }
        for ((linear, weight), bias) in case.linears.iter_mut().zip(tied).zip(&case.biases) {
            linear.weight = weight;
            linear.bias = bias.clone();
        }
        assert_eq!(run(&cpu, &case, &x, &[Slot::BASE; 3]), before, "the original was written");
    }
}

#[test]
fn embeddings_agree_with_f64_unmerged_and_merged() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(31);
    for round in 0..60 {
        let (vocabulary, hidden) = (1 + rng.below(50), 1 + rng.below(70));
        let host = matrix(&mut rng, vocabulary, hidden, DTYPES[round % 3]);
        let mut builder = DeltaBuilder::default();
        let changed_site =
            change(&mut rng, &mut builder, [vocabulary, hidden], vocabulary * hidden);
        *builder.site(SiteId(0)) = changed_site;
        let delta = Arc::new(builder.finish(Dtype::F32));
        let mut table = Embedding {
            weight: Arc::new(cpu.upload(host.clone())),
            shift: None,
            site: SiteId(0),
            vocabulary,
            hidden,
        };
        let mut pool = cpu.pool(1);
        cpu.write_slot(&mut pool, Slot(0), delta.clone()).unwrap();
        let tokens: Vec<u32> = (0..6).map(|_| rng.below(vocabulary) as u32).collect();
        let slots = (0..6).map(|i| [Slot::BASE, Slot(0)][i % 2]).collect();
        let batch = cpu.batch(rows(tokens.clone(), slots, Vec::new()));
        let out = cpu.embed(&table, &batch, Adapters { pool: &pool });
        let (_, site) = &delta.sites[0];
        let exact = |token: usize, adapted: bool| -> Vec<f64> {
            let own = site.weight.as_ref().filter(|_| adapted).unwrap_or(&host.values);
            let column = |f: &Factor| -> Vec<f64> {
                (0..f.rank).map(|r| f64::from(f.get(&delta.pool, r, token))).collect()
            };
            let h = site.down.as_ref().map_or(Vec::new(), column);
            let at = |o: usize| {
                let base = f64::from(own.get(token * hidden + o));
                if adapted { changed(site, &delta.pool, base, &h, o) } else { base }
            };
            (0..hidden).map(at).collect()
        };
        for (row, &token) in tokens.iter().enumerate() {
            let exact = exact(token as usize, row % 2 == 1);
            assert_close(out.row(row), &exact, &format!("round {round} row {row}"));
        }
        if round % 3 == 0 {
            cpu.fold_embedding(&mut table, site, &delta.pool);
            let batch = cpu.batch(rows(tokens.clone(), vec![Slot::BASE; 6], Vec::new()));
            let merged = cpu.embed(&table, &batch, Adapters { pool: &pool });
            for (row, &token) in tokens.iter().enumerate() {
                assert_close(merged.row(row), &exact(token as usize, true), "merged");
            }
        }
    }
}

#[test]
fn norms_agree_with_f64_for_whole_rows_and_for_heads() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(41);
    for (width, groups) in [(1, 1), (17, 1), (64, 1), (333, 1), (16, 5), (7, 3), (2048, 20)] {
        let weight = rng.vec(width);
        let mut norm =
            Norm::<Cpu> { weight: weight.clone(), shift: None, width, eps: 1e-5, site: SiteId(3) };
        let (scale, shift, own) = (rng.vec(width), rng.vec(width), rng.vec(width));
        let site = SiteDelta {
            scale: Some(scale.clone()),
            shift: Some(shift.clone()),
            weight: Some(Values::from_f32(own.clone(), Dtype::F32)),
            ..SiteDelta::default()
        };
        let mut builder = DeltaBuilder::default();
        *builder.site(SiteId(3)) = site.clone();
        let mut pool = cpu.pool(1);
        cpu.write_slot(&mut pool, Slot(0), Arc::new(builder.finish(Dtype::F32))).unwrap();
        let x = Matrix::new(rng.vec(2 * width * groups), width * groups);
        let batch = cpu.batch(rows(vec![0; 2], vec![Slot::BASE, Slot(0)], Vec::new()));
        let out = cpu.rms_norm(&x, &norm, &batch, Adapters { pool: &pool });
        let exact = |row: usize, adapted: bool| -> Vec<f64> {
            let group = |x: &[f32]| -> Vec<f64> {
                let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                let factor = 1.0 / (squares / width as f64 + 1e-5).sqrt();
                let at = |i: usize| {
                    let base = f64::from(x[i]) * factor;
                    if adapted {
                        base * f64::from(own[i]) * f64::from(scale[i]) + f64::from(shift[i])
                    } else {
                        base * f64::from(weight[i])
                    }
                };
                (0..width).map(at).collect()
            };
            x.row(row).chunks(width).flat_map(group).collect()
        };
        assert_close(out.row(0), &exact(0, false), "base");
        assert_close(out.row(1), &exact(1, true), "adapted");
        cpu.fold_norm(&mut norm, &site);
        let batch = cpu.batch(rows(vec![0; 2], vec![Slot::BASE; 2], Vec::new()));
        let merged = cpu.rms_norm(&x, &norm, &batch, Adapters { pool: &pool });
        assert_close(merged.row(0), &exact(0, true), "merged");
    }
}

#[test]
fn the_gated_activation_and_the_sum_agree_with_f64() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(51);
    for (n, cols) in [(0, 5), (1, 1), (3, 7), (9, 6144)] {
        let gate = Matrix::new(rng.vec(n * cols).iter().map(|x| x * 20.0).collect(), cols);
        let up = Matrix::new(rng.vec(n * cols), cols);
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let pairs = || (0..n).flat_map(|r| gate.row(r).iter().zip(up.row(r)));
        let exact: Vec<f64> = pairs().map(|(&g, &u)| silu(g.into()) * f64::from(u)).collect();
        assert_close(&cpu.download(&cpu.silu_mul(&gate, &up)).unwrap(), &exact, "silu");
        let mut sum = gate.clone();
        cpu.add(&mut sum, &up);
        let exact: Vec<f64> = pairs().map(|(&g, &u)| f64::from(g) + f64::from(u)).collect();
        assert_close(&cpu.download(&sum).unwrap(), &exact, "sum");
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
