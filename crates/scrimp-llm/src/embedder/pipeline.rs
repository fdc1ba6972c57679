//! From the states of a text's tokens to its embedding, as the files of sentence-transformers describe it.
//!
//! ```text
//! modules.json                        the modules in order: Transformer, Pooling, Dense ..., Normalize
//! 1_Pooling/config.json               pooling_mode_cls_token, pooling_mode_mean_tokens, ... or pooling_mode
//! 2_Dense/config.json                 activation_function; model.safetensors: linear.weight, linear.bias
//! sentence_bert_config.json           max_seq_length
//! config_sentence_transformers.json   prompts, default_prompt_name
//! ```

use crate::{
    embedding::normalized,
    encoder::dense_layer,
    error::{Error, Result},
    load::hf_dir::read_json,
    model::LinearWeights,
};
use scrimp_kernels::{Exec, Pool, ops};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// Maximum size of one of the JSON files.
const MAX_JSON: u64 = 1 << 20;

/// How the states of the tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's state.
    First,
    /// The last token's state.
    Last,
    /// The mean of all tokens.
    Mean,
    /// The sum divided by the square root of the number of tokens.
    MeanSqrt,
    /// The maximum of each element.
    Max,
}

impl Pooling {
    /// The vector of `rows`, `[tokens][width]`.
    pub fn apply(self, rows: &[f32], width: usize) -> Vec<f32> {
        let n = rows.len() / width;
        let sum = |factor: f32| {
            let mut sum = vec![0.0; width];
            for row in rows.chunks_exact(width) {
                ops::add_scaled(&mut sum, factor, row);
            }
            sum
        };
        match self {
            Self::First => rows[..width].to_vec(),
            Self::Last => rows[rows.len() - width..].to_vec(),
            Self::Mean => sum(1.0 / n as f32),
            Self::MeanSqrt => sum(1.0 / (n as f32).sqrt()),
            Self::Max => {
                let mut most = rows[..width].to_vec();
                for row in rows.chunks_exact(width) {
                    most.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(*x));
                }
                most
            }
        }
    }
}

/// A matrix behind the pooling.
#[derive(Debug)]
struct Dense {
    weights: LinearWeights,
    tanh: bool,
}

/// The steps behind the transformer.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) pooling: Pooling,
    dense: Vec<Dense>,
    normalize: bool,
    /// Texts that are put before a text, by name.
    pub(super) prompts: BTreeMap<String, String>,
    /// The name of the prompt of texts without one.
    pub(super) default_prompt: Option<String>,
    /// The most tokens of a text; longer texts are cut.
    pub(super) max_tokens: Option<usize>,
}

impl Pipeline {
    /// A pipeline without files: `pooling`, then length 1.
    pub(super) fn plain(pooling: Pooling) -> Self {
        Self {
            pooling,
            dense: Vec::new(),
            normalize: true,
            prompts: BTreeMap::new(),
            default_prompt: None,
            max_tokens: None,
        }
    }

