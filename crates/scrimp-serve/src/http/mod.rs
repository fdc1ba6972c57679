//! HTTP: routes, API keys, limits, and the formats of requests and answers.

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
mod info;
mod messages;
mod params;
mod score;
mod state;
mod stream;
mod tools;

pub use auth::digest;
pub(crate) use cors::cors;
pub(crate) use drain::Requests;
pub(crate) use error::ApiError;
pub(crate) use state::{Language, State, now};

use score::Form;

use axum::{
    Json, Router,
    body::{Body, Bytes, to_bytes},
    extract::{Path, Request, State as Shared},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tower_http::{catch_panic::CatchPanicLayer, cors::CorsLayer};

/// The chat page at `/`.
const PAGE: &str = include_str!("../page/index.html");

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
        .route("/v1/chat/completions", post(post_json))
        .route("/v1/completions", post(post_json))
        .route("/v1/embeddings", post(post_json))
        .route("/v1/score", post(post_json))
        .route(
            "/tokenizer_info",
            get(|Shared(s): Shared<Arc<State>>| async move { info::tokenizer(&s).map(Json) }),
        )
        .route("/tokenize", post(post_json))
        .route("/detokenize", post(post_json))
        .layer(middleware::from_fn_with_state(Arc::clone(state), auth::check));
    let mut router = Router::new()
        .route("/", get(page))
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

/// The chat page. Its content security policy allows requests to this server only.
async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE)).into_response()
}

/// Middleware that logs and counts responses, and refuses requests during the shutdown.
async fn watch(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let running = state.requests.begin();
    let mut response = match drain::refusal(&state, &path) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    if state.draining.load(Ordering::SeqCst) {
        drain::close(&mut response);
    }
    let status = response.status().as_u16();
    state.metrics.response(status);
    tracing::info!(%method, path, status, ms = start.elapsed().as_millis() as u64, "request");
    drain::counted(response, running)
}

/// All routes with a request body.
async fn post_json(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, ApiError> {
    let path = request.uri().path().to_owned();
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let form = Form::of(kind).filter(|&form| form == Form::Json || path == "/v1/score");
    let Some(form) = form else {
        let what = "the body must be JSON: send the header Content-Type: application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    };
    let encoding = request.headers().get(header::CONTENT_ENCODING).map(|v| v.as_bytes().to_ascii_lowercase());
    if encoding.is_some_and(|encoding| !encoding.is_empty() && encoding != b"identity") {
        let what = "the body is compressed; send it without Content-Encoding";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    let key = request.headers().get(header::AUTHORIZATION).map(|v| v.as_bytes().to_vec());
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let client = hash_of(Some(&(key, peer)));
    let body = read(&state, request.into_body()).await?;
    match path.as_str() {
        "/v1/chat/completions" => chat::chat(state, &body, client).await,
        "/v1/completions" => completions::completions(state, &body, client).await,
        "/v1/embeddings" => embeddings::embeddings(state, &body, client).await,
        "/v1/score" => score::score(state, &body, form).await,
        "/tokenize" => info::tokenize(&state, &body),
        _ => info::detokenize(&state, &body),
    }
}

/// Reads a body within the limits of size and time.
async fn read(state: &State, body: Body) -> Result<Bytes, ApiError> {
    let most = state.options.max_body;
    match tokio::time::timeout(state.options.read_timeout, to_bytes(body, most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(e)) => {
            let too_large = std::error::Error::source(&e)
                .is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>);
            if too_large {
                let what = format!("the body is larger than {most} bytes, the limit of this server");
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, what));
            }
            Err(ApiError::bad_request("the body could not be read"))
        }
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}

/// A hash that is stable within this process.
fn hash_of<T: Hash + ?Sized>(value: Option<&T>) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
