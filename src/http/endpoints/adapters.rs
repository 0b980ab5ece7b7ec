//! `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them, for every kind of
//! adapter; `DELETE` of an adapter's name, and `POST /v1/adapters/validate`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hyper::Response;
use serde_json::{Value, json};

use crate::adapter::{
    self, AdapterError, AdapterFile, NameError, NewName, Source, check_name, not_opened,
};
use crate::files::{NotRead, steadily};
use crate::http::clock::unix_now_s;
use crate::http::error::{ApiError, LoadError, RequestError};
use crate::http::request::body::Payload;
use crate::http::request::fields::{LoadFields, UnloadFields, ValidateFields};
use crate::http::request::parse::parse;
use crate::http::sse::{Body, whole};
use crate::http::state::State;
use crate::http::wire::to_json;
use crate::ids::Digest;
use crate::text::{ServedText, TextError, TextFiles};

/// Loads an adapter under a name.
pub(in crate::http) async fn load(
    state: &Arc<State>,
    payload: Payload,
) -> Result<Response<Body>, ApiError> {
    state.check_open()?;
    let parsed = parse::<LoadFields>(&payload.bytes)?;
    drop(payload);
    state.check_unknown(&parsed.unknown)?;
    let LoadFields { lora_name, lora_path, load_inplace } = parsed.fields;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (Some(name), Some(path)) = (given(lora_name), given(lora_path)) else {
        return Err(LoadError::LoadFields.into());
    };
    check_changeable(state)?;
    let replace = load_inplace.unwrap_or(false);
    let success = format!("Success: LoRA adapter '{name}' added successfully.");
    // Loading goes on when the client does not wait for it: the name is then there later.
    let loads = state.loads.clone();
    let work = move |state: &State| Ok(load_now(state, &name, &path, replace)?);
    state.off_thread(&loads, work).await?;
    Ok(whole("text/plain; charset=utf-8", success))
}

fn load_now(state: &State, name: &str, path: &str, replace: bool) -> Result<(), LoadError> {
    let begun = Instant::now();
    check_new_name(state, name)?;
    if !replace && state.catalog.get(name).is_some() {
        return Err(LoadError::Name(NameError::Taken(name.to_owned())));
    }
    let (file, text) = read(state, name, path)?;
    file.notes.iter().for_each(|note| tracing::info!("adapter {name}: {note}"));
    let source = Source::Request(path.to_owned());
    let new = NewName { name, source, text, created: unix_now_s(), replace };
    let loaded = state.catalog.load(new, file.digest, || state.loader.lower(&file));
    let loaded = loaded.map_err(|error| match error {
        adapter::LoadError::Name(error) => LoadError::Name(error),
        adapter::LoadError::Full(error) => LoadError::Full(error),
        adapter::LoadError::Adapter(error) => refused(name, path, error),
    })?;
    forget(state, loaded.freed);
    state.metrics.adapters.loaded(name, begun.elapsed());
    Ok(())
}

/// Before the costly part, and before a word about what is at the path.
fn check_new_name(state: &State, name: &str) -> Result<(), LoadError> {
    let names_base = name.strip_prefix(state.model.base_name.as_str());
    if names_base.is_some_and(|tail| tail.is_empty() || tail.starts_with(':')) {
        return Err(LoadError::NameConflict(name.to_owned()));
    }
    check_name(name).map_err(LoadError::Name)
}

/// What is at the path, with all notes on it, and how its text is read.
fn read(
    state: &State,
    name: &str,
    path: &str,
) -> Result<(AdapterFile, Option<Arc<ServedText>>), LoadError> {
    let State { loader, texts, adapter_root, .. } = state;
    let root = adapter_root.as_ref().ok_or(LoadError::OutsideRoot)?;
    let path_given = Path::new(path);
    let invalid = |error: TextError| AdapterError::Invalid(error.to_string());
    let found = steadily(
        || root.folder(path_given),
        |folder| -> Result<_, AdapterError> {
            Ok((loader.read(folder)?, TextFiles::of_adapter(folder).map_err(invalid)?))
        },
    );
    let refused = |error| refused(name, path, error);
    let (mut file, own) = match found {
        Ok(read) => read.map_err(refused)?,
        Err(NotRead::Outside(_) | NotRead::Far | NotRead::Dangling) => {
            return Err(LoadError::OutsideRoot);
        }
        Err(NotRead::Changed) => return Err(LoadError::Changed(name.to_owned())),
        Err(why) => return Err(refused(not_opened(path_given, why))),
    };
    let own = texts.of_adapter(own).map_err(|error| refused(invalid(error)))?;
    file.notes.extend(own.notes);
    Ok((file, own.text))
}

