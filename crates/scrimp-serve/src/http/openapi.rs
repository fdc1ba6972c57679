//! `/openapi.json`: the description of the JSON API (OpenAPI 3.1). `openapi.json` beside this file is its source.

use axum::{
    http::{HeaderName, header},
    response::{IntoResponse, Response},
};

const DESCRIPTION: &str = include_str!("openapi.json");

/// Handles a request.
pub(crate) async fn openapi() -> Response {
    let kind: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];
    (kind, DESCRIPTION.replacen("VERSION", env!("CARGO_PKG_VERSION"), 1)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Calls `visit` with each reference in `value`.
    fn references(value: &Value, visit: &mut dyn FnMut(&str)) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    visit(reference);
                }
                map.values().for_each(|inner| references(inner, visit));
            }
            Value::Array(list) => list.iter().for_each(|inner| references(inner, visit)),
            _ => {}
        }
    }

    #[test]
    fn references_name_schemas() {
        let api: Value = serde_json::from_str(DESCRIPTION).unwrap();
        assert_eq!(api["info"]["version"], "VERSION");
        let mut n = 0;
        references(&api, &mut |reference| {
            n += 1;
            assert!(api.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        });
        assert!(n > 40);
    }
}
