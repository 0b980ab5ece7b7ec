//! Programs of ops, and what runs them.

use std::fmt;

use tessera::backend::{Rows, Sampled, Wanted};
use tessera::ids::Slot;
use tessera::recipe::Part;

/// A tensor: what op gave it, counted over all tensors.
pub type Id = usize;

/// Indices of weights are those in a [`Base`](super::base::Base).
#[derive(Clone, Debug)]
pub enum Op {
    Embed { table: usize },
    RmsNorm { x: Id, norm: usize },
    SiluMul { gate: Id, up: Id },
    Add { x: Id, y: Id },
    Pick { x: Id, wanted: Wanted },
    Linears { x: Id, linears: Vec<usize> },
    Head { x: Id, head: usize },
    HeadNorm { x: Id, norm: usize },
    Store { qkv: [Id; 3], layer: usize },
    Attention { q: Id, layer: usize, window: Option<u32> },
    Download { x: Id },
    Sample { logits: Id, seed: u64 },
}

impl Op {
    /// Tensors it makes.
    pub fn outputs(&self) -> usize {
        match self {
            Op::Download { .. } | Op::Sample { .. } => 0,
            Op::Linears { linears, .. } => linears.len(),
            _ => 1,
        }
    }
}

/// Ops that are run on the rows of each step in turn.
#[derive(Clone)]
pub struct Program {
    pub ops: Vec<Op>,
    pub steps: Vec<Step>,
}

#[derive(Clone)]
pub struct Step {
    pub rows: Rows,
    /// What each row carries, by the meaning of a recipe.
    pub carried: Vec<Vec<Part<Slot>>>,
    /// Every row is drawn from and a device may replay what it recorded of equal rows: only the
    /// logits are looked at, after the step.
    pub replayed: bool,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next = 0;
        for op in &self.ops {
            let made: Vec<Id> = (next..next + op.outputs()).collect();
            next += op.outputs();
            writeln!(f, "  {made:?} = {op:?}")?;
        }
        for (i, Step { rows, carried, replayed }) in self.steps.iter().enumerate() {
            let replayed = if *replayed { ", may be replayed" } else { "" };
            writeln!(f, "  step {i}: {} rows{replayed}", rows.len())?;
            for span in &rows.spans {
                let recipe = |row: usize| {
                    let part = |p: &Part<Slot>| format!("{}·{}", p.weight.get(), p.adapter.0);
                    carried[row].iter().map(part).collect::<Vec<_>>().join(" + ")
                };
                let last = span.start + span.len - 1;
                let (first, end) = (rows.positions[span.start], rows.positions[last]);
                let ends = [recipe(span.start), recipe(last)];
                writeln!(f, "    positions {first}..={end} carry {ends:?}")?;
            }
            writeln!(f, "    logits {:?}, hidden {:?}", rows.logit_rows, rows.hidden_rows)?;
        }
        Ok(())
    }
}

/// What was seen of a run.
pub struct Shown {
    /// Step, op and tensor.
    pub what: String,
    pub cols: usize,
    pub values: Vec<f64>,
    /// Of logits: the seed of what was wanted, and what came of it.
    pub sampled: Option<(u64, Vec<Sampled>)>,
}

/// A device with one step's rows on it, or the definitions.
pub trait Machine {
    type T;
    fn embed(&mut self, table: usize) -> Self::T;
    fn rms_norm(&mut self, x: &Self::T, norm: usize) -> Self::T;
    fn silu_mul(&mut self, gate: Self::T, up: Self::T) -> Self::T;
    fn add(&mut self, x: Self::T, y: Self::T) -> Self::T;
    fn pick(&mut self, x: &Self::T, wanted: Wanted) -> Self::T;
    fn linears(&mut self, x: &Self::T, linears: &[usize]) -> Vec<Self::T>;
    fn head(&mut self, x: &Self::T, head: usize) -> Self::T;
    fn head_norm(&mut self, x: Self::T, norm: usize) -> Self::T;
    fn store(&mut self, qkv: [Self::T; 3], layer: usize) -> Self::T;
    fn attention(&mut self, q: &Self::T, layer: usize, window: Option<u32>) -> Self::T;
    fn sample(&mut self, logits: &Self::T, seed: u64) -> Vec<Sampled>;
    /// The numbers and the columns.
    fn download(&mut self, x: &Self::T) -> (Vec<f64>, usize);
}

/// Tensors of a run by id; consumed ones are gone.
struct Tensors<T>(Vec<Option<T>>);

impl<T> Tensors<T> {
    fn take(&mut self, id: Id) -> T {
        self.0[id].take().expect("a tensor is consumed once")
    }

    fn get(&self, id: Id) -> &T {
        self.0[id].as_ref().expect("a consumed tensor is not read")
    }
}

/// Runs the ops of one step. What is still there at the end is shown too, newest first in every
/// other step. In a step that may be replayed nothing is shown, and the last logits are returned.
pub fn execute<M: Machine>(
    m: &mut M,
    program: &Program,
    step: usize,
) -> (Vec<Shown>, Option<M::T>) {
    let replayed = program.steps[step].replayed;
    let mut tensors = Tensors(Vec::new());
    let mut shown = Vec::new();
    let mut last_logits = None;
    let mut show = |m: &mut M, what: String, x: &M::T, seed: Option<u64>| {
        let sampled = seed.map(|seed| (seed, m.sample(x, seed)));
        let (values, cols) = m.download(x);
        shown.push(Shown { what, cols, values, sampled });
    };
    for (at, op) in program.ops.iter().enumerate() {
        let new = match *op {
            Op::Embed { table } => m.embed(table),
            Op::RmsNorm { x, norm } => m.rms_norm(tensors.get(x), norm),
            Op::SiluMul { gate, up } => m.silu_mul(tensors.take(gate), tensors.take(up)),
            Op::Add { x, y } => m.add(tensors.take(x), tensors.take(y)),
            Op::Pick { x, wanted } => m.pick(tensors.get(x), wanted),
            Op::Linears { x, ref linears } => {
                let ys = m.linears(tensors.get(x), linears);
                tensors.0.extend(ys.into_iter().map(Some));
                continue;
            }
            Op::Head { x, head } => {
                last_logits = Some(tensors.0.len());
                m.head(tensors.get(x), head)
            }
            Op::HeadNorm { x, norm } => m.head_norm(tensors.take(x), norm),
            Op::Store { qkv, layer } => m.store(qkv.map(|x| tensors.take(x)), layer),
            Op::Attention { q, layer, window } => m.attention(tensors.get(q), layer, window),
            Op::Download { .. } | Op::Sample { .. } if replayed => continue,
            Op::Download { x } => {
                show(m, format!("step {step}, op {at}, tensor {x}"), tensors.get(x), None);
                continue;
            }
            Op::Sample { logits: x, seed } => {
                show(m, format!("step {step}, op {at}, logits {x}"), tensors.get(x), Some(seed));
                continue;
            }
        };
        tensors.0.push(Some(new));
    }
    if replayed {
        return (shown, last_logits.map(|id| tensors.take(id)));
    }
    let mut left: Vec<Id> = (0..tensors.0.len()).filter(|&id| tensors.0[id].is_some()).collect();
    if step % 2 == 1 {
        left.reverse();
    }
    for x in left {
        show(m, format!("step {step}, end, tensor {x}"), tensors.get(x), None);
    }
    (shown, None)
}
