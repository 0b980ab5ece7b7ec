//! `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them, for every kind of
//! adapter.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use hyper::Response;

use super::body::Payload;
use super::error::ApiError;
use super::parse::parse;
use super::sse::{Body, whole};
use super::wire::{LoadFields, UnloadFields};
use super::{State, unix_now_s};
use crate::adapter::{AdapterError, StoreError, check_name};
use crate::ids::Digest;

/// Loads an adapter under a name.
pub(super) async fn load(state: &Arc<State>, payload: Payload) -> Result<Response<Body>, ApiError> {
    state.check_open()?;
    let parsed = parse::<LoadFields>(&payload.bytes)?;
    drop(payload);
    state.metrics.unknown_fields(&parsed.unknown);
    let LoadFields { lora_name, lora_path, load_inplace } = parsed.fields;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (Some(name), Some(path)) = (given(lora_name), given(lora_path)) else {
        return Err(ApiError::LoadFields);
    };
    check_changeable(state)?;
    let replace = load_inplace.unwrap_or(false);
    let success = format!("Success: LoRA adapter '{name}' added successfully.");
    // Loading goes on when the client does not wait for it: the name is then there later.
    let loads = state.loads.clone();
    state.off_thread(&loads, move |state| load_now(state, &name, &path, replace)).await?;
    Ok(whole("text/plain; charset=utf-8", success))
}

fn load_now(state: &State, name: &str, path: &str, replace: bool) -> Result<(), ApiError> {
    let app = &state.app;
    let names_base = name.strip_prefix(app.base_name.as_str());
    if names_base.is_some_and(|tail| tail.is_empty() || tail.starts_with(':')) {
        return Err(ApiError::NameConflict(name.to_owned()));
    }
    check_name(name).map_err(ApiError::Store)?;
    if !replace && app.store.get(name).is_some() {
        return Err(ApiError::Store(StoreError::Taken(name.to_owned())));
    }
    let missing = || ApiError::AdapterMissing { name: name.to_owned(), path: path.to_owned() };
    let roots = (app.adapter_root.as_deref(), state.adapter_root.as_deref());
    let (Some(configured), Some(root)) = roots else { return Err(ApiError::OutsideRoot) };
    let dir = beneath(configured, root, Path::new(path))?.ok_or_else(missing)?;
    let adapter = app.loader.load(&dir, Some(root)).map_err(|error| match error {
        AdapterError::NotFound(_) => missing(),
        error => ApiError::Adapter { name: name.to_owned(), error },
    })?;
    let before = digest(state, name);
    app.store.insert(name, adapter, unix_now_s(), replace).map_err(ApiError::Store)?;
    forget(state, before);
    Ok(())
}

/// What a name points at now.
fn digest(state: &State, name: &str) -> Option<Digest> {
    state.app.store.get(name).map(|named| named.adapter.digest)
}

/// Frees what a name pointed at before, unless another name does too.
fn forget(state: &State, before: Option<Digest>) {
    if let Some(digest) = before.filter(|&digest| !state.app.store.holds(digest)) {
        state.app.engine.forget(digest);
    }
}

/// Where `path` is beneath `root` (which has no symbolic links and may have been configured as
/// `configured`); `None` if there is nothing.
///
/// # Errors
/// [`ApiError::OutsideRoot`], by what the path says and by what links say, and never by what is
/// outside.
fn beneath(configured: &Path, root: &Path, path: &Path) -> Result<Option<PathBuf>, ApiError> {
    let relative = match path.is_absolute() {
        false => path,
        true => {
            let inside = path.strip_prefix(root).or_else(|_| path.strip_prefix(configured));
            inside.map_err(|_| ApiError::OutsideRoot)?
        }
    };
    // A file system cannot look up a name with a NUL, and no directory is beneath such a path.
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(ApiError::OutsideRoot);
    }
    let is_plain = |c: &Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if !relative.components().all(|component| is_plain(&component)) {
        return Err(ApiError::OutsideRoot);
    }
    let mut at = root.to_owned();
    for component in relative.components() {
        let Component::Normal(name) = component else { continue };
        at.push(name);
        let Ok(found) = at.symlink_metadata() else { return Ok(None) };
        if found.is_symlink() {
            // A link to nothing is refused like one to the outside: where it points is not told.
            let target = at.canonicalize().map_err(|_| ApiError::OutsideRoot)?;
            if !target.starts_with(root) {
                return Err(ApiError::OutsideRoot);
            }
            at = target;
        }
    }
    Ok(Some(at))
}

/// Forgets a name. Requests in flight keep the content they began with.
pub(super) fn unload(state: &State, payload: &Payload) -> Result<Response<Body>, ApiError> {
    let parsed = parse::<UnloadFields>(&payload.bytes)?;
    state.metrics.unknown_fields(&parsed.unknown);
    let name = parsed.fields.lora_name.filter(|name| !name.is_empty());
    let name = name.ok_or(ApiError::UnloadFields)?;
    check_changeable(state)?;
    let before = digest(state, &name);
    if !state.app.store.remove(&name) {
        return Err(ApiError::AdapterUnknown(name));
    }
    forget(state, before);
    let success = format!("Success: LoRA adapter '{name}' removed successfully.");
    Ok(whole("text/plain; charset=utf-8", success))
}

fn check_changeable(state: &State) -> Result<(), ApiError> {
    match &state.app.merged {
        Some(merged) => Err(ApiError::MergedIsFixed(merged.clone())),
        None => Ok(()),
    }
}
