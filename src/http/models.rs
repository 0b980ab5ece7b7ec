//! Which names are served, and what each points at.

use std::sync::Arc;

use hyper::Response;

use super::error::ApiError;
use super::metrics::AdapterCounts;
use super::sse::{Body, whole};
use super::wire::{ModelCard, ModelList, Permission, to_json};
use super::{State, guard};
use crate::adapter::Adapter;

/// What a request's `model` points at, taken once when the request arrives.
pub(super) struct Target {
    /// As the client spelled it, for the answer.
    pub name: String,
    /// `None` for the base, and for the merged adapter, which is in the base's weights.
    pub adapter: Option<Arc<Adapter>>,
    pub counts: Arc<AdapterCounts>,
}

/// Finds what `model` names: the base, an adapter, or an adapter as `base:adapter`. No name, or an
/// empty one, is the base, or the merged adapter if there is one.
///
/// # Errors
/// [`ApiError::ModelNotFound`] and [`ApiError::NotMerged`].
pub(super) fn resolve(state: &State, model: Option<&str>) -> Result<Target, ApiError> {
    let app = &state.app;
    let asked = model.filter(|name| !name.is_empty());
    let short = asked.map(|name| {
        let tail = name.strip_prefix(app.base_name.as_str());
        tail.and_then(|tail| tail.strip_prefix(':')).unwrap_or(name)
    });
    if let Some(merged) = &app.merged {
        return match (asked, short) {
            (Some(asked), Some(short)) if short != merged => {
                Err(ApiError::NotMerged { served: merged.clone(), asked: asked.to_owned() })
            }
            _ => Ok(Target {
                name: asked.unwrap_or(merged).to_owned(),
                adapter: None,
                counts: state.metrics.adapter(merged),
            }),
        };
    }
    let base = || state.metrics.adapter(&app.base_name);
    let (Some(asked), Some(short)) = (asked, short) else {
        return Ok(Target { name: app.base_name.clone(), adapter: None, counts: base() });
    };
    if asked == app.base_name {
        return Ok(Target { name: asked.to_owned(), adapter: None, counts: base() });
    }
    let named = app.store.get(asked).or_else(|| app.store.get(short));
    let named = named.ok_or_else(|| ApiError::ModelNotFound(asked.to_owned()))?;
    let adapter = Some(named.adapter.clone());
    Ok(Target { name: asked.to_owned(), adapter, counts: state.metrics.adapter(&named.name) })
}

/// `GET /v1/models`.
pub(super) fn list(state: &State) -> Response<Body> {
    let list = ModelList { object: "list", data: cards(state) };
    whole("application/json", to_json(&list))
}

/// `GET /v1/models/{id}`.
///
/// # Errors
/// [`ApiError::ModelNotFound`].
pub(super) fn one(state: &State, id: &str) -> Result<Response<Body>, ApiError> {
    let id = percent_decoded(id);
    let card = cards(state).into_iter().find(|card| card.id == id);
    let card = card.ok_or(ApiError::ModelNotFound(id))?;
    Ok(whole("application/json", to_json(&card)))
}

/// The base first: clients take the first for theirs. With a merged adapter it is the only one.
fn cards(state: &State) -> Vec<ModelCard> {
    let app = &state.app;
    let parent = Some(app.base_name.clone());
    if let Some(merged) = &app.merged {
        let named = app.store.get(merged);
        let root = named.map_or_else(|| merged.clone(), |named| named.adapter.digest.to_string());
        let limit = Some(app.limits.context_tokens_max);
        return vec![card(merged.clone(), app.created, root, parent, limit)];
    }
    let base = app.base_name.clone();
    let limit = Some(app.limits.context_tokens_max);
    let mut cards = vec![card(base.clone(), app.created, base, None, limit)];
    cards.extend(app.store.list().into_iter().map(|named| {
        let root = named.adapter.digest.to_string();
        card(named.name.clone(), named.created, root, parent.clone(), None)
    }));
    cards
}

fn card(
    id: String,
    created: u64,
    root: String,
    parent: Option<String>,
    max_model_len: Option<u32>,
) -> ModelCard {
    let permission = Permission {
        id: format!("modelperm-{}", guard::new_id()),
        object: "model_permission",
        created,
        allow_create_engine: false,
        allow_sampling: true,
        allow_logprobs: true,
        allow_search_indices: false,
        allow_view: true,
        allow_fine_tuning: false,
        organization: "*",
        group: None,
        is_blocking: false,
    };
    let (object, owned_by) = ("model", "tessera");
    ModelCard {
        id,
        object,
        created,
        owned_by,
        root,
        parent,
        max_model_len,
        permission: [permission],
    }
}

/// `%2F` is `/`; what is no escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escape = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let escape = escape.filter(|hex| first == b'%' && !hex.starts_with('+'));
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::percent_decoded;

    #[test]
    fn escapes_are_decoded_and_the_rest_stays() {
        // Python's urllib.parse.unquote.
        let cases = [
            ("org%2Fa", "org/a"),
            ("a%", "a%"),
            ("a%2", "a%2"),
            ("%zz%+1", "%zz%+1"),
            ("%C3%A9%2f%2F", "é//"),
            ("é%25", "é%"),
        ];
        for (text, expected) in cases {
            assert_eq!(percent_decoded(text), expected);
        }
    }
}
