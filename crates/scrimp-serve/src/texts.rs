//! Embedding models and rerankers: a thread that owns the model. Texts of waiting requests share its passes.
//!
//! A pass has at most [`PASS_TEXTS`] texts: those of the first request, then those of later ones with the same prompt or
//! query. A request with texts left goes behind the others, so that it does not delay them.

use crate::{engine::Failure, metrics::ModelMetrics};
use scrimp_llm::{Embedder, Embedding, Reranker, Result, embedder::Relevance};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Instant,
};
use tokio::sync::oneshot;

/// Maximum number of texts per pass: it bounds the time that requests wait for each other.
const PASS_TEXTS: usize = 32;

/// A model with a result for each text.
pub(crate) trait TextModel: Send + 'static {
    /// The common input of all texts of a pass.
    type Shared: std::fmt::Debug + Clone + PartialEq + Send;
    /// The result for a text.
    type Output: std::fmt::Debug + Clone + Send;

    /// The results for `texts`.
    ///
    /// # Errors
    /// A text or the common input is invalid.
    fn run(&self, shared: &Self::Shared, texts: &[&str]) -> Result<Vec<Self::Output>>;

    /// Tokens of a text.
    fn tokens(output: &Self::Output) -> usize;

    /// Counts `n` texts.
    fn count(metrics: &ModelMetrics, n: u64);
}

impl TextModel for Embedder {
    /// The name of a prompt.
    type Shared = Option<String>;
    type Output = Embedding;

    fn run(&self, shared: &Option<String>, texts: &[&str]) -> Result<Vec<Embedding>> {
        self.embed(texts, shared.as_deref())
    }

    fn tokens(output: &Embedding) -> usize {
        output.tokens
    }

    fn count(metrics: &ModelMetrics, n: u64) {
        metrics.embedded_texts.add(n);
    }
}

/// The common input of documents.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Query {
    pub(crate) text: String,
    /// Replaces the model's instruction.
    pub(crate) instruction: Option<String>,
}

impl TextModel for Reranker {
    type Shared = Query;
    type Output = Relevance;

    fn run(&self, shared: &Query, texts: &[&str]) -> Result<Vec<Relevance>> {
        self.rank(&shared.text, texts, shared.instruction.as_deref())
    }

    fn tokens(output: &Relevance) -> usize {
        output.tokens
    }

    fn count(metrics: &ModelMetrics, n: u64) {
        metrics.ranked_documents.add(n);
    }
}

/// The results of a request.
type Answer<M> = std::result::Result<Vec<<M as TextModel>::Output>, Failure>;

/// A request.
struct Job<M: TextModel> {
    shared: M::Shared,
    texts: Vec<String>,
    /// The results of the first texts.
    done: Vec<M::Output>,
    answer: oneshot::Sender<Answer<M>>,
    begun: Instant,
    _place: Place,
}

/// A place in the queue, free when dropped.
struct Place(Arc<AtomicUsize>, Arc<ModelMetrics>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        self.1.running.subtract(1);
    }
}

/// Handle of the thread.
pub(crate) struct TextQueue<M: TextModel> {
    jobs: Mutex<Sender<Job<M>>>,
    /// Number of requests.
    taken: Arc<AtomicUsize>,
    limit: usize,
    metrics: Arc<ModelMetrics>,
    _thread: JoinHandle<()>,
}

impl<M: TextModel> std::fmt::Debug for TextQueue<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a queue with {} of {} requests", self.taken.load(Ordering::SeqCst), self.limit)
    }
}

