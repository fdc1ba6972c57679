//! `scrimp run`: one answer, or a chat.

mod chat;
mod prompt;

use crate::{
    App,
    cli::{
        Usage,
        run::{RunArgs, SamplingArgs},
    },
    interrupt, kv_args,
    loaded::{self, Loaded},
};
use prompt::Prompt;
use scrimp_llm::{
    chat::{ChatTemplate, Message},
    checkpoint::Checkpoint,
    generate::{FinishReason, Generation, Request, Sequence, generate},
    model::Session,
    sampling::{Sampler, SamplingParams},
    tokenizer::Tokenizer,
};
use serde::Serialize;
use std::{fmt::Write as _, ops::ControlFlow};

#[derive(Serialize)]
struct Answer<'a> {
    text: &'a str,
    prompt_tokens: usize,
    generated_tokens: usize,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    kv_bytes: usize,
    kv_tokens: usize,
    peak_rss_bytes: u64,
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
    let template = |checkpoint: &Checkpoint, tokenizer: &Tokenizer| {
        kv_args::check_context(compression.as_ref(), checkpoint.config().context_length)?;
        match args.raw {
            true => Ok(None),
            false => loaded::template(checkpoint, tokenizer).map(Some),
        }
    };
    let (loaded, template) = Loaded::open_with(app, &args.model, &args.kv, template)?;
    let mut speaker = Speaker {
        app,
        loaded: &loaded,
        sequence: loaded.sequence(compression),
        max_tokens: args.max_tokens,
        stop: &args.sampling.stop,
    };
    let system = args.system.iter().map(|text| Message::new("system", text.as_str()));
    let ids = match (prompt, template) {
        (Prompt::Chat, Some(template)) => {
            return chat::chat(&mut speaker, &template, system.collect(), &mut sampler);
        }
        (Prompt::Text(text), Some(template)) => {
            let messages: Vec<_> = system.chain([Message::new("user", text)]).collect();
            speaker.encode_chat(&template, &messages)?
        }
        (Prompt::Text(text), None) => loaded.tokenizer.encode(&text, true, true)?,
        (Prompt::Chat, None) => unreachable!("refused above"),
    };
    let result = speaker.say(&ids, &mut sampler)?;
    if app.printer.is_json() {
        let answer = Answer {
            text: &result.text,
            prompt_tokens: result.prompt_tokens,
            generated_tokens: result.generated_tokens(),
            prefill_tok_s: result.prefill_tok_s(),
            decode_tok_s: result.decode_tok_s(),
            kv_bytes: speaker.sequence.source().kv_bytes(),
            kv_tokens: speaker.sequence.source().kv_tokens(),
            peak_rss_bytes: loaded::peak_rss_bytes()?,
        };
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
}

impl Speaker<'_> {
    /// The prompt for the assistant's next message. The chat template writes the begin-of-text token, if the model has one.
    fn encode_chat(&self, template: &ChatTemplate, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        let text = template.render(messages, true, &serde_json::Map::new())?;
        Ok(self.loaded.tokenizer.encode(&text, false, true)?)
    }

    /// Answers the prompt `ids` and prints the answer during generation. Ctrl-C stops it.
    fn say(&mut self, ids: &[u32], sampler: &mut Sampler) -> anyhow::Result<Generation> {
        let printer = &self.app.printer;
        let tokenizer = &self.loaded.tokenizer;
        let request = Request {
            prompt: ids,
            max_tokens: self.max_tokens,
            stop: self.stop,
            is_end: &|id| tokenizer.is_end(id),
            cancel: Some(interrupt::flag()),
        };
        let mut failed = None;
        let mut on_text = |piece: &str| match printer.stream(piece) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        };
        let mut decoder = tokenizer.stream_after(ids);
        let _graceful = interrupt::Graceful::begin();
        let result = generate(&mut self.sequence, &request, sampler, &mut decoder, &mut on_text);
        if let Some(e) = failed {
            return Err(e);
        }
        let result = result?;
        if !result.text.ends_with('\n') {
            printer.stream("\n")?;
        }
        Ok(result)
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
    line.push_str(match &g.reason {
        FinishReason::End | FinishReason::Stop(_) => "]",
        FinishReason::Length => "; stopped at --max-tokens]",
        FinishReason::ContextFull => "; stopped because the model's context is full]",
        FinishReason::Cancelled => "; interrupted]",
    });
    line
}
