//! Formats and sparsities of a model's matrices.

use crate::{Format, Output};
use scrimp_llm::model::projections::Projection;
use serde_json::json;
use std::collections::BTreeMap;

/// The format and the sparsity of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatrixConfig {
    /// The format.
    pub format: Format,
    /// Share of the weights that become zero, in `[0, 1)`.
    pub sparsity: f64,
}

/// The configurations of all matrices of the layers.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixConfigs {
    /// The configuration of all other matrices.
    pub all: MatrixConfig,
    /// Configurations of single matrices, by layer.
    pub matrices: BTreeMap<(usize, Projection), MatrixConfig>,
    /// The output matrix; `None`: as [`crate::Options`] has it.
    pub output: Option<Output>,
}

impl MatrixConfigs {
    /// One configuration for all matrices.
    pub fn uniform(format: impl Into<Format>, sparsity: f64) -> Self {
        let format = format.into();
        Self { all: MatrixConfig { format, sparsity }, matrices: BTreeMap::new(), output: None }
    }

    /// The configuration of a matrix of layer `index`.
    pub fn of(&self, index: usize, projection: Projection) -> MatrixConfig {
        self.matrices.get(&(index, projection)).copied().unwrap_or(self.all)
    }

    /// The configurations as JSON: `[format, sparsity]` of the default, `[layer, matrix, format, sparsity]` of single
    /// matrices.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let all = json!([self.all.format.name(), self.all.sparsity]);
        let one = |(&(index, projection), c): (&(usize, Projection), &MatrixConfig)| {
            json!([index, projection.stem(), c.format.name(), c.sparsity])
        };
        let output = self.output.map(Output::name);
        json!({"all": all, "matrices": self.matrices.iter().map(one).collect::<Vec<_>>(), "output": output})
    }

    /// Reads the JSON of [`MatrixConfigs::describe`].
    pub(crate) fn parse(json: &str) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Described {
            all: (String, f64),
            matrices: Vec<(usize, String, String, f64)>,
            output: Option<String>,
        }
        let described: Described = serde_json::from_str(json).ok()?;
        let config = |format: &str, sparsity| Some(MatrixConfig { format: format.parse().ok()?, sparsity });
        let matrices = described.matrices.iter().map(|(index, stem, format, sparsity)| {
            let projection = Projection::ALL.into_iter().find(|p| p.stem() == stem)?;
            Some(((*index, projection), config(format, *sparsity)?))
        });
        let all = config(&described.all.0, described.all.1)?;
        let output = match described.output {
            Some(name) => Some(Output::named(&name)?),
            None => None,
        };
        Some(Self { all, matrices: matrices.collect::<Option<_>>()?, output })
    }
}

/// The choice of the configurations.
#[derive(Debug, Clone, PartialEq)]
pub enum Budget {
    /// Given configurations.
    Fixed(MatrixConfigs),
    /// One format. Matrices with a smaller loss increase get more zeros (see [`crate::budget`]).
    BySensitivity(MatrixConfig),
    /// Formats by matrix, with this mean number of bits per weight over all tensors.
    Bits(f64),
    /// Formats by matrix, with at most this many bytes in the file.
    Size(u64),
}
