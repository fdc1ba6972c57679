//! Scores of eviction policies that need more than reading the prompt once: a second pass in which the model repeats it, and
//! attention of queries that are still to come.

use super::Session;
use crate::{
    chat::{ChatTemplate, Message},
    checkpoint::Checkpoint,
    config::{ModelConfig, RopePairs},
    error::{Error, Result},
};
use scrimp_kernels::ops::{self, RopeTable};
use scrimp_kv::{AttentionInputs, PassScores, Queries, StatsWanted};

/// Tokens that are repeated before the cache is back at the prompt.
const REPEAT: usize = 1024;
/// Tokens of the text before a part, from which the model finds its place.
const LEAD: usize = 8;
/// What the model is told to do (§3.2 of arXiv 2505.23416), before the first part and before the others.
const REPEAT_ALL: &str = "Repeat the previous context exactly.";
const REPEAT_FROM: &str = "Repeat the part of the previous context exactly, starting with";
/// The number of sampled queries that represent future ones, and the distance of these from the end of the prompt.
const SAMPLES: usize = 64;
const HORIZON: usize = 512;

/// What stands before the parts of a repetition, in tokens.
#[derive(Debug, Default)]
pub(super) struct RepeatPrompts {
    /// Before the first part.
    all: Vec<u32>,
    /// Before the others, on both sides of the tokens that they follow.
    from: [Vec<u32>; 2],
}

impl RepeatPrompts {
    /// In the words of a chat template, if the model has one; without a tokenizer there are none.
    pub(super) fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let tokenizer = checkpoint.tokenizer()?;
        let [before, after] = match checkpoint.chat_template(&tokenizer)? {
            Some(template) => turn(&template).unwrap_or_else(Self::plain),
            None => Self::plain(),
        };
        let ids = |text: String| tokenizer.encode(&text, false, true);
        Ok(Self {
            all: ids(format!("{before}{REPEAT_ALL}{after}"))?,
            from: [ids(format!("{before}{REPEAT_FROM}"))?, ids(after)?],
        })
    }

    fn plain() -> [String; 2] {
        ["\n\n".into(), "\n".into()]
    }

    /// Before a part that follows `lead`.
    fn before(&self, lead: &[u32]) -> Vec<u32> {
        let [before, after] = &self.from;
        match lead {
            [] => self.all.clone(),
            _ => [before, lead, after].concat(),
        }
    }

    fn longest(&self) -> usize {
        self.all.len().max(self.from.iter().map(Vec::len).sum())
    }
}

/// What a template puts before and after a question that follows an answer.
fn turn(template: &ChatTemplate) -> Option<[String; 2]> {
    let [question, answer, next] = ["7f3q", "7f3a", "7f3n"];
    let messages =
        [Message::new("user", question), Message::new("assistant", answer), Message::new("user", next)];
    let text = template.render(&messages, true, &serde_json::Map::new()).ok()?;
    let (before, after) = text.split_once(answer)?.1.split_once(next)?;
    Some([before.to_owned(), after.to_owned()])
}

/// The most attention so far, `[layer][KV head][token]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Repeated {
    /// Tokens that count.
    tokens: usize,
    best: Vec<Vec<Vec<f32>>>,
}

impl Repeated {
    /// Takes the most attention that the last queries gave.
    pub(super) fn take(&mut self, layer: usize, peaks: &[Vec<f32>]) {
        let best = &mut self.best[layer];
        best.resize_with(peaks.len(), Vec::new);
        for (best, peaks) in best.iter_mut().zip(peaks) {
            let n = self.tokens.min(peaks.len());
            best.resize(n, 0.0);
            best.iter_mut().zip(peaks).for_each(|(best, x)| *best = best.max(*x));
        }
    }
}

/// A sample of the prompt's queries, after RoPE.
#[derive(Debug, Clone, Default)]
pub(super) struct SampledQueries {
    /// Every so many tokens.
    every: usize,
    positions: Vec<u32>,
    /// `[layer][sample][q_dim]`.
    rows: Vec<Vec<f32>>,
}

impl SampledQueries {
    /// A sample of a prompt that ends at `len` tokens, of which `from` are there already.
    pub(super) fn new(from: usize, len: usize) -> Self {
        Self { every: (len.saturating_sub(from) / SAMPLES).max(1), ..Self::default() }
    }

    /// Takes from the queries `[n][q_dim]` of a layer, the first of which is at `position`.
    pub(super) fn take(&mut self, layer: usize, position: usize, q: &[f32], q_dim: usize) {
        if self.rows.len() <= layer {
            self.rows.resize_with(layer + 1, Vec::new);
        }
        for (i, row) in q.chunks_exact(q_dim).enumerate() {
            if (position + i).is_multiple_of(self.every) {
                if layer == 0 {
                    self.positions.push((position + i) as u32);
                }
                self.rows[layer].extend_from_slice(row);
            }
        }
    }
}

