//! What is read twice, or not by whom a device hopes: every op gives what it gives after all before
//! it were read on their own, on the CPU and on a card, which leaves work to the next reader.

use std::sync::Arc;

use tessera::backend::cpu::Cpu;
use tessera::backend::cuda::{Cuda, CudaSettings, DeviceMemory, Kv, Opened, Slots, StepLimits};
use tessera::backend::{
    AttentionShape, Backend, Device, Embedding, HostMatrix, KvShape, Linear, Norm, Rows, Wanted,
};
use tessera::delta::{Delta, DeltaBuilder, SiteDelta};
use tessera::dtype::{Dtype, Values};
use tessera::engine::wait_until_ready;
use tessera::ids::{BlockId, SiteId, Slot};
use tessera::recipe::Recipe;
use tessera::site::{Site, SiteKind, SiteMap};

use super::{assert_close, change, in_step, matrix, recipe, rope};
use crate::Rng;
use crate::cuda::card::{Card, kernel_cache};

const VOCABULARY: usize = 40;
const HIDDEN: usize = 48;
const WIDE: usize = 40;
const HEAD_DIM: usize = 16;
/// Widths of q, k and v.
const HEADS: [usize; 3] = [2 * HEAD_DIM, HEAD_DIM, HEAD_DIM];
const SHAPE: AttentionShape =
    AttentionShape { heads: 2, kv_heads: 1, head_dim: HEAD_DIM, scale: 0.3, window: None };
const BLOCK_TOKENS: usize = 8;

/// Kind, input and output of each site: the table, a linear, q, k and v, gate and up, and the norms
/// of a row and of heads.
const SITES: [(SiteKind, usize, usize); 10] = [
    (SiteKind::Embedding, VOCABULARY, HIDDEN),
    (SiteKind::Linear, HIDDEN, HIDDEN),
    (SiteKind::Linear, HIDDEN, HEADS[0]),
    (SiteKind::Linear, HIDDEN, HEADS[1]),
    (SiteKind::Linear, HIDDEN, HEADS[2]),
    (SiteKind::Linear, HIDDEN, WIDE),
    (SiteKind::Linear, HIDDEN, WIDE),
    (SiteKind::Norm, HIDDEN, HIDDEN),
    (SiteKind::Norm, HEAD_DIM, HEAD_DIM),
    (SiteKind::Norm, HEAD_DIM, HEAD_DIM),
];

fn kv_shape(dtype: Dtype) -> KvShape {
    let (kv_heads, head_dim) = (SHAPE.kv_heads, HEAD_DIM);
    KvShape { layers: 1, kv_heads, head_dim, blocks: 4, block_tokens: BLOCK_TOKENS, dtype }
}

/// Weights and biases on the host, by site.
struct Host {
    weights: Vec<HostMatrix>,
    biases: Vec<Option<Vec<f32>>>,
    /// Of slots 1 … 3.
    deltas: Vec<Arc<Delta>>,
}

impl Host {
    /// `own`: adapters may have whole weights of linears.
    fn random(rng: &mut Rng, own: bool) -> Self {
        let weight = |&(kind, inputs, outputs): &(SiteKind, usize, usize)| match kind {
            SiteKind::Embedding => [inputs, outputs],
            SiteKind::Linear => [outputs, inputs],
            SiteKind::Norm => [1, outputs],
        };
        let shapes: Vec<[usize; 2]> = SITES.iter().map(weight).collect();
        let mut weights = Vec::new();
        for [rows, cols] in &shapes {
            weights.push(matrix(rng, *rows, *cols, Dtype::F32));
        }
        let bias = |site: usize, rng: &mut Rng| (site % 3 == 1).then(|| rng.vec(SITES[site].2));
        let biases = (0..SITES.len()).map(|site| bias(site, rng)).collect();
        let delta = |rng: &mut Rng| {
            let mut builder = DeltaBuilder::default();
            for (site, &(kind, inputs, outputs)) in SITES.iter().enumerate() {
                let [rows, cols] = shapes[site];
                let mut all = change(rng, &mut builder, [inputs, outputs], rows * cols);
                if kind == SiteKind::Norm {
                    let weight = all.weight.map(|w| Values::from_f32(w.to_f32(), Dtype::F32));
                    all = SiteDelta { low_rank: None, weight, ..all };
                } else if !own {
                    all.weight = None;
                } else if site == 1 {
                    all.weight = Some(Values::from_f32(rng.vec(rows * cols), Dtype::F32));
                }
                *builder.site(SiteId(site as u32)) = all;
            }
            Arc::new(builder.finish(Dtype::F32))
        };
        Self { weights, biases, deltas: (0..3).map(|_| delta(rng)).collect() }
    }
}

