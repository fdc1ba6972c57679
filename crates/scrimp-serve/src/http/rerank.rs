//! `/v1/rerank` (Cohere's and Jina's form) and `/v1/score` with pairs of texts (vLLM's form): the relevance of documents
//! to queries.

use super::{
    error::ApiError,
    fields::Fields,
    input::Input,
    models::Served as _,
    state::{State, now},
};
use crate::texts::Query;
use axum::{
    Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Maximum number of documents per request.
const MAX_DOCUMENTS: usize = 1024;
/// Fields without an effect on the answer.
const HARMLESS: [&str; 4] = ["user", "priority", "request_id", "safety_identifier"];

/// A request for a ranking.
#[derive(Debug)]
pub(super) struct Ranking {
    query: Query,
    documents: Vec<String>,
    /// Number of results.
    top: usize,
    returns_documents: bool,
}

/// Handles a request for a ranking.
///
/// # Errors
/// Invalid fields, no reranker, or a failure of the model.
pub(super) async fn rerank(Shared(state): Shared<Arc<State>>, input: Input) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let reranker = state.reranker(fields.string("model")?.as_deref())?;
    let Ranking { query, documents, top, returns_documents } = take(&mut fields)?;
    fields.finish()?;
    let found = reranker.run(&state, query, documents.clone()).await?;
    let tokens: usize = found.iter().map(|found| found.tokens).sum();
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by(|&a, &b| found[b].score.total_cmp(&found[a].score));
    let result = |index: usize| {
        let mut result = json!({ "index": index, "relevance_score": found[index].score });
        if returns_documents {
            result["document"] = json!({ "text": documents[index] });
        }
        result
    };
    let results: Vec<Value> = order.into_iter().take(top).map(result).collect();
    Ok(Json(json!({
        "id": format!("rerank-{}", state.next_id()), "model": reranker.name(), "results": results,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    }))
    .into_response())
}

