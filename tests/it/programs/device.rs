//! Programs on a backend.

use std::sync::Arc;

use tessera::backend::cpu::Cpu;
use tessera::backend::cuda::{Cuda, CudaSettings, DeviceMemory, Kv, Opened, Slots, StepLimits};
use tessera::backend::{
    AttentionShape, Backend, Device, Embedding, HostMatrix, Linear, LinearOps, Norm, Outputs,
    RowOps, Rows, Sampled, Wanted,
};
use tessera::delta::Delta;
use tessera::dtype::Dtype;
use tessera::engine::wait_until_ready;
use tessera::ids::Slot;

use super::base::{Base, GATE_UP, Matrix, NormWeight, POSITIONS_MAX};
use super::draws;
use super::exact::Rounding;
use super::generate::ADAPTERS;
use super::program::{Machine, Program, Shown, execute};
use crate::cuda::card::{Card, is_real, kernel_cache};

/// Two tests of one body that is generic in the backend: on the CPU, and on a card.
macro_rules! on_each_backend {
    ($($name:ident => $body:ident;)*) => {
        $(mod $name {
            #[test]
            fn on_the_cpu() {
                super::$body(std::marker::PhantomData::<tessera::backend::cpu::Cpu>);
            }

            #[test]
            fn on_a_card() {
                super::$body(std::marker::PhantomData::<tessera::backend::cuda::Cuda>);
            }
        })*
    };
}
pub(crate) use on_each_backend;

/// A backend that tests are written for once: see `on_each_backend!`.
pub trait Tested: Backend {
    /// What all bases are opened on: a card's number.
    type Place: Copy;
    /// Programs of one base: as many as take a minute of processor time in all, if not fewer.
    const PROGRAMS: u64;
    fn place() -> Self::Place;
    /// The backend with a base on it.
    fn open(place: Self::Place, base: &Base) -> (Self, Modules<Self>);
    /// How it rounds what it computes in f32.
    fn rounding(dtype: Dtype) -> Rounding;
    /// Whether all that programs are for was done.
    fn ran(place: Self::Place);
}

impl Tested for Cpu {
    type Place = ();
    const PROGRAMS: u64 = 56;

    fn place() {}

    fn open((): (), base: &Base) -> (Self, Modules<Self>) {
        let cpu = Cpu::new(1);
        let modules = Modules::new(&cpu, base);
        (cpu, modules)
    }

    /// Only keys and values are narrow.
    fn rounding(dtype: Dtype) -> Rounding {
        Rounding { activations: Dtype::F32, kv: dtype }
    }

    fn ran((): ()) {}
}

impl Tested for Cuda {
    type Place = Card;
    /// Of an emulated card 432 in all, not the CPU's 2016: they are the first of those. Its threads
    /// take turns on one, which makes a program a tenth of a second.
    const PROGRAMS: u64 = 12;

    fn place() -> Card {
        Card::new()
    }

    fn open(card: Card, base: &Base) -> (Self, Modules<Self>) {
        let matrices = || base.tables.iter().chain(&base.linears).chain(&base.heads);
        let shape = base.shape;
        let opened = Opened::open(&CudaSettings {
            ordinal: card.ordinal,
            dtype: base.dtype,
            weight_bytes: matrices().map(|m| m.weight.bytes() as u64).sum(),
            matrices: matrices().count(),
            group: shape.heads / shape.kv_heads,
            head_dim: shape.head_dim,
            width_max: base.linears.iter().map(|l| l.cols).max().unwrap(),
            vocabulary: base.heads[0].rows,
            block_tokens: base.kv.block_tokens,
            kernel_cache: Some(&kernel_cache()),
            heard: &|_| {},
        });
        let limits = StepLimits {
            rows_max: 400,
            sequences_max: 16,
            context_tokens_max: POSITIONS_MAX,
            adapter_slots: ADAPTERS,
            recipe_parts_max: 3,
        };
        let loaded =
            opened.unwrap().load(&limits, base.kv, |cuda| Modules::new(cuda, base), widest_step);
        let (sites, kv) = (&base.sites, base.kv);
        let (adapter_bytes, adapter_slots) = (16 << 20, ADAPTERS);
        loaded.unwrap().ready(&DeviceMemory { kv, adapter_bytes, adapter_slots, sites }).unwrap()
    }

