//! Random programs of ops on each backend, against the definitions in f64.

mod base;
mod device;
mod draws;
mod exact;
mod generate;
mod program;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tessera::delta::Delta;
use tessera::dtype::Dtype;

use self::base::{Base, adapters};
use self::device::Uploaded;
pub(crate) use self::device::{Tested, on_each_backend};
use self::exact::{Definitions, Exact, Noise};
use self::generate::ADAPTERS;
use self::program::{Machine, Op, Program, Shown, execute};
use crate::Rng;

const BASES: u64 = 36;
/// Runs of the definitions with noise, which say how far rounding carries in a program.
///
/// The CPU computes in f32 and rounds only keys and values to the model's width. A card rounds to
/// it whatever an op gives, W x before bias and adapters, and on tensor cores the shares of
/// attention; logits are f32, and sums are made in f32 everywhere. Noise at those places is as
/// large as the rounding there, and what ops make of an error they make of noise: the bound for f32
/// is then some millionths of a row's largest number whatever the ops, and that for bf16 no wider
/// than the program makes it.
const NOISY_RUNS: u64 = 5;
/// How many times as far as noise moves it a number may be off. The furthest was off by half of
/// this: few runs seldom meet the worst case.
const MARGIN: f64 = 4.0;
/// Programs are made so that numbers stay well within f16, which ends at 65504.
const SIZE_MAX: f64 = 30_000.0;

on_each_backend! {
    random_programs_compute_what_the_definitions_say => check_programs;
}

fn check_programs<B: Tested>(_: std::marker::PhantomData<B>) {
    let place = B::place();
    // More can be asked for: 56 of each base are the CPU's 2016 on a card too, 999 the most.
    let asked = std::env::var("TESSERA_PROGRAMS").map(|count| count.parse().unwrap());
    let programs: u64 = asked.unwrap_or(B::PROGRAMS).min(999);
    let mut worst = 0.0f64;
    for seed in 0..BASES {
        let rng = &mut Rng(seed);
        let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][seed as usize % 3];
        let base = Base::random(rng, dtype);
        let uploaded = Uploaded::<B>::new(place, &base);
        for seed in (0..programs).map(|program| 1000 * (seed + 1) + program) {
            let rng = &mut Rng(seed);
            let program = Program::random(rng, &base);
            let deltas = adapters(rng, &base, ADAPTERS);
            match check(&uploaded, &base, &program, &deltas) {
                Ok(far) => worst = worst.max(far),
                Err(_) => panic!("{}", shrunk::<B>(place, &base, seed, program, &deltas)),
            }
        }
    }
    println!("the furthest: {worst} of what is allowed");
    B::ran(place);
}

/// How far the furthest number is off, as a share of what is allowed.
///
/// # Errors
/// What is wrong.
fn check<B: Tested>(
    uploaded: &Uploaded<'_, B>,
    base: &Base,
    program: &Program,
    deltas: &[Arc<Delta>],
) -> Result<f64, String> {
    let found = catch_unwind(AssertUnwindSafe(|| uploaded.run(program, deltas)));
    let found = found.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or(panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default())
    })?;
    let definitions = Definitions::new(base, deltas);
    let exact = defined(&definitions, program, None);
    let noisy: Vec<_> = (0..NOISY_RUNS)
        .map(|run| {
            let rounding = B::rounding(base.dtype);
            defined(&definitions, program, Some(Noise { rng: Rng(run + 7), rounding }))
        })
        .collect();
    assert_eq!(found.len(), exact.len());
    let mut furthest = 0.0f64;
    for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
        let noisy: Vec<&Shown> = noisy.iter().map(|run| &run[i]).collect();
        furthest = furthest.max(compare(found, exact, &noisy)?);
        if let Some((seed, sampled)) = &found.sampled {
            let wanted = draws::Wanted::random(*seed, sampled.len(), base);
            wanted.check(&found.values, sampled).map_err(|why| format!("{}: {why}", found.what))?;
        }
    }
    Ok(furthest)
}

