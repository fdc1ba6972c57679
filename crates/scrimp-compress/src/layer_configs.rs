//! Formats and sparsities of a model's matrices, by layer.

use scrimp_kernels::quant::packed::WeightFormat;
use serde_json::json;
use std::collections::BTreeMap;

/// The format and the sparsity of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerConfig {
    /// The dense format. Its sparse form replaces it where that is smaller.
    pub format: WeightFormat,
    /// Share of the weights that become zero, in `[0, 1)`.
    pub sparsity: f64,
}

/// The configurations of all layers.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfigs {
    /// The configuration of all other layers.
    pub all: LayerConfig,
    /// Configurations of single layers.
    pub layers: BTreeMap<usize, LayerConfig>,
}

impl LayerConfigs {
    /// One configuration for all layers.
    pub fn uniform(format: WeightFormat, sparsity: f64) -> Self {
        Self { all: LayerConfig { format, sparsity }, layers: BTreeMap::new() }
    }

    /// The configuration of layer `index`.
    pub fn of(&self, index: usize) -> LayerConfig {
        self.layers.get(&index).copied().unwrap_or(self.all)
    }

    /// The configurations as JSON: `[format, sparsity]` of the default and of single layers.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let one = |c: &LayerConfig| json!([c.format.name(), c.sparsity]);
        let layers: Vec<_> =
            self.layers.iter().map(|(i, c)| json!([i, c.format.name(), c.sparsity])).collect();
        json!({"all": one(&self.all), "layers": layers})
    }

    /// Reads the JSON of [`LayerConfigs::describe`].
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

/// The choice of the configurations.
#[derive(Debug, Clone, PartialEq)]
pub enum Budget {
    /// Given configurations.
    Fixed(LayerConfigs),
    /// One format. Layers with a smaller loss increase get more zeros (see [`crate::budget`]).
    BySensitivity(LayerConfig),
    /// Formats and sparsities by layer, with this mean number of bits per weight over all tensors.
    Bits(f64),
    /// Formats and sparsities by layer, with at most this many bytes in the file.
    Size(u64),
}
