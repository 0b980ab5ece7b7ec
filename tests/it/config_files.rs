//! `config.json` and weights in the spellings that users have, against what transformers computes
//! for the same files (`tools/differential/configs.py` wrote tests/data/differential/configs.json).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype as FileDtype;
use serde_json::{Map, Value};
use tessera::backend::{Device as _, cpu::Cpu};
use tessera::ids::TokenId;
use tessera::model::{Checkpoint, Model};
use tessera::recipe::Recipe;

use crate::files::{Raw, read_tensors, tensor_bytes};
use crate::harness::{BLOCK_TOKENS, golden_dir, prompts_as_rows};

/// The figures are written with five digits; f32 sums in another order.
const TOLERANCE: f32 = 2e-3;
/// Of what transformers serves, the part that must be served and equal, in percent.
const EQUAL_PERCENT_MIN: usize = 75;
const CASES_MIN: usize = 150;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

type Tensors = BTreeMap<String, Raw>;

/// What the two sides make of a case.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Outcome {
    Equal,
    Refused,
    BothRefuse,
    ServedAlone,
}

/// As `pattern` in the script.
fn pattern(shape: &[usize], scale: f64) -> Vec<f32> {
    let ramp = |i: usize| (i * 7919 % 1000) as f64 / 1000.0 - 0.5;
    (0..shape.iter().product()).map(|i| (ramp(i) * scale) as f32).collect()
}

/// As `apply` in the script.
fn apply(tensors: &mut Tensors, recipe: &Value) {
    let text = |i: usize| recipe[i].as_str().unwrap().to_owned();
    let number = |i: usize| recipe[i].as_f64().unwrap();
    match recipe[0].as_str().unwrap() {
        "head" => {
            let table = &tensors[EMBEDDING];
            let added = pattern(&table.shape, number(1));
            let sum: Vec<f32> = table.floats().iter().zip(added).map(|(a, b)| a + b).collect();
            let head = Raw::f32(&table.shape, &sum);
            tensors.insert(HEAD.into(), head);
        }
        "drop" => drop(tensors.remove(&text(1)).unwrap()),
        "insert" => {
            let shape: Vec<usize> = recipe[2]
                .as_array()
                .unwrap()
                .iter()
                .map(|n| n.as_u64().unwrap() as usize)
                .collect();
            tensors.insert(text(1), Raw::f32(&shape, &pattern(&shape, number(3))));
        }
        "biases" => {
            let named = |name: &&String| name.ends_with("_proj.weight") && name.contains(&text(1));
            let names: Vec<_> = tensors.keys().filter(named).cloned().collect();
            for name in names {
                let rows = tensors[&name].shape[0];
                let bias = format!("{}bias", name.strip_suffix("weight").unwrap());
                let zeros = Raw::f32(&[rows], &pattern(&[rows], number(2)));
                tensors.entry(bias).or_insert(zeros);
            }
        }
        "cast" => {
            let chosen = tensors.iter_mut().filter(|(name, _)| name.contains(&text(1)));
            for (_, raw) in chosen {
                match text(2).as_str() {
                    "float16" => raw.narrow(FileDtype::F16),
                    _ => raw.widen(),
                }
            }
        }
        "strip" => {
            let rest = |name: String| name.strip_prefix(&text(1)).unwrap_or(&name).to_owned();
            let all = std::mem::take(tensors).into_iter();
            *tensors = all.map(|(name, raw)| (rest(name), raw)).collect();
        }
        "prefix" => {
            let all = std::mem::take(tensors).into_iter();
            *tensors = all.map(|(name, raw)| (text(1) + &name, raw)).collect();
        }
        other => panic!("{other}"),
    }
}

/// Writes the files of a case.
fn write(case: &Value, dir: &Path) {
    let from = golden_dir().join(case["model"].as_str().unwrap());
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config: Map<String, Value> = serde_json::from_slice(&config).unwrap();
    for (key, value) in case["set"].as_object().into_iter().flatten() {
        config.insert(key.clone(), value.clone());
    }
    for key in case["unset"].as_array().into_iter().flatten() {
        config.shift_remove(key.as_str().unwrap());
    }
    std::fs::write(dir.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let (from, to) = (from.join("model.safetensors"), dir.join("model.safetensors"));
    let Some(recipes) = case["weights"].as_array() else {
        std::fs::copy(from, to).unwrap();
        return;
    };
    let mut tensors = read_tensors(&from);
    recipes.iter().for_each(|recipe| apply(&mut tensors, recipe));
    std::fs::write(to, tensor_bytes(&tensors)).unwrap();
}

/// Logits after a prompt.
fn last_logits(checkpoint: &Arc<Checkpoint>, prompt: &[TokenId]) -> Vec<f32> {
    let backend = Cpu::new(1);
    let model = Model::load(checkpoint, &backend, prompt.len(), &|_| {}).unwrap();
    let blocks = prompt.len().div_ceil(BLOCK_TOKENS);
    let mut kv = backend.kv(Model::<Cpu>::kv_shape(checkpoint, blocks, BLOCK_TOKENS)).unwrap();
    let mut rows = prompts_as_rows(&[(Recipe::base(), prompt.to_vec())]);
    rows.logit_rows = vec![prompt.len() as u32 - 1];
    let outputs = model.forward(&backend, &rows, &backend.slots(0), &mut kv);
    backend.download(&outputs.logits.unwrap()).unwrap()
}

fn numbers(value: &Value) -> impl Iterator<Item = f64> {
    value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap())
}