fn refused(name: &str, path: &str, error: AdapterError) -> LoadError {
    let name = name.to_owned();
    match error {
        AdapterError::NotFound(_) => LoadError::NotFound { name, path: path.to_owned() },
        error => LoadError::Adapter { name, error },
    }
}

/// Says whether an adapter would be served, and what it holds, without loading it.
pub(in crate::http) async fn validate(
    state: &Arc<State>,
    payload: Payload,
) -> Result<Response<Body>, ApiError> {
    state.check_open()?;
    let parsed = parse::<ValidateFields>(&payload.bytes)?;
    drop(payload);
    state.check_unknown(&parsed.unknown)?;
    let ValidateFields { lora_name, lora_path } = parsed.fields;
    let path = lora_path.filter(|path| !path.is_empty());
    let path = path.ok_or(RequestError::Missing("lora_path"))?;
    let loads = state.loads.clone();
    let work = move |state: &State| Ok(validate_now(state, lora_name.as_deref(), &path)?);
    let report = state.off_thread(&loads, work).await?;
    Ok(whole("application/json", to_json(&report)))
}

fn validate_now(state: &State, name: Option<&str>, path: &str) -> Result<Value, LoadError> {
    if let Some(name) = name {
        check_new_name(state, name)?;
    }
    let name = name.unwrap_or(path);
    let (file, _) = read(state, name, path)?;
    let adapter = state.loader.lower(&file).map_err(|error| refused(name, path, error))?;
    let mut report = json!({"object": "adapter.validation", "valid": true});
    if let (Some(all), Value::Object(more)) =
        (report.as_object_mut(), adapter.describe(&file.notes))
    {
        all.extend(more);
    }
    Ok(report)
}

/// Frees the device of what no name points at any more.
fn forget(state: &State, freed: Option<Digest>) {
    if let Some(digest) = freed {
        state.engine.forget(digest);
    }
}

/// Forgets a name. Requests in flight keep the content they began with.
pub(in crate::http) fn unload(
    state: &State,
    payload: &Payload,
) -> Result<Response<Body>, ApiError> {
    let parsed = parse::<UnloadFields>(&payload.bytes)?;
    state.check_unknown(&parsed.unknown)?;
    let name = parsed.fields.lora_name.filter(|name| !name.is_empty());
    let name = name.ok_or(LoadError::UnloadFields)?;
    check_changeable(state)?;
    let Some(freed) = state.catalog.remove(&name) else {
        return Err(LoadError::Unknown(name).into());
    };
    forget(state, freed);
    let success = format!("Success: LoRA adapter '{name}' removed successfully.");
    Ok(whole("text/plain; charset=utf-8", success))
}

/// `DELETE /v1/adapters/{name}`, and of a model that is an adapter: [`unload`] in OpenAI's form.
/// `object` is what the answer says was deleted.
pub(in crate::http) fn delete(
    state: &State,
    name: &str,
    object: &'static str,
) -> Result<Response<Body>, ApiError> {
    check_changeable(state)?;
    if name == state.model.base_name {
        return Err(LoadError::BaseIsFixed.into());
    }
    let Some(freed) = state.catalog.remove(name) else {
        return Err(match object {
            "model" => RequestError::ModelNotFound(name.to_owned()).into(),
            _ => LoadError::NoAdapter(name.to_owned()).into(),
        });
    };
    forget(state, freed);
    let answer = json!({"id": name, "object": object, "deleted": true});
    Ok(whole("application/json", to_json(&answer)))
}

fn check_changeable(state: &State) -> Result<(), LoadError> {
    match &state.model.merged {
        Some(merged) => Err(LoadError::MergedIsFixed(merged.clone())),
        None => Ok(()),
    }
}
