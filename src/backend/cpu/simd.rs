//! Vector kernels over slices: the only place that says `unsafe`.
//!
//! Two promises hold for every kernel here, whatever the instruction set. A dot product walks its
//! operands in order through one accumulator vector, is summed in a fixed order, and takes what is
//! left over after the last full vector one by one: so its bits do not depend on which other rows
//! or tokens shared the tile. An elementwise result depends on its own operands alone: what is left
//! over goes through the same vector code, padded. Batched equals alone follows from these two.
#![allow(unsafe_code)]
// A tile is two indices into arrays of registers; iterators would hide which.
#![allow(clippy::needless_range_loop)]

mod elementwise;
mod lanes;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

use self::elementwise::{Exp, SiluMul, Widen};
#[cfg(target_arch = "x86_64")]
use self::lanes::x86;
use self::lanes::{Lanes, Portable};

/// The instruction set in use: chosen once at start-up, passed to whoever computes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Level(Set);

/// Private, so that a [`Level`] can only be had by asking the processor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// What the kernels use of a processor beyond the least of its kind, and whether this one has
    /// it.
    #[cfg(target_arch = "x86_64")]
    pub fn features() -> Vec<(&'static str, bool)> {
        vec![
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
        ]
    }

    /// Nothing beyond the least: there are portable kernels alone.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn features() -> Vec<(&'static str, bool)> {
        Vec::new()
    }

    /// Those that this machine can run, slowest first.
    pub fn available() -> Vec<Level> {
        [vec![Level(Set::Portable)], Self::vectors()].concat()
    }

    /// Those beyond the portable one.
    #[cfg(target_arch = "x86_64")]
    fn vectors() -> Vec<Level> {
        let features = Self::features();
        let has = |name| features.contains(&(name, true));
        let avx2 = has("avx2") && has("fma") && has("f16c");
        let sets = [(avx2, Set::Avx2), (avx2 && has("avx512f"), Set::Avx512)];
        sets.into_iter().filter_map(|(is_there, set)| is_there.then_some(Level(set))).collect()
    }

    /// As there are none.
    #[cfg(not(target_arch = "x86_64"))]
    fn vectors() -> Vec<Level> {
        Vec::new()
    }

    /// The fastest that this machine can run.
    pub fn detect() -> Level {
        Self::available().pop().unwrap_or(Level(Set::Portable))
    }

    /// What logs call it.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "AVX2",
            Set::Portable => "portable",
        }
    }

    /// Weight rows of one register tile: chunks of output features are best a multiple of it.
    pub fn tile_rows(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => x86::Avx512::ROWS,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => x86::Avx2::ROWS,
            Set::Portable => Portable::ROWS,
        }
    }

    #[inline]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this set only comes from `available`, which has checked that the processor
            // has it.
            Set::Avx512 => unsafe { x86::run_avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Set::Avx2 => unsafe { x86::run_avx2(kernel) },
            // SAFETY: every processor has what it takes.
            Set::Portable => unsafe { kernel.run::<Portable>() },
        }
    }

    /// Dot products of weight rows with tokens: `put(row, token, dot)` for every pair. Row `i` of
    /// `count` is `weights[start(i)..]`, as wide as every token.
    pub fn dots<T: Element>(
        self,
        weights: &[T],
        count: usize,
        start: impl Fn(usize) -> usize,
        tokens: &[&[f32]],
        put: impl FnMut(usize, usize, f32),
    ) {
        self.run(Dots { weights, count, start, tokens, put, stream: false });
    }

    /// As [`Level::dots`], for the `count` rows from `first` of a matrix that comes from memory: it
    /// is asked for ahead of its use, past the last of these rows too.
    pub fn stream_dots<T: Element>(
        self,
        weights: &[T],
        [first, count]: [usize; 2],
        tokens: &[&[f32]],
        put: impl FnMut(usize, usize, f32),
    ) {
        let Some(width) = tokens.first().map(|x| x.len()) else { return };
        let start = |row| (first + row) * width;
        self.run(Dots { weights, count, start, tokens, put, stream: true });
    }

    /// `y[t] += Σ_r coefficients[t][r] · row r` for every token `t`, in the order of r. Row `r` is
    /// `rows[start(r)..]`, as wide as every y.
    pub fn expand<T: Element>(
        self,
        ys: &mut [&mut [f32]],
        coefficients: &[&[f32]],
        rows: &[T],
        start: impl Fn(usize) -> usize,
    ) {
        assert!(ys.len() == coefficients.len(), "This is a bug: a token without coefficients.");
        self.run(Expand { ys, coefficients, rows, start });
    }

    /// Asks for memory that will be read soon, into the second-level cache.
    pub fn prefetch<T: Element>(self, slice: &[T]) {
        self.run(Prefetch { slice });
    }

    /// Turns scores into probabilities in place. Minus infinity gives exactly 0, and so does any
    /// score 88 below the largest.
    pub fn softmax(self, scores: &mut [f32]) {
        let (_, sum) = self.run(Exp { scores: &mut *scores });
        let factor = 1.0 / sum;
        scores.iter_mut().for_each(|s| *s *= factor);
    }

    /// `scores ← exp(scores − max)`; returns (max, sum of the results). NaN is passed over by the
    /// maximum but not by the sum.
    pub fn exp_shifted(self, scores: &mut [f32]) -> (f32, f32) {
        self.run(Exp { scores })
    }

    /// `gate ← silu(gate) ⊙ up`.
    pub fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
        assert!(gate.len() == up.len(), "This is a bug: gate and up differ in width.");
        self.run(SiluMul { gate, up });
    }

    /// Widens `src` (exact).
    pub fn widen<T: Element>(self, src: &[T], dst: &mut [f32]) {
        assert!(src.len() == dst.len(), "This is a bug: widened to another length.");
        self.run(Widen { src, dst });
    }
}

