//! Who asks, and what of it a request carries with it.

use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::error::AccessError;
use super::keys::{Place, Tenant};
use crate::ids::Digest;
use crate::request::Share;

/// What keeps the salts of tenants from those of requests.
const SALT_CONTEXT: &str = "tessera 2026 prefix cache of a tenant";

/// The tenant whose key a request has, if there are keys, and its place among those at once.
#[derive(Clone, Default)]
pub(super) struct Caller {
    tenant: Option<Arc<Tenant>>,
    place: Option<Arc<Place>>,
}

impl Caller {
    /// A request of this tenant.
    pub fn of(tenant: Arc<Tenant>) -> Self {
        Self { tenant: Some(tenant), place: None }
    }

    /// `None` on a server without keys.
    pub fn name(&self) -> Option<&str> {
        self.tenant.as_deref().map(Tenant::name)
    }

    pub fn is_admin(&self) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| tenant.is_admin())
    }

    pub fn may_use_base(&self) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| tenant.may_use_base())
    }

    pub fn may_use(&self, adapter: &str) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| tenant.may_use(adapter))
    }

    /// Counts the request against the tenant's limits, until the last clone of this is dropped.
    ///
    /// # Errors
    /// [`AccessError::Limited`].
    pub fn begin(mut self) -> Result<Self, AccessError> {
        if let Some(tenant) = &self.tenant {
            self.place = Some(Arc::new(tenant.begin().map_err(AccessError::Limited)?));
        }
        Ok(self)
    }

    /// Counts tokens against the tenant's limits.
    pub fn take_tokens(&self, tokens: u64) {
        if let Some(tenant) = &self.tenant {
            tenant.take_tokens(tokens);
        }
    }

    /// Whose its requests are for the scheduler.
    pub fn share(&self) -> Share {
        self.tenant.as_ref().map_or_else(Share::default, |tenant| tenant.share())
    }

    /// What KV is shared under: tenants never share any.
    pub fn cache_salt(&self, asked: Option<&str>) -> Option<Digest> {
        let Some(name) = self.name() else {
            return asked.map(|salt| Digest(blake3::hash(salt.as_bytes()).into()));
        };
        let mut hasher = blake3::Hasher::new_derive_key(SALT_CONTEXT);
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        if let Some(salt) = asked {
            // A salt has one character at least.
            hasher.update(salt.as_bytes());
        }
        Some(Digest(hasher.finalize().into()))
    }

    /// What is left of the tenant's limits, as OpenAI tells it.
    pub fn mark(&self, answer: &mut HeaderMap) {
        for left in self.tenant.iter().flat_map(|tenant| tenant.left()) {
            let reset = go_duration(left.reset.as_millis() as u64);
            let values = [
                ("limit", left.limit.to_string()),
                ("remaining", left.remaining.to_string()),
                ("reset", reset),
            ];
            for (what, value) in values {
                let name = format!("x-ratelimit-{what}-{}", left.what);
                // Both are plain words and numbers.
                if let (Ok(name), Ok(value)) =
                    (HeaderName::try_from(name), HeaderValue::try_from(value))
                {
                    answer.insert(name, value);
                }
            }
        }
    }
}

/// As OpenAI writes how long something takes: `1h2m3s`, `12s`, `350ms`.
fn go_duration(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let s = ms.div_ceil(1000);
    let (h, m) = (s / 3600, s / 60 % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, m) => format!("{m}m{}s", s % 60),
        (h, m) => format!("{h}h{m}m{}s", s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::go_duration;

    #[test]
    fn a_duration_is_written_as_openai_writes_it() {
        let cases = [(0, "0ms"), (999, "999ms"), (1000, "1s"), (1001, "2s"), (60_000, "1m0s")];
        for (ms, text) in cases {
            assert_eq!(go_duration(ms), text);
        }
        assert_eq!(go_duration(3_723_000), "1h2m3s");
    }
}
