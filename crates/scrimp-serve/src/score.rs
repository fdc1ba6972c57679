//! The recommender: a thread that owns the model and scores all waiting requests in one batch.

use crate::metrics::ModelMetrics;
use scrimp_kernels::{Pool, SimdLevel};
use scrimp_rec::{data::Batch, encoders::Exec, model::Model, schema::Schema};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};
use tokio::sync::oneshot;

/// Maximum number of rows per batch: it bounds the time that requests wait for each other.
const ROWS: usize = 4096;

struct Request {
    rows: Batch,
    answer: oneshot::Sender<Vec<f32>>,
}

/// Handle of the thread.
#[derive(Debug)]
pub(crate) struct Recommender {
    /// Its names.
    pub(crate) names: Vec<String>,
    /// Size of the stored embeddings in bytes.
    pub(crate) embedding_bytes: u64,
    schema: Schema,
    requests: Mutex<Sender<Request>>,
    _thread: JoinHandle<()>,
}

impl Recommender {
    /// Starts the thread with a pool of `threads`.
    ///
    /// # Errors
    /// Threads cannot be created.
    pub(crate) fn start(
        names: Vec<String>,
        (model, threads): (Model, usize),
        level: SimdLevel,
        metrics: Arc<ModelMetrics>,
    ) -> std::io::Result<Self> {
        let (sender, requests) = channel();
        let embedding_bytes = model.embedding_bytes();
        let (schema, pool) = (model.schema().clone(), Pool::new(threads)?);
        let thread = std::thread::Builder::new()
            .name("scrimp-rec".into())
            .spawn(move || run(model, Exec { pool: &pool, level }, &requests, &metrics))?;
        Ok(Self { names, embedding_bytes, schema, requests: Mutex::new(sender), _thread: thread })
    }

    /// The schema of rows.
    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Probabilities of `rows`; `None`: the thread has stopped.
    pub(crate) async fn score(&self, rows: Batch) -> Option<Vec<f32>> {
        let (answer, answered) = oneshot::channel();
        let request = Request { rows, answer };
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).send(request).ok()?;
        answered.await.ok()
    }
}

fn run(mut model: Model, exec: Exec<'_>, requests: &Receiver<Request>, metrics: &ModelMetrics) {
    let (mut rows, mut scores) = (Batch::default(), Vec::new());
    while let Ok(first) = requests.recv() {
        let mut waiting = vec![first];
        let mut n = waiting[0].rows.rows();
        while n < ROWS
            && let Ok(next) = requests.try_recv()
        {
            n += next.rows.rows();
            waiting.push(next);
        }
        let mut all = Vec::with_capacity(n);
        rows.clear();
        for request in &waiting {
            rows.extend(&request.rows, 0..request.rows.rows());
        }
        let mut start = 0;
        let mut part = Batch::default();
        while start < n {
            let end = (start + ROWS).min(n);
            part.clear();
            part.extend(&rows, start..end);
            model.predict(exec, &part, &mut scores);
            all.extend_from_slice(&scores);
            start = end;
        }
        metrics.scored_rows.add(n as u64);
        let mut rest = all.as_slice();
        for request in waiting {
            let (own, behind) = rest.split_at(request.rows.rows());
            rest = behind;
            // The client may have disconnected.
            let _ = request.answer.send(own.to_vec());
        }
    }
}