/// A width that weights, adapters and the cache are kept in.
pub trait Element: Copy + Send + Sync + 'static {
    /// Widens (exact).
    fn to_f32(self) -> f32;
    /// Rounds to nearest even.
    fn round(value: f32) -> Self;
    /// Loads and widens one vector.
    ///
    /// # Safety
    /// `p` is valid for `L::LANES` elements, and the processor has `L`.
    #[doc(hidden)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L::V;
}

macro_rules! element {
    ($type:ty, $load:ident, $widen:expr, $round:expr) => {
        impl Element for $type {
            #[inline(always)]
            fn to_f32(self) -> f32 {
                $widen(self)
            }
            #[inline(always)]
            fn round(value: f32) -> Self {
                $round(value)
            }
            #[inline(always)]
            unsafe fn load<L: Lanes>(p: *const Self) -> L::V {
                // SAFETY: as promised by the caller.
                unsafe { L::$load(p) }
            }
        }
    };
}
element!(f32, load_f32, |x| x, |x| x);
element!(f16, load_f16, f16::to_f32, f16::from_f32);
element!(bf16, load_bf16, bf16::to_f32, bf16::from_f32);

/// Tokens of a tile of dots.
const TOKENS: usize = 4;

/// What a level runs: written once, compiled for each set.
pub trait Kernel {
    /// What it gives back.
    type Output;
    /// Does the work.
    ///
    /// # Safety
    /// The processor has `L`.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

struct Dots<'a, T, S, P> {
    weights: &'a [T],
    count: usize,
    start: S,
    tokens: &'a [&'a [f32]],
    put: P,
    /// Whether the rows stand one after another and come from memory.
    stream: bool,
}

impl<T: Element, S: Fn(usize) -> usize, P: FnMut(usize, usize, f32)> Kernel for Dots<'_, T, S, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        let mut row = 0;
        // SAFETY: the processor has `L`, by our own contract.
        unsafe {
            while row + L::ROWS <= self.count {
                match L::ROWS {
                    6 => self.rows::<L, 6>(row),
                    3 => self.rows::<L, 3>(row),
                    _ => unreachable!("This is a bug: no tile of {} rows.", L::ROWS),
                }
                row += L::ROWS;
            }
            // What is left over, in the widest tiles that fit: a lone row waits for itself.
            while row + 4 <= self.count {
                self.rows::<L, 4>(row);
                row += 4;
            }
            while row + 2 <= self.count {
                self.rows::<L, 2>(row);
                row += 2;
            }
            if row < self.count {
                self.rows::<L, 1>(row);
            }
        }
    }
}

