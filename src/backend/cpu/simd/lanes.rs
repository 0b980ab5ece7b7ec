//! Vectors of f32 on each instruction set.

use half::{bf16, f16};

/// One instruction set's vectors of f32.
///
/// # Safety
/// Every function may be called only on a processor that has the set; loads and stores need
/// pointers valid for `LANES` elements.
#[allow(clippy::missing_safety_doc, missing_docs)]
pub unsafe trait Lanes {
    /// A vector register.
    type V: Copy;
    /// Numbers in one.
    const LANES: usize;
    /// Weight rows of a tile of dots: with `TOKENS` tokens they fill the registers.
    const ROWS: usize;
    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load_f32(p: *const f32) -> Self::V;
    unsafe fn load_f16(p: *const f16) -> Self::V;
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Each lane's bits shifted left by 23: an integer becomes an exponent.
    unsafe fn exponent(v: Self::V) -> Self::V;
    /// The sum of the lanes, in a fixed order.
    unsafe fn sum(v: Self::V) -> f32;
    /// `a · b + c` of single numbers, rounded as `fma` rounds.
    fn fma_one(a: f32, b: f32, c: f32) -> f32;
    /// Asks for a cache line that will be read soon; any address will do.
    unsafe fn prefetch<T>(p: *const T);
}

/// Plain Rust in groups of eight.
pub struct Portable;

/// Eight at a time: what a compiler turns into good code for any machine.
fn lanes(f: impl Fn(usize) -> f32) -> [f32; 8] {
    std::array::from_fn(f)
}

// SAFETY: nothing here needs more than the language; loads read 8 elements.
unsafe impl Lanes for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    const ROWS: usize = 3;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn load_f32(p: *const f32) -> Self::V {
        // SAFETY: the caller promises 8 elements.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller promises 8 elements.
        unsafe { p.cast::<[f16; 8]>().read_unaligned() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller promises 8 elements.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        lanes(|i| f32::from_bits(u32::from(bits[i]) << 16))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller promises 8 elements.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Rounded twice: a fused one would be a library call where the processor has none.
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn exponent(v: Self::V) -> Self::V {
        lanes(|i| f32::from_bits(v[i].to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    fn fma_one(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    unsafe fn prefetch<T>(_: *const T) {}
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::Lanes;
    use crate::backend::cpu::simd::Kernel;

    /// AVX2, FMA and F16C: 8 lanes, 16 registers.
    pub struct Avx2;
    /// AVX-512F: 16 lanes, 32 registers.
    pub struct Avx512;

    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: as promised by the caller.
        unsafe { kernel.run::<Avx2>() }
    }

    /// # Safety
    /// The processor has AVX-512F, AVX2, FMA and F16C.
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: as promised by the caller.
        unsafe { kernel.run::<Avx512>() }
    }

    /// Functions of [`Lanes`] that are one expression over the arguments.
    macro_rules! lanes {
        ($($name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? = $body:expr;)*) => {
            $(#[inline(always)]
            unsafe fn $name($($arg: $type),*) $(-> $out)? {
                // SAFETY: `Lanes` asks the caller for the instruction set and for valid pointers.
                unsafe { $body }
            })*
            #[inline(always)]
            fn fma_one(a: f32, b: f32, c: f32) -> f32 {
                a.mul_add(b, c)
            }
            #[inline(always)]
            unsafe fn prefetch<T>(p: *const T) {
                // SAFETY: a prefetch of any address has no effect that a program can see.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
            }
        };
    }

    // SAFETY: loads and stores touch 8 elements.
    unsafe impl Lanes for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const ROWS: usize = 3;
        lanes! {
            splat(value: f32) -> __m256 = _mm256_set1_ps(value);
            load_f32(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
            load_f16(p: *const f16) -> __m256 = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            load_bf16(p: *const bf16) -> __m256 = {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            store(p: *mut f32, v: __m256) = _mm256_storeu_ps(p, v);
            add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
            sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
            mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
            fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
            min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
            exponent(v: __m256) -> __m256 =
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v)));
            sum(v: __m256) -> f32 = {
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
            };
        }
    }

    // SAFETY: loads and stores touch 16 elements.
    unsafe impl Lanes for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        const ROWS: usize = 6;
        lanes! {
            splat(value: f32) -> __m512 = _mm512_set1_ps(value);
            load_f32(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
            load_f16(p: *const f16) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
            load_bf16(p: *const bf16) -> __m512 = {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            };
            store(p: *mut f32, v: __m512) = _mm512_storeu_ps(p, v);
            add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
            sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
            mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
            fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
            min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
            exponent(v: __m512) -> __m512 =
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v)));
            sum(v: __m512) -> f32 = {
                let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v));
                let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(high));
                Avx2::sum(v)
            };
        }
    }
}
