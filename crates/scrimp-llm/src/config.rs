//! The configuration of a decoder-only transformer, independent of file formats.

use scrimp_kernels::ops::{DeltaShape, RmsNorm, ScanShape};
use scrimp_kv::KvHeads;

/// Standard deviations above the mean that 5% of a normal distribution pass ([`ModelConfig::sparse_gates`]).
pub const GATE_CUTOFF: f32 = 1.644_853_6;

/// Non-linearity of the gated feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// SwiGLU: `silu(gate) * up`.
    Silu,
    /// GeGLU with the tanh approximation: `gelu(gate) * up`.
    GeluTanh,
    /// SwiGLU with bounded inputs: `(up + 1) * gate * sigmoid(1.702 gate)`
    /// ([`Gate::ClampedSilu`](scrimp_kernels::ops::Gate::ClampedSilu)).
    ClampedSilu,
}

/// Which two elements of a head vector RoPE rotates together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// Neighbors `(2i, 2i + 1)`: GGUF files of architecture `llama`, whose converter permuted Q and K.
    Adjacent,
    /// Halves `(i, i + rotary_dim / 2)`: everything else.
    Halves,
}

/// Rotary position embedding of one kind of layer.
///
/// `inv_freq[i]` is the angle per position of pair `i` (length `rotary_dim / 2`). The loader has already applied
/// linear, Llama-3, LongRoPE or YaRN scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Angle per position of each pair.
    pub inv_freq: Vec<f32>,
    /// Factor on sine and cosine (LongRoPE's and YaRN's attention factor; 1.0 otherwise).
    pub magnitude: f32,
}

impl Rope {
    /// The number of rotated elements of a head vector. They are its first elements; the others are unchanged.
    pub fn rotary_dim(&self) -> usize {
        self.inv_freq.len() * 2
    }
}

/// The second rotary embedding of a LongRoPE model (Phi-3), for sequences longer than the original context.
///
/// A sequence uses one of the two from its first token to its last. The choice depends on its maximum length.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Longest sequence, tokens, for which [`ModelConfig::rope`] holds.
    pub original_context: usize,
    /// Rotary embedding of longer sequences.
    pub rope: Rope,
}

/// A factor on queries: `1 + beta ln(1 + floor(position / original_context))` (Llama 4, Ministral 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionTemperature {
    /// The factor on the logarithm.
    pub beta: f32,
    /// Positions without an effect, tokens.
    pub original_context: usize,
}

impl AttentionTemperature {
    /// The factor at `position`.
    pub fn at(&self, position: usize) -> f32 {
        1.0 + self.beta * ((1 + position / self.original_context.max(1)) as f32).ln()
    }
}

/// How a token's experts and their weights come from the router's logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExpertWeighting {
    /// Softmax over all experts. The weights of the chosen ones add up to less than 1 (OLMoE).
    Softmax,
    /// Softmax over the chosen experts. Softmax over all experts, divided by the sum of the chosen ones, is the same.
    SoftmaxOfChosen,
    /// The sigmoid of each logit.
    Sigmoid(SigmoidRouting),
}

/// Routing by sigmoids (DeepSeek-V3, arXiv 2412.19437, section 2.1.2; LFM2, GLM-4.5): a bias of each expert counts in the
/// choice and not in the weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SigmoidRouting {
    /// The weights of the chosen experts are divided by their sum.
    pub normalize: bool,
    /// A factor on all weights.
    pub scale: f32,
    /// A token chooses groups of experts first; `None`: there are no groups.
    pub groups: Option<ExpertGroups>,
}

/// Groups of consecutive experts, all of one size. The score of a group is the sum of its two largest scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Groups.
    pub count: usize,
    /// Groups that a token chooses from.
    pub per_token: usize,
}

