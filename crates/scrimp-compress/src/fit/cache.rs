//! The loss increase of smaller KV caches, measured on a text.

use scrimp_eval::kv::{self, KvComparison};
use scrimp_kv::{
    KvFormat,
    compress::{Budget, Compression, Crush},
    policy::{Needs, policy},
};
use scrimp_llm::{error::Result, model::Model};

/// Maximum number of tokens of the prompt with which settings are compared.
const PROMPT: usize = 3072;
/// Maximum number of scored tokens after the prompt.
const SCORED: usize = 256;
/// Candidates for the kept share of a prompt.
const BUDGETS: [f64; 3] = [0.5, 0.25, 0.125];
/// Candidates for the format.
const FORMATS: [&str; 3] = ["bf16", "int8", "int4"];
/// The eviction policy, and the share of representatives (`benches/kv/quality.md` has the comparison).
const POLICY: (&str, f64) = ("expected-max", 0.5);

/// A way to store the cache, with its size and loss increase.
#[derive(Debug, Clone)]
pub struct Cache {
    /// The format of the stored tokens.
    pub format: KvFormat,
    /// The eviction of tokens; `None`: all tokens stay.
    pub compression: Option<Compression>,
    /// Bytes, as a share of a whole cache in bf16.
    pub share: f64,
    /// Divergence of the predictions from those with a whole cache, nats per token.
    pub kl: f64,
}

impl Cache {
    /// All tokens in bf16.
    pub fn whole() -> Self {
        Self { format: KvFormat::default(), compression: None, share: 1.0, kl: 0.0 }
    }
}

/// Tokens of a text that [`measure`] reads, for conversations of `context` tokens with a model of at most `most`
/// tokens.
pub fn text_tokens(context: usize, most: usize) -> usize {
    let (prompt, scored) = lengths(context.min(most));
    kv::text_tokens(prompt, scored)
}

fn lengths(context: usize) -> (usize, usize) {
    let scored = SCORED.min(context / 4).max(1);
    (PROMPT.min(context - scored).max(1), scored)
}

/// Measures all ways to store the cache that the model supports. The prompt has the length of the conversations, at
/// most 3072 tokens, and is read once.
///
/// # Errors
/// When the text is too short, or the model fails.
pub fn measure(
    model: &Model,
    tokens: &[u32],
    context: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Cache>> {
    let (prompt, scored) = lengths(context.min(model.context_length()));
    let budgets = BUDGETS.iter().map(|&share| Some(compression(share)));
    let budgets: Vec<_> = [None].into_iter().chain(budgets).collect();
    let needs = budgets.iter().flatten().fold(Needs::NONE, |needs, how| needs.and(how.needs()));
    let total = FORMATS.len() * budgets.len();
    progress(0, total);
    let text = KvComparison::new(model.session_in(KvFormat::default())?, tokens, prompt, scored, needs)?;
    let whole = text.kv_bytes() as f64;
    let mut caches = vec![Cache::whole()];
    for (i, format) in FORMATS.iter().enumerate() {
        for (j, how) in budgets.iter().enumerate() {
            let format: KvFormat = format.parse()?;
            let fits = text.prompt().set_kv_format(format).is_ok();
            let enough = how.as_ref().is_none_or(|how| how.tokens(prompt).is_ok());
            if (i, j) != (0, 0) && fits && enough {
                let score = text.score_in(format, how.as_ref())?;
                let share = score.kv_bytes as f64 / whole;
                caches.push(Cache { format, compression: how.clone(), share, kl: score.kl });
            }
            progress(i * budgets.len() + j + 1, total);
        }
    }
    Ok(caches)
}

fn compression(share: f64) -> Compression {
    let (name, representatives) = POLICY;
    let policy = policy(name).expect("a policy of this crate");
    Compression {
        crush: Crush { share: representatives, ..Crush::default() },
        ..Compression::new(policy, Budget::Fraction(share))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::fit::memory::bf16_bytes;
    use scrimp_llm::{checkpoint::Checkpoint, model::RunOptions};

    pub(in crate::fit) fn cache(format: &str, budget: Option<f64>, share: f64, kl: f64) -> Cache {
        Cache { format: format.parse().unwrap(), compression: budget.map(compression), share, kl }
    }

    #[test]
    fn smaller_caches_are_measured() {
        let path = scrimp_testkit::tiny_model("qwen2");
        let model = Model::load(Checkpoint::open(&path).unwrap(), &RunOptions::default()).unwrap();
        let context = 200;
        let n = text_tokens(context, model.context_length());
        let tokens: Vec<u32> = (0..n).map(|i| ((i * 31 + 7) % model.vocab_size()) as u32).collect();
        let mut steps = Vec::new();
        let caches = measure(&model, &tokens, context, &mut |done, total| steps.push((done, total))).unwrap();
        assert_eq!((steps.first(), steps.last()), (Some(&(0, 12)), Some(&(12, 12))));
        assert_eq!((caches[0].kl, caches[0].share), (0.0, 1.0));
        let find = |format: &str, budget: Option<f64>| {
            let budget = budget.map(Budget::Fraction);
            let same = |c: &&Cache| {
                c.format.to_string() == format && c.compression.as_ref().map(|c| c.budget) == budget
            };
            caches.iter().find(same)
        };
        let half = find("bf16", Some(0.5)).unwrap();
        assert!(half.kl > 0.0 && half.share < 0.8, "{half:?}");
        assert!(find("int8", None).unwrap().share < 0.8);
        // An eighth of 150 tokens is less than the number of sinks and recent tokens.
        assert!(find("bf16", Some(0.125)).is_none());
        assert!(measure(&model, &tokens[1..], context, &mut |_, _| ()).is_err());
        assert_eq!(bf16_bytes(model.config(), 128), {
            let mut session = model.session();
            session.forward(&tokens[..128]).unwrap();
            session.kv_bytes() as u64
        });
    }
}
