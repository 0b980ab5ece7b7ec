//! What sets model families apart, as data.

/// What sets one family apart from the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Bias on gate, up and down.
    pub mlp_bias: bool,
    /// RMS norms of q and k.
    pub qk_norm: QkNorm,
    /// Where a layer's norms stand.
    pub norms: NormPlaces,
    /// A layer's sliding window, in layer order; `None` attends to everything.
    pub windows: Vec<Option<u32>>,
    /// What transformers takes where the config does not say.
    pub defaults: Defaults,
}

/// Numbers of a family's configuration class (transformers `models/*/configuration_*.py`).
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// `vocab_size`.
    pub vocabulary: usize,
    /// `intermediate_size`.
    pub inner: usize,
    /// `num_key_value_heads`; `None`: as many as heads.
    pub kv_heads: Option<usize>,
    /// `head_dim`; `None`: the model's width shared among the heads.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings`.
    pub positions: usize,
}

impl Defaults {
    /// `hidden_size`, alike in all families.
    pub const HIDDEN: usize = 4096;
    /// `num_hidden_layers` and `num_attention_heads`, likewise.
    pub const LAYERS: usize = 32;
}

/// RMS norms of queries and keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum QkNorm {
    /// Neither is normed.
    Absent,
    /// Each head alone, by one weight of a head's width.
    Head,
    /// All heads together.
    Whole,
}

/// A layer's norms, by the leaves of their names; `None`: there is none. With h = x where the norm
/// before is absent:
///
/// ```text
/// x += after_attention(attention(h = before_attention(x)))
/// x += after_mlp(mlp(h = before_mlp(x)))
/// ```
///
/// Never decided by name: `post_attention_layernorm` stands before the MLP in Llama and after
/// attention in Gemma.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NormPlaces {
    /// Of what attention reads.
    pub before_attention: Option<&'static str>,
    /// Of what attention gives.
    pub after_attention: Option<&'static str>,
    /// Of what the MLP reads.
    pub before_mlp: Option<&'static str>,
    /// Of what the MLP gives.
    pub after_mlp: Option<&'static str>,
}

impl NormPlaces {
    /// Llama's: before attention and before the MLP.
    pub const BEFORE: NormPlaces = NormPlaces {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    };
}