/// The outcome, or what is wrong with it.
fn compare(all: &Value, case: &Value) -> Result<Outcome, String> {
    let dir = tempfile::tempdir().unwrap();
    write(case, dir.path());
    // The script computes in f32, whatever the file has.
    let opened = Checkpoint::open(dir.path(), Some(tessera::dtype::Dtype::F32));
    let served = case.get("logits");
    let checkpoint = match (opened, served) {
        (Err(e), None) => return named(case, &e.to_string()).map(|()| Outcome::BothRefuse),
        (Err(e), Some(_)) => return named(case, &e.to_string()).map(|()| Outcome::Refused),
        (Ok(_), None) if case.get("random").is_some() => {
            return Err("served, though transformers made up a tensor".into());
        }
        (Ok(_), None) => return Ok(Outcome::ServedAlone),
        (Ok(checkpoint), Some(_)) => Arc::new(checkpoint),
    };
    let prompt: Vec<TokenId> = numbers(&all["prompt"]).map(|id| id as TokenId).collect();
    let got = last_logits(&checkpoint, &prompt);
    let probes = numbers(&all["probes"]).zip(numbers(served.unwrap()));
    let distance = probes.map(|(at, want)| (got[at as usize] - want as f32).abs());
    let distance = distance.fold(0.0, f32::max);
    let mut order: Vec<usize> = (0..got.len()).collect();
    order.sort_by(|a, b| got[*b].total_cmp(&got[*a]));
    // Neighbours closer than the tolerance may change places.
    let top = numbers(&case["top"])
        .zip(&order)
        .all(|(want, have)| (got[want as usize] - got[*have]).abs() < TOLERANCE);
    match distance < TOLERANCE && top {
        true => Ok(Outcome::Equal),
        false => Err(format!("differs by {distance}")),
    }
}

/// A refusal must name a field or a tensor: what stands in quotes, or a file.
fn named(case: &Value, error: &str) -> Result<(), String> {
    let fields = case["set"].as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    let unset = case["unset"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let changed: Vec<&str> = fields.chain(unset).collect();
    let tensor = error.contains("tensor '") || error.contains("the weights hold no tensor");
    let rope = changed.iter().any(|key| key.starts_with("rope_")) && error.contains("rope");
    let inner = ["factor", "partial_rotary", "original_max"].iter().any(|key| error.contains(key));
    match tensor || rope || inner || changed.iter().any(|key| error.contains(key)) {
        true => Ok(()),
        false => Err(format!("the refusal names none of {changed:?}: {error}")),
    }
}

#[test]
fn every_spelling_of_a_model_gives_transformers_logits_or_is_refused_by_name() {
    let path = crate::root().join("tests/data/differential/configs.json");
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = all["cases"].as_array().unwrap();
    let (mut counts, mut wrong) = (BTreeMap::new(), Vec::new());
    // Half of them each on two threads.
    let (some, others) = cases.split_at(cases.len() / 2);
    let each = |cases: &[Value]| cases.iter().map(|case| compare(&all, case)).collect::<Vec<_>>();
    let results = std::thread::scope(|scope| {
        let others = scope.spawn(|| each(others));
        [each(some), others.join().unwrap()].concat()
    });
    for (case, result) in cases.iter().zip(results) {
        let name = format!("{} / {}", case["model"], case["name"]);
        match result {
            Ok(outcome) => {
                if [Outcome::Refused, Outcome::ServedAlone].contains(&outcome) {
                    println!("{name}: {outcome:?}");
                }
                *counts.entry(outcome).or_insert(0) += 1;
            }
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    let count = |outcome| counts.get(&outcome).copied().unwrap_or(0);
    let (equal, refused) = (count(Outcome::Equal), count(Outcome::Refused));
    println!(
        "{} cases: {equal} equal, {refused} refused here alone, {} refused by both, {} served \
         here alone, {} wrong",
        cases.len(),
        count(Outcome::BothRefuse),
        count(Outcome::ServedAlone),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(cases.len() >= CASES_MIN);
    assert!(equal * 100 >= (equal + refused) * EQUAL_PERCENT_MIN, "{equal} of {}", equal + refused);
}