/// The same on a device.
struct Modules<B: Backend> {
    table: Embedding<B>,
    linear: Linear<B>,
    qkv: [Linear<B>; 3],
    gate_up: [Linear<B>; 2],
    norm: Norm<B>,
    head_norms: [Norm<B>; 2],
    rope: B::Rope,
}

impl<B: Backend> Modules<B> {
    fn new(b: &B, host: &Host) -> Self {
        let linear = |site: usize| Linear {
            weight: Arc::new(b.upload(host.weights[site].clone())),
            bias: host.biases[site].as_ref().map(|bias| b.upload_vector(bias)),
            site: SiteId(site as u32),
            in_features: SITES[site].1,
            out_features: SITES[site].2,
        };
        let norm = |site: usize| Norm {
            weight: b.upload_vector(&host.weights[site].values.to_f32()),
            shift: None,
            width: SITES[site].2,
            eps: 1e-5,
            site: SiteId(site as u32),
        };
        Self {
            table: Embedding {
                weight: Arc::new(b.upload(host.weights[0].clone())),
                shift: None,
                site: SiteId(0),
                vocabulary: VOCABULARY,
                hidden: HIDDEN,
            },
            linear: linear(1),
            qkv: [linear(2), linear(3), linear(4)],
            gate_up: [linear(5), linear(6)],
            norm: norm(7),
            head_norms: [norm(8), norm(9)],
            rope: b.upload_rope(rope(HEAD_DIM / 2, 32)),
        }
    }
}

/// Sequences, one of which carries its adapters from its third token on.
fn rows() -> Rows {
    let mut rows = Rows::default();
    let all = [
        (vec![3, 1, 4, 1, 5], recipe(&[(1, 1.0)]).active_from(2)),
        (vec![9, 2], Recipe::base()),
        (vec![6], Recipe::one(Slot(2))),
        (vec![5, 3, 5], recipe(&[(1, 0.5), (3, -0.75), (2, 1.0)])),
    ];
    for (block, (tokens, recipe)) in (0..).zip(all) {
        rows.push(&tokens, 0, &recipe, vec![BlockId(block)]);
    }
    rows.hidden_rows = vec![0, 3, 5, 10];
    rows
}

/// One device's ops in a step.
struct Ops<'a, 's, B: Backend> {
    b: &'a B,
    modules: &'a Modules<B>,
    step: &'a B::Step<'s>,
    /// Every tensor is read on its own before the next op.
    apart: bool,
}

