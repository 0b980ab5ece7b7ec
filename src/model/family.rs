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
    /// Key/value heads where the config does not say.
    pub kv_heads_default: Option<usize>,
    /// Head width where the config does not say.
    pub head_dim_default: Option<usize>,
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