impl<M: TextModel> TextQueue<M> {
    /// Starts the thread. `limit`: maximum number of requests.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub(crate) fn start(model: M, limit: usize, metrics: Arc<ModelMetrics>) -> std::io::Result<Self> {
        let (sender, jobs) = channel();
        let shared = Arc::clone(&metrics);
        let thread = std::thread::Builder::new()
            .name("scrimp-texts".into())
            .spawn(move || serve(&model, &jobs, &shared))?;
        Ok(Self { jobs: Mutex::new(sender), taken: Arc::default(), limit, metrics, _thread: thread })
    }

    /// Sends texts to the model. The returned channel receives their results; if it is dropped, the remaining texts are
    /// canceled.
    ///
    /// # Errors
    /// The queue is full, or the thread has stopped.
    pub(crate) fn submit(
        &self,
        shared: M::Shared,
        texts: Vec<String>,
    ) -> std::result::Result<oneshot::Receiver<Answer<M>>, Failure> {
        self.metrics.running.add(1);
        let place = Place(Arc::clone(&self.taken), Arc::clone(&self.metrics));
        if self.taken.fetch_add(1, Ordering::SeqCst) >= self.limit {
            return Err(Failure::Busy);
        }
        let (answer, answered) = oneshot::channel();
        let job = Job { shared, texts, done: Vec::new(), answer, begun: Instant::now(), _place: place };
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.send(job).map_err(|_| Failure::ShuttingDown)?;
        Ok(answered)
    }
}

/// Answers requests until all senders are dropped.
fn serve<M: TextModel>(model: &M, jobs: &Receiver<Job<M>>, metrics: &ModelMetrics) {
    let mut waiting: VecDeque<Job<M>> = VecDeque::new();
    loop {
        if waiting.is_empty() {
            let Ok(job) = jobs.recv() else { return };
            waiting.push_back(job);
        }
        waiting.extend(jobs.try_iter());
        // The clients of the others have disconnected, or their time is over.
        waiting.retain(|job| !job.answer.is_closed());
        pass(model, &mut waiting, metrics);
    }
}

/// Computes one pass and answers the requests that it completes.
fn pass<M: TextModel>(model: &M, waiting: &mut VecDeque<Job<M>>, metrics: &ModelMetrics) {
    let Some(shared) = waiting.front().map(|job| job.shared.clone()) else { return };
    // Index of the request, number of its texts.
    let (mut parts, mut room) = (Vec::new(), PASS_TEXTS);
    for (index, job) in waiting.iter().enumerate().filter(|(_, job)| job.shared == shared) {
        let n = (job.texts.len() - job.done.len()).min(room);
        room -= n;
        if n > 0 {
            parts.push((index, n));
        }
    }
    let compute = |parts: &[(usize, usize)]| {
        let of = |&(index, n): &(usize, usize)| {
            let job = &waiting[index];
            job.texts[job.done.len()..][..n].iter().map(String::as_str)
        };
        run(model, &shared, &parts.iter().flat_map(of).collect::<Vec<_>>())
    };
    let results: Vec<Answer<M>> = match compute(&parts) {
        Ok(outputs) => {
            let mut outputs = outputs.into_iter();
            parts.iter().map(|&(_, n)| Ok(outputs.by_ref().take(n).collect())).collect()
        }
        Err(failure) if parts.len() < 2 => vec![Err(failure)],
        // A text is invalid: each request alone.
        Err(_) => parts.iter().map(|part| compute(std::slice::from_ref(part))).collect(),
    };
    let mut later = VecDeque::new();
    for (&(index, _), result) in parts.iter().zip(results).rev() {
        let Some(mut job) = waiting.remove(index) else { continue };
        let answer = match result {
            Ok(outputs) => {
                metrics.prompt_tokens.add(outputs.iter().map(|output| M::tokens(output) as u64).sum());
                M::count(metrics, outputs.len() as u64);
                job.done.extend(outputs);
                if job.done.len() < job.texts.len() {
                    later.push_front(job);
                    continue;
                }
                Ok(job.done)
            }
            Err(failure) => Err(failure),
        };
        metrics.finished(if answer.is_ok() { "stop" } else { "error" }, job.begun.elapsed());
        // The client may have disconnected.
        let _ = job.answer.send(answer);
    }
    waiting.append(&mut later);
}

