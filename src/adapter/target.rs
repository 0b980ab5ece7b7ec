//! Which modules a config means: peft's matching rules (peft
//! `tuners/tuners_utils.py`, `check_target_module_exists`).

use serde_json::Value;

use super::config::{Config, bad, short};
use super::error::AdapterError;
use super::names::{NamePattern, Place};
use super::pattern::PythonPattern;
use crate::ids::ModuleId;
use crate::site::{Module, ModuleMap, SiteKind};

/// Either form of `target_modules` and `exclude_modules`.
enum Names {
    /// The whole name must match.
    Pattern(PythonPattern),
    /// The name is an entry, or ends with a dot and an entry.
    List(Vec<String>),
}

impl Names {
    fn read(config: &Config<'_>, key: &'static str) -> Result<Option<Self>, AdapterError> {
        match config.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(Self::Pattern(PythonPattern::full(key, text)?))),
            Some(_) => Ok(config.texts(key)?.filter(|list| !list.is_empty()).map(Self::List)),
        }
    }

    fn matches(&self, name: &str) -> Result<bool, AdapterError> {
        match self {
            Self::Pattern(pattern) => pattern.matches(name),
            Self::List(list) => Ok(list.iter().any(|entry| is_or_ends_with(name, entry))),
        }
    }

    fn lists_exactly(&self, name: &str) -> bool {
        matches!(self, Self::List(list) if list.iter().any(|entry| entry == name))
    }
}

