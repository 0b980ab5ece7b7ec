//! A field's JSON as it was sent.

use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::value::RawValue;

use crate::structured::limits::FORM_BYTES_MAX;

/// What surrounds a form, and escapes in it, may take as much again.
const RAW_BYTES_MAX: usize = 2 * FORM_BYTES_MAX;

/// JSON that is read later: a schema, or what holds one.
#[derive(Debug)]
pub(in crate::http) struct Raw(pub Box<RawValue>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        let bytes = raw.get().len();
        if bytes > RAW_BYTES_MAX {
            let message = format!("it must be at most {RAW_BYTES_MAX} bytes, got {bytes}");
            return Err(D::Error::custom(message));
        }
        Ok(Self(raw.to_owned()))
    }
}
