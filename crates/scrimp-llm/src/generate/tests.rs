use super::*;
use crate::fake::FakeModel;
use crate::sampling::SamplingParams;

/// Ids 1.. are the pieces of this list; 0 is the end.
struct Pieces(&'static [&'static str], Vec<u8>);

impl TextStream for Pieces {
    fn push(&mut self, token: u32) -> String {
        self.0[token as usize].to_owned()
    }
    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.1)).into_owned()
    }
}

const WORDS: &[&str] = &["<end>", "Once", " upon", " a", " time", "\n", "User", ":"];
const PROMPT: &[u32] = &[9, 9, 9];

fn sequence(script: &'static [u32], context: usize) -> Sequence<FakeModel> {
    Sequence::new(FakeModel::scripted(10, PROMPT.len(), script), context)
}

fn run(sequence: &mut Sequence<FakeModel>, max: Option<usize>, stop: &[&str]) -> (Generation, Vec<String>) {
    let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
    let request = Request {
        prompt: PROMPT,
        max_tokens: max,
        stop: &stop,
        is_end: &|id| id == 0,
        cancel: None,
        speculation: Speculation::Off,
        reasoning: None,
    };
    let mut pieces = Vec::new();
    let mut on_text = |text: &str| {
        pieces.push(text.to_owned());
        ControlFlow::Continue(())
    };
    let result =
        generate(sequence, &request, &mut Sampler::greedy(), &mut Pieces(WORDS, vec![]), &mut on_text)
            .unwrap();
    assert_eq!(pieces.concat(), result.text);
    assert!(pieces.iter().all(|piece| !piece.is_empty()));
    (result, pieces)
}

#[test]
fn ends_at_the_end_token() {
    let (result, pieces) = run(&mut sequence(&[1, 2, 3, 4, 0], 100), None, &[]);
    assert_eq!((result.text.as_str(), &result.reason), ("Once upon a time", &FinishReason::End));
    assert_eq!(pieces.len(), 4, "every token is printed at once");
    assert_eq!((result.tokens.as_slice(), result.decode_steps), (&[1u32, 2, 3, 4][..], 4));
    assert_eq!((result.prompt_tokens, result.reused_tokens, result.generated_tokens()), (3, 0, 4));
    assert!(result.prefill_tok_s() > 0.0 && result.decode_tok_s() > 0.0);
}

#[test]
fn ends_at_the_token_limit() {
    let mut s = sequence(&[1, 2, 3, 4, 0], 100);
    let (result, _) = run(&mut s, Some(2), &[]);
    assert_eq!((result.text.as_str(), &result.reason), ("Once upon", &FinishReason::Length));
    assert_eq!(s.source().calls, [3, 1], "the last token is not computed in vain");
    let (result, _) = run(&mut sequence(&[1], 100), Some(0), &[]);
    assert_eq!(
        (result.text.as_str(), &result.reason, result.decode_tok_s()),
        ("", &FinishReason::Length, 0.0)
    );
    // An end token right at the limit.
    let (result, _) = run(&mut sequence(&[1, 0], 100), Some(2), &[]);
    assert_eq!(result.reason, FinishReason::End);
}

#[test]
fn ends_when_the_context_is_full() {
    let (result, _) = run(&mut sequence(&[1, 2, 3, 4, 4, 4], 5), None, &[]);
    assert_eq!((result.text.as_str(), &result.reason), ("Once upon a", &FinishReason::ContextFull));
    let (result, _) = run(&mut sequence(&[1, 2], 3), None, &[]);
    assert_eq!(result.text, "Once", "a prompt that fills the context still gets one token");
}

#[test]
fn stop_strings_across_tokens_are_not_printed() {
    let stop = FinishReason::Stop("\nUser:".into());
    let (result, _) = run(&mut sequence(&[1, 2, 5, 6, 7, 3], 100), None, &["\nUser:"]);
    assert_eq!((result.text.as_str(), result.reason), ("Once upon", stop));
    assert_eq!(result.tokens.len(), 5);
    // An incomplete stop string is printed in the end.
    let (result, pieces) = run(&mut sequence(&[1, 5, 6, 0], 100), None, &["\nUser:"]);
    assert_eq!((result.text.as_str(), pieces.len()), ("Once\nUser", 2));
    assert_eq!(result.reason, FinishReason::End);
}

#[test]
fn held_back_bytes_come_out_at_the_end() {
    let mut s = sequence(&[1, 0], 100);
    let request = Request {
        prompt: PROMPT,
        max_tokens: None,
        stop: &[],
        is_end: &|id| id == 0,
        cancel: None,
        speculation: Speculation::Off,
        reasoning: None,
    };
    let mut decoder = Pieces(WORDS, vec![0xe2, 0x82]);
    let mut flow = |_: &str| ControlFlow::Continue(());
    let result = generate(&mut s, &request, &mut Sampler::greedy(), &mut decoder, &mut flow).unwrap();
    assert_eq!(result.text, "Once\u{fffd}");
}