fn is_or_ends_with(name: &str, entry: &str) -> bool {
    let rest = name.strip_suffix(entry);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The modules that the tuner wraps, in the order of the model.
///
/// # Errors
/// When the fields are of the wrong form or match nothing.
pub fn targets(
    config: &Config<'_>,
    modules: &ModuleMap,
    default: &[&str],
) -> Result<Vec<ModuleId>, AdapterError> {
    let all_linear =
        |value: &Value| value.as_str().is_some_and(|t| t.eq_ignore_ascii_case("all-linear"));
    let target = match config.get("target_modules") {
        None => Some(Names::List(default.iter().map(|name| (*name).to_owned()).collect())),
        Some(value) if all_linear(value) => None,
        Some(_) => Some(Names::read(config, "target_modules")?.ok_or_else(|| {
            AdapterError::Invalid("adapter_config.json: 'target_modules' is empty".into())
        })?),
    };
    let exclude = Names::read(config, "exclude_modules")?;
    let saved = saved_patterns(config)?;
    let layers = Layers::read(config)?;
    if layers.indices.is_some() && matches!(target, None | Some(Names::Pattern(_))) {
        return Err(AdapterError::Invalid(
            "adapter_config.json: 'layers_to_transform' cannot go with a pattern in \
             'target_modules'"
                .into(),
        ));
    }
    let wanted = |module: &Module| -> Result<bool, AdapterError> {
        let name = module.name.as_str();
        let excluded = exclude.as_ref().map_or(Ok(false), |names| names.matches(name))?;
        if excluded || any_matches(&saved, name)? {
            return Ok(false);
        }
        match &target {
            None => Ok(module.kind == SiteKind::Linear && name != "lm_head"),
            Some(names) => {
                Ok(names.matches(name)? && (names.lists_exactly(name) || layers.keep(name)?))
            }
        }
    };
    let mut found = Vec::new();
    for (id, module) in modules.iter() {
        if wanted(module)? {
            found.push(id);
        }
    }
    if found.is_empty() {
        let value = config.get("target_modules").map_or("null".into(), short);
        let narrowed = ["exclude_modules", "layers_to_transform", "modules_to_save"];
        let narrowed = narrowed.into_iter().filter_map(|key| Some((key, config.get(key)?)));
        let with: String = narrowed.map(|(k, v)| format!(" with '{k}' {}", short(v))).collect();
        return Err(AdapterError::Invalid(format!(
            "adapter_config.json: 'target_modules' {value}{with} matches no module of the base \
             model"
        )));
    }
    Ok(found)
}

fn any_matches(patterns: &[NamePattern], name: &str) -> Result<bool, AdapterError> {
    for pattern in patterns {
        if pattern.matches(name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Modules in `modules_to_save` are never wrapped as well.
fn saved_patterns(config: &Config<'_>) -> Result<Vec<NamePattern>, AdapterError> {
    const KEY: &str = "modules_to_save";
    let saved = config.texts(KEY)?.unwrap_or_default();
    saved.iter().map(|name| NamePattern::read(config, KEY, Place::Within, name)).collect()
}

/// `layers_to_transform` and `layers_pattern`.
struct Layers {
    indices: Option<Vec<usize>>,
    patterns: Vec<PythonPattern>,
}

impl Layers {
    fn read(config: &Config<'_>) -> Result<Self, AdapterError> {
        let indices = config.indices("layers_to_transform")?.filter(|list| !list.is_empty());
        let named = config.texts("layers_pattern")?.unwrap_or_default();
        let named = named.iter().filter(|pattern| !pattern.is_empty());
        let around = [r"(?:^|.*?\.)", r"\.(\d+)\."];
        let numbered = |pattern: &str| {
            config.count_pattern("layers_pattern")?;
            PythonPattern::within("layers_pattern", around, pattern)
        };
        let mut patterns = named.map(|name| numbered(name)).collect::<Result<Vec<_>, _>>()?;
        if patterns.is_empty() {
            let around = [r".*?\.", r"\.(\d+)\."];
            patterns.push(PythonPattern::within("layers_pattern", around, "[^.]*")?);
        }
        Ok(Self { indices, patterns })
    }

    fn keep(&self, name: &str) -> Result<bool, AdapterError> {
        let Some(indices) = &self.indices else { return Ok(true) };
        for pattern in &self.patterns {
            if let Some(index) = pattern.last_group(name)? {
                let index = index.and_then(|index| index.parse().ok());
                return Ok(index.is_some_and(|index: usize| indices.contains(&index)));
            }
        }
        Ok(false)
    }
}

/// Modules that `modules_to_save` replaces whole. Here peft matches by a plain `endswith`: `norm`
/// also means `input_layernorm`.
pub fn saved(config: &Config<'_>, modules: &ModuleMap) -> Result<Vec<ModuleId>, AdapterError> {
    let names = config.texts("modules_to_save")?.unwrap_or_default();
    for name in &names {
        // peft does not mind, but then nothing would be saved: a typing error worth a word.
        let found = modules.iter().any(|(_, m)| m.name.ends_with(name.as_str()));
        if name.is_empty() || !found {
            return Err(bad(
                "modules_to_save",
                "a list of linears, norms, the embedding or the head of the base model",
                &Value::String(name.clone()),
            ));
        }
    }
    let wanted = |module: &Module| names.iter().any(|name| module.name.ends_with(name.as_str()));
    Ok(modules.iter().filter(|(_, m)| wanted(m)).map(|(id, _)| id).collect())
}

/// `rank_pattern` or `alpha_pattern`: the first key (in the order of the file) that matches the
/// end of a module's name decides its value.
pub struct Pattern {
    entries: Vec<(NamePattern, f64)>,
}

impl Pattern {
    /// Reads the field `key`.
    ///
    /// # Errors
    /// When it is not an object of numbers, or a key is not a usable pattern.
    pub fn read(config: &Config<'_>, key: &'static str) -> Result<Self, AdapterError> {
        let entries = config.numbers(key)?.into_iter().map(|(pattern, value)| {
            Ok((NamePattern::read(config, key, Place::End, &pattern)?, value))
        });
        Ok(Self { entries: entries.collect::<Result<_, AdapterError>>()? })
    }

    /// The value for the module of this name, if one is given.
    ///
    /// # Errors
    /// When matching takes too many steps.
    pub fn get(&self, name: &str) -> Result<Option<f64>, AdapterError> {
        for (pattern, value) in &self.entries {
            if pattern.matches(name)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// Whether a name is a feed-forward module of IA³: there peft matches lists by a plain `endswith`.
pub struct FeedForward(Option<Names>);

impl FeedForward {
    /// Reads `feedforward_modules`.
    ///
    /// # Errors
    /// When it is of the wrong form.
    pub fn read(config: &Config<'_>) -> Result<Self, AdapterError> {
        Ok(Self(Names::read(config, "feedforward_modules")?))
    }

    /// True where the module's input is scaled instead of its output.
    ///
    /// # Errors
    /// When matching takes too many steps.
    pub fn matches(&self, name: &str) -> Result<bool, AdapterError> {
        match &self.0 {
            None => Ok(false),
            Some(Names::Pattern(pattern)) => pattern.matches(name),
            Some(Names::List(list)) => Ok(list.iter().any(|entry| name.ends_with(entry.as_str()))),
        }
    }
}
