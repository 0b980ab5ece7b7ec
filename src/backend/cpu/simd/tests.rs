use super::*;

/// Deterministic values in (-1, 1).
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn all_dots<T: Element>(level: Level, w: &[T], x: &[f32], k: usize) -> Vec<Vec<f32>> {
    let tokens: Vec<&[f32]> = x.chunks(k).collect();
    let mut out = vec![vec![f32::NAN; w.len() / k]; tokens.len()];
    level.dots(w, w.len() / k, |r| r * k, &tokens, |r, t, dot| out[t][r] = dot);
    out
}

fn check_dots<T: Element>(tolerance: f64) {
    for level in Level::available() {
        for k in (1..70).chain([128, 200, 333]) {
            let w: Vec<T> = values(14 * k, k as u32).into_iter().map(T::round).collect();
            let x = values(9 * k, 99);
            let all = all_dots(level, &w, &x, k);
            for (t, x) in x.chunks(k).enumerate() {
                for (r, w) in w.chunks(k).enumerate() {
                    let exact: f64 =
                        w.iter().zip(x).map(|(w, &x)| f64::from(w.to_f32()) * f64::from(x)).sum();
                    let error = (f64::from(all[t][r]) - exact).abs();
                    assert!(error < tolerance, "{level:?} k {k}: {} {exact}", all[t][r]);
                    let alone = all_dots(level, w, x, k)[0][0];
                    assert_eq!(alone.to_bits(), all[t][r].to_bits(), "{level:?} k {k} {r} {t}");
                }
            }
        }
    }
}

#[test]
fn a_dot_is_right_and_has_the_same_bits_in_every_tile() {
    check_dots::<f32>(1e-5);
    check_dots::<f16>(1e-5);
    check_dots::<bf16>(1e-5);
}

#[test]
fn an_expand_has_the_same_bits_for_any_cut_of_columns_and_tokens() {
    for level in Level::available() {
        for (rank, width) in [(1, 1), (3, 17), (16, 64), (64, 133), (5, 300)] {
            let rows: Vec<bf16> = values(rank * width, 7).into_iter().map(bf16::round).collect();
            let h = values(6 * rank, 8);
            let hs: Vec<&[f32]> = h.chunks(rank).collect();
            let base = values(6 * width, 9);
            let mut whole = base.clone();
            let mut ys: Vec<&mut [f32]> = whole.chunks_mut(width).collect();
            level.expand(&mut ys, &hs, &rows, |r| r * width);
            for (t, base) in base.chunks(width).enumerate() {
                let mut cut = base.to_vec();
                for first in (0..width).step_by(13) {
                    let part = &mut cut[first..width.min(first + 13)];
                    level.expand(&mut [part], &hs[t..=t], &rows, |r| r * width + first);
                }
                assert_eq!(cut, whole[t * width..][..width], "{level:?} {rank} {width}");
                for (j, &y) in cut.iter().enumerate() {
                    let term = |r: usize| f64::from(rows[r * width + j].to_f32() * hs[t][r]);
                    let exact = f64::from(base[j]) + (0..rank).map(term).sum::<f64>();
                    assert!((f64::from(y) - exact).abs() < 1e-5, "{level:?} {y} {exact}");
                }
            }
        }
    }
}

#[test]
fn exponentials_agree_with_f64_and_underflow_to_zero() {
    for level in Level::available() {
        for n in [1, 7, 16, 1000] {
            let scores: Vec<f32> = values(n, 3).iter().map(|v| v * 80.0).collect();
            let mut out = scores.clone();
            let (max, sum) = level.exp_shifted(&mut out);
            let mut total = 0.0;
            for (&score, &e) in scores.iter().zip(&out) {
                let exact = f64::from(score - max).exp();
                let error = (f64::from(e) - exact).abs();
                assert!(error <= exact * 3e-7 + 1e-37, "{level:?} {score} {e} {exact}");
                total += exact;
            }
            assert!((f64::from(sum) / total - 1.0).abs() < 1e-6, "{level:?} {sum} {total}");
        }
        let mut edges = [0.0, f32::NEG_INFINITY, -200.0, f32::NAN];
        level.exp_shifted(&mut edges);
        assert_eq!(edges[..3], [1.0, 0.0, 0.0], "{level:?}");
        assert!(edges[3].is_nan(), "{level:?}: NaN must not turn into a number");
    }
}

#[test]
fn gated_activation_agrees_with_f64_wherever_it_stands_in_the_row() {
    for level in Level::available() {
        let gate: Vec<f32> = values(45, 1).iter().map(|v| v * 30.0).collect();
        let up = values(45, 2);
        let mut whole = gate.clone();
        level.silu_mul(&mut whole, &up);
        for i in 0..45 {
            let x = f64::from(gate[i]);
            let exact = x / (1.0 + (-x).exp()) * f64::from(up[i]);
            assert!((f64::from(whole[i]) - exact).abs() <= exact.abs() * 1e-6 + 1e-9);
            let mut alone = [gate[i]];
            level.silu_mul(&mut alone, &up[i..=i]);
            assert_eq!(alone[0].to_bits(), whole[i].to_bits(), "{level:?}");
        }
    }
}