/// Takes all fields but `model`.
///
/// # Errors
/// A value is invalid.
pub(super) fn take(fields: &mut Fields) -> Result<Ranking, ApiError> {
    let query = fields.take("query").and_then(text).filter(|text| !text.is_empty());
    let query = query.ok_or_else(|| ApiError::field("query", "query must be a text"))?;
    let wrong = || {
        let what = format!("documents must be a list of 1 to {MAX_DOCUMENTS} texts, or objects with a text");
        ApiError::field("documents", what)
    };
    let documents = match fields.take("documents") {
        Some(Value::Array(list)) if (1..=MAX_DOCUMENTS).contains(&list.len()) => {
            list.into_iter().map(text).collect::<Option<Vec<_>>>().ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    let top = fields.integer("top_n", 1..=i64::MAX)?.map_or(documents.len(), |n| n as usize);
    let returns_documents = fields.boolean("return_documents")?.unwrap_or(false);
    let query = Query { text: query, instruction: fields.string("instruction")? };
    fields.ignore(&HARMLESS);
    Ok(Ranking { query, documents, top, returns_documents })
}

/// A text, or the `text` of an object.
fn text(mut value: Value) -> Option<String> {
    let value = if value.is_object() { value.get_mut("text")?.take() } else { value };
    if let Value::String(text) = value { Some(text) } else { None }
}

/// Handles a request for scores of pairs.
///
/// # Errors
/// Invalid fields, no reranker, or a failure of the model.
pub(super) async fn score(state: &State, mut fields: Fields) -> Result<Response, ApiError> {
    let reranker = state.reranker(fields.string("model")?.as_deref())?;
    let groups = take_pairs(&mut fields)?;
    fields.finish()?;
    let found = reranker.run_all(state, groups).await?.concat();
    let tokens: usize = found.iter().map(|found| found.tokens).sum();
    let one = |(index, score): (usize, f32)| json!({ "index": index, "object": "score", "score": score });
    let data: Vec<Value> = found.iter().map(|found| found.score).enumerate().map(one).collect();
    Ok(Json(json!({
        "id": format!("score-{}", state.next_id()), "object": "list", "created": now(), "model": reranker.name(),
        "data": data, "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    }))
    .into_response())
}

/// Takes all fields but `model`: each query with its documents, in the order of the scores. One text of `text_1` belongs to
/// all of `text_2`; several belong to one each.
///
/// # Errors
/// A value is invalid, or the lists have different lengths.
pub(super) fn take_pairs(fields: &mut Fields) -> Result<Vec<(Query, Vec<String>)>, ApiError> {
    let mut texts = |name: &str| {
        let found = fields.strings(name, MAX_DOCUMENTS)?;
        let what = || ApiError::field(name, format!("{name} must be a text or a list of texts"));
        if found.is_empty() { Err(what()) } else { Ok(found) }
    };
    let (mut first, second) = (texts("text_1")?, texts("text_2")?);
    let instruction = fields.string("instruction")?;
    fields.ignore(&HARMLESS);
    let query = |text| Query { text, instruction: instruction.clone() };
    if first.len() == 1 {
        return Ok(vec![(query(first.remove(0)), second)]);
    }
    if first.len() != second.len() {
        let what = "text_1 must be one text, or as many texts as text_2";
        return Err(ApiError::field("text_1", what));
    }
    Ok(first.into_iter().zip(second).map(|(first, second)| (query(first), vec![second])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(text: &str) -> Result<Ranking, ApiError> {
        let mut fields = Fields::parse(text.as_bytes())?;
        let ranking = take(&mut fields)?;
        fields.finish()?;
        Ok(ranking)
    }

    #[test]
    fn documents_are_texts_or_objects_with_one() {
        let r =
            ranking(r#"{"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "user": "u"}"#).unwrap();
        assert_eq!((r.documents, r.top, r.returns_documents), (vec!["a".to_owned(), "b".into()], 1, false));
        for (text, field) in [
            (r#"{"documents": ["a"]}"#, "query"),
            (r#"{"query": "", "documents": ["a"]}"#, "query"),
            (r#"{"query": "q"}"#, "documents"),
            (r#"{"query": "q", "documents": []}"#, "documents"),
            (r#"{"query": "q", "documents": [{"title": "a"}]}"#, "documents"),
            (r#"{"query": "q", "documents": ["a"], "top_n": 0}"#, "top_n"),
            (r#"{"query": "q", "documents": ["a"], "topn": 1}"#, "topn"),
        ] {
            assert_eq!(ranking(text).unwrap_err().param.as_deref(), Some(field), "{text}");
        }
        let many = json!({ "query": "q", "documents": vec!["a"; MAX_DOCUMENTS + 1] });
        assert!(ranking(&many.to_string()).is_err());
    }

    #[test]
    fn one_query_has_all_documents_and_several_one_each() {
        let pairs = |text: &str| {
            let groups = take_pairs(&mut Fields::parse(text.as_bytes()).unwrap());
            groups.map(|groups| {
                groups.into_iter().map(|(query, texts)| (query.text, texts)).collect::<Vec<_>>()
            })
        };
        let group = |query: &str, texts: &[&str]| {
            (query.to_owned(), texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(pairs(r#"{"text_1": "q", "text_2": ["a", "b"]}"#).unwrap(), [group("q", &["a", "b"])]);
        assert_eq!(pairs(r#"{"text_1": ["q"], "text_2": "a"}"#).unwrap(), [group("q", &["a"])]);
        let two = [group("p", &["a"]), group("q", &["b"])];
        assert_eq!(pairs(r#"{"text_1": ["p", "q"], "text_2": ["a", "b"]}"#).unwrap(), two);
        for bad in [
            r#"{"text_1": "q"}"#,
            r#"{"text_2": "q"}"#,
            r#"{"text_1": ["p", "q"], "text_2": ["a"]}"#,
            r#"{"text_1": ["p", ""], "text_2": ["a", "b"]}"#,
        ] {
            assert!(pairs(bad).is_err(), "{bad}");
        }
    }
}
