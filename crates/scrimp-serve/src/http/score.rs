//! `/v1/score`: rows of a click log in, probabilities out. JSON with `text_1` and `text_2` is for the reranker.

use super::{
    error::ApiError,
    fields::Fields,
    input::{self, Input},
    rerank,
    state::State,
};
use crate::engine::Failure;
use axum::{
    Json,
    extract::{Request, State as Shared},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use scrimp_rec::data::{ArrowError, ArrowRows, Batch, JsonRows, arrow_scores};
use scrimp_rec::schema::Schema;
use serde_json::{Value, json};
use std::sync::Arc;

/// Content type of Arrow IPC streams.
const ARROW: &str = "application/vnd.apache.arrow.stream";

/// Format of rows and probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"rows": [{column: value}, ...]}`
    Json,
    /// One JSON object per line; one probability per line.
    Lines,
    /// An Arrow IPC stream; the answer has the column `score`.
    Arrow,
}

impl Form {
    /// The format of a content type.
    pub(super) fn of(content_type: &str) -> Option<Self> {
        let forms =
            [("application/json", Self::Json), ("application/x-ndjson", Self::Lines), (ARROW, Self::Arrow)];
        forms.into_iter().find_map(|(name, form)| content_type.eq_ignore_ascii_case(name).then_some(form))
    }
}

/// Handles a request.
///
/// # Errors
/// Invalid rows, or no recommender.
pub(super) async fn score(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, ApiError> {
    let form = Form::of(input::content_type(request.headers())).ok_or_else(|| {
        input::unsupported("JSON, lines of JSON or an Arrow stream: send the header Content-Type")
    })?;
    let input = Input::read(&state, request).await?;
    let body: &[u8] = &input.body;
    if form == Form::Json {
        let fields = Fields::parse(body)?;
        let has_pairs = fields.get("text_1").is_some() || fields.get("text_2").is_some();
        if has_pairs || state.recommender.is_none() && state.reranker.is_some() {
            return rerank::score(&state, fields).await;
        }
    }
    let Some(recommender) = &state.recommender else {
        let what = "this server has no recommender (the setting `rec`) and no reranker";
        return Err(ApiError::new(StatusCode::NOT_FOUND, what).code("model_not_found"));
    };
    let most = state.options.max_rows;
    let batch = match form {
        Form::Arrow => {
            let rows = ArrowRows::new(recommender.schema()).read(body, most);
            rows.map_err(|e| match e {
                ArrowError::TooMany => too_many(most),
                ArrowError::Bad(what) => ApiError::field("rows", what),
            })?
        }
        Form::Json => {
            let mut fields = Fields::parse(body)?;
            fields.ignore(&["model"]);
            let Some(Value::Array(rows)) = fields.take("rows") else {
                return Err(ApiError::field(
                    "rows",
                    "rows must be a list of objects with a value for each column",
                ));
            };
            fields.finish()?;
            parsed(recommender.schema(), most, rows.iter().map(|row| row.to_string().into_bytes()))?
        }
        Form::Lines => {
            let rows = body.split(|&b| b == b'\n').filter(|row| !row.trim_ascii().is_empty());
            parsed(recommender.schema(), most, rows)?
        }
    };
    let n = batch.rows();
    if n == 0 {
        return Err(ApiError::field("rows", "there are no rows"));
    }
    let scores = recommender
        .score(batch)
        .await
        .ok_or_else(|| ApiError::from(Failure::Internal("the recommender has stopped".into())))?;
    Ok(match form {
        Form::Json => Json(json!({ "object": "list", "scores": scores, "rows": n })).into_response(),
        Form::Lines => {
            let mut text = String::with_capacity(9 * n);
            for p in scores {
                text += &format!("{p:.6}\n");
            }
            text.into_response()
        }
        Form::Arrow => ([(header::CONTENT_TYPE, ARROW)], arrow_scores(scores)).into_response(),
    })
}

fn too_many(limit: usize) -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a request can have at most {limit} rows"))
}

/// Rows that are JSON objects each.
fn parsed<R: AsRef<[u8]>>(
    schema: &Schema,
    most: usize,
    rows: impl Iterator<Item = R>,
) -> Result<Batch, ApiError> {
    let (mut parser, mut batch) = (JsonRows::new(schema), Batch::default());
    for (i, row) in rows.enumerate() {
        if i >= most {
            return Err(too_many(most));
        }
        let bad = |e| ApiError::field("rows", format!("row {i}: {e}"));
        parser.push(row.as_ref(), &mut batch).map_err(bad)?;
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_independent_of_case() {
        for kind in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            " application/json ;x=y",
        ] {
            assert_eq!(Form::of(input::media_type(kind)), Some(Form::Json), "{kind}");
        }
        assert_eq!(Form::of("APPLICATION/X-NDJSON"), Some(Form::Lines));
        assert_eq!(Form::of("application/vnd.apache.arrow.stream"), Some(Form::Arrow));
        for kind in ["", "text/plain", "application/jsonx", "application/json-patch+json"] {
            assert_eq!(Form::of(kind), None, "{kind}");
        }
    }
}