/// A mixture of experts instead of the feed-forward block (Shazeer 2017, "Outrageously Large Neural Networks",
/// arXiv 1701.06538, section 2): `sum over the chosen e of weight[e] * block_e(x)`, where the experts with the largest
/// logits `router · x` are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a token passes.
    pub per_token: usize,
    /// Width of each expert, a gated block.
    pub width: usize,
    /// The weights of the chosen experts.
    pub weighting: ExpertWeighting,
    /// The width of the shared expert, which every token passes beside the chosen ones: `block(x)`, or
    /// `sigmoid(g · x) * block(x)` with a vector `g`. `None`: there is none.
    pub shared: Option<usize>,
    /// The number of first layers that have a feed-forward block instead of experts.
    pub dense_layers: usize,
    /// The experts run beside the feed-forward block of the layer: `norm(norm(block(x)) + norm(experts(x)))` (Gemma 4).
    pub beside_block: bool,
}

impl Experts {
    /// `count` experts of width `width`, of which a token passes `per_token`, instead of a block.
    pub const fn plain(count: usize, per_token: usize, width: usize, weighting: ExpertWeighting) -> Self {
        Self { count, per_token, width, weighting, shared: None, dense_layers: 0, beside_block: false }
    }
}

/// Inputs of each layer beside the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInputs {
    /// Elements of the input of a layer.
    pub width: usize,
    /// Rows of their table. Later tokens have the first row.
    pub vocab_size: usize,
}

/// Several residual streams, of which the layers change one (AltUp, arXiv 2301.13310).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AltUp {
    /// Streams, at least 2.
    pub streams: usize,
    /// The stream that layers change.
    pub active: usize,
}

/// The last layers read keys and values of earlier layers instead of their own (Gemma 3n, Gemma 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedKv {
    /// The first of these layers. Each reads those of the last layer before it of the same kind: with or without a
    /// sliding window.
    pub first: usize,
    /// Width of their feed-forward blocks.
    pub intermediate_size: usize,
}

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub n_heads: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl HeadShape {
    /// Elements of the queries of a token.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Rows of the key and of the value projection.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

/// The layers that carry a recurrent state from token to token instead of keys and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recurrence {
    /// For each layer, whether it is recurrent. At least one is not.
    pub layers: Vec<bool>,
    /// Their computation.
    pub kind: RecurrenceKind,
}

/// The computation of a recurrent layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecurrenceKind {
    /// Linear attention with the gated delta rule (Qwen3-Next, Qwen3.5).
    GatedDelta(DeltaShape),
    /// A gated convolution over the last `kernel` tokens (LFM2).
    ShortConv {
        /// Channels.
        width: usize,
        /// Tokens that it sees, at least 1.
        kernel: usize,
    },
    /// Mamba-2: a convolution over the last `kernel` tokens, and a selective scan (Granite 4).
    Mamba2 {
        /// The heads of the scan.
        scan: ScanShape,
        /// Tokens that the convolution sees, at least 1.
        kernel: usize,
    },
}

impl RecurrenceKind {
    /// Numbers of a layer's state, f32.
    pub fn state_len(&self) -> usize {
        match self {
            Self::GatedDelta(shape) => shape.state_len(),
            Self::ShortConv { width, kernel } => (kernel - 1) * width,
            Self::Mamba2 { scan, kernel } => scan.state_len() + (kernel - 1) * scan.inputs(),
        }
    }
}

