//! `scrimp run`: one answer, or a chat.

mod chat;
pub(super) mod prompt;
mod reasoning;
mod saved;

use crate::{
    App,
    cli::{
        Usage,
        run::{RunArgs, SamplingArgs},
        values::Think,
    },
    interrupt, kv_args,
    loaded::Loaded,
};
use prompt::Prompt;
use reasoning::{Encoded, Spoken};
use saved::Restored;
use scrimp_kernels::system;
use scrimp_llm::{
    chat::{ChatTemplate, Message},
    checkpoint::Checkpoint,
    generate::{FinishReason, Generation, Request, Sequence, Speculation, generate},
    model::{SavedText, Session},
    sampling::{Sampler, SamplingParams},
    tokenizer::Tokenizer,
};
use serde::Serialize;
use std::{fmt::Write as _, ops::ControlFlow};

#[derive(Serialize)]
struct Answer<'a> {
    text: &'a str,
    /// The reasoning before the answer; only of models that reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    prompt_tokens: usize,
    cached_tokens: usize,
    generated_tokens: usize,
    /// Seconds that the saved cache took to load.
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_restore_s: Option<f64>,
    /// Seconds to the first token, loading of a saved cache included.
    first_token_s: f64,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    kv_bytes: usize,
    kv_bytes_peak: usize,
    kv_tokens: usize,
    drafted_tokens: usize,
    accepted_tokens: usize,
    /// Bytes of the second KV cache, which drafts.
    draft_kv_bytes: usize,
    peak_rss_bytes: Option<u64>,
}

impl<'a> Answer<'a> {
    /// `result` with the size of the cache of `session`.
    fn new(
        result: &'a Generation,
        reasoning: Option<&'a str>,
        kv_restore_s: Option<f64>,
        session: &Session,
    ) -> Self {
        Self {
            text: &result.text,
            reasoning,
            prompt_tokens: result.prompt_tokens,
            cached_tokens: result.reused_tokens,
            generated_tokens: result.generated_tokens(),
            kv_restore_s,
            first_token_s: kv_restore_s.unwrap_or(0.0) + result.prefill_seconds,
            prefill_tok_s: result.prefill_tok_s(),
            decode_tok_s: result.decode_tok_s(),
            kv_bytes: session.kv_bytes(),
            kv_bytes_peak: session.kv_bytes_peak(),
            kv_tokens: session.kv_tokens(),
            drafted_tokens: result.drafted_tokens,
            accepted_tokens: result.accepted_tokens,
            draft_kv_bytes: result.draft_kv_bytes,
            peak_rss_bytes: system::peak_rss_bytes(),
        }
    }
}

/// Answers a prompt, or opens a chat.
pub(crate) fn run(app: &App, args: &RunArgs) -> anyhow::Result<()> {
    // Invalid options are reported before a model is downloaded and loaded.
    let prompt = Prompt::read(args.prompt.as_deref())?;
    if prompt == Prompt::Chat && (app.printer.is_json() || args.raw) {
        let option = if args.raw { "--raw" } else { "--json" };
        return Err(Usage(format!("{option} needs a PROMPT (`-` reads it from stdin)")).into());
    }
    let mut sampler = Sampler::new(sampling(&args.sampling, app.global.seed))?;
    let compression = args.kv.compression(app.global.seed)?;
    let drafts = args.speculate.fetch(app)?;
    let more = |checkpoint: &Checkpoint, tokenizer: &Tokenizer| {
        kv_args::check_context(compression.as_ref(), checkpoint.config().context_length)?;
        let template = match args.raw {
            true => None,
            false => Some(reasoning::template(checkpoint, tokenizer, args.think)?),
        };
        Ok((template, drafts.check(checkpoint, tokenizer)?))
    };
    let (loaded, (template, drafts)) = Loaded::open_with(app, &args.model, &args.kv, more)?;
    let speculation = drafts.load(&loaded.model)?;
    if let Some(path) = &args.kv_save {
        super::compress::check_output(path, loaded.model.path(), None)?;
    }
    let load = |path| Restored::load(app, &loaded, path, compression.clone());
    let restored = args.kv_load.as_deref().map(load).transpose()?;
    let kv_restore_s = restored.as_ref().map(|restored| restored.seconds);
    let system = args.system.as_deref();
    let mut speaker = Speaker {
        app,
        loaded: &loaded,
        sequence: loaded.sequence(compression),
        max_tokens: args.max_tokens,
        stop: &args.sampling.stop,
        speculation,
        think: args.think,
    };
    let (encoded, mut text) = match (prompt, template) {
        (Prompt::Chat, Some(template)) => {
            let text = speaker.chat(&template, restored, system, &mut sampler)?;
            return args
                .kv_save
                .as_deref()
                .map_or(Ok(()), |path| saved::save(app, &speaker.sequence, path, text));
        }
        (Prompt::Text(text), template) => {
            speaker.encode_prompt(text, template.as_ref(), restored.as_ref(), system)?
        }
        (Prompt::Chat, None) => unreachable!("refused above"),
    };
    if let Some(restored) = restored {
        speaker.sequence = restored.sequence(&loaded, Some(&encoded.ids));
    }
    let (result, thought) = speaker.say(&encoded, &mut sampler)?;
    if let Some(path) = &args.kv_save {
        if !text.messages.is_empty() && !result.text.is_empty() {
            text.messages.push(Message::new("assistant", result.text.as_str()));
        }
        saved::save(app, &speaker.sequence, path, text)?;
    }
    if app.printer.is_json() {
        let reasoning = encoded.reasoning.is_some().then_some(thought.as_str());
        let answer = Answer::new(&result, reasoning, kv_restore_s, speaker.sequence.source());
        app.printer.result(&answer, |_| "")?;
    }
    app.printer.note(summary(&result));
    Ok(())
}