    fn rounding(dtype: Dtype) -> Rounding {
        Rounding { activations: dtype, kv: dtype }
    }

    fn ran(card: Card) {
        if !is_real() {
            assert!(card.get("replays") > 40, "{} steps were replayed", card.get("replays"));
        }
    }
}

/// More than any program keeps: its ranks are lower than what is measured with.
fn widest_step(of: &Modules<Cuda>, cuda: &Cuda, rows: &Rows, slots: &Slots, _: &mut Kv) {
    cuda.run(rows, slots, |step| {
        let x = cuda.embed(&of.tables[0], step);
        let linears = GATE_UP.map(|linear| &of.linears[linear]);
        let _kept: Vec<_> = (0..12).map(|_| cuda.linears(&x, linears, step)).collect();
        Outputs { logits: None, hidden: None }
    });
}

/// A base's weights on a backend.
pub struct Modules<B: Backend> {
    tables: Vec<Embedding<B>>,
    norms: Vec<Norm<B>>,
    linears: Vec<Linear<B>>,
    heads: Vec<Linear<B>>,
    rope: B::Rope,
}

impl<B: Backend> Modules<B> {
    fn new(backend: &B, base: &Base) -> Self {
        let weight = |m: &Matrix| {
            let Matrix { rows, cols, .. } = *m;
            Arc::new(backend.upload(HostMatrix { values: m.weight.clone(), rows, cols }))
        };
        let vector = |v: &Option<Vec<f32>>| v.as_ref().map(|v| backend.upload_vector(v));
        let linear = |m: &Matrix| Linear {
            weight: weight(m),
            bias: vector(&m.bias),
            site: m.site,
            in_features: m.cols,
            out_features: m.rows,
        };
        let linears = base.linears.iter().map(linear).collect();
        let table = |m: &Matrix| Embedding {
            weight: weight(m),
            shift: vector(&m.bias),
            site: m.site,
            vocabulary: m.rows,
            hidden: m.cols,
        };
        let tables: Vec<Embedding<B>> = base.tables.iter().map(table).collect();
        let mut heads: Vec<Linear<B>> = base.heads.iter().map(linear).collect();
        heads[1].weight = tables[0].weight.clone();
        let norm = |norm: &NormWeight| Norm {
            weight: backend.upload_vector(&norm.weight),
            shift: vector(&norm.shift),
            width: norm.weight.len(),
            eps: norm.eps,
            site: norm.site,
        };
        let norms = base.norms.iter().map(norm).collect();
        let rope = backend.upload_rope(base.rope.clone());
        Self { tables, norms, linears, heads, rope }
    }
}

/// A base on a backend.
pub struct Uploaded<'a, B: Tested> {
    base: &'a Base,
    backend: B,
    modules: Modules<B>,
}

impl<'a, B: Tested> Uploaded<'a, B> {
    pub fn new(place: B::Place, base: &'a Base) -> Self {
        let (backend, modules) = B::open(place, base);
        Self { base, backend, modules }
    }

    /// Everything a program shows.
    ///
    /// # Errors
    /// What the backend says of a step that failed.
    pub fn run(&self, program: &Program, deltas: &[Arc<Delta>]) -> Result<Vec<Shown>, String> {
        let backend = &self.backend;
        let mut kv = backend.kv(self.base.kv).unwrap();
        let mut slots = backend.slots(ADAPTERS);
        for (slot, delta) in (0..).map(Slot).zip(deltas) {
            backend.write_slot(&mut slots, slot, delta.clone()).map_err(|e| e.to_string())?;
            wait_until_ready(backend, &slots, slot).map_err(|e| e.to_string())?;
        }
        // Recordings go by rows: a backend has one model. A new vector makes it forget them.
        backend.upload_vector(&[0.0]);
        let mut all = Vec::new();
        for (step, of_step) in program.steps.iter().enumerate() {
            let rows = &of_step.rows;
            let mut shown = Vec::new();
            let outputs = backend.run(rows, &slots, |step_on| {
                let kv = &mut kv;
                let mut machine = OnDevice { of: self, kv, step: step_on };
                let logits;
                (shown, logits) = execute(&mut machine, program, step);
                Outputs { logits, hidden: None }
            });
            all.append(&mut shown);
            if let Some(logits) = outputs.logits {
                let seed = step as u64;
                let wanted = draws::Wanted::random(seed, rows.logit_rows.len(), self.base);
                let sampled = match step {
                    // An emulated card takes long to draw.
                    4 => Some(backend.sample(&logits, &wanted.wants()).map_err(|e| e.to_string())?),
                    _ => None,
                };
                let values = backend.download(&logits).map_err(|e| e.to_string())?;
                let cols = self.base.heads[0].rows;
                let values = values.iter().map(|&x| f64::from(x)).take(rows.len() * cols);
                all.push(Shown {
                    what: format!("step {step}, its logits"),
                    cols,
                    values: values.collect(),
                    sampled: sampled.map(|sampled| (seed, sampled)),
                });
            }
            backend.finish().map_err(|e| e.to_string())?;
        }
        Ok(all)
    }
}