impl<T: Element, S: Fn(usize) -> usize, P: FnMut(usize, usize, f32)> Dots<'_, T, S, P> {
    /// `R` rows from `row` against all tokens, while the rows are in the nearest cache.
    #[inline(always)]
    unsafe fn rows<L: Lanes, const R: usize>(&mut self, row: usize) {
        let mut token = 0;
        // SAFETY: the processor has `L`, by our own contract.
        unsafe {
            while token + TOKENS <= self.tokens.len() {
                self.tile::<L, R, TOKENS>(row, token);
                token += TOKENS;
            }
            match self.tokens.len() - token {
                0 => {}
                1 => self.tile::<L, R, 1>(row, token),
                2 => self.tile::<L, R, 2>(row, token),
                _ => self.tile::<L, R, 3>(row, token),
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<L: Lanes, const R: usize, const C: usize>(&mut self, row: usize, token: usize) {
        let width = self.tokens[token].len();
        let w: [*const T; R] = std::array::from_fn(|r| {
            let start = (self.start)(row + r);
            self.weights[start..start + width].as_ptr()
        });
        let x: [*const f32; C] = std::array::from_fn(|c| {
            assert!(self.tokens[token + c].len() == width, "This is a bug: ragged tokens.");
            self.tokens[token + c].as_ptr()
        });
        // The rows after these, asked for while these are computed: a row is too short for the
        // processor to notice its stream in time.
        let ahead = R * width;
        let stream = self.stream && token == 0;
        // SAFETY: every pointer was just taken from a slice of `width` elements.
        unsafe {
            let mut acc = [[L::splat(0.0); C]; R];
            let mut k = 0;
            while k + L::LANES <= width {
                let mut ws = [L::splat(0.0); R];
                for r in 0..R {
                    if stream {
                        L::prefetch(w[r].wrapping_add(k + ahead));
                    }
                    ws[r] = T::load::<L>(w[r].add(k));
                }
                for c in 0..C {
                    let xs = L::load_f32(x[c].add(k));
                    for r in 0..R {
                        acc[r][c] = L::fma(ws[r], xs, acc[r][c]);
                    }
                }
                k += L::LANES;
            }
            for r in 0..R {
                for c in 0..C {
                    let mut dot = L::sum(acc[r][c]);
                    for k in k..width {
                        dot = L::fma_one((*w[r].add(k)).to_f32(), *x[c].add(k), dot);
                    }
                    (self.put)(row + r, token + c, dot);
                }
            }
        }
    }
}

struct Prefetch<'a, T> {
    slice: &'a [T],
}

impl<T: Element> Kernel for Prefetch<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for line in self.slice.chunks(64 / size_of::<T>()) {
            // SAFETY: the processor has `L`, by our own contract.
            unsafe { L::prefetch(line.as_ptr()) };
        }
    }
}

struct Expand<'y, 'a, T, S> {
    ys: &'a mut [&'y mut [f32]],
    coefficients: &'a [&'a [f32]],
    rows: &'a [T],
    start: S,
}

impl<T: Element, S: Fn(usize) -> usize> Kernel for Expand<'_, '_, T, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        let mut token = 0;
        // SAFETY: the processor has `L`, by our own contract.
        unsafe {
            while token + TOKENS <= self.ys.len() {
                self.tokens::<L, TOKENS, 2>(token);
                token += TOKENS;
            }
            while token < self.ys.len() {
                self.tokens::<L, 1, 4>(token);
                token += 1;
            }
        }
    }
}

impl<T: Element, S: Fn(usize) -> usize> Expand<'_, '_, T, S> {
    /// `C` tokens from `token`, `V` vectors of columns at a time.
    #[inline(always)]
    unsafe fn tokens<L: Lanes, const C: usize, const V: usize>(&mut self, token: usize) {
        let width = self.ys[token].len();
        let rank = self.coefficients[token].len();
        for c in 0..C {
            assert!(self.ys[token + c].len() == width, "This is a bug: ragged outputs.");
            assert!(self.coefficients[token + c].len() == rank, "This is a bug: ragged ranks.");
        }
        let mut column = 0;
        // SAFETY: `strip` is given columns within the width.
        unsafe {
            while column + V * L::LANES <= width {
                self.strip::<L, C, V>(token, column);
                column += V * L::LANES;
            }
            while column + L::LANES <= width {
                self.strip::<L, C, 1>(token, column);
                column += L::LANES;
            }
        }
        for c in 0..C {
            for (j, y) in self.ys[token + c].iter_mut().enumerate().skip(column) {
                for (r, &h) in self.coefficients[token + c].iter().enumerate() {
                    *y = L::fma_one(h, self.rows[(self.start)(r) + j].to_f32(), *y);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const C: usize, const V: usize>(&mut self, token: usize, at: usize) {
        let lanes = V * L::LANES;
        let y: [*mut f32; C] =
            std::array::from_fn(|c| self.ys[token + c][at..at + lanes].as_mut_ptr());
        let rank = self.coefficients[token].len();
        // SAFETY: all pointers were just taken from slices of `lanes` elements; every token has
        // `rank` coefficients, as `tokens` has checked.
        unsafe {
            let h: [*const f32; C] = std::array::from_fn(|c| self.coefficients[token + c].as_ptr());
            let mut acc: [[L::V; V]; C] = std::array::from_fn(|c| {
                std::array::from_fn(|v| L::load_f32(y[c].add(v * L::LANES)))
            });
            for r in 0..rank {
                let start = (self.start)(r) + at;
                let row = self.rows[start..start + lanes].as_ptr();
                let values: [L::V; V] =
                    std::array::from_fn(|v| T::load::<L>(row.add(v * L::LANES)));
                for (acc, h) in acc.iter_mut().zip(h) {
                    let coefficient = L::splat(*h.add(r));
                    for (acc, &value) in acc.iter_mut().zip(&values) {
                        *acc = L::fma(coefficient, value, *acc);
                    }
                }
            }
            for (acc, y) in acc.into_iter().zip(y) {
                for (v, acc) in acc.into_iter().enumerate() {
                    L::store(y.add(v * L::LANES), acc);
                }
            }
        }
    }
}