/// The properties of a model, apart from its weights.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Family name as in GGUF, such as `llama` or `qwen3`: one of [`FAMILIES`](crate::families::FAMILIES).
    pub family: &'static str,
    /// The model's own name, for people.
    pub name: String,
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block, or of each expert where no layer has a block.
    pub intermediate_size: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads (GQA: `n_heads` is a multiple of it).
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// The KV heads of layers with a sliding window, where they differ from those of the others (Gemma 4).
    pub window_heads: Option<KvHeads>,
    /// The layers without keys and values of their own.
    pub shared_kv: Option<SharedKv>,
    /// The values of layers with full attention are their keys, before norm and RoPE (Gemma 4).
    pub values_are_keys: bool,
    /// Each head of values is divided by its root mean square (Gemma 4).
    pub value_norm: bool,
    /// Each layer has an input for each token beside the residual stream (Gemma 3n, Gemma 4).
    pub per_layer_input: Option<LayerInputs>,
    /// Several residual streams (Gemma 3n).
    pub altup: Option<AltUp>,
    /// Each layer adds a learned residual of this rank (LAuReL, Gemma 3n).
    pub laurel_rank: Option<usize>,
    /// The number of first layers in whose feed-forward blocks a gate below its mean plus [`GATE_CUTOFF`] standard
    /// deviations becomes 0, and others lose as much (Gemma 3n).
    pub sparse_gates: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the model was made for, tokens.
    pub context_length: usize,
    /// Epsilon of RMSNorm.
    pub rms_norm_eps: f32,
    /// RMSNorm multiplies by `1 + w` instead of `w` (Gemma from Hugging Face files).
    pub norm_plus_one: bool,
    /// Rotary embedding of global layers.
    pub rope: Rope,
    /// Rotary embedding of sliding-window layers, where it differs (Gemma 3).
    pub rope_local: Option<Rope>,
    /// Rotary embedding of sequences longer than the original context, where it differs (Phi-3).
    pub rope_long: Option<LongRope>,
    /// How RoPE pairs elements.
    pub rope_pairs: RopePairs,
    /// For each layer, whether RoPE rotates its queries and keys. The others have no positions (NoPE).
    pub rope_layers: Vec<bool>,
    /// The window of each layer in tokens, including the query's own token; `None`: full attention.
    pub sliding_window: Vec<Option<usize>>,
    /// Factor on `q · k`.
    pub attn_scale: f32,
    /// A factor on queries that grows with the position (Ministral 3).
    pub attn_temperature: Option<AttentionTemperature>,
    /// `tanh` soft cap on attention logits.
    pub attn_logit_softcap: Option<f32>,
    /// `tanh` soft cap on output logits.
    pub final_logit_softcap: Option<f32>,
    /// Factor on embeddings (Gemma: `sqrt(hidden_size)`).
    pub embedding_scale: f32,
    /// Factor on the output of each block before it is added to the residual stream (Granite).
    pub residual_scale: f32,
    /// Tokens attend to all tokens of their text within the window, also to later ones (EmbeddingGemma). Such a model
    /// computes embeddings and does not generate.
    pub bidirectional: bool,
    /// Factor on logits, before the soft cap (Granite).
    pub logit_scale: f32,
    /// Non-linearity of the feed-forward block.
    pub activation: Activation,
    /// The experts of each layer; `None`: one feed-forward block.
    pub experts: Option<Experts>,
    /// The recurrent layers; `None`: all layers are attention.
    pub recurrence: Option<Recurrence>,
    /// The projection of queries has a gate behind each head's query, `[n_heads][query | gate][head_dim]`: the head's
    /// output is multiplied by `sigmoid(gate)`.
    pub attn_gate: bool,
}

/// The sizes of a model; see the fields of [`ModelConfig`].
///
/// The two structs share eight fields on purpose: a family passes them to [`ModelConfig::plain`] as one argument, and
/// the rest of the runtime reads them without a second level of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Sizes {
    pub n_layers: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub context_length: usize,
}

impl ModelConfig {
    /// A configuration of these sizes with the properties that most families share. The frequencies of RoPE are
    /// missing.
    pub fn plain(family: &'static str, name: String, sizes: Sizes) -> Self {
        Self {
            family,
            name,
            n_layers: sizes.n_layers,
            hidden_size: sizes.hidden_size,
            intermediate_size: sizes.intermediate_size,
            n_heads: sizes.n_heads,
            n_kv_heads: sizes.n_kv_heads,
            head_dim: sizes.head_dim,
            window_heads: None,
            shared_kv: None,
            values_are_keys: false,
            value_norm: false,
            per_layer_input: None,
            altup: None,
            laurel_rank: None,
            sparse_gates: 0,
            vocab_size: sizes.vocab_size,
            context_length: sizes.context_length,
            rms_norm_eps: 1e-6,
            norm_plus_one: false,
            rope: Rope { inv_freq: Vec::new(), magnitude: 1.0 },
            rope_local: None,
            rope_long: None,
            rope_pairs: RopePairs::Halves,
            rope_layers: vec![true; sizes.n_layers],
            sliding_window: vec![None; sizes.n_layers],
            attn_scale: 1.0 / (sizes.head_dim as f32).sqrt(),
            attn_temperature: None,
            attn_logit_softcap: None,
            final_logit_softcap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            bidirectional: false,
            logit_scale: 1.0,
            activation: Activation::Silu,
            experts: None,
            recurrence: None,
            attn_gate: false,
        }
    }

