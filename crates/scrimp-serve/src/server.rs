//! The server: accepts and limits connections, and shuts down gracefully.

use crate::{
    constraint::Constraints,
    engine::{self, Command, EngineOptions},
    http::{
        History, Kind, Language, Languages, ModelFacts, Peer, ReasoningOptions, Requests, State, TextService,
        cors, now, router,
    },
    metrics::{Metrics, ModelMetrics},
    models::{LanguageModel, Models, Named},
    options::ServeOptions,
    score::Recommender,
    texts::TextQueue,
    traces::Traces,
};
use axum::Router;
use hyper::{body::Incoming, server::conn::http1::Builder};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use scrimp_llm::{Embedder, Reranker};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::Semaphore};
use tower::ServiceExt as _;
use tower_http::cors::CorsLayer;

/// Interval at which the server checks its stop flag.
const POLL: Duration = Duration::from_millis(50);
/// Maximum time to write the ends of the last answers.
const FLUSH: Duration = Duration::from_secs(1);
/// Maximum size of a request's head in bytes.
const MAX_HEAD: usize = 64 << 10;

/// A listening server.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listener: TcpListener,
    state: Arc<State>,
    cors: Option<CorsLayer>,
}

impl Server {
    /// Binds the address and starts the threads of the models.
    ///
    /// # Errors
    /// The address is not available, threads cannot be created, or an entry of [`ServeOptions::cors`] is not an origin.
    pub fn bind(options: ServeOptions, models: Models) -> io::Result<Self> {
        let Models { languages, embedder, reranker, recommender } = models;
        let cors = cors(&options.cors).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("scrimp-http")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(options.address))?;
        let metrics = Arc::new(Metrics::default());
        let recommender = match recommender {
            Some(Named { names, model }) => {
                let level = scrimp_kernels::SimdLevel::from_env().map_err(io::Error::other)?;
                let metrics = metrics.model(&names, Kind::Recommender);
                Some(Recommender::start(names, model, level, metrics)?)
            }
            None => None,
        };
        let limit = options.limits.max_waiting;
        let embedder = embedder.map(|named| embedding_service(named, limit, &metrics)).transpose()?;
        let reranker = reranker.map(|named| ranking_service(named, limit, &metrics)).transpose()?;
        let bytes = |facts: Option<&ModelFacts>| facts.map_or(0, |facts| facts.weight_bytes);
        let others = bytes(embedder.as_ref().and_then(|m| m.facts.as_ref()))
            + bytes(reranker.as_ref().and_then(|m| m.facts.as_ref()));
        let state = Arc::new(State {
            languages: Languages::new(languages, &options, &metrics, others)?,
            embedder,
            reranker,
            recommender,
            options,
            metrics,
            traces: Traces::from_env()?,
            draining: AtomicBool::new(false),
            requests: Requests::default(),
            history: History::default(),
            created: now(),
            next_id: AtomicU64::new(1),
        });
        Ok(Self { runtime, listener, state, cors })
    }

    /// The bound address.
    ///
    /// # Errors
    /// An error of the operating system.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is set. Then it answers new requests with status 503, on new and on kept connections, until
    /// the running requests have finished or [`ServeOptions::drain`] has passed.
    ///
    /// # Errors
    /// An error of the operating system while accepting connections.
    pub fn run(self, stop: &AtomicBool) -> io::Result<()> {
        let Self { runtime, listener, state, cors } = self;
        let router = router(&state, cors);
        let result = runtime.block_on(Connections::new(&listener, &state, router).serve(stop));
        state.languages.stop();
        if let Some(traces) = &state.traces {
            traces.stop();
        }
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }
}

/// Starts the thread of an embedding model.
fn embedding_service(
    Named { names, model }: Named<Embedder>,
    limit: usize,
    metrics: &Metrics,
) -> io::Result<TextService<Embedder>> {
    let metrics = metrics.model(&names, Kind::Embedder);
    Ok(TextService {
        names,
        facts: ModelFacts::of_either(model.encoder(), model.decoder()),
        max_tokens: model.max_tokens(),
        width: model.width(),
        queue: TextQueue::start(model, limit, metrics)?,
    })
}