#[test]
fn cancelling() {
    let flag = AtomicBool::new(false);
    let request = Request {
        prompt: PROMPT,
        max_tokens: None,
        stop: &[],
        is_end: &|id| id == 0,
        cancel: Some(&flag),
        speculation: Speculation::Off,
        reasoning: None,
    };
    let mut decoder = Pieces(WORDS, vec![]);
    // From outside, while an answer is printed.
    let mut on_text = |_: &str| {
        flag.store(true, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let mut s = sequence(&[1, 2, 3, 0], 100);
    let result = generate(&mut s, &request, &mut Sampler::greedy(), &mut decoder, &mut on_text).unwrap();
    assert_eq!((result.text.as_str(), &result.reason), ("Once", &FinishReason::Cancelled));
    // Before the prefill: nothing is computed.
    let mut s = sequence(&[1, 2, 3, 0], 100);
    let result = generate(&mut s, &request, &mut Sampler::greedy(), &mut decoder, &mut on_text).unwrap();
    assert_eq!((result.text.as_str(), &result.reason), ("", &FinishReason::Cancelled));
    assert!(s.is_empty() && s.source().calls.is_empty());
    // By the receiver.
    flag.store(false, Ordering::Relaxed);
    let mut on_text = |_: &str| ControlFlow::Break(());
    let mut s = sequence(&[1, 2, 3, 0], 100);
    let result = generate(&mut s, &request, &mut Sampler::greedy(), &mut decoder, &mut on_text).unwrap();
    assert_eq!((result.tokens.len(), &result.reason), (1, &FinishReason::Cancelled));
}

#[test]
fn impossible_prompts() {
    let mut s = sequence(&[1], 2);
    let mut request = Request {
        prompt: PROMPT,
        max_tokens: None,
        stop: &[],
        is_end: &|id| id == 0,
        cancel: None,
        speculation: Speculation::Off,
        reasoning: None,
    };
    let mut decoder = Pieces(WORDS, vec![]);
    let mut flow = |_: &str| ControlFlow::Continue(());
    let error = generate(&mut s, &request, &mut Sampler::greedy(), &mut decoder, &mut flow).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 3 tokens, the model's context is 2");
    request.prompt = &[];
    let error = generate(&mut s, &request, &mut Sampler::greedy(), &mut decoder, &mut flow).unwrap_err();
    assert_eq!(error.to_string(), "the prompt is empty");
}

#[test]
fn the_next_turn_computes_only_what_is_new() {
    let never = || false;
    let mut s = Sequence::new(FakeModel::new(|seen| vec![seen.iter().sum::<u32>() as f32]), 5000);
    assert_eq!(s.extend_to(&[1, 2, 3], &never).unwrap().unwrap(), [6.0]);
    s.append(4).unwrap();
    assert_eq!(s.extend_to(&[1, 2, 3, 4, 5, 6], &never).unwrap().unwrap(), [21.0]);
    assert_eq!(s.source().calls, [3, 1, 2]);
    // A changed history falls back to the common part.
    assert_eq!(s.extend_to(&[1, 2, 9], &never).unwrap().unwrap(), [12.0]);
    assert_eq!((s.source().calls[3], s.source().seen.as_slice()), (1, &[1u32, 2, 9][..]));
    // The same prompt again: its last token must be computed, for the logits.
    assert_eq!(s.extend_to(&[1, 2, 9], &never).unwrap().unwrap(), [12.0]);
    assert_eq!(s.source().calls[4], 1);
    // A prefix of the cached tokens.
    assert_eq!(s.extend_to(&[1], &never).unwrap().unwrap(), [1.0]);
    s.clear();
    assert!(s.is_empty() && s.source().seen.is_empty());
    // Long prompts come in chunks, so that they can be cancelled.
    s.extend_to(&vec![1; 1024], &never).unwrap();
    assert_eq!(s.source().calls[6..], [512, 512]);
    assert_eq!(s.len(), 1024);
}

#[test]
fn a_model_that_cannot_go_back_starts_over() {
    let never = || false;
    let mut s = Sequence::new(FakeModel::new(|seen| vec![seen.iter().sum::<u32>() as f32]), 100);
    s.source.rewind = 2;
    s.extend_to(&[1, 2, 3, 4, 5], &never).unwrap();
    assert_eq!(s.rewind_to(&[1, 2, 3, 9, 9]), 3);
    s.extend_to(&[1, 2, 3, 9, 9], &never).unwrap();
    assert_eq!(s.rewind_to(&[1, 7, 7]), 0);
    assert_eq!(s.extend_to(&[1, 7, 7], &never).unwrap().unwrap(), [15.0]);
    assert_eq!(s.source().calls, [5, 2, 3]);
}

#[test]
fn after_a_failure_nothing_is_reused() {
    let mut s = sequence(&[1, 2], 100);
    s.extend_to(PROMPT, &|| false).unwrap();
    s.source.fail_at = 3;
    assert!(s.append(1).is_err());
    assert_eq!(s.rewind_to(PROMPT), 0);
    s.source.fail_at = usize::MAX;
    s.extend_to(PROMPT, &|| false).unwrap();
    assert_eq!(s.source().seen, PROMPT, "what the failure left behind is gone");
}

#[test]
fn repetition_penalty_sees_prompt_and_answer() {
    // The model always wants 1, then 2, then 3 ...; a strong penalty walks down that list.
    let rule = |_: &[u32]| (0..8).map(|id| if id == 0 { 0.1 } else { 10.0 - id as f32 }).collect();
    let mut s = Sequence::new(FakeModel::new(rule), 100);
    let params = SamplingParams { repetition_penalty: 50.0, ..SamplingParams::default() };
    let request = Request {
        prompt: &[2],
        max_tokens: Some(3),
        stop: &[],
        is_end: &|id| id == 0,
        cancel: None,
        speculation: Speculation::Off,
        reasoning: None,
    };
    let mut flow = |_: &str| ControlFlow::Continue(());
    let mut sampler = Sampler::new(params).unwrap();
    let result = generate(&mut s, &request, &mut sampler, &mut Pieces(WORDS, vec![]), &mut flow).unwrap();
    assert_eq!(result.tokens, [1, 3, 4]);
}

/// The answer of a model that repeats itself, with and without drafts.
fn with_speculation(speculation: Speculation, case: &Case) -> (Generation, Vec<u32>) {
    let period = case.period;
    let mut model = FakeModel::new(move |seen| {
        // Mostly a period, sometimes another token.
        let n = seen.len();
        let usual = 1 + seen[n.saturating_sub(period)] % 5;
        let unusual = (n as u32 * 7 + seen[n - 1]) % 8;
        (0..8u32)
            .map(|id| f32::from(u8::from(id == usual)) * 2.0 + f32::from(u8::from(id == unusual)))
            .collect()
    });
    model.verifiable = case.verifiable;
    let mut sequence = Sequence::new(model, case.context);
    let params = SamplingParams {
        temperature: case.temperature,
        seed: Some(3),
        repetition_penalty: case.penalty,
        ..SamplingParams::default()
    };
    let stop: Vec<String> = case.stop.iter().map(|&stop| stop.to_owned()).collect();
    let request = Request {
        prompt: &case.prompt,
        max_tokens: case.max,
        stop: &stop,
        is_end: &|id| id == 0,
        cancel: None,
        speculation,
        reasoning: None,
    };
    let mut sampler = Sampler::new(params).unwrap();
    let result = generate(&mut sequence, &request, &mut sampler, &mut Pieces(WORDS, vec![]), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let cached = sequence.tokens().to_vec();
    assert_eq!(cached, sequence.source().seen);
    (result, cached)
}

#[derive(Debug)]
struct Case {
    prompt: Vec<u32>,
    period: usize,
    verifiable: usize,
    context: usize,
    max: Option<usize>,
    temperature: f32,
    penalty: f32,
    stop: Vec<&'static str>,
}

proptest::proptest! {
    #[test]
    fn drafts_change_no_token(
        prompt in proptest::collection::vec(1u32..8, 1..40), period in 1usize..9, verifiable in 1usize..20, room in 0usize..80,
        max in proptest::option::of(0usize..60), temperature in 0usize..3, penalty in 0usize..2, stop in 0usize..3,
    ) {
        let case = Case {
            context: prompt.len() + room, prompt, period, verifiable, max, temperature: [0.0, 0.4, 1.0][temperature],
            penalty: [1.0, 1.3][penalty], stop: [vec![], vec![" a time"], vec!["User"]][stop].clone(),
        };
        let ((off, cached), (on, cached_on)) = (with_speculation(Speculation::Off, &case), with_speculation(Speculation::Ngram, &case));
        proptest::prop_assert_eq!(&off.tokens, &on.tokens);
        proptest::prop_assert_eq!((&off.text, &off.reason, off.decode_steps), (&on.text, &on.reason, on.decode_steps));
        proptest::prop_assert!(cached == cached_on, "{:?} {:?}", cached, cached_on);
        proptest::prop_assert!(on.accepted_tokens <= on.drafted_tokens && on.accepted_tokens <= on.tokens.len());
    }
}

#[test]
fn repeated_tokens_are_drafted() {
    let case = Case {
        prompt: vec![1, 2, 3],
        period: 3,
        verifiable: 16,
        context: 400,
        max: Some(200),
        temperature: 0.0,
        penalty: 1.0,
        stop: vec![],
    };
    // Times decide how many: each token of the fake model takes as long as a pass.
    assert!(with_speculation(Speculation::Ngram, &case).0.drafted_tokens > 0);
    assert_eq!(with_speculation(Speculation::Off, &case).0.drafted_tokens, 0);
}