/// A backend with one step's rows on it.
struct OnDevice<'a, 's, B: Tested> {
    of: &'a Uploaded<'a, B>,
    kv: &'a mut B::Kv,
    step: &'a B::Step<'s>,
}

impl<B: Tested> Machine for OnDevice<'_, '_, B> {
    type T = B::Tensor;

    fn embed(&mut self, table: usize) -> B::Tensor {
        self.of.backend.embed(&self.of.modules.tables[table], self.step)
    }

    fn rms_norm(&mut self, x: &B::Tensor, norm: usize) -> B::Tensor {
        self.of.backend.rms_norm(x, &self.of.modules.norms[norm], self.step)
    }

    fn silu_mul(&mut self, gate: B::Tensor, up: B::Tensor) -> B::Tensor {
        self.of.backend.silu_mul(gate, up)
    }

    fn add(&mut self, x: B::Tensor, y: B::Tensor) -> B::Tensor {
        self.of.backend.add(x, y)
    }

    fn pick(&mut self, x: &B::Tensor, wanted: Wanted) -> B::Tensor {
        self.of.backend.pick_rows(x, wanted, self.step)
    }

    fn linears(&mut self, x: &B::Tensor, linears: &[usize]) -> Vec<B::Tensor> {
        let (backend, all) = (&self.of.backend, &self.of.modules.linears);
        match *linears {
            [a] => backend.linears(x, [&all[a]], self.step).into(),
            [a, b] => backend.linears(x, [&all[a], &all[b]], self.step).into(),
            [a, b, c] => backend.linears(x, [&all[a], &all[b], &all[c]], self.step).into(),
            _ => panic!("{} linears", linears.len()),
        }
    }

    fn head(&mut self, x: &B::Tensor, head: usize) -> B::Tensor {
        self.of.backend.head(x, &self.of.modules.heads[head], self.step)
    }

    fn head_norm(&mut self, x: B::Tensor, norm: usize) -> B::Tensor {
        self.of.backend.head_norm(x, &self.of.modules.norms[norm], self.step)
    }

    fn store(&mut self, qkv: [B::Tensor; 3], layer: usize) -> B::Tensor {
        self.of.backend.rope_and_store(qkv, &self.of.modules.rope, layer, self.kv, self.step)
    }

    fn attention(&mut self, q: &B::Tensor, layer: usize, window: Option<u32>) -> B::Tensor {
        let shape = AttentionShape { window, ..self.of.base.shape };
        self.of.backend.attention(q, &shape, layer, self.kv, self.step)
    }

    fn sample(&mut self, logits: &B::Tensor, seed: u64) -> Vec<Sampled> {
        let backend = &self.of.backend;
        let rows = backend.download(logits).unwrap().len() / self.of.base.heads[0].rows;
        let wanted = draws::Wanted::random(seed, rows, self.of.base);
        backend.sample(logits, &wanted.wants()).unwrap()
    }

    fn download(&mut self, x: &B::Tensor) -> (Vec<f64>, usize) {
        let numbers = self.of.backend.download(x).unwrap_or_else(|e| panic!("{e}"));
        (numbers.into_iter().map(f64::from).collect(), 0)
    }
}
