//! Sizes and numbers from Hugging Face's `config.json`, with bounds.

use std::path::Path;

use serde_json::{Map, Value};

use super::{
    common::limit,
    rope::{self, Scaling, Yarn},
};
use crate::{
    config::{Activation, LongRope, Rope},
    error::{Error, Hint, Result},
};

/// A JSON object of `config.json`; `null` counts as missing everywhere.
#[derive(Debug, Clone, Copy)]
pub struct HfConfig<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
    defaults: &'a [(&'static str, usize)],
}

/// A rotary embedding, and the one of longer sequences if it differs.
pub(super) type Ropes = (Rope, Option<LongRope>);

impl<'a> HfConfig<'a> {
    /// The object `value`, read from the file `path`.
    ///
    /// # Errors
    /// When it is no object.
    pub fn new(path: &'a Path, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(object) => Ok(Self { path, object, defaults: &[] }),
            _ => Err(Error::damaged_file(path, "should hold a JSON object")),
        }
    }

    /// The same object with defaults for missing sizes.
    #[must_use]
    pub fn with_defaults(mut self, defaults: &'a [(&'static str, usize)]) -> Self {
        self.defaults = defaults;
        self
    }

    /// A "damaged file" error that names this file.
    pub fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::damaged_file(self.path, what)
    }

    /// An "unsupported" error that names this file.
    pub fn unsupported(&self, what: &str, hint: impl Into<Hint>) -> Error {
        Error::unsupported(format!("{}: {what}", self.path.display()), hint)
    }

    /// The value for `key`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the value for `key` is `null`. That means "none", while a missing key means the default.
    pub fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| {
            let shown: String = value.to_string().chars().take(60).collect();
            self.bad(format!("{key:?} is {shown}, but should be {wanted}"))
        })
    }

    /// A nested object.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn object(&self, key: &str) -> Result<Option<HfConfig<'a>>> {
        let object = self.typed(key, "an object", Value::as_object)?;
        Ok(object.map(|object| HfConfig { path: self.path, object, defaults: &[] }))
    }

    /// A size from 1 to `max`.
    ///
    /// # Errors
    /// When it is no integer or out of bounds.
    pub fn size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let read =
            |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|size| (1..=max).contains(size));
        let size = self.typed(key, &format!("a whole number from 1 to {max}"), read)?;
        Ok(size.or_else(|| self.defaults.iter().find(|(name, _)| *name == key).map(|&(_, size)| size)))
    }

    /// A size from 1 to `max`, or a list of equal sizes, one per layer.
    ///
    /// # Errors
    /// As [`HfConfig::size`], and when the sizes of a list differ.
    pub(super) fn first_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(Value::Array(items)) = self.get(key) else { return self.size(key, max) };
        if items.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(self.unsupported(
                &format!("{key:?} differs between layers"),
                "models whose layers are alike are supported",
            ));
        }
        let size = items.first().and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        match size.filter(|size| (1..=max).contains(size)) {
            Some(size) => Ok(Some(size)),
            None => Err(self.bad(format!("{key:?} should be a list of whole numbers from 1 to {max}"))),
        }
    }

    /// A number that may be 0.
    ///
    /// # Errors
    /// When it is no integer or is negative.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    /// For each of `n_layers` layers, whether `layer_types` names it `kind`. The other layers must be `full_attention`.
    ///
    /// # Errors
    /// When the list has another length or other names.
    pub(super) fn layer_kinds(&self, n_layers: usize, kind: &str) -> Result<Option<Vec<bool>>> {
        let Some(types) = self.typed("layer_types", "a list", Value::as_array)? else { return Ok(None) };
        if types.len() != n_layers {
            return Err(self.bad(format!("\"layer_types\" has {} items for {n_layers} layers", types.len())));
        }
        let is_kind = |item: &Value| match item.as_str() {
            Some(name) if name == kind => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(self.unsupported(
                &format!("\"layer_types\" has layers that are neither {kind} nor full_attention"),
                "models with these two kinds are supported",
            )),
        };
        types.iter().map(is_kind).collect::<Result<_>>().map(Some)
    }

    /// A list of truth values, one for each of `n_layers` layers, written as numbers or as truth values. Further ones
    /// are ignored.
    ///
    /// # Errors
    /// When the list is shorter or holds something else.
    pub(super) fn flags(&self, key: &str, n_layers: usize) -> Result<Option<Vec<bool>>> {
        let read = |value: &Value| {
            let flag = |item: &Value| item.as_bool().or_else(|| item.as_u64().map(|n| n != 0));
            let flags: Vec<bool> =
                value.as_array()?.iter().take(n_layers).map(flag).collect::<Option<_>>()?;
            (flags.len() == n_layers).then_some(flags)
        };
        self.typed(key, &format!("a list of 0 and 1 for {n_layers} layers"), read)
    }

    /// The attention window. A missing key means the class's default, `null` means no window.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub(super) fn window(&self, default: Option<usize>) -> Result<Option<usize>> {
        if self.is_null("sliding_window") {
            return Ok(None);
        }
        Ok(self.size("sliding_window", limit::CONTEXT)?.or(default))
    }

    /// A finite number.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| value.as_f64().filter(|n| n.is_finite()))
    }

    /// A finite positive number.
    ///
    /// # Errors
    /// When it is of another type or not positive.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a positive number", |value| value.as_f64().filter(|n| n.is_finite() && *n > 0.0))
    }

    /// A truth value.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// The feed-forward block's non-linearity.
    ///
    /// # Errors
    /// scrimp does not support it.
    pub fn activation(&self, key: &str) -> Result<Option<Activation>> {
        match self.text(key)? {
            None => Ok(None),
            Some("silu" | "swish") => Ok(Some(Activation::Silu)),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Some(Activation::GeluTanh)),
            Some(other) => Err(self.unsupported(
                &format!("the activation {other:?} is not supported"),
                "silu and gelu_pytorch_tanh are",
            )),
        }
    }

    /// The window of each of `n_layers` layers. Layers with `sliding_attention` in `layer_types` have `window`; without
    /// `layer_types`, `sliding` decides.
    ///
    /// # Errors
    /// When `layer_types` has another length or unknown names, or needs a window that is missing.
    pub(super) fn windows(
        &self,
        n_layers: usize,
        window: Option<usize>,
        sliding: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>> {
        let Some(types) = self.typed("layer_types", "a list", Value::as_array)? else {
            return Ok((0..n_layers).map(|layer| window.filter(|_| sliding(layer))).collect());
        };
        if types.len() != n_layers {
            return Err(self.bad(format!("\"layer_types\" has {} items for {n_layers} layers", types.len())));
        }
        let span = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") if window.is_some() => Ok(window),
            Some("sliding_attention") => {
                Err(self.bad("\"layer_types\" has sliding layers, but there is no \"sliding_window\""))
            }
            _ => Err(self.unsupported(
                "\"layer_types\" has layers that are neither full nor sliding attention",
                "models with these two kinds are supported",
            )),
        };
        types.iter().map(span).collect()
    }

    /// The object of the rotary embedding: the older `rope_scaling`, or `rope_parameters` (transformers 5), which may
    /// have one object per kind of layer. Empty if there is none.
    ///
    /// # Errors
    /// When it is of another type.
    pub(super) fn rope_object(&self, kind: &str) -> Result<Option<HfConfig<'a>>> {
        if let Some(scaling) = self.object("rope_scaling")?.filter(|o| !o.object.is_empty()) {
            return Ok(Some(scaling));
        }
        let Some(parameters) = self.object("rope_parameters")? else { return Ok(None) };
        Ok(parameters.object(kind)?.or(Some(parameters)))
    }

    /// The rotary base in `object`, in `rope_parameters` (for layers of `kind`), or under `old_key`.
    ///
    /// # Errors
    /// When one of them is no positive number.
    pub(super) fn rope_base(
        &self,
        object: Option<HfConfig<'a>>,
        kind: &str,
        old_key: &str,
    ) -> Result<Option<f64>> {
        let parameters = self.object("rope_parameters")?;
        let nested = parameters.map(|p| p.object(kind)).transpose()?.flatten();
        for place in [object, nested, parameters].into_iter().flatten() {
            if let Some(base) = place.positive("rope_theta")? {
                return Ok(Some(base));
            }
        }
        self.positive(old_key)
    }

    /// The rotary embedding of every family except Gemma 3.
    ///
    /// # Errors
    /// When the scaling is unknown or its numbers make no sense.
    pub(super) fn ropes(&self, head_dim: usize, context: usize) -> Result<Ropes> {
        let object = self.rope_object("full_attention")?;
        let base = self.rope_base(object, "full_attention", "rope_theta")?.unwrap_or(10_000.0);
        self.ropes_with(object, base, head_dim, context)
    }

    /// The rotary embedding of layers with full attention, which rotates the share `share` of a head unless the file has
    /// another one.
    ///
    /// # Errors
    /// As [`Self::ropes_with`].
    pub(super) fn partial_ropes(&self, head_dim: usize, share: f64, context: usize) -> Result<Ropes> {
        let object = self.rope_object("full_attention")?;
        let base = self.rope_base(object, "full_attention", "rope_theta")?.unwrap_or(10_000.0);
        let given = object.map(|object| object.positive("partial_rotary_factor")).transpose()?.flatten();
        let rotated = match given.or(self.positive("partial_rotary_factor")?) {
            Some(_) => head_dim,
            None => (head_dim as f64 * share) as usize,
        };
        self.ropes_with(object, base, rotated, context)
    }

    /// The rotary embedding with base `base` and the scaling in `object`.
    ///
    /// # Errors
    /// When the scaling is unknown or its numbers make no sense.
    pub(super) fn ropes_with(
        &self,
        object: Option<HfConfig<'a>>,
        base: f64,
        head_dim: usize,
        context: usize,
    ) -> Result<Ropes> {
        let bad = |what: String| self.bad(what);
        let partial = object.map(|o| o.positive("partial_rotary_factor")).transpose()?.flatten();
        let partial = partial.or(self.positive("partial_rotary_factor")?).unwrap_or(1.0);
        if partial > 1.0 {
            return Err(self.bad(format!("\"partial_rotary_factor\" is {partial}, but must not pass 1")));
        }
        let dim = (head_dim as f64 * partial) as usize;
        let plain = |scaling: Scaling, magnitude: f64| {
            Ok((rope::rope(dim, base, &scaling, None, magnitude).map_err(bad)?, None))
        };
        let Some(object) = object else { return plain(Scaling::None, 1.0) };
        let kind = object.text("rope_type")?.or(object.text("type")?).unwrap_or("default");
        // Phi-3 has the original context outside the object, and that one is valid.
        let key = "original_max_position_embeddings";
        let original_context = match self.size(key, limit::CONTEXT)? {
            Some(original) => original,
            None => object.size(key, limit::CONTEXT)?.unwrap_or(context),
        };
        let need = |key: &str| {
            object.positive(key)?.ok_or_else(|| self.bad(format!("rope scaling {kind:?} needs {key:?}")))
        };
        let original = original_context as f64;
        match kind {
            // "dynamic" changes frequencies only beyond the model's context, which scrimp does not exceed.
            "default" | "dynamic" => plain(Scaling::None, 1.0),
            "linear" => plain(Scaling::Linear { factor: need("factor")? }, 1.0),
            "llama3" => {
                let scaling = Scaling::Llama3 {
                    factor: need("factor")?,
                    low_freq_factor: need("low_freq_factor")?,
                    high_freq_factor: need("high_freq_factor")?,
                    original_context: original,
                };
                plain(scaling, 1.0)
            }
            "yarn" if object.get("short_factor").is_none() => {
                let (yarn, magnitude) = object.yarn(context, original)?;
                plain(Scaling::Yarn(yarn), magnitude)
            }
            // Early Phi-3 files call LongRoPE "su" or "yarn".
            "longrope" | "su" | "yarn" => {
                let factor = object.positive("factor")?.unwrap_or(context as f64 / original);
                let given = object.positive("attention_factor")?;
                let magnitude = given.unwrap_or_else(|| rope::longrope_magnitude(factor, original));
                let build = |key: &str| {
                    let divisors = object.numbers(key)?;
                    rope::rope(dim, base, &Scaling::None, Some(&divisors), magnitude).map_err(bad)
                };
                let long = LongRope { original_context, rope: build("long_factor")? };
                Ok((build("short_factor")?, Some(long)))
            }
            other => Err(self.unsupported(
                &format!("rope scaling of type {other:?} is not known"),
                "default, linear, dynamic, yarn, llama3 and longrope are",
            )),
        }
    }

    /// YaRN's numbers in this object, and its factor on sine and cosine, for a model of `context` tokens that was
    /// trained on `original` tokens first.
    fn yarn(&self, context: usize, original: f64) -> Result<(Yarn, f64)> {
        let factor = self.positive("factor")?.unwrap_or(context as f64 / original);
        let scales = (self.positive("mscale")?, self.positive("mscale_all_dim")?);
        let magnitude = match (self.positive("attention_factor")?, scales) {
            (Some(given), _) => given,
            (None, (Some(scale), Some(all))) => {
                rope::yarn_magnitude(factor, scale) / rope::yarn_magnitude(factor, all)
            }
            (None, _) => rope::yarn_magnitude(factor, 1.0),
        };
        let yarn = Yarn {
            factor,
            original_context: original,
            beta_fast: self.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.positive("beta_slow")?.unwrap_or(1.0),
            truncate: self.bool("truncate")?.unwrap_or(true),
        };
        Ok((yarn, magnitude))
    }

    fn numbers(&self, key: &str) -> Result<Vec<f32>> {
        let read = |value: &Value| {
            value.as_array()?.iter().map(|item| item.as_f64().map(|n| n as f32)).collect::<Option<Vec<_>>>()
        };
        self.typed(key, "a list of numbers", read)?.ok_or_else(|| self.bad(format!("{key:?} is missing")))
    }
}
