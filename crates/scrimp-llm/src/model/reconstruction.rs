//! KVzip's reconstruction scores (arXiv 2505.23416, §3.2): the model repeats the prompt in a second pass. The score
//! of a token is the maximum attention that it receives in this pass.

use super::Session;
use crate::{
    chat::{ChatTemplate, Message},
    checkpoint::Checkpoint,
    error::{Error, Result},
};

/// Tokens that the model repeats at a time.
const CHUNK: usize = 1024;
/// Tokens before a chunk that the instruction quotes, so that the model continues at the right place.
const LEAD: usize = 8;
/// The instructions (§3.2 of the paper): before the first chunk, and before the others.
const REPEAT_ALL: &str = "Repeat the previous context exactly.";
const REPEAT_FROM: &str = "Repeat the part of the previous context exactly, starting with";
/// The tokens of the instructions.
#[derive(Debug, Default)]
pub(super) struct Instructions {
    /// Before the first chunk.
    all: Vec<u32>,
    /// Before the other chunks: the tokens on both sides of the quoted ones.
    from: [Vec<u32>; 2],
}

impl Instructions {
    /// The instructions as a user message of the chat template, or as plain text if the model has no template.
    ///
    /// # Errors
    /// When the checkpoint has no usable tokenizer.
    pub(super) fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let tokenizer = checkpoint.tokenizer()?;
        let [before, after] = match checkpoint.chat_template(&tokenizer)? {
            Some(template) => user_turn(&template).unwrap_or_else(Self::plain),
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

    /// The instruction before a chunk that follows the tokens `lead`.
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

/// The text that a template puts before and after a user message that follows an answer.
fn user_turn(template: &ChatTemplate) -> Option<[String; 2]> {
    let [question, answer, next] = ["7f3q", "7f3a", "7f3n"];
    let messages =
        [Message::new("user", question), Message::new("assistant", answer), Message::new("user", next)];
    let text = template.render(&messages, true, &serde_json::Map::new()).ok()?;
    let (before, after) = text.split_once(answer)?.1.split_once(next)?;
    Some([before.to_owned(), after.to_owned()])
}

/// Reconstruction scores of the repeated chunks so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Reconstruction {
    /// Tokens of the prompt. The tokens of the repetition itself have no scores.
    tokens: usize,
    /// `[layer][KV head][token]`.
    max: Vec<Vec<Vec<f32>>>,
}

impl Reconstruction {
    /// Merges the maxima of a layer's last attention call, `[KV head][token]`.
    pub(super) fn merge(&mut self, layer: usize, new: &[Vec<f32>]) {
        let max = &mut self.max[layer];
        max.resize_with(new.len(), Vec::new);
        for (max, new) in max.iter_mut().zip(new) {
            let n = self.tokens.min(new.len());
            max.resize(n, 0.0);
            max.iter_mut().zip(new).for_each(|(max, x)| *max = max.max(*x));
        }
    }
}

impl Session {
    /// Computes reconstruction scores: the model repeats `tokens`, the last tokens of the sequence. The sequence is
    /// unchanged. The time is one to two prefills of `tokens`.
    ///
    /// # Errors
    /// When the context has no room for a chunk of the repetition, or the model fails.
    pub fn reconstruct(&mut self, tokens: &[u32]) -> Result<()> {
        let (len, context) = (self.len(), self.model.context_length());
        // If the instructions do not fit, the prompt of a chunk is the quoted tokens alone.
        let none = Instructions::default();
        let model = self.model.clone();
        let all = model.reconstruction_instructions();
        let instructions = if context - len > 2 * (all.longest() + LEAD) { all } else { &none };
        let lead = instructions.longest() + LEAD;
        let room = (context - len).min(CHUNK + lead);
        if room <= lead {
            return Err(Error::bad_input(format!(
                "repeating the prompt needs more than its {len} tokens of context, the model has {context}"
            ))
            .with_hint("use a shorter prompt, or another `kv_policy`"));
        }
        let mut copy = self.reconstruction_fork();
        let n_layers = self.kv.n_layers();
        copy.reconstruction = Some(Reconstruction { tokens: len, max: vec![Vec::new(); n_layers] });
        let mut start = 0;
        while start < tokens.len() {
            let end = (start + room - lead).min(tokens.len());
            let mut chunk = instructions.before(&tokens[start.saturating_sub(LEAD)..start]);
            chunk.extend_from_slice(&tokens[start..end]);
            copy.forward(&chunk)?;
            copy.truncate(len);
            if copy.len() < len {
                // A sliding-window layer dropped tokens of the prompt: the next chunk starts from a new fork.
                let reconstruction = copy.reconstruction.take();
                copy = self.reconstruction_fork();
                copy.reconstruction = reconstruction;
            }
            start = end;
        }
        let Some(mut reconstruction) = copy.reconstruction.take() else { return Ok(()) };
        drop(copy);
        let layers: Vec<usize> = self.kv.full_layers().collect();
        for layer in layers {
            let mut scores = self.kv.post_prefill_scores(layer).clone();
            for (head, new) in std::mem::take(&mut reconstruction.max[layer]).into_iter().enumerate() {
                // Tokens that an earlier compression kept have a score already; the maximum of both counts.
                match scores.reconstruction.get_mut(head) {
                    Some(old) => {
                        let old_len = old.len();
                        old.iter_mut().zip(&new).for_each(|(old, x)| *old = old.max(*x));
                        old.extend(new.into_iter().skip(old_len));
                    }
                    None => scores.reconstruction.push(new),
                }
            }
            self.kv.set_post_prefill_scores(layer, scores)?;
        }
        Ok(())
    }

    /// A fork without accumulated scores, which is not compressed.
    fn reconstruction_fork(&self) -> Self {
        let mut fork = self.fork();
        fork.compression = super::compression::CompressionState::default();
        fork.scores_wanted = None;
        fork.kv.clear_accumulated_scores();
        fork
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_a_user_message() {
        let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let want = ["<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"];
        assert_eq!(user_turn(&template), Some(want.map(str::to_owned)));
    }

    #[test]
    fn instructions_quote_the_tokens_before_a_chunk() {
        let instructions = Instructions { all: vec![1, 2], from: [vec![3], vec![4, 5]] };
        assert_eq!(instructions.before(&[]), [1, 2]);
        assert_eq!(instructions.before(&[8, 9]), [3, 8, 9, 4, 5]);
        assert_eq!(instructions.longest(), 3);
    }
}
