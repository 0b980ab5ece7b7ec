//! Random programs over a base.

use tessera::backend::{LINEARS_MAX, Rows, Wanted};
use tessera::ids::{BlockId, Slot};
use tessera::recipe::{Part, Recipe, Weight};

use super::base::{Base, GATE_UP, HEAD_NORMS, POSITIONS_MAX, QKV, SEQUENCES_MAX, TOKENS_MAX};
use super::program::{Id, Op, Program, Step};
use crate::Rng;

/// Adapters of one program.
pub const ADAPTERS: usize = 4;
const OPS: std::ops::RangeInclusive<usize> = 3..=30;
/// About how large numbers may get before a norm has to come: f16 ends at 65504.
const SIZE_MAX: f64 = 40.0;

/// Which rows a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    All,
    Logits,
    Hidden,
    Vocabulary,
}

#[derive(Clone, Copy)]
struct Made {
    of: Of,
    cols: usize,
    /// A guess at the largest number.
    size: f64,
    is_there: bool,
}

/// A program as it grows.
struct Grown<'a> {
    base: &'a Base,
    rng: &'a mut Rng,
    ops: Vec<Op>,
    made: Vec<Made>,
    /// Layers whose pages have been written.
    stored: [bool; 2],
    /// Whether hidden rows, and logits, are wanted in every step.
    hidden: bool,
    logits: bool,
}

impl Program {
    pub fn random(rng: &mut Rng, base: &Base) -> Self {
        let replayed = rng.below(8) == 0;
        let logits = replayed || rng.below(6) > 0;
        // Of many rows in the first step: few ops, or most of the time goes there.
        let is_long = rng.below(100) == 0;
        let steps = steps(rng, base, [replayed, logits, is_long]);
        let most = if is_long { OPS.start() + 5 } else { *OPS.end() };
        let len = OPS.start() + rng.below(most - OPS.start() + 1);
        let (ops, made) = (Vec::new(), Vec::new());
        let stored = [false; 2];
        let mut grown = Grown { base, rng, ops, made, stored, hidden: !replayed, logits };
        grown.embed();
        while grown.ops.len() < len {
            grown.grow();
        }
        grown.ops.truncate(*OPS.end());
        if replayed {
            grown.ops.truncate(OPS.end() - 2);
            grown.end_with_logits();
        }
        Program { ops: grown.ops, steps }
    }
}

