//! Paths of llama-server that tools query: `/props`, `/slots` and `/apply-template`. `/tokenize` and `/detokenize` accept
//! the fields of vLLM and of llama-server.

use super::{
    super::{
        chat,
        error::ApiError,
        fields::Fields,
        input::Untyped,
        models::Served as _,
        state::{Language, State},
    },
    Api,
};
use axum::{
    Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use std::sync::Arc;

pub(in super::super) const API: Api = Api {
    routes: |router| {
        router
            .route("/props", get(|Shared(s): Shared<Arc<State>>| async move { props(&s).await.map(Json) }))
            .route("/slots", get(|Shared(s): Shared<Arc<State>>| async move { slots(&s).await.map(Json) }))
            .route("/apply-template", post(apply_template))
    },
    owns: |path| ["/props", "/slots", "/apply-template"].contains(&path),
    error: ApiError::body,
};

/// Tokens of a prompt and its answer.
fn context(state: &State, language: &Language) -> usize {
    language.context_length.min(state.options.max_model_len)
}

/// `/props`: the model and the server's limits.
async fn props(state: &State) -> Result<Value, ApiError> {
    let language = &*state.language(None).await?;
    let text = |id: Option<u32>| {
        let bytes = id.and_then(|id| language.tokenizer.token_bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(json!({
        "default_generation_settings": { "n_ctx": context(state, language), "params": { "temperature": 1.0 } },
        "total_slots": state.options.limits.max_num_seqs,
        "model_alias": language.name(),
        "model_path": language.name(),
        "modalities": { "vision": false, "audio": false },
        "chat_template": language.template.as_ref().map_or("", |template| template.source()),
        "bos_token": text(language.tokenizer.bos()),
        "eos_token": text(language.tokenizer.eos()),
        "build_info": concat!("scrimp ", env!("CARGO_PKG_VERSION")),
        "is_sleeping": false,
    }))
}

/// `/slots`: one object per request that can run at the same time.
async fn slots(state: &State) -> Result<Value, ApiError> {
    let language = &*state.language(None).await?;
    let (n_ctx, speculative) = (context(state, language), language.drafts());
    let running = language.metrics.running.get() as usize;
    let slot = |id: usize| json!({ "id": id, "n_ctx": n_ctx, "speculative": speculative, "is_processing": id < running });
    Ok((0..state.options.limits.max_num_seqs).map(slot).collect())
}

/// `/apply-template`: the prompt of a chat request.
async fn apply_template(
    Shared(state): Shared<Arc<State>>,
    Untyped(input): Untyped,
) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&input.body)?;
    let language = &*state.language(fields.string("model")?.as_deref()).await?;
    let turn = chat::take(&mut fields, &language.kv)?;
    fields.log_rest("/apply-template");
    Ok(Json(json!({ "prompt": turn.prompt(language)?.text })).into_response())
}
