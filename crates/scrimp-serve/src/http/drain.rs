//! Shutdown: counts requests until their answers are complete, and refuses new ones.

use super::{error::ApiError, state::State};
use crate::engine::Failure;
use axum::{
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use hyper::body::{Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

/// Number of requests whose answers are not complete.
#[derive(Debug, Default)]
pub(crate) struct Requests(Arc<AtomicUsize>);

impl Requests {
    /// Counts a request until the result is dropped.
    pub(super) fn begin(&self) -> Running {
        self.0.fetch_add(1, Ordering::SeqCst);
        Running(Arc::clone(&self.0))
    }

    /// Number of running requests.
    pub(crate) fn running(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A running request.
#[derive(Debug)]
pub(super) struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// `response`, whose body holds a value until its last byte was sent.
pub(super) fn holding<T: Send + Unpin + 'static>(response: Response, held: T) -> Response {
    response.map(|body| Body::new(Holding { body, _held: held }))
}

struct Holding<T> {
    body: Body,
    _held: T,
}

impl<T: Unpin> HttpBody for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The answer to a request that arrives during the shutdown; `None`: the path answers until the end.
pub(super) fn refusal(state: &State, path: &str) -> Option<Response> {
    if !state.draining.load(Ordering::SeqCst) || matches!(path, "/health" | "/ready" | "/metrics") {
        return None;
    }
    Some(ApiError::from(Failure::ShuttingDown).into_response())
}

/// Tells the client not to send further requests on this connection.
pub(super) fn close(response: &mut Response) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}
