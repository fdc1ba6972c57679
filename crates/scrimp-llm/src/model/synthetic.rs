//! Models with random weights: they measure time and memory of a shape, a format and a sparsity without a model file.

use super::weights::{
    AttentionWeights, ExpertWeights, FeedForward, GatedWeights, Layer, LayerNorms, LinearWeights, Mixer,
    Weights,
};
use crate::{
    config::{ExpertWeighting, Experts, ModelConfig, Rope, Sizes},
    error::{Error, Result},
};
use scrimp_kernels::{
    DType, Pool,
    linear::{Matrix, StoredRows, bench::random_weights},
    mem::Arena,
    quant::packed::{DenseMatrix, PackedView, WeightFormat, pack},
};

/// The sizes of a model with random weights.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The name that users see.
    pub name: &'static str,
    /// The sizes.
    pub sizes: Sizes,
    /// The experts, if it has some.
    pub experts: Option<Experts>,
}

/// All shapes.
pub const SHAPES: [Shape; 3] = [
    Shape {
        name: "llama-3.2-1b",
        sizes: Sizes {
            n_layers: 16,
            hidden_size: 2048,
            intermediate_size: 8192,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 64,
            vocab_size: 128_256,
            context_length: 131_072,
        },
        experts: None,
    },
    Shape {
        name: "llama-3-8b",
        sizes: Sizes {
            n_layers: 32,
            hidden_size: 4096,
            intermediate_size: 14_336,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
            vocab_size: 128_256,
            context_length: 8192,
        },
        experts: None,
    },
    Shape {
        name: "qwen3-30b-a3b",
        sizes: Sizes {
            n_layers: 48,
            hidden_size: 2048,
            intermediate_size: 768,
            n_heads: 32,
            n_kv_heads: 4,
            head_dim: 128,
            vocab_size: 151_936,
            context_length: 40_960,
        },
        experts: Some(Experts::plain(128, 8, 768, ExpertWeighting::SoftmaxOfChosen)),
    },
];

/// Random weights of a shape.
#[derive(Debug, Clone, Copy)]
pub struct Synthetic {
    /// The sizes.
    pub shape: Shape,
    /// Format of the decoder layers.
    pub format: WeightFormat,
    /// Format of the output matrix, which is never pruned and is also the embedding.
    pub output_format: WeightFormat,
    /// Share of the layers' weights that are zero, in `[0, 1)`.
    pub sparsity: f64,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Shape {
    /// The shape with this name, or `NAME:LAYERS` for its first layers.
    ///
    /// # Errors
    /// When there is none, or it has fewer layers.
    pub fn named(name: &str) -> Result<Self> {
        let (stem, layers) = name.split_once(':').map_or((name, None), |(stem, n)| (stem, Some(n)));
        let mut shape = *SHAPES.iter().find(|shape| shape.name == stem).ok_or_else(|| {
            let known = SHAPES.each_ref().map(|shape| shape.name).join(", ");
            Error::bad_input(format!("there is no shape `{stem}`; there are {known}"))
        })?;
        if let Some(layers) = layers {
            let most = shape.sizes.n_layers;
            let given = layers.parse().ok().filter(|layers| (1..=most).contains(layers));
            shape.sizes.n_layers = given.ok_or_else(|| {
                Error::bad_input(format!("{stem} has {most} layers; `{layers}` is no number of them"))
            })?;
        }
        Ok(shape)
    }

    pub(super) fn config(&self) -> ModelConfig {
        let head_dim = self.sizes.head_dim;
        let inv_freq = (0..head_dim / 2).map(|i| 500_000f32.powf(-2.0 * i as f32 / head_dim as f32));
        ModelConfig {
            rms_norm_eps: 1e-5,
            rope: Rope { inv_freq: inv_freq.collect(), magnitude: 1.0 },
            experts: self.experts,
            ..ModelConfig::plain("llama", format!("synthetic {}", self.name), self.sizes)
        }
    }
}

/// A packed matrix of random numbers, the source of any number of copies.
struct Template {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl Template {
    fn new(
        pool: &Pool,
        format: WeightFormat,
        [rows, cols]: [usize; 2],
        sparsity: f64,
        seed: u64,
    ) -> Result<Self> {
        let weights = random_weights(pool, rows * cols, sparsity, 1.0 / (cols as f32).sqrt(), seed)
            .map_err(|e| Error::out_of_memory(format!("{rows} × {cols} random numbers ({e})")))?;
        let bytes = pack(pool, format, DenseMatrix { rows, cols, weights: &weights }, None)
            .map_err(|e| Error::bad_input(e.to_string()))?;
        Ok(Self { format, rows, cols, bytes })
    }

