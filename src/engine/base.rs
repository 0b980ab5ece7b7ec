//! The checkpoint as adapters see it.

use std::sync::Arc;

use crate::adapter::Base;
use crate::dtype::Dtype;
use crate::ids::SiteId;
use crate::model::Checkpoint;
use crate::site::SiteMap;

/// Reads weights from the mapped files: the copies on the device stay out of loader threads' way.
pub struct CheckpointBase(pub Arc<Checkpoint>);

impl Base for CheckpointBase {
    fn sites(&self) -> &SiteMap {
        &self.0.sites
    }

    fn adapter_dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn weight(&self, site: SiteId) -> Vec<f32> {
        self.0.weight(site).values.to_f32()
    }

    fn bias(&self, site: SiteId) -> Option<Vec<f32>> {
        self.0.bias(site)
    }
}
