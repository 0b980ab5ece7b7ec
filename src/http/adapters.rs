//! `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them, for every kind of
//! adapter.

use std::path::Path;
use std::sync::Arc;

use hyper::Response;

use super::body::Payload;
use super::clock::unix_now_s;
use super::error::{ApiError, LoadError};
use super::fields::{LoadFields, UnloadFields};
use super::parse::parse;
use super::sse::{Body, whole};
use super::state::State;
use crate::adapter::{self, AdapterError, NameError, NewName, Source, check_name};
use crate::ids::Digest;
use crate::text::{OwnText, TextError};

/// Loads an adapter under a name.
pub(super) async fn load(state: &Arc<State>, payload: Payload) -> Result<Response<Body>, ApiError> {
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
    let State { model, catalog, loader, adapter_root, .. } = state;
    let names_base = name.strip_prefix(model.base_name.as_str());
    if names_base.is_some_and(|tail| tail.is_empty() || tail.starts_with(':')) {
        return Err(LoadError::NameConflict(name.to_owned()));
    }
    // Before the costly part, and before a word about what is at the path.
    check_name(name).map_err(LoadError::Name)?;
    if !replace && catalog.get(name).is_some() {
        return Err(LoadError::Name(NameError::Taken(name.to_owned())));
    }
    let not_found = || LoadError::NotFound { name: name.to_owned(), path: path.to_owned() };
    let refused = |error| match error {
        AdapterError::NotFound(_) => not_found(),
        error => LoadError::Adapter { name: name.to_owned(), error },
    };
    let root = adapter_root.as_ref().ok_or(LoadError::OutsideRoot)?;
    let dir = root.beneath(Path::new(path))?.ok_or_else(not_found)?;
    let file = loader.read(&dir, Some(root.canonical())).map_err(refused)?;
    let text_refused = |error: TextError| refused(AdapterError::Invalid(error.to_string()));
    let OwnText { text, notes } =
        state.texts.read(&dir, Some(root.canonical())).map_err(text_refused)?;
    file.notes.iter().chain(&notes).for_each(|note| tracing::info!("adapter {name}: {note}"));
    let source = Source::Request(path.to_owned());
    let new = NewName { name, source, text, created: unix_now_s(), replace };
    let loaded = catalog.load(new, file.digest, || loader.lower(&file));
    let loaded = loaded.map_err(|error| match error {
        adapter::LoadError::Name(error) => LoadError::Name(error),
        adapter::LoadError::Full(error) => LoadError::Full(error),
        adapter::LoadError::Adapter(error) => refused(error),
    })?;
    forget(state, loaded.freed);
    Ok(())
}

/// Frees the device of what no name points at any more.
fn forget(state: &State, freed: Option<Digest>) {
    if let Some(digest) = freed {
        state.engine.forget(digest);
    }
}

/// Forgets a name. Requests in flight keep the content they began with.
pub(super) fn unload(state: &State, payload: &Payload) -> Result<Response<Body>, ApiError> {
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

fn check_changeable(state: &State) -> Result<(), LoadError> {
    match &state.model.merged {
        Some(merged) => Err(LoadError::MergedIsFixed(merged.clone())),
        None => Ok(()),
    }
}
