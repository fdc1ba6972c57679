//! HTTP: routes, API keys, limits, and the formats of requests and answers.

mod admin;
mod apis;
mod auth;
mod calls;
mod chat;
mod completions;
mod cors;
mod drain;
mod embeddings;
mod error;
mod fields;
#[cfg(test)]
mod fuzz;
mod history;
mod info;
mod input;
mod languages;
mod messages;
mod models;
mod openapi;
mod page;
mod params;
mod part_stream;
mod parts;
mod reasoning;
mod request_id;
mod rerank;
mod score;
mod state;
mod stream;
mod tools;
mod turn;

pub use auth::digest;
pub(crate) use cors::cors;
pub(crate) use drain::Requests;
pub(crate) use error::ApiError;
pub(crate) use history::History;
pub(crate) use languages::Languages;
pub(crate) use models::{Kind, ModelFacts, TextService};
pub(crate) use reasoning::ReasoningOptions;
pub(crate) use state::{Language, State, now};

use axum::{
    Json, Router,
    extract::{MatchedPath, Path, Request, State as Shared},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tower_http::{catch_panic::CatchPanicLayer, cors::CorsLayer};

/// The client's address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub IpAddr);

/// All routes. `cors`: the layer for pages of other origins.
pub(crate) fn router(state: &Arc<State>, cors: Option<CorsLayer>) -> Router {
    let keyed = Router::new()
        .route("/v1/models", get(|Shared(s): Shared<Arc<State>>| async move { Json(info::models(&s)) }))
        .route(
            "/v1/models/{*id}",
            get(|Shared(s): Shared<Arc<State>>, Path(id): Path<String>| async move {
                info::model(&s, &id).map(Json)
            }),
        )
        .route("/metrics", get(|Shared(s): Shared<Arc<State>>| async move { info::metrics(&s) }))
        .route("/admin", get(|Shared(s): Shared<Arc<State>>| async move { Json(admin::admin(&s).await) }))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/rerank", post(rerank::rerank))
        .route("/v2/rerank", post(rerank::rerank))
        .route("/rerank", post(rerank::rerank))
        .route("/v1/score", post(score::score))
        .route("/score", post(score::score))
        .route(
            "/tokenizer_info",
            get(|Shared(s): Shared<Arc<State>>| async move { info::tokenizer(&s).await.map(Json) }),
        )
        .route("/tokenize", post(info::tokenize))
        .route("/detokenize", post(info::detokenize));
    let keyed = apis::APIS
        .iter()
        .fold(keyed, |router, api| (api.routes)(router))
        .layer(middleware::from_fn_with_state(Arc::clone(state), auth::check));
    let mut router = Router::new()
        .route("/", get(page::index))
        .route("/page/{version}/{*name}", get(page::file))
        .route("/openapi.json", get(openapi::openapi))
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(|Shared(s): Shared<Arc<State>>| async move { info::ready(&s) }))
        .merge(keyed)
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "unknown path") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not support this method")
        })
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed on this request")
                .into_response()
        }))
        .layer(middleware::from_fn_with_state(Arc::clone(state), watch));
    if let Some(cors) = cors {
        router = router.layer(cors);
    }
    router.with_state(Arc::clone(state))
}

/// Middleware that logs and counts responses, and refuses requests during the shutdown.
async fn watch(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let id = request_id::of(request.headers());
    let running = state.requests.begin();
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let (mut span, trace) =
        state.traces.as_ref().map(|t| t.begin(&request, route, id.to_str().unwrap_or_default())).unzip();
    let mut response = match drain::refusal(&state, &path) {
        Some(refusal) => refusal,
        None => match trace {
            Some(trace) => trace.scope(next.run(request)).await,
            None => next.run(request).await,
        },
    };
    if let Some(e) = response.extensions_mut().remove::<ApiError>() {
        response = apis::in_form(response, &path, &e);
    }
    if state.draining.load(Ordering::SeqCst) {
        drain::close(&mut response);
    }
    let status = response.status().as_u16();
    state.metrics.response(status);
    if let Some(span) = &mut span {
        span.respond(status);
    }
    let request_id = id.to_str().unwrap_or_default();
    tracing::info!(%method, path, status, request_id, ms = start.elapsed().as_millis() as u64, "request");
    response.headers_mut().insert(request_id::HEADER, id);
    drain::holding(response, (running, span))
}

/// A hash that is stable within this process.
fn hash_of<T: Hash + ?Sized>(value: Option<&T>) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
