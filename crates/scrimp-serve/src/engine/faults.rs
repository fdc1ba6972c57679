//! Fault injection: a request whose constraint panics or fails does not change the answers of the other requests in the batch.

use super::{Command, EngineOptions, EngineOutput, EngineRequest, Failure, Generate, KvOptions, Work, run};
use crate::{constraint::Constraint, metrics::Metrics, scheduler::Limits};
use scrimp_llm::{
    Error, Result,
    checkpoint::Checkpoint,
    model::{Model, RunOptions},
    sampling::SamplingParams,
    tokenizer::Tokenizer,
};
use std::{
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// An injected fault.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    PanicInMask,
    PanicInAccept,
    ErrorInMask,
    NoTokenAllowed,
}

/// A constraint with a fault after `left` tokens.
#[derive(Debug)]
struct Faulty {
    fault: Fault,
    left: usize,
}

impl Constraint for Faulty {
    fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        if self.left == 0 {
            match self.fault {
                Fault::PanicInMask => panic!("injected"),
                Fault::ErrorInMask => return Err(Error::bad_input("injected")),
                Fault::NoTokenAllowed => logits.fill(f32::NEG_INFINITY),
                Fault::PanicInAccept => {}
            }
        }
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<bool> {
        assert!(self.left > 0 || self.fault != Fault::PanicInAccept, "injected");
        self.left = self.left.saturating_sub(1);
        Ok(false)
    }
}

fn request(
    id: u64,
    prompt: Vec<u32>,
    fault: Option<Faulty>,
) -> (EngineRequest, UnboundedReceiver<(usize, EngineOutput)>) {
    let (outputs, received) = unbounded_channel();
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
        constraint: fault.map(|fault| Box::new(fault) as Box<dyn Constraint>),
        reasoning: None,
    };
    let request = EngineRequest {
        id,
        client: id,
        prompt,
        work: Work::Generate(Box::new(params)),
        kv: KvOptions { compression: None, format: "f32".into() },
        deadline: Instant::now() + Duration::from_secs(60),
        index: 0,
        outputs,
    };
    (request, received)
}

/// The text of an answer, or its failure.
fn answer(mut outputs: UnboundedReceiver<(usize, EngineOutput)>) -> std::result::Result<String, Failure> {
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

/// Runs all `requests` on a new engine and returns their answers, and the bytes of KV pages in use after the last one.
fn answers(
    model: &Model,
    tokenizer: &Tokenizer,
    requests: Vec<(Vec<u32>, Option<Faulty>)>,
) -> (Vec<std::result::Result<String, Failure>>, u64) {
    let metrics = Arc::new(Metrics::default());
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
        for (id, (prompt, fault)) in requests.into_iter().enumerate() {
            let (request, outputs) = request(id as u64, prompt, fault);
            commands.send(Command::AddRequest(Box::new(request))).unwrap();
            waiting.push(outputs);
        }
        let answers = waiting.into_iter().map(answer).collect();
        let end = Instant::now() + Duration::from_secs(10);
        while metrics.running.get() > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        commands.send(Command::Stop).unwrap();
        engine.join().expect("the engine never panics");
        (answers, metrics.kv_bytes.get())
    })
}

#[test]
fn a_fault_ends_its_own_request_and_no_other() {
    let path = scrimp_testkit::tiny_model("llama");
    let tokenizer = Checkpoint::open(&path).unwrap().tokenizer().unwrap();
    let options = RunOptions { kv_format: "f32".parse().unwrap(), ..RunOptions::default() };
    let model = Model::load(Checkpoint::open(&path).unwrap(), &options).unwrap();
    let prompts: Vec<Vec<u32>> =
        (0..6).map(|i| (0..5 + i).map(|t| (t * 7 + i * 13 + 3) as u32 % 200).collect()).collect();
    let alone: Vec<String> = prompts
        .iter()
        .map(|p| answers(&model, &tokenizer, vec![(p.clone(), None)]).0.remove(0).unwrap())
        .collect();
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    for fault in [Fault::PanicInMask, Fault::PanicInAccept, Fault::ErrorInMask, Fault::NoTokenAllowed] {
        for after in [0, 3] {
            let requests = prompts.iter().enumerate().map(|(i, prompt)| {
                let faulty = (i % 3 == 1).then_some(Faulty { fault, left: after });
                (prompt.clone(), faulty)
            });
            let (got, kv_bytes) = answers(&model, &tokenizer, requests.collect());
            for (i, (got, alone)) in got.iter().zip(&alone).enumerate() {
                match got {
                    Ok(text) if i % 3 != 1 => assert_eq!(text, alone, "{fault:?} after {after}: request {i}"),
                    Err(Failure::Internal(_)) if i % 3 == 1 && fault != Fault::ErrorInMask => {}
                    Err(Failure::BadRequest(_)) if i % 3 == 1 && fault == Fault::ErrorInMask => {}
                    other => {
                        assert!(fault == Fault::NoTokenAllowed && i % 3 == 1, "{fault:?} {i}: {other:?}");
                    }
                }
            }
            assert_eq!(kv_bytes, 0, "{fault:?} after {after}: pages are not free");
        }
    }
    std::panic::set_hook(quiet);
}
