//! Language models: open, tokens, text, logits.

use crate::{linear::value_error, runtime::check_signals};
use pyo3::{
    exceptions::{PyMemoryError, PyOSError, PyRuntimeError, PyUserWarning, PyValueError},
    prelude::*,
    types::PyBytes,
};
use scrimp_hub::{Hub, ModelRef, Silent};
use scrimp_kv::{
    KvError, KvFormat,
    compress::{Budget, Compression, Crush, DEFAULT_POLICY, DEFAULT_SHARE, Shrink},
    policy::policy,
};
use scrimp_llm::{
    Category, Error, Llm,
    chat::{Conversation, Message},
    checkpoint::Checkpoint,
    generate::{
        DraftCheckpoint, DraftKind, DraftModel, FinishReason, Generation, Request, Sequence, Speculation,
        generate,
    },
    model::RunOptions,
    sampling::{Sampler, SamplingParams},
};
use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    time::Duration,
};

/// The time between two checks for signals such as Ctrl-C.
const SIGNALS: Duration = Duration::from_millis(50);

/// Runs `work` in a thread, and checks for signals until it ends. Ctrl-C sets `cancel`. If `cancel` is set, the call returns at
/// the next check: the thread ends with the part of the prompt that it computes.
fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    cancel: &AtomicBool,
    work: impl FnOnce() -> PyResult<T> + Send + 'static,
) -> PyResult<T> {
    let (sender, receiver) = channel();
    let spawned = std::thread::Builder::new().name("scrimp-llm".to_owned()).spawn(move || {
        // Nobody receives the result after Ctrl-C.
        let _ = sender.send(work());
    });
    spawned.map_err(|e| PyRuntimeError::new_err(format!("cannot start a thread: {e}")))?;
    py.detach(move || {
        loop {
            match receiver.recv_timeout(SIGNALS) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if cancel.load(Ordering::Relaxed) => {
                    return Err(PyRuntimeError::new_err("the answer was cancelled"));
                }
                Err(RecvTimeoutError::Timeout) => {
                    check_signals().inspect_err(|_| cancel.store(true, Ordering::Relaxed))?;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(PyRuntimeError::new_err("the thread of the model panicked"));
                }
            }
        }
    })
}