    fn copy(&self, pool: &Pool, arena: &mut Arena) -> Result<Matrix> {
        let Self { format, rows, cols, bytes } = self;
        let view =
            PackedView::new(*format, *rows, *cols, bytes).map_err(|e| Error::bad_input(e.to_string()))?;
        Matrix::from_packed(pool, arena, &view)
            .map_err(|e| Error::out_of_memory(format!("{rows} × {cols} weights ({e})")))
    }
}

/// Weights with the shape's memory traffic: every layer has its own copy of the same numbers.
pub(super) fn weights(synthetic: &Synthetic, config: &ModelConfig, pool: &Pool) -> Result<Weights> {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_dim(), config.kv_dim());
    let shapes =
        [[q, hidden], [kv, hidden], [kv, hidden], [hidden, q], [ffn, hidden], [ffn, hidden], [hidden, ffn]];
    let mut seed = synthetic.seed;
    let mut template = |format, shape, sparsity| {
        seed = seed.wrapping_add(1);
        Template::new(pool, format, shape, sparsity, seed)
    };
    let layer: Vec<_> =
        shapes.iter().map(|&s| template(synthetic.format, s, synthetic.sparsity)).collect::<Result<_>>()?;
    let output = template(synthetic.output_format, [config.vocab_size, hidden], 0.0)?;
    let size = |template: &Template| Arena::size_of(template.bytes.len());
    let count = config.experts.map_or(0, |experts| experts.count);
    let router = match config.experts {
        Some(_) => random_weights(pool, count * hidden, 0.0, 1.0 / (hidden as f32).sqrt(), seed)
            .map_err(|e| Error::out_of_memory(format!("a router ({e})")))?,
        None => Vec::new(),
    };
    let (attention, block) = layer.split_at(4);
    let router_bytes = Matrix::packed_bytes(DType::F32, count, hidden).unwrap_or(usize::MAX);
    let layer_bytes = attention.iter().map(size).sum::<usize>()
        + block.iter().map(size).sum::<usize>() * count.max(1)
        + router_bytes;
    let packed_bytes = layer_bytes * config.n_layers + size(&output);
    let mut arena = Arena::new(packed_bytes)
        .map_err(|e| Error::out_of_memory(format!("{} MiB of weights ({e})", packed_bytes >> 20)))?;
    let norm = || vec![1.0; hidden];
    let mut layers = Vec::with_capacity(config.n_layers);
    for _ in 0..config.n_layers {
        let feed_forward = match config.experts {
            None => FeedForward::Dense(Box::new(gated(pool, &mut arena, block)?)),
            Some(_) => {
                let data = bytemuck::cast_slice(&router);
                let stored = StoredRows { dtype: DType::F32, rows: count, cols: hidden, data };
                let weight = Matrix::pack(pool, &mut arena, stored)
                    .map_err(|e| Error::out_of_memory(format!("a router ({e})")))?;
                FeedForward::Experts(Box::new(ExpertWeights {
                    router: LinearWeights { weight, bias: None },
                    bias: None,
                    shared: None,
                    beside: None,
                    experts: (0..count).map(|_| gated(pool, &mut arena, block)).collect::<Result<_>>()?,
                }))
            }
        };
        let mut copy = |i: usize| -> Result<LinearWeights> {
            Ok(LinearWeights { weight: attention[i].copy(pool, &mut arena)?, bias: None })
        };
        layers.push(Layer {
            norms: LayerNorms { attn_norm: Some(norm()), ffn_norm: Some(norm()), ..LayerNorms::default() },
            mixer: Mixer::Attention(Box::new(AttentionWeights {
                q: copy(0)?,
                k: Some(copy(1)?),
                v: Some(copy(2)?),
                gate: None,
                o: copy(3)?,
            })),
            feed_forward,
            per_layer: None,
            scale: None,
            altup: None,
            laurel: None,
        });
    }
    Ok(Weights {
        layers,
        output_norm: norm(),
        output: output.copy(pool, &mut arena)?,
        tied: true,
        per_layer: None,
        streams: None,
        packed_bytes,
    })
}

/// Copies of the matrices of a gated block: gate, up and down.
fn gated(pool: &Pool, arena: &mut Arena, block: &[Template]) -> Result<GatedWeights> {
    let mut copy = |i: usize| -> Result<LinearWeights> {
        Ok(LinearWeights { weight: block[i].copy(pool, arena)?, bias: None })
    };
    Ok(GatedWeights { gate: copy(0)?, up: copy(1)?, down: copy(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, RunOptions};

    const TINY: Shape = Shape {
        name: "tiny",
        sizes: Sizes {
            n_layers: 2,
            hidden_size: 64,
            intermediate_size: 96,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
            vocab_size: 100,
            context_length: 64,
        },
        experts: None,
    };

    #[test]
    fn every_format_runs_and_takes_what_it_should() {
        let bytes = WeightFormat::ALL.map(|format| {
            let synthetic =
                Synthetic { shape: TINY, format, output_format: format.dense(), sparsity: 0.5, seed: 1 };
            let model = Model::synthetic(&synthetic, &RunOptions::default()).unwrap();
            let mut session = model.session();
            let logits = session.forward(&[1, 2, 3]).unwrap();
            assert!(logits.len() == 100 && logits.iter().all(|x| x.is_finite()), "{format}");
            model.weight_bytes()
        });
        assert!(bytes[3] < bytes[0] && bytes[4] < bytes[1], "{bytes:?}");
    }

    #[test]
    fn experts_take_their_bytes_and_run() {
        let experts = Experts::plain(5, 2, TINY.sizes.intermediate_size, ExpertWeighting::SoftmaxOfChosen);
        let shape = Shape { experts: Some(experts), ..TINY };
        let (format, sparsity) = (WeightFormat::Int8, 0.0);
        let model = |shape| {
            let synthetic = Synthetic { shape, format, output_format: format, sparsity, seed: 1 };
            Model::synthetic(&synthetic, &RunOptions::default()).unwrap()
        };
        let (dense, model) = (model(TINY), model(shape));
        // Two layers have four more blocks of three matrices, and a router.
        let more = 2 * (4 * 3 * 64 * 96 + 4 * 5 * 64);
        assert!(model.weight_bytes() - dense.weight_bytes() >= more);
        let mut session = model.session();
        assert!(session.forward(&[1, 2, 3]).unwrap().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn shapes_have_names() {
        assert_eq!(Shape::named("llama-3-8b").unwrap().sizes.hidden_size, 4096);
        assert_eq!(Shape::named("qwen3-30b-a3b:5").unwrap().sizes.n_layers, 5);
        for bad in ["qwen3-30b-a3b:0", "qwen3-30b-a3b:49", "qwen3-30b-a3b:", "llama-3-8b:x"] {
            assert!(Shape::named(bad).unwrap_err().to_string().contains("layers"), "{bad}");
        }
        let error = Shape::named("gpt-5").unwrap_err().to_string();
        assert_eq!(error, "there is no shape `gpt-5`; there are llama-3.2-1b, llama-3-8b, qwen3-30b-a3b");
    }

    #[test]
    fn random_numbers_have_the_sparsity() {
        let numbers = random_weights(&Pool::new(2).unwrap(), 200_000, 0.3, 0.5, 7).unwrap();
        let zeros = numbers.iter().filter(|&&x| x == 0.0).count();
        assert!((59_000..61_000).contains(&zeros), "{zeros}");
        assert!(numbers.iter().all(|x| x.abs() <= 0.5));
        assert_eq!(numbers, random_weights(&Pool::new(1).unwrap(), 200_000, 0.3, 0.5, 7).unwrap());
    }
}
