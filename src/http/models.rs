//! Which names are served, and what each points at.

use std::sync::Arc;

use hyper::Response;

use super::account::Account;
use super::arrival::Arrival;
use super::caller::Caller;
use super::clock::unix_now_s;
use super::error::RequestError;
use super::metrics::{AdapterCounts, Metrics};
use super::random::new_id;
use super::settings::ServedModel;
use super::sse::{Body, whole};
use super::state::State;
use super::wire::{ModelCard, ModelList, Permission, to_json};
use crate::adapter::Adapter;
use crate::engine::Caption;
use crate::recipe::Recipe;
use crate::text::ServedText;

/// What a request's `model` points at, taken once when the request arrives.
pub(super) struct Target {
    /// As the client spelled it, for the answer.
    pub name: String,
    /// The bare base for the merged adapter too, which is in its weights.
    pub recipe: Recipe<Arc<Adapter>>,
    /// How its text becomes tokens and ends.
    pub text: Arc<ServedText>,
    pub counts: AdapterCounts,
    /// What watchers of the batch read.
    pub caption: Arc<Caption>,
}

impl Target {
    /// For the request's line in the log.
    pub fn told_to(&self, arrived: &Arrival) {
        arrived.learn(|known| {
            known.model = Some(self.name.clone());
            known.adapter = self.recipe.parts().first().map(|part| part.adapter.digest);
        });
    }
}

/// Finds what `model` names: the base, an adapter, or an adapter as `base:adapter`. No name, or an
/// empty one, is the base, or the merged adapter if there is one. What the caller may not use is
/// not there.
///
/// # Errors
/// [`RequestError::ModelNotFound`] and [`RequestError::NotMerged`].
pub(super) fn resolve(
    state: &State,
    caller: &Caller,
    model: Option<&str>,
) -> Result<Target, RequestError> {
    let State { model: ServedModel { base_name, merged, .. }, catalog, .. } = state;
    let asked = model.filter(|name| !name.is_empty());
    let short = asked.map(|name| {
        let tail = name.strip_prefix(base_name.as_str());
        tail.and_then(|tail| tail.strip_prefix(':')).unwrap_or(name)
    });
    let missing = |name: &str| Err(RequestError::ModelNotFound(name.to_owned()));
    if let Some(merged) = merged {
        if !caller.may_use(merged) {
            return missing(asked.unwrap_or(base_name));
        }
        let own = catalog.get(merged).and_then(|named| named.alias.text.clone());
        return match (asked, short) {
            (Some(asked), Some(short)) if short != merged => {
                Err(RequestError::NotMerged { served: merged.clone(), asked: asked.to_owned() })
            }
            _ => Ok(Target {
                name: asked.unwrap_or(merged).to_owned(),
                recipe: Recipe::base(),
                text: own.unwrap_or_else(|| state.model.text.clone()),
                counts: counts(state, caller, merged, false),
                caption: caption(caller, merged),
            }),
        };
    }
    let name = asked.unwrap_or(base_name);
    if name == base_name {
        return match caller.may_use_base() {
            true => Ok(Target {
                name: name.to_owned(),
                recipe: Recipe::base(),
                text: state.model.text.clone(),
                counts: counts(state, caller, base_name, false),
                caption: caption(caller, base_name),
            }),
            false => missing(name),
        };
    }
    let named = catalog.get(name).or_else(|| catalog.get(short.unwrap_or(name)));
    let Some(named) = named.filter(|named| caller.may_use(&named.alias.name)) else {
        return missing(name);
    };
    let recipe = Recipe::one(named.adapter);
    let text = named.alias.text.clone().unwrap_or_else(|| state.model.text.clone());
    let counts = counts(state, caller, &named.alias.name, true);
    let caption = caption(caller, &named.alias.name);
    Ok(Target { name: name.to_owned(), recipe, text, counts, caption })
}

fn caption(caller: &Caller, model: &str) -> Arc<Caption> {
    let key = caller.name().map(str::to_owned);
    Arc::new(Caption { model: model.to_owned(), key })
}

/// What a request for an adapter, or for the base, is counted in; with a slot it is for an adapter
/// that is in no weights.
fn counts(state: &State, caller: &Caller, name: &str, has_slot: bool) -> AdapterCounts {
    let day = state.ledger.row(unix_now_s(), caller.name(), name);
    let Metrics { adapters, tenants, .. } = &*state.metrics;
    let place = adapters.place(name);
    let series = caller.name().map(|tenant| tenants.series(tenant, &place.label));
    adapters.counts(place, Account::new(caller, day, series), has_slot)
}

/// `GET /v1/models`.
pub(super) fn list(state: &State, caller: &Caller) -> Response<Body> {
    let list = ModelList { object: "list", data: cards(state, caller) };
    whole("application/json", to_json(&list))
}

/// `GET /v1/models/{id}`.
///
/// # Errors
/// [`RequestError::ModelNotFound`].
pub(super) fn one(
    state: &State,
    caller: &Caller,
    id: &str,
) -> Result<Response<Body>, RequestError> {
    let card = cards(state, caller).into_iter().find(|card| card.id == id);
    let card = card.ok_or_else(|| RequestError::ModelNotFound(id.to_owned()))?;
    Ok(whole("application/json", to_json(&card)))
}

/// The base first: clients take the first for theirs. With a merged adapter it is the only one.
fn cards(state: &State, caller: &Caller) -> Vec<ModelCard> {
    let State { model, catalog, .. } = state;
    let parent = Some(model.base_name.clone());
    let limit = Some(model.limits.context_tokens_max);
    if let Some(merged) = &model.merged {
        if !caller.may_use(merged) {
            return Vec::new();
        }
        let named = catalog.get(merged);
        let root = named.map_or_else(|| merged.clone(), |named| named.alias.digest.to_string());
        return vec![card(merged.clone(), model.created, root, parent, limit)];
    }
    let base = model.base_name.clone();
    let mut cards = Vec::new();
    if caller.may_use_base() {
        cards.push(card(base.clone(), model.created, base, None, limit));
    }
    let names = catalog.names();
    let usable = names.iter().filter(|alias| caller.may_use(&alias.name));
    cards.extend(usable.map(|alias| {
        let root = alias.digest.to_string();
        card(alias.name.clone(), alias.created, root, parent.clone(), None)
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
        id: format!("modelperm-{}", new_id()),
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
