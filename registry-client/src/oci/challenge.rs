//! What a registry asks for before it answers: `WWW-Authenticate`.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token that `realm` gives.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The first challenge that can be met; a token is preferred.
pub(super) fn of(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<Challenge> = values.flat_map(parse).collect();
    all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. })).or(all.first()).cloned()
}

/// The challenges of one header, which may hold several, each a scheme and parameters with commas between them.
fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for item in split_outside_quotes(header) {
        let (scheme, parameter) = match item.split_once(char::is_whitespace) {
            Some((first, rest)) if !first.contains('=') && !rest.trim_start().starts_with('=') => (Some(first), rest.trim()),
            _ if item.contains('=') => (None, item),
            _ => (Some(item), ""),
        };
        if let Some(scheme) = scheme {
            found.push((scheme.to_ascii_lowercase(), BTreeMap::new()));
        }
        if let (Some((name, value)), Some((_, parameters))) = (parameter.split_once('='), found.last_mut()) {
            parameters.insert(name.trim().to_ascii_lowercase(), unquoted(value.trim()));
        }
    }
    let challenge = |(scheme, mut parameters): (String, BTreeMap<String, String>)| match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        }),
        _ => None,
    };
    found.into_iter().filter_map(challenge).collect()
}

/// Splits at commas that are not between quotes.
fn split_outside_quotes(text: &str) -> Vec<&str> {
    let (mut inside, mut escaped) = (false, false);
    let parts = text.split(|c| {
        if escaped {
            escaped = false;
        } else if inside && c == '\\' {
            escaped = true;
        } else if c == '"' {
            inside = !inside;
        }
        c == ',' && !inside
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn unquoted(value: &str) -> String {
    let Some(inside) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return value.to_owned() };
    let mut text = String::new();
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let check = |header: &str, expected: Option<Challenge>| {
            let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, header.parse().unwrap())]);
            assert_eq!(of(&headers), expected, "{header}");
        };
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            Some(Challenge::Bearer { realm: realm.into(), service: text(service), scope: text(scope) })
        };
        check(
            r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push""#,
            bearer("https://auth.example/token", Some("reg"), Some("repository:a/b:pull,push")),
        );
        check(r#"bearer Realm=https://a/t , service = "x\"y""#, bearer("https://a/t", Some("x\"y"), None));
        check(r#"Basic realm="Registry, ours""#, Some(Challenge::Basic));
        check("Basic", Some(Challenge::Basic));
        check(r#"Basic realm="x", Bearer realm="https://a/t""#, bearer("https://a/t", None, None));
        check(r#"Negotiate, Basic realm="x""#, Some(Challenge::Basic));
        check(r#"Bearer service="no realm""#, None);
        check("", None);
        check(r#""""",,=,"#, None);
    }
}
