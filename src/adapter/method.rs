//! What a method is, and what it may look at.

use super::config::Config;
use super::error::AdapterError;
use super::lowering::Lowering;
use super::tensors::Tensors;
use crate::dtype::Dtype;
use crate::ids::ModuleId;
use crate::site::{ModuleMap, SiteKind, SiteMap};

/// One way of writing an adapter to disk.
pub trait Method: Sync {
    /// The name in reports and metrics.
    fn name(&self) -> &'static str;
    /// Whether a file with this `peft_type` is this method's.
    fn reads(&self, peft_type: &str, input: &Input<'_>) -> bool;
    /// Lowers the file. The only code that knows this method's tensor names.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`] naming the tensor or field.
    fn lower(&self, input: &Input<'_>, lowering: &mut Lowering<'_>) -> Result<(), AdapterError>;
}

/// What a method may look at.
pub struct Input<'a> {
    pub(super) config: Config<'a>,
    pub(super) tensors: Tensors<'a>,
    pub(super) base: &'a dyn Base,
}

impl Input<'_> {
    /// The embedding and the head, where they are one table and `ensure_weight_tying` has an
    /// adapter change them as one. On another base the field says nothing, as in peft.
    ///
    /// # Errors
    /// When the field is neither true nor false.
    pub(super) fn tied_tables(&self) -> Result<Option<(ModuleId, ModuleId)>, AdapterError> {
        if !self.config.flag("ensure_weight_tying")? || !self.base.is_tied() {
            return Ok(None);
        }
        let modules = self.base.modules();
        let table = modules.iter().find(|(_, module)| module.kind == SiteKind::Embedding);
        let head = modules.iter().find(|(_, module)| module.name == "lm_head");
        Ok(table.zip(head).map(|((table, _), (head, _))| (table, head)))
    }
}

/// The frozen base, as far as a method may see it.
pub trait Base: Send + Sync {
    /// The modules that a file may name.
    fn modules(&self) -> &ModuleMap;
    /// What the forward pass computes of them.
    fn sites(&self) -> &SiteMap;
    /// The width adapters are kept in.
    fn adapter_dtype(&self) -> Dtype;
    /// Whether the head is the embedding.
    fn is_tied(&self) -> bool;
    /// A module's weight, `[out, in]` row-major (`[vocabulary, hidden]` for an embedding, `[out]`
    /// for a norm). Reads the checkpoint: slow.
    ///
    /// # Errors
    /// When the checkpoint is not what it was.
    fn weight(&self, module: ModuleId) -> Result<Vec<f32>, AdapterError>;
    /// A module's bias, `[out]`.
    ///
    /// # Errors
    /// As [`Base::weight`].
    fn bias(&self, module: ModuleId) -> Result<Option<Vec<f32>>, AdapterError>;
}
