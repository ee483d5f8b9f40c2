//! The JSON schema of `bascule.toml`, for editors.

use serde_json::{Map, Value as Json, json};

use super::settings::KEYS;

/// The schema, made from the list of settings.
pub fn schema() -> Json {
    let mut sections: Map<String, Json> = Map::new();
    for key in KEYS {
        let Some((section, name)) = key.name().split_once('.') else { continue };
        let section =
            sections.entry(section).or_insert_with(|| json!({ "type": "object", "additionalProperties": false, "properties": {} }));
        let mut schema = key.schema();
        schema["default"] = json!(key.default_text());
        section["properties"][name] = schema;
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bascule.toml",
        "type": "object",
        "additionalProperties": false,
        "properties": sections,
    })
}