fn sampling(args: &SamplingArgs, seed: Option<u64>) -> SamplingParams {
    SamplingParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        frequency_penalty: args.frequency_penalty,
        presence_penalty: args.presence_penalty,
        seed,
    }
}

/// Generates and prints answers.
struct Speaker<'a> {
    app: &'a App,
    loaded: &'a Loaded,
    sequence: Sequence<Session>,
    max_tokens: Option<usize>,
    stop: &'a [String],
    speculation: Speculation,
    think: Option<Think>,
}

impl Speaker<'_> {
    /// Chats, and returns the last conversation.
    fn chat(
        &mut self,
        template: &ChatTemplate,
        restored: Option<Restored>,
        system: Option<&str>,
        sampler: &mut Sampler,
    ) -> anyhow::Result<SavedText> {
        let mut history: Vec<_> = system.map(|text| Message::new("system", text)).into_iter().collect();
        if let Some(restored) = restored {
            history = restored.conversation(system)?;
            self.sequence = restored.sequence(self.loaded, None);
        }
        let messages = chat::chat(self, template, history, sampler)?;
        Ok(SavedText { messages, ..SavedText::default() })
    }

    /// The tokens of the prompt `text`, and the text that is saved with the cache.
    fn encode_prompt(
        &self,
        text: String,
        template: Option<&ChatTemplate>,
        restored: Option<&Restored>,
        system: Option<&str>,
    ) -> anyhow::Result<(Encoded, SavedText)> {
        let Some(template) = template else {
            let (ids, prompt) = match restored {
                Some(restored) => restored.raw(self.loaded, text)?,
                None => (self.loaded.tokenizer.encode(&text, true, true)?, text),
            };
            let encoded = Encoded { ids, reasoning: None };
            return Ok((encoded, SavedText { prompt, ..SavedText::default() }));
        };
        let messages = match restored {
            Some(restored) => restored.messages(system, text)?,
            None => {
                let system = system.map(|text| Message::new("system", text));
                system.into_iter().chain([Message::new("user", text)]).collect()
            }
        };
        Ok((self.encode_chat(template, &messages)?, SavedText { messages, ..SavedText::default() }))
    }

    /// Answers a prompt and prints the answer during generation. Ctrl-C stops it. Returns the answer and the reasoning before
    /// it.
    fn say(&mut self, prompt: &Encoded, sampler: &mut Sampler) -> anyhow::Result<(Generation, String)> {
        let printer = &self.app.printer;
        let tokenizer = &self.loaded.tokenizer;
        let request = Request {
            prompt: &prompt.ids,
            max_tokens: self.max_tokens,
            stop: self.stop,
            is_end: &|id| tokenizer.is_end(id),
            cancel: Some(interrupt::flag()),
            speculation: self.speculation.clone(),
            reasoning: prompt.reasoning.as_ref(),
        };
        let mut failed = None;
        let mut spoken = Spoken::new(printer, prompt.reasoning.as_ref());
        let mut on_text = |piece: &str| match spoken.push(piece) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        };
        let marks = prompt.reasoning.as_ref().map(|reasoning| reasoning.special_tokens(tokenizer));
        let mut decoder = tokenizer.stream_after(&prompt.ids).writing(&marks.unwrap_or_default());
        let _graceful = interrupt::Graceful::begin();
        let result = generate(&mut self.sequence, &request, sampler, &mut decoder, &mut on_text);
        if let Some(e) = failed {
            return Err(e);
        }
        let mut result = result?;
        spoken.finish()?;
        result.text = spoken.text;
        Ok((result, spoken.reasoning))
    }
}

/// `[prompt 31 tokens, 310.2 tok/s; answer 40 tokens, 92.1 tok/s; ...]`.
fn summary(g: &Generation) -> String {
    let mut line = format!("[prompt {} tokens", g.prompt_tokens);
    let _ = match g.reused_tokens {
        0 => write!(line, ", {:.1} tok/s", g.prefill_tok_s()),
        n => write!(line, " ({n} of them cached), {:.1} tok/s", g.prefill_tok_s()),
    };
    let _ = write!(line, "; answer {} tokens, {:.1} tok/s", g.generated_tokens(), g.decode_tok_s());
    let _ = match g.drafted_tokens {
        0 => Ok(()),
        drafted => write!(line, ", {} of {drafted} drafted tokens accepted", g.accepted_tokens),
    };
    line.push_str(match &g.reason {
        FinishReason::End | FinishReason::Stop(_) => "]",
        FinishReason::Length => "; stopped at --max-tokens]",
        FinishReason::ContextFull => "; stopped because the model's context is full]",
        FinishReason::Cancelled => "; interrupted]",
    });
    line
}