type Results<B> = Vec<(&'static str, <B as Device>::Tensor)>;

impl<B: Backend> Ops<'_, '_, B> {
    fn made(&self, x: B::Tensor) -> B::Tensor {
        if self.apart {
            self.b.download(&x).unwrap();
        }
        x
    }

    fn linears<const N: usize>(&self, x: &B::Tensor, linears: [&Linear<B>; N]) -> [B::Tensor; N] {
        self.b.linears(x, linears, self.step).map(|y| self.made(y))
    }

    fn linear(&self, x: &B::Tensor) -> B::Tensor {
        let [y] = self.linears(x, [&self.modules.linear]);
        y
    }

    fn qkv(&self, x: &B::Tensor) -> [B::Tensor; 3] {
        self.linears(x, self.modules.qkv.each_ref())
    }

    fn norm(&self, x: &B::Tensor) -> B::Tensor {
        self.made(self.b.rms_norm(x, &self.modules.norm, self.step))
    }

    fn head_norm(&self, x: B::Tensor, which: usize) -> B::Tensor {
        self.made(self.b.head_norm(x, &self.modules.head_norms[which], self.step))
    }

    fn add(&self, x: B::Tensor, y: B::Tensor) -> B::Tensor {
        self.made(self.b.add(x, y))
    }

    fn pick(&self, x: &B::Tensor) -> B::Tensor {
        self.made(self.b.pick_rows(x, Wanted::Hidden, self.step))
    }

    fn embed(&self) -> B::Tensor {
        self.made(self.b.embed(&self.modules.table, self.step))
    }

    /// Products and sums, each with several readers.
    fn sums(&self) -> Results<B> {
        let x = self.embed();
        let y = self.linear(&x);
        let normed = self.norm(&y);
        let again = self.linear(&y);
        let x = self.add(x, y);
        let sum_normed = self.norm(&x);
        let of_sum = self.linear(&x);
        let picked = self.pick(&x);
        let x = self.add(x, self.linear(&sum_normed));
        let left = self.add(self.add(self.embed(), self.linear(&x)), self.linear(&normed));
        let right = self.add(self.embed(), self.add(self.linear(&x), self.linear(&normed)));
        let normed_again = self.norm(&x);
        let unread = self.add(self.embed(), self.embed());
        vec![
            ("a norm of a product", normed),
            ("a product of a product", again),
            ("a norm of a sum", sum_normed),
            ("a product of a sum that a norm has read", of_sum),
            ("rows of that sum", picked),
            ("a sum with a sum", left),
            ("a sum of a sum", right),
            ("a sum", x),
            ("its norm, after others have read it", normed_again),
            ("a sum of two that are no products", unread),
        ]
    }

    /// Norms of heads that no rotation reads.
    fn heads(&self) -> Results<B> {
        let x = self.embed();
        let [q, k, v] = self.qkv(&x);
        let q = self.head_norm(q, 0);
        let picked = self.pick(&q);
        let k = self.head_norm(self.head_norm(k, 1), 0);
        let of_sum = self.head_norm(self.add(self.embed(), self.linear(&x)), 0);
        let of_norm = self.head_norm(self.norm(&of_sum), 1);
        let added = self.add(self.embed(), self.head_norm(self.linear(&x), 1));
        vec![
            ("rows of a norm of heads", picked),
            ("a norm of heads", q),
            ("a norm of a norm of heads", k),
            ("a product beside them", v),
            ("a norm of a sum's heads", of_sum),
            ("a norm of a norm's heads", of_norm),
            ("a sum with a norm of heads", added),
        ]
    }

    /// Gates, and rotations of heads of which some were read before.
    fn readers(&self, kv: &mut B::Kv) -> Results<B> {
        let x = self.embed();
        let gate_up = self.modules.gate_up.each_ref();
        let [gate, up] = self.linears(&x, gate_up);
        let together = self.made(self.b.silu_mul(gate, up));
        let [gate, up] = self.linears(&x, gate_up);
        let swapped = self.made(self.b.silu_mul(up, gate));
        let [gate, up] = self.linears(&x, gate_up);
        let picked = self.pick(&up);
        let read = self.made(self.b.silu_mul(gate, up));
        let mut all = vec![
            ("a gate", together),
            ("a gate and its up the other way round", swapped),
            ("rows of an up", picked),
            ("a gate of that up", read),
        ];
        let names = [
            ["q, k and v as they are", "what they see"],
            ["q and k normed", "what they see"],
            ["k alone normed", "what they see"],
            ["q read before", "what they see"],
        ];
        for (case, [name, seen_name]) in names.into_iter().enumerate() {
            let [mut q, mut k, v] = self.qkv(&x);
            if case == 1 || case == 3 {
                q = self.head_norm(q, 0);
            }
            if case > 0 {
                k = self.head_norm(k, 1);
            }
            if case == 3 {
                all.push(("rows of q", self.pick(&q)));
            }
            let q = self.b.rope_and_store([q, k, v], &self.modules.rope, 0, kv, self.step);
            let q = self.made(q);
            let seen = self.made(self.b.attention(&q, &SHAPE, 0, kv, self.step));
            all.extend([(name, q), (seen_name, seen)]);
        }
        all
    }

    fn all(&self, kv: &mut B::Kv) -> Results<B> {
        let (sums, heads, readers) = (self.sums(), self.heads(), self.readers(kv));
        sums.into_iter().chain(heads).chain(readers).collect()
    }
}

fn compute<B: Backend>(
    b: &B,
    modules: &Modules<B>,
    rows: &Rows,
    slots: &B::Slots,
    kv: &mut B::Kv,
    apart: bool,
) -> Vec<(&'static str, Vec<f32>)> {
    let all = in_step(b, rows, slots, |step| Ops { b, modules, step, apart }.all(kv));
    all.into_iter().map(|(name, x)| (name, b.download(&x).unwrap())).collect()
}

/// What each op gives, and what it gives when all before it were read apart.
fn both<B: Backend>(
    b: &B,
    modules: &Modules<B>,
    host: &Host,
    dtype: Dtype,
) -> [Vec<(&'static str, Vec<f32>)>; 2] {
    let (mut slots, mut kv) = (b.slots(4), b.kv(kv_shape(dtype)).unwrap());
    for (slot, delta) in (1..).map(Slot).zip(&host.deltas) {
        b.write_slot(&mut slots, slot, delta.clone()).unwrap();
        wait_until_ready(b, &slots, slot).unwrap();
    }
    [false, true].map(|apart| compute(b, modules, &rows(), &slots, &mut kv, apart))
}

fn site_map() -> SiteMap {
    let mut sites = SiteMap::default();
    for (i, (kind, in_features, out_features)) in SITES.into_iter().enumerate() {
        let has_bias = i % 3 == 1;
        sites.add(Site { name: format!("site {i}"), kind, in_features, out_features, has_bias });
    }
    sites
}

/// A card with memory for these ops.
fn open(card: Card, host: &Host, dtype: Dtype) -> (Cuda, Modules<Cuda>) {
    let cache = kernel_cache();
    let weights = host.weights.iter().map(|w| w.rows * w.cols * dtype.bytes());
    let opened = Opened::open(&CudaSettings {
        ordinal: card.ordinal,
        dtype,
        weight_bytes: weights.sum::<usize>() as u64,
        matrices: SITES.len(),
        group: SHAPE.heads / SHAPE.kv_heads,
        head_dim: HEAD_DIM,
        width_max: HIDDEN,
        vocabulary: VOCABULARY,
        block_tokens: BLOCK_TOKENS,
        kernel_cache: Some(&cache),
        heard: &|_| {},
    });
    let opened = opened.unwrap_or_else(|e| panic!("{e}"));
    let limits = StepLimits {
        rows_max: 16,
        sequences_max: 4,
        context_tokens_max: 16,
        adapter_slots: 4,
        recipe_parts_max: 3,
    };
    let step = |modules: &Modules<Cuda>, cuda: &Cuda, rows: &Rows, slots: &Slots, kv: &mut Kv| {
        compute(cuda, modules, rows, slots, kv, false);
        compute(cuda, modules, rows, slots, kv, true);
    };
    let kv = kv_shape(dtype);
    let loaded = opened.load(&limits, kv, |cuda| Modules::new(cuda, host), step).unwrap();
    let sites = &site_map();
    let memory = DeviceMemory { kv, adapter_bytes: 8 << 20, adapter_slots: 4, sites };
    loaded.ready(&memory).unwrap()
}

#[test]
fn whoever_reads_a_tensor_and_however_often_finds_the_same_numbers_in_it() {
    let rng = &mut Rng(61);
    for own in [false, true] {
        let host = Host::random(rng, own);
        let cpu = Cpu::new(2);
        let [expected, apart] = both(&cpu, &Modules::new(&cpu, &host), &host, Dtype::F32);
        assert!(expected == apart);
        for dtype in [Dtype::F32, Dtype::BF16] {
            let (cuda, modules) = open(Card::new(), &host, dtype);
            let [together, apart] = both(&cuda, &modules, &host, dtype);
            let both = together.iter().zip(&apart).zip(&expected);
            for (((name, together), (_, apart)), (_, expected)) in both {
                let what = format!("{name}, {dtype:?}, own weights: {own}");
                assert!(together == apart, "{what}");
                if dtype == Dtype::F32 {
                    let exact: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
                    assert_close(together, &exact, &what);
                }
            }
        }
    }
}
