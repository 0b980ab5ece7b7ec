//! The checkpoint as adapters see it.

use std::sync::Arc;

use crate::adapter::Base;
use crate::backend::cuda;
use crate::delta::Delta;
use crate::dtype::Dtype;
use crate::ids::SiteId;
use crate::model::Checkpoint;
use crate::site::SiteMap;

/// Reads weights from the mapped files: the copies on the device stay out of loader threads' way.
pub struct CheckpointBase {
    checkpoint: Arc<Checkpoint>,
    /// Bytes of resident adapters on a GPU.
    gpu_bytes: Option<u64>,
}

impl CheckpointBase {
    /// For adapters that live on the host.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Self {
        Self { checkpoint, gpu_bytes: None }
    }

    /// For adapters that are also to be resident in a GPU's `bytes`.
    pub fn on_gpu(checkpoint: Arc<Checkpoint>, bytes: u64) -> Self {
        Self { checkpoint, gpu_bytes: Some(bytes) }
    }
}

impl Base for CheckpointBase {
    fn sites(&self) -> &SiteMap {
        &self.checkpoint.sites
    }

    fn adapter_dtype(&self) -> Dtype {
        self.checkpoint.dtype
    }

    fn weight(&self, site: SiteId) -> Vec<f32> {
        self.checkpoint.weight(site).values.to_f32()
    }

    fn bias(&self, site: SiteId) -> Option<Vec<f32>> {
        self.checkpoint.bias(site)
    }

    fn fits(&self, delta: &Delta) -> Result<(), String> {
        let Some(bytes) = self.gpu_bytes else { return Ok(()) };
        cuda::room(delta, self.sites(), self.adapter_dtype(), bytes).map(|_| ())
    }
}