/// Starts the thread of a reranker.
fn ranking_service(
    Named { names, model }: Named<Reranker>,
    limit: usize,
    metrics: &Metrics,
) -> io::Result<TextService<Reranker>> {
    let metrics = metrics.model(&names, Kind::Reranker);
    let encoder = model.encoder().map(|encoder| encoder.config().hidden_size);
    let decoder = model.decoder().map(|decoder| decoder.config().hidden_size);
    Ok(TextService {
        names,
        facts: ModelFacts::of_either(model.encoder(), model.decoder()),
        max_tokens: model.max_tokens(),
        width: encoder.or(decoder).unwrap_or_default(),
        queue: TextQueue::start(model, limit, metrics)?,
    })
}

/// Starts the engine's thread.
pub(crate) fn start_engine(
    names: Vec<String>,
    language: LanguageModel,
    options: &ServeOptions,
    metrics: &Arc<ModelMetrics>,
) -> io::Result<(Language, Sender<Command>, JoinHandle<()>)> {
    let LanguageModel { model, tokenizer, template, draft } = language;
    let tokenizer = Arc::new(tokenizer);
    let (commands, received) = channel();
    let shared = Language {
        names,
        metrics: Arc::clone(metrics),
        lease: Arc::default(),
        constraints: Constraints::new(&tokenizer).ok(),
        template,
        context_length: model.context_length(),
        vocab_size: model.vocab_size(),
        embedding_size: model.config().hidden_size,
        commands: Mutex::new(commands.clone()),
        kv: options.kv.clone(),
        speculation: options.speculation,
        draft,
        reasoning: ReasoningOptions::of_server(options.reasoning),
        tokenizer: Arc::clone(&tokenizer),
    };
    let options = EngineOptions {
        limits: options.limits,
        kv_bytes: options.kv_bytes,
        compress_under_pressure: options.compress_under_pressure,
        prefix_caching: options.prefix_caching,
        prefix_store: options.prefix_store.clone(),
    };
    let metrics = Arc::clone(metrics);
    let thread = std::thread::Builder::new()
        .name("scrimp-engine".into())
        .spawn(move || engine::run(&model, &tokenizer, &options, &received, metrics))?;
    Ok((shared, commands, thread))
}

/// The connections of a server.
struct Connections<'a> {
    listener: &'a TcpListener,
    state: &'a State,
    router: Router,
    builder: Builder,
    places: Arc<Semaphore>,
    graceful: GracefulShutdown,
}

impl<'a> Connections<'a> {
    fn new(listener: &'a TcpListener, state: &'a State, router: Router) -> Self {
        let mut builder = Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(state.options.read_timeout)
            .max_buf_size(MAX_HEAD);
        let places = Arc::new(Semaphore::new(state.options.max_connections));
        Self { listener, state, router, builder, places, graceful: GracefulShutdown::new() }
    }

    /// Serves until `stop` is set, and then until the running requests have finished.
    async fn serve(self, stop: &AtomicBool) -> io::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.accept().await;
        }
        self.state.draining.store(true, Ordering::SeqCst);
        tracing::info!("shutting down");
        let end = Instant::now() + self.state.options.drain;
        while self.state.requests.running() > 0 && Instant::now() < end {
            self.accept().await;
        }
        // Connections write the end of their last answer; idle ones are closed.
        let _ = tokio::time::timeout(FLUSH, self.graceful.shutdown()).await;
        Ok(())
    }

    /// Accepts a connection that arrives within [`POLL`].
    async fn accept(&self) {
        let next = async {
            // The semaphore is never closed, so this does not fail.
            let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
            self.listener.accept().await.map(|(stream, peer)| (place, stream, peer))
        };
        let (place, stream, peer) = match tokio::time::timeout(POLL, next).await {
            Ok(Ok(next)) => next,
            Ok(Err(e)) => {
                // No free file descriptor, or the client has disconnected.
                tracing::warn!("a connection was not accepted: {e}");
                return tokio::time::sleep(POLL).await;
            }
            Err(_) => return,
        };
        // A stream consists of many small writes.
        let _ = stream.set_nodelay(true);
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer.ip()));
            router.clone().oneshot(request.map(axum::body::Body::new))
        });
        let connection = self.graceful.watch(self.builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A disconnected client is not an error of the server.
            if let Err(e) = connection.await {
                tracing::debug!("a connection ended: {e}");
            }
            drop(place);
        });
    }
}
