//! The KV options of a request.

use super::super::{error::ApiError, fields::Fields};
use crate::engine::KvOptions;
use scrimp_kv::{
    KvFormat,
    compress::{Budget, Compression, DEFAULT_POLICY, DEFAULT_SHARE, Shrink},
    policy::policy,
};
use serde_json::Value;

/// The fields of a request that describe its KV cache.
pub(crate) const KV_FIELDS: [&str; 7] =
    ["kv_budget", "kv_format", "kv_policy", "kv_recent", "kv_shrink", "kv_sinks", "kvcrush"];

/// The KV options of a request: the server's defaults, changed by the request's fields.
pub(super) fn kv_choice(fields: &mut Fields, default: &KvOptions) -> Result<KvOptions, ApiError> {
    let mut kv = default.clone();
    if let Some(factor) = fields.integer("kv_shrink", 1..=1 << 20)? {
        return shrunk(fields, factor as u32);
    }
    if let Some(format) = fields.string("kv_format")? {
        format.parse::<KvFormat>().map_err(|e| ApiError::field("kv_format", e.to_string()))?;
        kv.format = format;
    }
    let budget = match fields.take("kv_budget") {
        None => None,
        Some(Value::Number(n)) if n.is_u64() => n.as_u64().map(|n| Budget::Tokens(n as usize)),
        Some(Value::Number(n)) => n.as_f64().map(Budget::Fraction),
        Some(_) => {
            return Err(ApiError::field("kv_budget", "kv_budget must be a number of tokens or a fraction"));
        }
    };
    let name = fields.string("kv_policy")?;
    let share = fields.number("kvcrush", 0.0..=1.0)?;
    let fixed = (fields.integer("kv_sinks", 0..=1 << 20)?, fields.integer("kv_recent", 0..=1 << 20)?);
    if budget.is_none() && name.is_none() && share.is_none() && fixed == (None, None) {
        return Ok(kv);
    }
    let chosen = policy(name.as_deref().unwrap_or(DEFAULT_POLICY))
        .map_err(|e| ApiError::field("kv_policy", e.to_string()))?;
    let mut how = match (kv.compression.take(), budget) {
        (Some(how), None) => how,
        (Some(how), Some(budget)) => Compression { budget, ..how },
        (None, Some(budget)) => {
            let mut how = Compression::new(chosen, budget);
            how.crush.share = if name.is_none() { DEFAULT_SHARE } else { 0.0 };
            how
        }
        (None, None) if name.as_deref() == Some("full") => return Ok(kv),
        (None, None) => return Err(ApiError::field("kv_budget", "kv_policy and kvcrush need a kv_budget")),
    };
    if name.is_some() {
        how.policy = chosen;
        how.fit = chosen.policy.fits_values();
    }
    if let Some(share) = share {
        how.crush.share = share;
    }
    how.sinks = fixed.0.map_or(how.sinks, |n| n as usize);
    how.recent = fixed.1.map(|n| n as usize).or(how.recent);
    how.check().map_err(|e| ApiError::field("kv_budget", e.to_string()))?;
    kv.compression = Some(how).filter(|how| !how.keeps_everything());
    Ok(kv)
}

/// The KV options of a cache that is `factor` times smaller.
fn shrunk(fields: &mut Fields, factor: u32) -> Result<KvOptions, ApiError> {
    let wrong = |what: String| ApiError::field("kv_shrink", what);
    if let Some(name) = ["kv_budget", "kv_format", "kv_policy", "kvcrush"]
        .into_iter()
        .find(|&name| fields.get(name).is_some())
    {
        return Err(wrong(format!("kv_shrink selects budget, policy and format: leave out {name}")));
    }
    let Shrink { mut compression, format } =
        Shrink::new(factor).map_err(|e| wrong(format!("kv_shrink: {e}")))?;
    if let Some(sinks) = fields.integer("kv_sinks", 0..=1 << 20)? {
        compression.sinks = sinks as usize;
    }
    compression.recent = fields.integer("kv_recent", 0..=1 << 20)?.map(|n| n as usize);
    compression.check().map_err(|e| wrong(format!("kv_shrink: {e}")))?;
    Ok(KvOptions { compression: Some(compression), format: format.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::take, *};

    #[test]
    fn a_factor_selects_budget_policy_and_format() {
        let kv = take(r#"{"kv_shrink": 8, "kv_sinks": 2}"#).unwrap().kv;
        let how = kv.compression.unwrap();
        assert_eq!((kv.format.as_str(), how.sinks), ("int4", 2));
        assert_eq!(
            Compression { sinks: Compression::DEFAULT_SINKS, ..how },
            Shrink::new(8).unwrap().compression
        );
        for text in [
            r#"{"kv_shrink": 5}"#,
            r#"{"kv_shrink": "8"}"#,
            r#"{"kv_shrink": 8, "kv_budget": 0.5}"#,
            r#"{"kv_shrink": 8, "kv_format": "int8"}"#,
        ] {
            assert!(take(text).unwrap_err().contains("kv_shrink"), "{text}");
        }
    }
}