    /// The pipeline of the directory `dir`; `None` if it has no `modules.json`.
    ///
    /// # Errors
    /// When a file is damaged or describes an unknown module.
    pub(super) fn read(dir: &Path, width: usize, pool: &Pool) -> Result<Option<Self>> {
        let Some(modules) = optional(&dir.join("modules.json"))? else { return Ok(None) };
        let mut pipeline = Self { normalize: false, ..Self::plain(Pooling::Mean) };
        let mut width = width;
        for module in modules.as_array().map_or(&[][..], Vec::as_slice) {
            pipeline.add_module(dir, module, &mut width, pool)?;
        }
        if let Some(config) = optional(&dir.join("sentence_bert_config.json"))? {
            pipeline.max_tokens = config["max_seq_length"].as_u64().map(|n| n as usize);
        }
        if let Some(config) = optional(&dir.join("config_sentence_transformers.json"))? {
            let prompts = config["prompts"].as_object().into_iter().flatten();
            pipeline.prompts =
                prompts.filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))).collect();
            pipeline.default_prompt = config["default_prompt_name"].as_str().map(str::to_owned);
        }
        Ok(Some(pipeline))
    }

    fn add_module(&mut self, dir: &Path, module: &Value, width: &mut usize, pool: &Pool) -> Result<()> {
        let file = dir.join("modules.json");
        let kind = module["type"].as_str().unwrap_or_default();
        let kind = kind.rsplit('.').next().unwrap_or_default();
        let folder = module["path"].as_str().unwrap_or_default();
        if !folder.split('/').all(|part| part != ".." && !part.contains(['\\', ':']))
            || folder.starts_with('/')
        {
            return Err(Error::damaged_file(&file, format!("module {folder:?} is outside of the directory")));
        }
        let folder = dir.join(folder);
        match kind {
            "Transformer" => Ok(()),
            "Pooling" => {
                self.pooling = pooling(&folder.join("config.json"))?;
                Ok(())
            }
            "Normalize" => {
                self.normalize = true;
                Ok(())
            }
            "Dense" => {
                let path = folder.join("config.json");
                let config: Value = read_json(&path, MAX_JSON)?;
                let activation = config["activation_function"].as_str().unwrap_or("Tanh");
                let tanh = match activation.rsplit('.').next() {
                    Some("Identity") => false,
                    Some("Tanh") => true,
                    _ => {
                        return Err(Error::unsupported(
                            format!("{}: activation {activation:?} is not supported", path.display()),
                            "Identity and Tanh are",
                        ));
                    }
                };
                let weights = dense_layer(&folder.join("model.safetensors"), *width, pool)?;
                *width = weights.weight.rows();
                self.dense.push(Dense { weights, tanh });
                Ok(())
            }
            _ => Err(Error::unsupported(
                format!("{}: module {kind:?} is not supported", file.display()),
                "Transformer, Pooling, Dense and Normalize are",
            )),
        }
    }

    /// Elements of an embedding, for states of `width` elements.
    pub(super) fn width(&self, width: usize) -> usize {
        self.dense.last().map_or(width, |dense| dense.weights.weight.rows())
    }

    /// The embedding of a text whose pooled state is `state`.
    pub(super) fn finish(&self, exec: Exec<'_>, mut state: Vec<f32>) -> Vec<f32> {
        for Dense { weights, tanh } in &self.dense {
            state = weights.apply(exec, &state);
            if *tanh {
                state.iter_mut().for_each(|x| *x = x.tanh());
            }
        }
        if self.normalize { normalized(state) } else { state }
    }
}

fn optional(path: &Path) -> Result<Option<Value>> {
    if path.is_file() { read_json(path, MAX_JSON).map(Some) } else { Ok(None) }
}

/// The one mode of a pooling module.
fn pooling(path: &Path) -> Result<Pooling> {
    let config: Value = read_json(path, MAX_JSON)?;
    let modes = [
        ("pooling_mode_cls_token", "cls", Pooling::First),
        ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
        ("pooling_mode_max_tokens", "max", Pooling::Max),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", Pooling::MeanSqrt),
        ("pooling_mode_lasttoken", "lasttoken", Pooling::Last),
    ];
    if let Some(name) = config["pooling_mode"].as_str()
        && let Some((_, _, mode)) = modes.iter().find(|(_, short, _)| *short == name)
    {
        return Ok(*mode);
    }
    let set: Vec<Pooling> =
        modes.iter().filter(|(key, ..)| config[*key] == true).map(|(_, _, mode)| *mode).collect();
    match set[..] {
        [mode] => Ok(mode),
        _ => Err(Error::unsupported(
            format!("{}: {} pooling modes that scrimp knows", path.display(), set.len()),
            "one of cls, mean, max, mean_sqrt_len and lasttoken is supported",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poolings() {
        let rows = [1.0, -2.0, 3.0, 4.0, 5.0, 4.0];
        let all = [Pooling::First, Pooling::Last, Pooling::Mean, Pooling::MeanSqrt, Pooling::Max];
        let got = all.map(|pooling| pooling.apply(&rows, 2));
        let root = 3f32.sqrt();
        let want = [[1.0, -2.0], [5.0, 4.0], [3.0, 2.0], [9.0 / root, 6.0 / root], [5.0, 4.0]];
        for (got, want) in got.iter().zip(want) {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} {want:?}");
        }
    }

    #[test]
    fn damaged_pipelines_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::new(1).unwrap();
        assert!(Pipeline::read(dir.path(), 4, &pool).unwrap().is_none());
        let says = |modules: &str, words: &str| {
            std::fs::write(dir.path().join("modules.json"), modules).unwrap();
            let error = Pipeline::read(dir.path(), 4, &pool).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        std::fs::create_dir(dir.path().join("p")).unwrap();
        std::fs::write(dir.path().join("p/config.json"), "{}").unwrap();
        says("[", "modules.json");
        says(r#"[{"type": "x.LSTM", "path": ""}]"#, "LSTM");
        says(r#"[{"type": "x.Pooling", "path": "../p"}]"#, "outside");
        says(r#"[{"type": "x.Pooling", "path": "/p"}]"#, "outside");
        says(r#"[{"type": "x.Pooling", "path": "p"}]"#, "0 pooling modes");
        says(r#"[{"type": "x.Dense", "path": "p"}]"#, "model.safetensors");
        says(r#"[{"type": "x.Pooling", "path": "q"}]"#, "config.json");
    }
}