    /// Rotary embedding of global layers for a sequence of at most `tokens` tokens.
    pub fn rope_for(&self, tokens: usize) -> &Rope {
        match &self.rope_long {
            Some(long) if tokens > long.original_context => &long.rope,
            _ => &self.rope,
        }
    }

    /// The root-mean-square norm with these weights.
    pub fn rms_norm<'w>(&self, weight: &'w [f32]) -> RmsNorm<'w> {
        let offset = if self.norm_plus_one { 1.0 } else { 0.0 };
        RmsNorm { weight, eps: self.rms_norm_eps, offset }
    }

    /// Whether a layer carries a recurrent state instead of keys and values.
    pub fn is_recurrent(&self, layer: usize) -> bool {
        self.recurrence.as_ref().is_some_and(|recurrence| recurrence.layers[layer])
    }

    /// Whether a layer reads the keys and values of an earlier one.
    pub fn shares_kv(&self, layer: usize) -> bool {
        self.shared_kv.is_some_and(|shared| layer >= shared.first)
    }

    /// The layers with keys and values of their own, in order: layer `i` of a KV cache is the `i`th of them.
    pub fn attention_layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.n_layers).filter(|&layer| !self.is_recurrent(layer) && !self.shares_kv(layer))
    }

    /// The layer of a KV cache that attention of `layer` reads.
    pub fn kv_layer(&self, layer: usize) -> usize {
        let windowed = |layer: usize| self.sliding_window[layer].is_some();
        let shared = self.shares_kv(layer);
        let own = self.attention_layers().enumerate();
        let read = |&(_, other): &(usize, usize)| match shared {
            true => windowed(other) == windowed(layer),
            false => other == layer,
        };
        own.filter(read).last().map_or(0, |(index, _)| index)
    }

    /// The heads of a layer.
    pub fn heads(&self, layer: usize) -> HeadShape {
        let full = KvHeads { count: self.n_kv_heads, dim: self.head_dim };
        let kv = self.window_heads.filter(|_| self.sliding_window[layer].is_some()).unwrap_or(full);
        HeadShape { n_heads: self.n_heads, n_kv_heads: kv.count, head_dim: kv.dim }
    }

    /// Width of the feed-forward block of a layer.
    pub fn block_width(&self, layer: usize) -> usize {
        let shared = self.shared_kv.filter(|shared| layer >= shared.first);
        shared.map_or(self.intermediate_size, |shared| shared.intermediate_size)
    }

    /// The experts of a layer.
    pub fn experts_of(&self, layer: usize) -> Option<Experts> {
        self.experts.filter(|experts| layer >= experts.dense_layers)
    }

    /// Whether a layer has a feed-forward block.
    pub fn has_block(&self, layer: usize) -> bool {
        self.experts_of(layer).is_none_or(|experts| experts.beside_block)
    }

    /// The numbers of the state of each recurrent layer, f32.
    pub fn states(&self) -> Vec<usize> {
        let state_len = self.recurrence.as_ref().map_or(0, |recurrence| recurrence.kind.state_len());
        vec![state_len; (0..self.n_layers).filter(|&layer| self.is_recurrent(layer)).count()]
    }

    /// Bytes of the recurrent states of a sequence.
    pub fn state_bytes(&self) -> usize {
        4 * self.states().iter().sum::<usize>()
    }

    /// Bytes of the keys and values of a token in bf16, in all layers.
    pub fn kv_bytes_per_token(&self) -> usize {
        4 * self.attention_layers().map(|layer| self.heads(layer).kv_dim()).sum::<usize>()
    }

    /// Elements of the queries of a token in layers with full attention: `n_heads * head_dim`.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Rows of the key and of the value projection of layers with full attention: `n_kv_heads * head_dim`.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}
