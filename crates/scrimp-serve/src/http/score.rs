//! `/v1/score`: rows of a click log in, probabilities out.

use super::{error::ApiError, fields::Fields, state::State};
use crate::engine::Failure;
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use scrimp_rec::data::{Batch, JsonRows};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers a request: `{"rows": [{column: value}, ...]}`, or, if `lines`, a row per line.
///
/// # Errors
/// When it cannot be answered.
pub(crate) async fn score(state: Arc<State>, body: &[u8], lines: bool) -> Result<Response, ApiError> {
    let Some(recommender) = &state.recommender else {
        let what = "this server serves no recommender; start it with --rec MODEL";
        return Err(ApiError::new(StatusCode::NOT_FOUND, what).code("model_not_found"));
    };
    let mut parser = JsonRows::new(recommender.schema());
    let mut batch = Batch::default();
    let most = state.options.max_rows;
    let mut push = |i: usize, row: &[u8]| {
        if i >= most {
            let what = format!("a request may have {most} rows");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, what));
        }
        parser.push(row, &mut batch).map_err(|e| ApiError::field("rows", format!("row {i}: {e}")))
    };
    if lines {
        let rows = body.split(|&b| b == b'\n').filter(|row| !row.trim_ascii().is_empty());
        rows.enumerate().try_for_each(|(i, row)| push(i, row))?;
    } else {
        let mut fields = Fields::parse(body)?;
        fields.ignore(&["model"]);
        let Some(Value::Array(rows)) = fields.take("rows") else {
            return Err(ApiError::field("rows", "rows must be a list of objects, a value for each column"));
        };
        fields.finish()?;
        rows.iter().enumerate().try_for_each(|(i, row)| push(i, row.to_string().as_bytes()))?;
    }
    let n = batch.rows();
    if n == 0 {
        return Err(ApiError::field("rows", "there are no rows"));
    }
    let scores = recommender
        .score(batch)
        .await
        .ok_or_else(|| ApiError::from(Failure::Internal("the recommender has stopped".into())))?;
    if lines {
        let mut text = String::with_capacity(9 * n);
        for p in scores {
            text += &format!("{p:.6}\n");
        }
        return Ok(text.into_response());
    }
    Ok(Json(json!({ "object": "list", "scores": scores, "rows": n })).into_response())
}