/// What the definitions show of a program.
fn defined(definitions: &Definitions<'_>, program: &Program, noise: Option<Noise>) -> Vec<Shown> {
    let mut all = Vec::new();
    let (step, kv) = (&program.steps[0], [(); 2].map(|()| HashMap::new()));
    let mut exact = Exact { definitions, step, kv, noise, is_float: false };
    for (i, step) in program.steps.iter().enumerate() {
        exact.step = step;
        let (mut shown, logits) = execute(&mut exact, program, i);
        all.append(&mut shown);
        if let Some(logits) = logits {
            let (values, cols) = exact.download(&logits);
            all.push(Shown { what: format!("step {i}, its logits"), cols, values, sampled: None });
        }
    }
    all
}

/// The largest distance of a tensor's numbers from the definition's as a share of what is allowed:
/// as far as noise moves a row's numbers, or, where that happens to be little, as it does in the
/// tensor's rows as a whole.
///
/// # Errors
/// The first number that is further off.
fn compare(found: &Shown, exact: &Shown, noisy: &[&Shown]) -> Result<f64, String> {
    if found.values.len() != exact.values.len() {
        let lens = (found.values.len(), exact.values.len());
        return Err(format!("{}: {} numbers, expected {}", found.what, lens.0, lens.1));
    }
    let cols = exact.cols;
    let row = |values: &[f64], row: usize| values[row * cols..(row + 1) * cols].to_vec();
    let size = |values: &[f64]| values.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let rows = exact.values.len() / cols;
    let of_rows: Vec<(f64, f64)> = (0..rows)
        .map(|r| {
            let exact = row(&exact.values, r);
            let moved = |run: &&Shown| {
                let pairs = row(&run.values, r);
                size(&pairs.iter().zip(&exact).map(|(a, b)| a - b).collect::<Vec<_>>())
            };
            (size(&exact), noisy.iter().map(moved).fold(0.0, f64::max))
        })
        .collect();
    let shares = of_rows.iter().filter(|(size, _)| *size > 0.0).map(|(size, moved)| moved / size);
    let share = (shares.map(|share| share * share).sum::<f64>() / rows.max(1) as f64).sqrt();
    let mut furthest = 0.0f64;
    for (i, (f, e)) in found.values.iter().zip(&exact.values).enumerate() {
        let (size, moved) = of_rows[i / cols];
        assert!(size < SIZE_MAX, "{}: {size} is too large to mean anything", found.what);
        let allowed = MARGIN * moved.max(share * size) + 1e-30;
        let off = (f - e).abs() / allowed;
        if off.is_nan() || off > 1.0 {
            let what = &found.what;
            let (r, c) = (i / cols, i % cols);
            return Err(format!("{what} [{r}, {c}]: {f}, expected {e} ± {allowed}"));
        }
        furthest = furthest.max(off);
    }
    Ok(furthest)
}

/// What to tell of a program that fails, less the steps and ops at its end that it fails without.
fn shrunk<B: Tested>(
    place: B::Place,
    base: &Base,
    seed: u64,
    mut program: Program,
    deltas: &[Arc<Delta>],
) -> String {
    // On a backend of its own: a lost card fails whatever comes.
    let fails =
        |program: &Program| check(&Uploaded::<B>::new(place, base), base, program, deltas).err();
    let Some(mut why) = fails(&program) else {
        return format!("seed {seed} fails only after other programs:\n{program}");
    };
    for shorten in [without_last_step, without_last_op] {
        while let Some(shorter) = shorten(&program)
            && let Some(other) = fails(&shorter)
        {
            (program, why) = (shorter, other);
        }
    }
    format!("seed {seed}, {:?}: {why}\n{program}", base.dtype)
}

fn without_last_step(program: &Program) -> Option<Program> {
    let mut shorter = program.clone();
    shorter.steps.pop();
    (!shorter.steps.is_empty()).then_some(shorter)
}

/// A step that may be replayed has logits.
fn without_last_op(program: &Program) -> Option<Program> {
    let mut shorter = program.clone();
    shorter.ops.pop();
    let has_logits = shorter.ops.iter().any(|op| matches!(op, Op::Head { .. }));
    let needs_logits = shorter.steps.iter().any(|step| step.replayed);
    (!shorter.ops.is_empty() && (has_logits || !needs_logits)).then_some(shorter)
}
