//! Kernels in which every result depends on its own operands alone.

use super::lanes::Lanes;
use super::{Element, Kernel};

/// e^x within 2 units in the last place (Cephes' `expf` polynomial). 0 below −87.7, infinity above
/// 88.4, NaN stays.
#[inline(always)]
unsafe fn exp<L: Lanes>(x: L::V) -> L::V {
    /// 1.5 · 2²³ puts the nearest integer n into the low bits; 127 more makes them an exponent.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    // SAFETY: the processor has `L`, by our own contract.
    unsafe {
        let x = L::min(L::splat(89.0), L::max(L::splat(-88.0), x));
        let shifted = L::fma(x, L::splat(std::f32::consts::LOG2_E), L::splat(ROUND));
        let n = L::sub(shifted, L::splat(ROUND));
        // ln 2 in two parts, so that n · ln 2 is exact where it matters.
        let r = L::fma(n, L::splat(-0.693_359_4), x);
        let r = L::fma(n, L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(POLYNOMIAL[0]);
        for &coefficient in &POLYNOMIAL[1..] {
            p = L::fma(p, r, L::splat(coefficient));
        }
        let p = L::add(L::fma(p, L::mul(r, r), r), L::splat(1.0));
        L::mul(p, L::exponent(shifted))
    }
}

/// Room for one vector of any level.
type Padded = [f32; 16];

/// `values` followed by `fill`.
fn padded(values: &[f32], fill: f32) -> Padded {
    let mut buffer = [fill; 16];
    buffer[..values.len()].copy_from_slice(values);
    buffer
}

pub struct Exp<'a> {
    pub scores: &'a mut [f32],
}

impl Kernel for Exp<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> (f32, f32) {
        let mut chunks = self.scores.chunks_exact_mut(L::LANES);
        // SAFETY: chunks are one vector long, and the padded tail at least that.
        unsafe {
            let mut highest = L::splat(f32::NEG_INFINITY);
            for chunk in &mut chunks {
                highest = L::max(L::load_f32(chunk.as_ptr()), highest);
            }
            let tail = padded(chunks.into_remainder(), f32::NEG_INFINITY);
            highest = L::max(L::load_f32(tail.as_ptr()), highest);
            let mut lanes: Padded = [f32::NEG_INFINITY; 16];
            L::store(lanes.as_mut_ptr(), highest);
            let max = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);

            let mut sum = L::splat(0.0);
            let mut chunks = self.scores.chunks_exact_mut(L::LANES);
            for chunk in &mut chunks {
                let e = exp::<L>(L::sub(L::load_f32(chunk.as_ptr()), L::splat(max)));
                L::store(chunk.as_mut_ptr(), e);
                sum = L::add(sum, e);
            }
            let rest = chunks.into_remainder();
            if !rest.is_empty() {
                let mut tail = padded(rest, f32::NEG_INFINITY);
                let e = exp::<L>(L::sub(L::load_f32(tail.as_ptr()), L::splat(max)));
                L::store(tail.as_mut_ptr(), e);
                sum = L::add(sum, e);
                rest.copy_from_slice(&tail[..rest.len()]);
            }
            (max, L::sum(sum))
        }
    }
}

pub struct SiluMul<'a> {
    pub gate: &'a mut [f32],
    pub up: &'a [f32],
}

impl SiluMul<'_> {
    /// # Safety
    /// Both pointers are valid for one vector, and the processor has `L`.
    #[inline(always)]
    unsafe fn vector<L: Lanes>(gate: *mut f32, up: *const f32) {
        // SAFETY: as promised by the caller.
        unsafe {
            let x = L::load_f32(gate);
            let one = L::splat(1.0);
            let silu = L::div(x, L::add(one, exp::<L>(L::sub(L::splat(0.0), x))));
            L::store(gate, L::mul(silu, L::load_f32(up)));
        }
    }
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut gates = self.gate.chunks_exact_mut(L::LANES);
        let mut ups = self.up.chunks_exact(L::LANES);
        // SAFETY: chunks are one vector long, and the padded tails at least that.
        unsafe {
            for (gate, up) in (&mut gates).zip(&mut ups) {
                Self::vector::<L>(gate.as_mut_ptr(), up.as_ptr());
            }
            let (gate, up) = (gates.into_remainder(), ups.remainder());
            let mut tail = padded(gate, 0.0);
            Self::vector::<L>(tail.as_mut_ptr(), padded(up, 0.0).as_ptr());
            gate.copy_from_slice(&tail[..gate.len()]);
        }
    }
}

pub struct Widen<'a, T> {
    pub src: &'a [T],
    pub dst: &'a mut [f32],
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut src = self.src.chunks_exact(L::LANES);
        let mut dst = self.dst.chunks_exact_mut(L::LANES);
        for (from, to) in (&mut src).zip(&mut dst) {
            // SAFETY: both chunks are one vector long.
            unsafe { L::store(to.as_mut_ptr(), T::load::<L>(from.as_ptr())) };
        }
        for (from, to) in src.remainder().iter().zip(dst.into_remainder()) {
            *to = from.to_f32();
        }
    }
}