/// An error of the library as a Python exception.
fn python(error: Error) -> PyErr {
    let text = match error.hint() {
        Some(hint) => format!("{error} (hint: {hint})"),
        None => error.to_string(),
    };
    if error.source_as::<KvError>().is_some() {
        return PyRuntimeError::new_err(text);
    }
    match error.category() {
        Category::Io | Category::Unavailable => PyOSError::new_err(text),
        Category::OutOfMemory => PyMemoryError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

/// Ends an answer from another thread.
#[pyclass(frozen, module = "scrimp._scrimp")]
#[derive(Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

#[pymethods]
impl Cancel {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The answer ends after the token that is being computed.
    fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A language model with its tokenizer.
#[pyclass(frozen, module = "scrimp._scrimp")]
pub(crate) struct LanguageModel {
    llm: Llm,
    draft: Option<DraftModel>,
}

/// The answer to a request: text, tokens, finish reason, prompt tokens, seconds of prefill and decode, bytes of the KV
/// cache, drafted and accepted tokens, bytes of the cache that drafts.
type Answer = (String, Vec<u32>, &'static str, usize, f64, f64, usize, usize, usize, usize);

#[pymethods]
impl LanguageModel {
    /// Loads a model. A model that is not in the cache is downloaded first.
    #[new]
    #[pyo3(signature = (reference, threads, kv_format, draft_model))]
    fn open(
        py: Python<'_>,
        reference: &str,
        threads: Option<usize>,
        kv_format: &str,
        draft_model: Option<&str>,
    ) -> PyResult<Self> {
        if threads == Some(0) {
            return Err(PyValueError::new_err("threads must be 1 or more"));
        }
        let open = || {
            let kv_format = kv_format.parse::<KvFormat>()?;
            let options = RunOptions { threads, kv_format, ..RunOptions::default() };
            let checkpoint = |reference: &str| {
                let path = Hub::from_env()?.fetch(&ModelRef::parse(reference)?, &mut Silent)?;
                Checkpoint::open(&path)
            };
            let target = checkpoint(reference)?;
            let compared = |reference: &str| {
                DraftCheckpoint::new(checkpoint(reference)?, (target.path(), &target.tokenizer()?))
            };
            let draft = draft_model.map(compared).transpose()?;
            let llm = Llm::load(target, &options)?;
            let draft = draft.map(|draft| draft.load(llm.model(), None)).transpose()?;
            Ok(Self { llm, draft })
        };
        let opened: Self = py.detach(open).map_err(python)?;
        if let Some(warning) = opened.llm.tokenizer().warning() {
            let text = std::ffi::CString::new(format!("{reference}: {warning}")).unwrap_or_default();
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), &text, 1)?;
        }
        Ok(opened)
    }

    /// Maximum number of tokens of a prompt and its answer.
    #[getter]
    fn context_length(&self) -> usize {
        self.llm.model().context_length()
    }

    /// Number of tokens in the vocabulary.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.llm.model().vocab_size()
    }

    /// Whether the model has a chat template.
    #[getter]
    fn can_chat(&self) -> bool {
        self.llm.can_chat()
    }

    /// Tokens of a text; `special` also reads special tokens written out in it.
    fn encode(&self, py: Python<'_>, text: &str, bos: bool, special: bool) -> PyResult<Vec<u32>> {
        py.detach(|| self.llm.tokenizer().encode(text, bos, special)).map_err(python)
    }

    /// The text of tokens.
    fn decode(&self, ids: Vec<u32>) -> String {
        self.llm.tokenizer().decode(&ids)
    }

    /// The text that the chat template makes of `(role, content)` messages.
    fn render_chat(&self, py: Python<'_>, messages: Vec<(String, String)>) -> PyResult<String> {
        let Some(template) = self.llm.chat_template() else {
            return Err(PyValueError::new_err(
                "this is a base model without a chat template, which continues texts: use generate(..., raw=True)",
            ));
        };
        let messages: Vec<_> = messages.into_iter().map(|(role, text)| Message::new(role, text)).collect();
        py.detach(|| template.prompt(&Conversation::new(&messages)?)).map_err(python)
    }

    /// Continues the prompt `ids`. `on_text` is called, in another thread, with each piece of text as soon as it is certain.
    #[pyo3(signature = (ids, max_tokens, stop, sampling, kv, on_text, cancel))]
    fn generate(
        slf: &Bound<'_, Self>,
        ids: Vec<u32>,
        max_tokens: Option<usize>,
        stop: Vec<String>,
        sampling: Sampling,
        kv: Option<Kv>,
        on_text: Option<Py<PyAny>>,
        cancel: Option<Py<Cancel>>,
    ) -> PyResult<Answer> {
        let mut sampler = Sampler::new(sampling.params()).map_err(python)?;
        let speculation = slf.get().speculation(sampling.speculation.as_deref()).map_err(python)?;
        let cache = kv.map(Kv::cache).transpose()?.unwrap_or_default();
        let cancel = cancel.map(|c| c.get().0.clone()).unwrap_or_default();
        let (this, flag) = (slf.clone().unbind(), cancel.clone());
        interruptible(slf.py(), &cancel, move || {
            let (model, tokenizer) = (this.get().llm.model(), this.get().llm.tokenizer());
            let session = cache.format.map_or_else(|| Ok(model.session()), |format| model.session_in(format));
            let mut session = session.map_err(python)?;
            session.set_compression(cache.compression);
            let mut sequence = Sequence::new(session, model.context_length());
            let request = Request {
                prompt: &ids,
                max_tokens,
                stop: &stop,
                is_end: &|id| tokenizer.is_end(id),
                cancel: Some(&flag),
                speculation,
                reasoning: None,
            };
            let mut failed = None;
            let mut tell = |piece: &str| {
                let Some(on_text) = on_text.as_ref().filter(|_| !flag.load(Ordering::Relaxed)) else {
                    return ControlFlow::Continue(());
                };
                match Python::attach(|py| on_text.call1(py, (piece,))) {
                    Ok(_) => ControlFlow::Continue(()),
                    Err(e) => {
                        failed = Some(e);
                        ControlFlow::Break(())
                    }
                }
            };
            let mut stream = tokenizer.stream_after(&ids);
            let answer = generate(&mut sequence, &request, &mut sampler, &mut stream, &mut tell);
            match failed {
                Some(error) => Err(error),
                None => Ok(answer_of(answer.map_err(python)?, sequence.source().kv_bytes())),
            }
        })
    }

    /// The logits after each of `ids` (or after the last one only), as bytes of `[rows][vocab_size]` float32.
    fn logits<'py>(slf: &Bound<'py, Self>, ids: Vec<u32>, all: bool) -> PyResult<Bound<'py, PyBytes>> {
        let this = slf.clone().unbind();
        let logits = interruptible(slf.py(), &AtomicBool::new(false), move || {
            let mut session = this.get().llm.model().session();
            if !all {
                return session.forward(&ids).map(<[f32]>::to_vec).map_err(python);
            }
            let mut out = Vec::new();
            session.forward_each(&ids, &mut |_, row| out.extend_from_slice(row)).map_err(python)?;
            Ok(out)
        })?;
        debug_assert!(logits.len().is_multiple_of(slf.get().llm.model().vocab_size()));
        let write = |bytes: &mut [u8]| {
            for (to, x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&logits) {
                *to = x.to_ne_bytes();
            }
            Ok(())
        };
        PyBytes::new_with(slf.py(), 4 * logits.len(), write)
    }
}

