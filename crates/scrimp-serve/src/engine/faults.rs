//! Fault injection: a request whose constraint panics or fails does not change the answers of the other requests in the batch.

use super::{
    Failure,
    harness::{Question, answers},
};
use crate::constraint::Constraint;
use scrimp_llm::{
    Error, Result,
    checkpoint::Checkpoint,
    model::{Model, RunOptions},
};

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
        .map(|p| answers(&model, &tokenizer, vec![Question::new(p.clone())]).0.remove(0).unwrap())
        .collect();
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    for fault in [Fault::PanicInMask, Fault::PanicInAccept, Fault::ErrorInMask, Fault::NoTokenAllowed] {
        for after in [0, 3] {
            let requests = prompts.iter().enumerate().map(|(i, prompt)| {
                let mut question = Question::new(prompt.clone());
                if i % 3 == 1 {
                    question.params.constraint = Some(Box::new(Faulty { fault, left: after }));
                }
                question
            });
            let (got, metrics) = answers(&model, &tokenizer, requests.collect());
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
            assert_eq!(metrics.kv_bytes.get(), 0, "{fault:?} after {after}: pages are not free");
        }
    }
    std::panic::set_hook(quiet);
}
