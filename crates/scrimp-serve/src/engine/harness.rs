//! Runs requests on an engine of its own, for tests.

use super::{Command, EngineOptions, EngineOutput, EngineRequest, Failure, Generate, KvOptions, Work, run};
use crate::{metrics::ModelMetrics, scheduler::Limits};
use scrimp_llm::{generate::Speculation, model::Model, sampling::SamplingParams, tokenizer::Tokenizer};
use std::{
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A request.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) prompt: Vec<u32>,
    pub(super) params: Generate,
    pub(super) kv: KvOptions,
}

impl Question {
    /// A request for 12 greedy tokens with a whole cache in f32.
    pub(super) fn new(prompt: Vec<u32>) -> Self {
        let params = Generate {
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            max_tokens: 12,
            min_tokens: 0,
            ignore_eos: true,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            written: Vec::new(),
            scores_prompt: false,
            logprobs: None,
            logit_bias: Vec::new(),
            constraint: None,
            speculation: Speculation::Off,
            reasoning: None,
        };
        Self { prompt, params, kv: KvOptions { compression: None, format: "f32".into() } }
    }
}

/// The text of an answer, or its failure.
type Answered = Result<String, Failure>;

fn answer(mut outputs: UnboundedReceiver<(usize, EngineOutput)>) -> Answered {
    let mut text = String::new();
    loop {
        match outputs.blocking_recv().expect("an end").1 {
            EngineOutput::Token(token) => text += &token.text,
            EngineOutput::Finished(summary) => return Ok(text + &summary.text),
            EngineOutput::Failed(failure) => return Err(failure),
            EngineOutput::Prompt(_) | EngineOutput::Embedding(_) => {
                unreachable!("no request is for an embedding")
            }
        }
    }
}

/// Runs all `questions` on a new engine. Returns their answers, and the metrics after the last one.
pub(super) fn answers(
    model: &Model,
    tokenizer: &Tokenizer,
    questions: Vec<Question>,
) -> (Vec<Answered>, Arc<ModelMetrics>) {
    let metrics = Arc::new(ModelMetrics::default());
    let options = EngineOptions {
        limits: Limits::default(),
        kv_bytes: 64 << 20,
        compress_under_pressure: false,
        prefix_caching: false,
        prefix_store: None,
    };
    let (commands, received) = channel();
    std::thread::scope(|scope| {
        let (engine_metrics, options) = (Arc::clone(&metrics), &options);
        let engine = scope.spawn(move || run(model, tokenizer, options, &received, engine_metrics));
        let mut waiting = Vec::new();
        for (id, Question { prompt, params, kv }) in questions.into_iter().enumerate() {
            let (outputs, receiver) = unbounded_channel();
            let request = EngineRequest {
                id: id as u64,
                client: id as u64,
                prompt,
                work: Work::Generate(Box::new(params)),
                kv,
                deadline: Instant::now() + Duration::from_secs(60),
                trace: None,
                _lease: Arc::default(),
                index: 0,
                outputs,
            };
            commands.send(Command::AddRequest(Box::new(request))).unwrap();
            waiting.push(receiver);
        }
        let answers = waiting.into_iter().map(answer).collect();
        let end = Instant::now() + Duration::from_secs(10);
        while metrics.running.get() > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        commands.send(Command::Stop).unwrap();
        engine.join().expect("the engine never panics");
        (answers, Arc::clone(&metrics))
    })
}