/// Runs the model. A panic fails the texts of this call only.
fn run<M: TextModel>(model: &M, shared: &M::Shared, texts: &[&str]) -> Answer<M> {
    match catch_unwind(AssertUnwindSafe(|| model.run(shared, texts))) {
        Ok(result) => result.map_err(|e| Failure::from(&e)),
        Err(_) => Err(Failure::Internal("the model failed".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_llm::Error;

    /// The length of each text; texts "bad" are invalid, and "panic" panics. It records the sizes of its passes.
    struct Lengths(Arc<Mutex<Vec<usize>>>);

    impl TextModel for Lengths {
        type Shared = u8;
        type Output = usize;

        fn run(&self, shared: &u8, texts: &[&str]) -> Result<Vec<usize>> {
            self.0.lock().unwrap().push(texts.len());
            assert!(!texts.contains(&"panic"), "injected");
            if texts.contains(&"bad") {
                return Err(Error::bad_input("a bad text"));
            }
            Ok(texts.iter().map(|text| text.len() + usize::from(*shared)).collect())
        }

        fn tokens(output: &usize) -> usize {
            *output
        }

        fn count(_: &ModelMetrics, _: u64) {}
    }

    fn job(shared: u8, texts: &[&str]) -> (Job<Lengths>, oneshot::Receiver<Answer<Lengths>>) {
        let (answer, answered) = oneshot::channel();
        let texts = texts.iter().map(|&text| text.to_owned()).collect();
        let place = Place(Arc::new(AtomicUsize::new(1)), Arc::default());
        let job = Job { shared, texts, done: Vec::new(), answer, begun: Instant::now(), _place: place };
        (job, answered)
    }

    #[test]
    fn requests_share_passes_and_each_has_its_results() {
        let sizes = Arc::default();
        let (model, metrics) = (Lengths(Arc::clone(&sizes)), ModelMetrics::default());
        let many = vec!["abc"; 2 * PASS_TEXTS + 1];
        let (jobs, mut answers): (VecDeque<_>, Vec<_>) =
            [job(0, &many), job(0, &["a"]), job(1, &["a", "ab"]), job(0, &["abcd"])].into_iter().unzip();
        let mut waiting = jobs;
        while !waiting.is_empty() {
            pass(&model, &mut waiting, &metrics);
        }
        let mut next = || answers.remove(0).try_recv().unwrap();
        assert_eq!(next(), Ok(vec![3; many.len()]));
        assert_eq!((next(), next(), next()), (Ok(vec![1]), Ok(vec![2, 3]), Ok(vec![4])));
        // The long request first, then the others, then its rest.
        assert_eq!(*sizes.lock().unwrap(), [32, 32, 2, 3]);
        assert_eq!(metrics.prompt_tokens.get(), 3 * many.len() as u64 + 1 + 5 + 4);
    }

    #[test]
    fn an_invalid_text_fails_its_own_request() {
        let model = Lengths(Arc::default());
        let requests = [job(0, &["a"]), job(0, &["b", "bad"]), job(0, &["panic"]), job(0, &["ab"])];
        let (mut waiting, mut answers): (VecDeque<_>, Vec<_>) = requests.into_iter().unzip();
        while !waiting.is_empty() {
            pass(&model, &mut waiting, &ModelMetrics::default());
        }
        let mut next = || answers.remove(0).try_recv().unwrap();
        assert_eq!(next(), Ok(vec![1]));
        assert!(matches!(next(), Err(Failure::BadRequest(what)) if what.contains("a bad text")));
        assert!(matches!(next(), Err(Failure::Internal(_))));
        assert_eq!(next(), Ok(vec![2]));
    }

    #[test]
    fn a_full_queue_refuses_requests() {
        let queue = TextQueue::start(Lengths(Arc::default()), 1, Arc::default()).unwrap();
        let place = queue.taken.fetch_add(1, Ordering::SeqCst);
        assert_eq!((place, queue.submit(0, vec!["a".into()]).err()), (0, Some(Failure::Busy)));
        queue.taken.fetch_sub(1, Ordering::SeqCst);
        assert_eq!(queue.submit(0, vec!["a".into()]).unwrap().blocking_recv().unwrap(), Ok(vec![1]));
    }
}