impl LanguageModel {
    /// The source of drafts that a request names.
    fn speculation(&self, wanted: Option<&str>) -> Result<Speculation, Error> {
        let default = if self.draft.is_some() { DraftKind::Model } else { DraftKind::Off };
        let kind = wanted.map_or(Ok(default), str::parse)?;
        Speculation::new(kind, self.draft.as_ref()).map_err(|e| e.with_hint("load one with `draft_model`"))
    }
}

fn answer_of(g: Generation, kv_bytes: usize) -> Answer {
    let reason = match g.reason {
        FinishReason::End => "end",
        FinishReason::Stop(_) => "stop",
        FinishReason::Length => "length",
        FinishReason::ContextFull => "context_full",
        FinishReason::Cancelled => "cancelled",
    };
    let seconds = (g.prefill_seconds, g.decode_seconds);
    let drafts = (g.drafted_tokens, g.accepted_tokens, g.draft_kv_bytes);
    (g.text, g.tokens, reason, g.prompt_tokens, seconds.0, seconds.1, kv_bytes, drafts.0, drafts.1, drafts.2)
}

/// How tokens are drawn.
#[derive(FromPyObject)]
pub(crate) struct Sampling {
    #[pyo3(item)]
    temperature: f32,
    #[pyo3(item)]
    top_k: usize,
    #[pyo3(item)]
    top_p: f32,
    #[pyo3(item)]
    min_p: f32,
    #[pyo3(item)]
    repetition_penalty: f32,
    #[pyo3(item)]
    seed: Option<u64>,
    /// `None`: the draft model, if there is one.
    #[pyo3(item)]
    speculation: Option<String>,
}

impl Sampling {
    fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..SamplingParams::default()
        }
    }
}

/// How the KV cache is made smaller.
#[derive(FromPyObject)]
pub(crate) struct Kv {
    #[pyo3(item)]
    shrink: Option<u64>,
    #[pyo3(item)]
    policy: Option<String>,
    #[pyo3(item)]
    tokens: Option<usize>,
    #[pyo3(item)]
    share: Option<f64>,
    #[pyo3(item)]
    kvcrush: Option<f64>,
}

/// The cache of an answer.
#[derive(Default)]
struct Cache {
    compression: Option<Compression>,
    /// `None`: the format of the model's other caches.
    format: Option<KvFormat>,
}

impl Kv {
    fn cache(self) -> PyResult<Cache> {
        if let Some(factor) = self.shrink {
            let factor = u32::try_from(factor).unwrap_or(u32::MAX);
            let shrink = Shrink::new(factor).map_err(value_error)?;
            return Ok(Cache { format: Some(shrink.kv_format()), compression: Some(shrink.compression) });
        }
        Ok(Cache { compression: Some(self.compression()?), format: None })
    }

    fn compression(self) -> PyResult<Compression> {
        let budget = match (self.tokens, self.share) {
            (Some(tokens), _) => Budget::Tokens(tokens),
            (None, Some(share)) => Budget::Fraction(share),
            (None, None) => return Err(PyValueError::new_err("a KV budget is missing")),
        };
        let share = self.kvcrush.unwrap_or(if self.policy.is_none() { DEFAULT_SHARE } else { 0.0 });
        let policy = policy(self.policy.as_deref().unwrap_or(DEFAULT_POLICY)).map_err(value_error)?;
        let crush = Crush { share, ..Crush::default() };
        let how = Compression { crush, ..Compression::new(policy, budget) };
        how.check().map_err(value_error)?;
        Ok(how)
    }
}
