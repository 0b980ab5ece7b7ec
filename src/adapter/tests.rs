//! Module patterns against peft: `tools/differential/targets.py` writes what it makes of them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::config::Config;
use super::error::AdapterError;
use super::target::{Pattern, saved, targets};
use crate::site::{ModuleMap, Site, SiteKind, SiteMap};

const PEFT: &str = include_str!("../../tests/data/differential/targets.json");

fn modules(listed: &Value) -> ModuleMap {
    let mut sites = SiteMap::default();
    for module in listed.as_array().unwrap() {
        let kind = match module[1].as_str().unwrap() {
            "linear" => SiteKind::Linear,
            "embedding" => SiteKind::Embedding,
            _ => SiteKind::Norm,
        };
        sites.add(Site {
            name: module[0].as_str().unwrap().to_owned(),
            kind,
            in_features: 1,
            out_features: 1,
            has_bias: false,
        });
    }
    sites.as_modules()
}

/// As the script writes it: the modules of each rank and alpha, and those saved whole.
type Found = (BTreeMap<String, Vec<u64>>, Vec<u64>);

fn ours(fields: &Map<String, Value>, modules: &ModuleMap) -> Result<Found, AdapterError> {
    let config = Config::new(fields);
    let (ranks, alphas) =
        (Pattern::read(&config, "rank_pattern")?, Pattern::read(&config, "alpha_pattern")?);
    let alpha = config.number("lora_alpha", 8.0)?;
    let mut found = BTreeMap::<String, Vec<u64>>::new();
    for id in targets(&config, modules, &["q_proj", "v_proj"])? {
        let module = modules.get(id);
        if module.kind == SiteKind::Norm {
            // As the methods say that have no norms.
            return Err(AdapterError::Invalid("a norm".to_owned()));
        }
        let rank = ranks.get(&module.name)?.unwrap_or(8.0);
        let alpha = alphas.get(&module.name)?.unwrap_or(alpha);
        found.entry(format!("{rank} {alpha}")).or_default().push(u64::from(id.0));
    }
    let mut whole: Vec<u64> = saved(&config, modules)?.iter().map(|id| u64::from(id.0)).collect();
    whole.sort_unstable();
    Ok((found, whole))
}

/// `None` where peft saves a container whole, which is not served.
fn pefts(answer: &Value) -> Option<Found> {
    let numbers = |list: &Value| -> Option<Vec<u64>> {
        let mut numbers: Vec<u64> =
            list.as_array().unwrap().iter().map(Value::as_u64).collect::<Option<_>>()?;
        numbers.sort_unstable();
        Some(numbers)
    };
    let groups = answer["targets"].as_object().unwrap();
    let groups = groups.iter().map(|(key, list)| Some((key.clone(), numbers(list)?)));
    Some((groups.collect::<Option<_>>()?, numbers(&answer["saved"])?))
}

#[test]
fn patterns_target_what_peft_targets_or_are_refused() {
    let data: Value = serde_json::from_str(PEFT).unwrap();
    let (mut equal, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    for case in data["cases"].as_array().unwrap() {
        let modules = modules(&data["models"][case[0].as_str().unwrap()]);
        let fields = case[1].as_object().unwrap();
        let ours = ours(fields, &modules);
        let answer = &case[2];
        match (ours, answer.get("error").and_then(Value::as_str)) {
            (Err(error), None) => refused.push(format!("{} {error}", case[1])),
            (Ok(ours), None) if pefts(answer).as_ref() == Some(&ours) => equal += 1,
            (Ok(ours), None) => wrong.push(format!("{}: {ours:?}, peft: {answer}", case[1])),
            (Ok(ours), Some("pattern")) => wrong.push(format!("{}: {ours:?}", case[1])),
            // peft cannot make such an adapter.
            (_, Some(_)) => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    println!("{equal} equal; refused: {refused:#?}");
    assert!(equal >= 300, "only {equal} are equal; refused: {refused:#?}");
}