impl Grown<'_> {
    fn push(&mut self, op: Op, made: &[(Of, usize, f64)]) -> Id {
        assert_eq!(op.outputs(), made.len());
        self.ops.push(op);
        let first = self.made.len();
        let made = made.iter().map(|&(of, cols, size)| Made { of, cols, size, is_there: true });
        self.made.extend(made);
        first
    }

    /// One of the tensors that fit: half of the time the last.
    fn choose(&mut self, fits: impl Fn(&Made) -> bool) -> Option<Id> {
        let fits = |id: &Id| self.made[*id].is_there && fits(&self.made[*id]);
        let ids: Vec<Id> = (0..self.made.len()).filter(fits).collect();
        let last = *ids.last()?;
        Some(if self.rng.below(2) == 0 { last } else { ids[self.rng.below(ids.len())] })
    }

    fn consume(&mut self, id: Id) -> Made {
        self.made[id].is_there = false;
        self.made[id]
    }

    fn embed(&mut self) {
        let table = self.rng.below(2);
        self.push(Op::Embed { table }, &[(Of::All, self.base.tables[table].cols, 2.0)]);
    }

    /// One op more, or several as models have them; nothing where no tensor fits.
    fn grow(&mut self) {
        match self.rng.below(24) {
            0 => self.embed(),
            1..=3 => drop(self.rms_norm()),
            4 | 5 => drop(self.pair(true)),
            6..=8 => drop(self.pair(false)),
            9 => drop(self.pick(Wanted::Hidden)),
            10..=13 => drop(self.linears()),
            14 => drop(self.head_norm()),
            15 => drop(self.store()),
            16 => drop(self.attention()),
            17 => drop(self.show()),
            18 | 19 => drop(self.scores()),
            20 | 21 => drop(self.attend_as_models()),
            22 => drop(self.gate_as_models()),
            _ => drop(self.add_as_models()),
        }
    }

    fn rms_norm(&mut self) -> Option<Id> {
        let norm = self.rng.below(self.base.norms.len());
        let width = self.base.norms[norm].weight.len();
        let x = self.choose(|m| m.of == Of::All && m.cols == width)?;
        Some(self.push(Op::RmsNorm { x, norm }, &[(Of::All, width, 4.0)]))
    }

    fn head_norm(&mut self) -> Option<Id> {
        let norm = self.rng.below(self.base.norms.len());
        let width = self.base.norms[norm].weight.len();
        let x = self.choose(|m| m.of == Of::All && m.cols.is_multiple_of(width))?;
        let made = self.consume(x);
        Some(self.push(Op::HeadNorm { x, norm }, &[(Of::All, made.cols, 4.0)]))
    }

    /// A sum of two tensors, or a gated activation.
    fn pair(&mut self, gated: bool) -> Option<Id> {
        let fits = |of: Of| of == Of::All || of == Of::Hidden;
        let y = self.choose(|m| fits(m.of) && m.size < SIZE_MAX)?;
        let of_y = self.consume(y);
        let x = self.choose(|m| m.of == of_y.of && m.cols == of_y.cols && m.size < SIZE_MAX);
        let Some(x) = x else {
            self.made[y].is_there = true;
            return None;
        };
        let of_x = self.consume(x);
        let (op, size) = match gated {
            true => (Op::SiluMul { gate: x, up: y }, of_x.size * of_y.size),
            false => (Op::Add { x, y }, of_x.size + of_y.size),
        };
        Some(self.push(op, &[(of_y.of, of_y.cols, size)]))
    }

    fn pick(&mut self, wanted: Wanted) -> Option<Id> {
        let (of, is_wanted) = match wanted {
            Wanted::Hidden => (Of::Hidden, self.hidden),
            Wanted::Logits => (Of::Logits, self.logits),
        };
        let hidden = self.base.tables[0].cols;
        let fits = |m: &Made| m.of == Of::All && (of == Of::Hidden || m.cols == hidden);
        let x = is_wanted.then(|| self.choose(|m| fits(m) && m.size < SIZE_MAX))??;
        let Made { cols, size, .. } = self.made[x];
        Some(self.push(Op::Pick { x, wanted }, &[(of, cols, size)]))
    }

    /// One to three linears, in any order.
    fn linears(&mut self) -> Option<Id> {
        let x = self.choose(|m| m.of == Of::All && m.size < SIZE_MAX)?;
        let cols = self.made[x].cols;
        let all = &self.base.linears;
        let fits: Vec<usize> = (0..all.len()).filter(|&l| all[l].cols == cols).collect();
        if fits.is_empty() {
            return None;
        }
        let count = 1 + self.rng.below(LINEARS_MAX);
        let linears = (0..count).map(|_| fits[self.rng.below(fits.len())]).collect();
        Some(self.linears_of(x, linears))
    }

    fn linears_of(&mut self, x: Id, linears: Vec<usize>) -> Id {
        let size = 1.0 + 2.0 * self.made[x].size;
        let made = |&l: &usize| (Of::All, self.base.linears[l].rows, size);
        let made: Vec<_> = linears.iter().map(made).collect();
        self.push(Op::Linears { x, linears }, &made)
    }

    fn head(&mut self) -> Option<Id> {
        let x = self.choose(|m| m.of == Of::Logits)?;
        let head = self.rng.below(2);
        let vocabulary = self.base.heads[head].rows;
        Some(self.push(Op::Head { x, head }, &[(Of::Vocabulary, vocabulary, 1.0)]))
    }

    fn store(&mut self) -> Option<Id> {
        let shape = self.base.shape;
        let (q_cols, kv_cols) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut qkv = [0; 3];
        for (i, cols) in [q_cols, kv_cols, kv_cols].into_iter().enumerate() {
            match self.choose(|m| m.of == Of::All && m.cols == cols && m.size < SIZE_MAX) {
                Some(x) => qkv[i] = x,
                None => {
                    qkv[..i].iter().for_each(|&x| self.made[x].is_there = true);
                    return None;
                }
            }
            self.made[qkv[i]].is_there = false;
        }
        Some(self.store_of(qkv))
    }

    fn store_of(&mut self, qkv: [Id; 3]) -> Id {
        let [q, ..] = qkv.map(|x| self.consume(x));
        let layer = self.rng.below(2);
        self.stored[layer] = true;
        self.push(Op::Store { qkv, layer }, &[(Of::All, q.cols, q.size)])
    }

    fn attention(&mut self) -> Option<Id> {
        let layers: Vec<usize> = (0..2).filter(|&layer| self.stored[layer]).collect();
        let shape = self.base.shape;
        let cols = shape.heads * shape.head_dim;
        let q = self.choose(|m| m.of == Of::All && m.cols == cols && m.size < SIZE_MAX)?;
        let layer = *layers.get(self.rng.below(layers.len().max(1)))?;
        let window = (self.rng.below(3) == 0).then(|| 1 + self.rng.below(12) as u32);
        Some(self.push(Op::Attention { q, layer, window }, &[(Of::All, cols, SIZE_MAX / 2.0)]))
    }

    fn show(&mut self) -> Option<()> {
        let x = self.choose(|_| true)?;
        self.push(Op::Download { x }, &[]);
        Some(())
    }

    fn scores(&mut self) -> Option<()> {
        if self.rng.below(2) == 0 || self.choose(|m| m.of == Of::Logits).is_none() {
            let hidden = self.base.tables[0].cols;
            let x = self.choose(|m| m.of == Of::All && m.cols == hidden)?;
            if self.rng.below(2) == 0 {
                let norm = self.rng.below(2);
                self.push(Op::RmsNorm { x, norm }, &[(Of::All, hidden, 4.0)]);
            }
            self.pick(Wanted::Logits)?;
        }
        let logits = self.head()?;
        if self.rng.below(6) == 0 {
            let seed = self.rng.bits();
            self.push(Op::Sample { logits, seed }, &[]);
        }
        Some(())
    }

    fn end_with_logits(&mut self) {
        let hidden = self.base.tables[0].cols;
        let known = |op: &Op| op.outputs();
        let made: usize = self.ops.iter().map(known).sum();
        // What was cut off made nothing.
        self.made.truncate(made);
        let fits = |m: &&Made| m.is_there && m.of == Of::All && m.cols == hidden;
        let x = self.made.iter().rposition(|m| fits(&m));
        let x = x.unwrap_or_else(|| {
            self.ops.truncate(OPS.end() - 3);
            let made: usize = self.ops.iter().map(known).sum();
            self.made.truncate(made);
            self.embed();
            made
        });
        let wanted = Wanted::Logits;
        let x = self.push(Op::Pick { x, wanted }, &[(Of::Logits, hidden, 1.0)]);
        let head = self.rng.below(2);
        self.push(Op::Head { x, head }, &[(Of::Vocabulary, self.base.heads[head].rows, 1.0)]);
    }
}

