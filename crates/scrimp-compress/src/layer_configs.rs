//! How the matrices of a model are to be stored.

use scrimp_kernels::quant::packed::WeightFormat;
use serde_json::json;
use std::collections::BTreeMap;

/// How a matrix is to be stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerConfig {
    /// The format; the sparse one is taken where it is smaller.
    pub format: WeightFormat,
    /// Share of the weights that become zero, in `[0, 1)`.
    pub sparsity: f64,
}

/// How the matrices of all layers are to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfigs {
    /// Those that are not named.
    pub all: LayerConfig,
    /// By layer.
    pub layers: BTreeMap<usize, LayerConfig>,
}

impl LayerConfigs {
    /// The same for all.
    pub fn uniform(format: WeightFormat, sparsity: f64) -> Self {
        Self { all: LayerConfig { format, sparsity }, layers: BTreeMap::new() }
    }

    /// How the matrices of layer `index` are stored.
    pub fn of(&self, index: usize) -> LayerConfig {
        self.layers.get(&index).copied().unwrap_or(self.all)
    }

    /// As JSON: `[format, sparsity]` of all that are not named, and by layer.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let one = |c: &LayerConfig| json!([c.format.name(), c.sparsity]);
        let layers: Vec<_> =
            self.layers.iter().map(|(i, c)| json!([i, c.format.name(), c.sparsity])).collect();
        json!({"all": one(&self.all), "layers": layers})
    }

    /// What [`LayerConfigs::describe`] wrote.
    pub(crate) fn parse(json: &str) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Described {
            all: (String, f64),
            layers: Vec<(usize, String, f64)>,
        }
        let described: Described = serde_json::from_str(json).ok()?;
        let choice = |format: &str, sparsity| Some(LayerConfig { format: format.parse().ok()?, sparsity });
        let layers =
            described.layers.iter().map(|(i, format, sparsity)| Some((*i, choice(format, *sparsity)?)));
        Some(Self { all: choice(&described.all.0, described.all.1)?, layers: layers.collect::<Option<_>>()? })
    }
}

/// How it is decided how matrices are stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Budget {
    /// It is decided.
    Fixed(LayerConfigs),
    /// One format; layers that matter less get more of the zeros (see [`crate::budget`]).
    BySensitivity(LayerConfig),
    /// Formats and sparsities by layer, so that all tensors take so many bits for each of their weights.
    Bits(f64),
    /// Likewise, so that the file has at most so many bytes.
    Size(u64),
}
