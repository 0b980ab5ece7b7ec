//! The checkpoint as adapters see it.

use std::sync::Arc;

use crate::adapter::{AdapterError, Base};
use crate::dtype::Dtype;
use crate::ids::ModuleId;
use crate::model::Checkpoint;
use crate::site::{ModuleMap, SiteMap};

/// Reads weights from the files: the copies on the device stay out of loader threads' way.
pub struct CheckpointBase {
    checkpoint: Arc<Checkpoint>,
}

impl CheckpointBase {
    /// For adapters of this checkpoint.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Self {
        Self { checkpoint }
    }
}

impl Base for CheckpointBase {
    fn modules(&self) -> &ModuleMap {
        &self.checkpoint.modules
    }

    fn sites(&self) -> &SiteMap {
        &self.checkpoint.sites
    }

    fn adapter_dtype(&self) -> Dtype {
        self.checkpoint.dtype
    }

    fn is_tied(&self) -> bool {
        self.checkpoint.config.tied
    }

    fn weight(&self, module: ModuleId) -> Result<Vec<f32>, AdapterError> {
        self.checkpoint.module_weight(module).map_err(|e| AdapterError::Invalid(e.to_string()))
    }

    fn bias(&self, module: ModuleId) -> Result<Option<Vec<f32>>, AdapterError> {
        self.checkpoint.module_bias(module).map_err(|e| AdapterError::Invalid(e.to_string()))
    }
}