/// What models do, and what a device fuses: with some of it left out, or read in between.
impl Grown<'_> {
    fn between(&mut self) {
        match self.rng.below(6) {
            0 => drop(self.show()),
            1 => drop(self.rms_norm()),
            _ => {}
        }
    }

    fn attend_as_models(&mut self) -> Option<Id> {
        let hidden = self.base.tables[0].cols;
        let x = self.choose(|m| m.of == Of::All && m.cols == hidden && m.size < SIZE_MAX)?;
        let first = self.linears_of(x, QKV.into());
        self.between();
        let mut qkv = [first, first + 1, first + 2];
        // Norms of heads of q and k: the same, others, of other eps, or of one alone.
        let normed = [0, 0, 1, 2, 3, 3][self.rng.below(6)];
        for i in (0..2).filter(|i| normed >> i & 1 == 1) {
            let norm = HEAD_NORMS + [0, 0, 1, 1, 2][self.rng.below(5)];
            let Made { cols, .. } = self.consume(qkv[i]);
            qkv[i] = self.push(Op::HeadNorm { x: qkv[i], norm }, &[(Of::All, cols, 4.0)]);
        }
        self.between();
        self.store_of(qkv);
        self.attention()
    }

    fn gate_as_models(&mut self) -> Option<Id> {
        let hidden = self.base.tables[0].cols;
        let x = self.choose(|m| m.of == Of::All && m.cols == hidden && m.size < SIZE_MAX / 8.0)?;
        let mut linears: Vec<usize> = GATE_UP.into();
        if self.rng.below(3) == 0 {
            linears.swap(0, 1);
        }
        let size = 1.0 + 2.0 * self.made[x].size;
        let gate = self.linears_of(x, linears);
        self.between();
        let cols = self.consume(gate).cols;
        self.consume(gate + 1);
        let op = Op::SiluMul { gate, up: gate + 1 };
        Some(self.push(op, &[(Of::All, cols, size * size)]))
    }

    /// A linear onto a residual stream, and often the norm of that.
    fn add_as_models(&mut self) -> Option<Id> {
        let y = self.linears()?;
        let of_y = self.made[y];
        let fits = |m: &Made| m.of == Of::All && m.cols == of_y.cols && m.size < SIZE_MAX;
        self.made[y].is_there = false;
        let Some(x) = self.choose(fits) else {
            self.made[y].is_there = true;
            return None;
        };
        self.made[x].is_there = false;
        self.between();
        let size = self.made[x].size + of_y.size;
        let sum = self.push(Op::Add { x, y }, &[(Of::All, of_y.cols, size)]);
        let norms = &self.base.norms;
        let norm = (0..norms.len()).find(|&n| norms[n].weight.len() == of_y.cols)?;
        if self.rng.below(3) > 0 {
            return Some(self.push(Op::RmsNorm { x: sum, norm }, &[(Of::All, of_y.cols, 4.0)]));
        }
        Some(sum)
    }
}

