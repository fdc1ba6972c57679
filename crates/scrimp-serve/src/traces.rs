//! OpenTelemetry traces: a span per request, and below it the phases of each answer.
//!
//! ```text
//!  POST /v1/chat/completions     from the request's head to the last byte of the answer; its parent is the client's
//!   ├ queue                      arrival at the engine to the first step
//!   ├ prefill                    to the first token
//!   └ decode                     to the last token
//! ```
//! The variables of the OpenTelemetry specification configure the export: `OTEL_EXPORTER_OTLP_ENDPOINT` enables it,
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER` and `OTEL_BSP_*` have their meaning there. The
//! protocol is OTLP over HTTP in JSON; a thread of the SDK sends the spans.

use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, Span},
};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// The variables that enable the export.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// Maximum time to send spans.
const TIMEOUT: Duration = Duration::from_secs(10);

tokio::task_local! {
    /// The trace of the request that a task answers.
    static CURRENT: Trace;
}

/// The exporter of a server.
#[derive(Debug)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: Arc<SdkTracer>,
}

/// The trace of a request: the place of its phases.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    tracer: Arc<SdkTracer>,
    context: Context,
}

/// The span of a request. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct RequestSpan(Span);

impl Drop for RequestSpan {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl RequestSpan {
    /// Sets the status of the response.
    pub(crate) fn respond(&mut self, status: u16) {
        self.0.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            self.0.set_status(Status::error(""));
        }
    }
}

/// Sends spans with the HTTP client of the downloads.
#[derive(Debug)]
struct Client(ureq::Agent);

#[async_trait::async_trait]
impl HttpClient for Client {
    /// Runs on the thread of the SDK, which may block.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.0.run(request.map(|body| body.to_vec()));
        let (head, mut body) = match sent {
            Ok(response) => response.into_parts(),
            Err(e) => {
                tracing::warn!("spans were not exported: {e}");
                return Err(e.into());
            }
        };
        if !head.status.is_success() {
            tracing::warn!("spans were not exported: status {}", head.status);
        }
        Ok(Response::from_parts(head, body.read_to_vec()?.into()))
    }
}

impl Traces {
    /// The exporter that the environment configures; `None`: traces are off.
    ///
    /// # Errors
    /// A variable is invalid.
    pub(crate) fn from_env() -> io::Result<Option<Self>> {
        if ENDPOINTS.iter().all(|name| std::env::var_os(name).is_none_or(|value| value.is_empty())) {
            return Ok(None);
        }
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client(agent.build().into()))
            .with_protocol(Protocol::HttpJson)
            .build()
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("traces (OTEL_...): {e}")))?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("scrimp");
        }
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.with_attribute(version).build())
            .build();
        let tracer = Arc::new(provider.tracer("scrimp"));
        Ok(Some(Self { provider, tracer }))
    }

    /// Begins the span of a request. `route`: the path with names of parameters, if it is known.
    pub(crate) fn begin(
        &self,
        request: &axum::extract::Request,
        route: Option<&str>,
        id: &str,
    ) -> (RequestSpan, Trace) {
        let parent = TraceContextPropagator::new().extract(&HeaderExtractor(request.headers()));
        let method = request.method().as_str().to_owned();
        let name = route.map_or_else(|| method.clone(), |route| format!("{method} {route}"));
        let attributes = [
            KeyValue::new("http.request.method", method),
            KeyValue::new("url.path", request.uri().path().to_owned()),
            KeyValue::new("http.route", route.unwrap_or_default().to_owned()),
            KeyValue::new("http.request.header.x-request-id", id.to_owned()),
        ];
        let builder = self.tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes);
        let span = builder.start_with_context(&*self.tracer, &parent);
        let context = parent.with_remote_span_context(span.span_context().clone());
        (RequestSpan(span), Trace { tracer: Arc::clone(&self.tracer), context })
    }

    /// Sends the last spans.
    pub(crate) fn stop(&self) {
        if let Err(e) = self.provider.shutdown() {
            tracing::warn!("the last spans were not exported: {e}");
        }
    }
}

impl Trace {
    /// Runs `task` as a part of this trace.
    pub(crate) async fn scope<T>(self, task: impl Future<Output = T>) -> T {
        CURRENT.scope(self, task).await
    }

    /// The trace of this task.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Writes consecutive phases: each begins at the end of the one before it, the first at `begin`. A phase without an end
    /// did not happen.
    pub(crate) fn phases(&self, begin: Instant, phases: &[(&'static str, Option<Instant>)], tokens: usize) {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let time = |instant: Instant| clock - now.saturating_duration_since(instant);
        let mut start = begin;
        for &(name, end) in phases {
            let Some(end) = end else { return };
            let builder = self.tracer.span_builder(name).with_start_time(time(start));
            let mut span = builder.start_with_context(&*self.tracer, &self.context);
            if name == "decode" {
                span.set_attribute(KeyValue::new("gen_ai.usage.output_tokens", tokens as i64));
            }
            span.end_with_timestamp(time(end));
            start = end;
        }
    }
}
