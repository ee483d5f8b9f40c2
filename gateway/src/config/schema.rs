//! The JSON schema of `bascule.toml`, for editors.

use serde_json::{Map, Value as Json, json};

use super::settings::KEYS;

/// `[[registry]]`: the same settings, and a name.
fn registries(table: &Json) -> Json {
    let mut entry = table.clone();
    entry["required"] = json!(["name", "url"]);
    entry["properties"]["name"] =
        json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$", "description": "what it is called" });
    json!({ "type": "array", "minItems": 1, "items": entry })
}

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
    if let Some(table) = sections.get("registry").cloned() {
        sections.insert("registry".to_owned(), json!({ "oneOf": [table, registries(&table)] }));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bascule.toml",
        "type": "object",
        "additionalProperties": false,
        "properties": sections,
    })
}