/// Which adapters a sequence carries, how much, and from where.
fn recipe(rng: &mut Rng) -> Recipe<Slot> {
    let count = [0, 1, 1, 1, 2, 2, 3][rng.below(7)];
    let part = |rng: &mut Rng| {
        let weight = [1.0, 1.0, 0.5, -0.7, 1.3][rng.below(5)];
        let adapter = Slot(rng.below(ADAPTERS) as u32);
        Part { adapter, weight: Weight::new(weight).unwrap() }
    };
    let from = if rng.below(4) == 0 { rng.below(8) as u32 } else { 0 };
    Recipe::new((0..count).map(|_| part(rng)).collect()).active_from(from)
}

/// A sequence's recipe, its pages and how long it is by now.
type Sequence = (Recipe<Slot>, Vec<BlockId>, usize);

fn steps(rng: &mut Rng, base: &Base, [replayed, logits, is_long]: [bool; 3]) -> Vec<Step> {
    let count = if replayed { 5 } else { 1 + rng.below(3) };
    let sequences = 1 + rng.below(SEQUENCES_MAX);
    // Few carry something of their own: rows of one recipe share work.
    let recipes: Vec<_> = (0..1 + rng.below(sequences)).map(|_| recipe(rng)).collect();
    let mut pages: Vec<u32> = (0..base.kv.blocks as u32).collect();
    for i in (1..pages.len()).rev() {
        pages.swap(i, rng.below(i + 1));
    }
    let mut pages = pages.into_iter().map(BlockId);
    let mut sequence = |i: usize| -> Sequence {
        let tokens = if is_long && i == 0 { POSITIONS_MAX } else { TOKENS_MAX };
        let pages = pages.by_ref().take(tokens.div_ceil(base.kv.block_tokens)).collect();
        (recipes[rng.below(recipes.len())].clone(), pages, 0)
    };
    let mut all: Vec<Sequence> = (0..sequences).map(&mut sequence).collect();
    let mut steps = Vec::new();
    for step in 0..count {
        let decode = replayed && step > 0;
        let (mut rows, mut carried) = (Rows::default(), Vec::new());
        for (i, (recipe, pages, len)) in all.iter_mut().enumerate() {
            let room = pages.len() * base.kv.block_tokens - *len;
            let tokens = match (decode, is_long && i == 0 && step == 0) {
                (true, _) => 1,
                (_, true) => 258 + rng.below(40),
                _ => [1, 1, 2, 2, 3, 7][rng.below(6)],
            };
            // The first is in every step.
            if tokens <= room && (i == 0 || decode || rng.below(6) > 0) {
                let vocabulary = base.tables[0].rows;
                let new: Vec<u32> = (0..tokens).map(|_| rng.below(vocabulary) as u32).collect();
                rows.push(&new, *len as u32, recipe, pages.clone());
                for position in *len..*len + tokens {
                    let is_active = position as u32 >= recipe.from();
                    carried.push(if is_active { recipe.parts().to_vec() } else { Vec::new() });
                }
                *len += tokens;
            }
        }
        if rows.is_empty() {
            break;
        }
        let n = rows.len() as u32;
        if decode {
            rows.logit_rows = (0..n).collect();
        } else {
            let few = |rng: &mut Rng, row: &u32| *row + 1 == n || rng.below(n as usize) < 6;
            rows.hidden_rows = (0..n).filter(|row| few(rng, row)).collect();
            if logits {
                rows.logit_rows = (0..n).filter(|row| few(rng, row)).collect();
            }
        }
        steps.push(Step { rows, carried, replayed: decode });
    }
    steps
}