impl Session {
    /// Has the model repeat `tokens`, the last ones of the sequence, and keeps how much each token was attended to in that, for policies that
    /// need it. The sequence is unchanged. Takes about as long as reading the prompt, or twice as long.
    ///
    /// # Errors
    /// When the context has no room for a part of the repetition, or the model fails.
    pub fn repeat(&mut self, tokens: &[u32]) -> Result<()> {
        let (len, context) = (self.len(), self.model.context_length());
        // Where there is no room for words, the model finds its place without.
        let none = RepeatPrompts::default();
        let told = self.model.repeat_prompts();
        let prompts = if context - len > 2 * (told.longest() + LEAD) { told } else { &none };
        let lead = prompts.longest() + LEAD;
        let room = (context - len).min(REPEAT + lead);
        if room <= lead {
            return Err(Error::bad_input(format!(
                "repeating the prompt needs more than its {len} tokens of context, the model has {context}"
            ))
            .with_hint("use a shorter prompt, or another `kv_policy`"));
        }
        let mut copy = self.fork();
        copy.compression = super::compression::CompressionState::default();
        copy.stats = None;
        copy.kv.clear_stats();
        let n_layers = self.model.config().n_layers;
        copy.repeated = Some(Repeated { tokens: len, best: vec![Vec::new(); n_layers] });
        let mut start = 0;
        while start < tokens.len() {
            let end = (start + room - lead).min(tokens.len());
            let mut told = prompts.before(&tokens[start.saturating_sub(LEAD)..start]);
            told.extend_from_slice(&tokens[start..end]);
            copy.forward(&told)?;
            copy.truncate(len);
            if copy.len() < len {
                // A sliding-window layer cannot go back that far: the next part starts from the prompt again.
                let repeated = copy.repeated.take();
                copy = self.fork();
                copy.compression = super::compression::CompressionState::default();
                copy.stats = None;
                copy.kv.clear_stats();
                copy.repeated = repeated;
            }
            start = end;
        }
        let Some(mut repeated) = copy.repeated.take() else { return Ok(()) };
        drop(copy);
        let layers: Vec<usize> = self.kv.full_layers().collect();
        for layer in layers {
            let mut passes = self.kv.passes(layer).clone();
            for (head, new) in std::mem::take(&mut repeated.best[layer]).into_iter().enumerate() {
                // Tokens that were kept at an earlier compression had a score; the better one counts.
                match passes.repeated.get_mut(head) {
                    Some(old) => {
                        let old_len = old.len();
                        old.iter_mut().zip(&new).for_each(|(old, x)| *old = old.max(*x));
                        old.extend(new.into_iter().skip(old_len));
                    }
                    None => passes.repeated.push(new),
                }
            }
            self.kv.set_passes(layer, passes)?;
        }
        Ok(())
    }

    /// Turns the sampled queries to positions after the prompt and keeps what attention they give.
    pub(super) fn expect(&mut self, sampled: &SampledQueries) -> Result<()> {
        let config = self.model.config();
        let (len, q_dim, n) = (self.len(), config.q_dim(), sampled.positions.len());
        let turns: Vec<u32> =
            (0..n).map(|i| (len + i * HORIZON / n.max(1)) as u32 - sampled.positions[i]).collect();
        let mut table = RopeTable::default();
        table.fill(self.model.exec().pool, &turns, &config.rope_for(self.rope_tokens).inv_freq, 1.0);
        let layers: Vec<usize> = self.kv.full_layers().collect();
        let mut out = vec![0.0; n * q_dim];
        for layer in layers {
            let Some(rows) = sampled.rows.get(layer).filter(|rows| rows.len() == n * q_dim && n > 0) else {
                continue;
            };
            let mut q = rows.clone();
            for (i, row) in q.chunks_exact_mut(q_dim).enumerate() {
                let (cos, sin) = table.row(i);
                row.chunks_exact_mut(config.head_dim)
                    .for_each(|head| rotate(self.model.exec().level, config, head, cos, sin));
            }
            let (stats, gathered) = self.kv.take_stats(layer);
            let inputs = AttentionInputs {
                level: self.model.exec().level,
                q: &q,
                queries: Queries::Future,
                out: &mut out,
                n_heads: config.n_heads,
                scale: config.attn_scale,
                softcap: config.attn_logit_softcap,
                wanted_from: n,
                stats: Some(StatsWanted { sum: true, per_kv_head: true, ..StatsWanted::default() }),
            };
            self.kv.attend(layer, inputs, self.model.exec().pool, &mut self.buffers.attention)?;
            let (sums, _) = self.kv.take_stats(layer);
            self.kv.set_stats(layer, stats, gathered)?;
            let mut expected = sums.sum;
            expected.iter_mut().flatten().for_each(|sum| *sum /= n as f32);
            let passes = PassScores { expected, ..self.kv.passes(layer).clone() };
            self.kv.set_passes(layer, passes)?;
        }
        Ok(())
    }
}

/// Turns a head's pairs.
pub(super) fn rotate(
    level: scrimp_kernels::SimdLevel,
    config: &ModelConfig,
    head: &mut [f32],
    cos: &[f32],
    sin: &[f32],
) {
    match config.rope_pairs {
        RopePairs::Halves => ops::rotate_halves(level, head, cos, sin),
        RopePairs::Adjacent => ops::rotate_adjacent(level, head, cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_stand_in_a_turn_of_their_own() {
        let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let want = ["<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"];
        assert_eq!(turn(&template), Some(want.map(str::to_owned)));
    }

    #[test]
    fn a_part_follows_the_tokens_before_it() {
        let prompts = RepeatPrompts { all: vec![1, 2], from: [vec![3], vec![4, 5]] };
        assert_eq!(prompts.before(&[]), [1, 2]);
        assert_eq!(prompts.before(&[8, 9]), [3, 8, 9, 4, 5]);
        assert_eq!(prompts.longest(), 3);
    }
}
