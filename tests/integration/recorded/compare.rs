//! When two answers are alike: the same status, and bodies that mean the same. The words of errors are each server's own.

use std::collections::BTreeSet;
use std::io::Read;
use std::rc::Rc;

use bascule_proto::FILE_DESCRIPTOR_SET;
use bytes::Bytes;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::Deserialize;
use serde_json::Value;

use super::case::{Answer, Call, Case, HttpAnswer, Ignored};

const RELATIVE: f64 = 1e-5;
const ABSOLUTE: f64 = 1e-6;
const NOT_IMPLEMENTED: &str = "501";
const UNIMPLEMENTED: &str = "UNIMPLEMENTED";

/// How an answer differs from the recorded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Another status or code.
    Status,
    /// The same status or code, and another body.
    Body,
    /// The answer is that this part of the protocol isn't served.
    Unserved,
}

/// A difference that was found.
#[derive(Debug)]
pub struct Difference {
    pub kind: Kind,
    /// Status or code of the answer.
    pub answered: String,
    /// Both answers, for a reader.
    pub shown: String,
}

/// The difference of an answer from a case's recorded one, if there is any.
pub fn difference(case: &Case, answer: &Answer) -> Option<Difference> {
    let (expected, answered) = (status(&case.answer), status(answer));
    let kind = if expected != answered {
        match answered.as_str() {
            NOT_IMPLEMENTED | UNIMPLEMENTED => Kind::Unserved,
            _ => Kind::Status,
        }
    } else if is_error(answer) || bodies_alike(case, answer) {
        return None;
    } else {
        Kind::Body
    };
    let shown = format!("recorded {expected} {}\nanswered {answered} {}", show(&case.answer), show(answer));
    Some(Difference { kind, answered, shown })
}

/// Says what is missing in an error answer: every error has a text, and over HTTP it is JSON.
pub fn without_text(case: &Case, answer: &Answer) -> Option<String> {
    let texted = match (answer, &case.call) {
        // Answered before a request was understood.
        (_, Call::Wire(_)) => true,
        (Answer::Http(answer), _) if answer.status >= 400 => {
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            body["error"].as_str().is_some_and(|text| !text.is_empty())
        }
        // A method that nobody knows is answered by the transport.
        (Answer::Grpc { code, text, .. }, _) => *code == 0 || !text.is_empty() || recorded_text(case).is_empty(),
        _ => true,
    };
    (!texted).then(|| format!("an error without a text: {} {}", status(answer), show(answer)))
}

fn recorded_text(case: &Case) -> &str {
    if let Answer::Grpc { text, .. } = &case.answer { text } else { "" }
}

fn is_error(answer: &Answer) -> bool {
    match answer {
        Answer::Http(answer) => answer.status >= 400,
        Answer::Closed | Answer::Other(_) => true,
        Answer::Grpc { code, .. } => *code != 0,
    }
}

/// The status of HTTP, the code's name of gRPC, `closed`, or `other` than HTTP/1.
fn status(answer: &Answer) -> String {
    match answer {
        Answer::Http(answer) => answer.status.to_string(),
        Answer::Closed => "closed".to_owned(),
        Answer::Other(_) => "other".to_owned(),
        Answer::Grpc { code, .. } => {
            // `InvalidArgument` is INVALID_ARGUMENT in gRPC's own notation.
            let mut name = String::new();
            for letter in format!("{:?}", tonic::Code::from_i32(*code)).chars() {
                if letter.is_ascii_uppercase() && !name.is_empty() {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
            name
        }
    }
}

fn show(answer: &Answer) -> String {
    let shown = match answer {
        Answer::Http(answer) => format!("{:?} {}", answer.headers, String::from_utf8_lossy(&plain(answer))),
        Answer::Closed => String::new(),
        Answer::Other(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Answer::Grpc { text, messages, .. } => format!("{text:?} {messages:?}"),
    };
    shown.chars().take(3000).collect()
}

fn bodies_alike(case: &Case, answer: &Answer) -> bool {
    match (&case.answer, answer, &case.call) {
        (Answer::Http(expected), Answer::Http(answer), _) => http_bodies_alike(expected, answer, &case.ignored),
        (Answer::Grpc { messages: expected, .. }, Answer::Grpc { messages, .. }, Call::Grpc { method, .. }) => {
            let message = output_of(method);
            let alike = |(expected, message_bytes)| messages_alike(message.as_ref(), expected, message_bytes, &case.ignored);
            expected.len() == messages.len() && expected.iter().zip(messages).all(alike)
        }
        (expected, answer, _) => expected == answer,
    }
}

fn http_bodies_alike(expected: &HttpAnswer, answer: &HttpAnswer, ignored: &Ignored) -> bool {
    let same = |name| expected.header(name) == answer.header(name);
    let typed = expected.status != 200 || expected.body.is_empty() || same("content-type");
    if !typed || !same("content-encoding") || expected.header(HEADER_LENGTH).is_some() != answer.header(HEADER_LENGTH).is_some() {
        return false;
    }
    let (expected_head, expected_tail) = split(expected);
    let (head, tail) = split(answer);
    let heads_alike = match (json(&expected_head), json(&head)) {
        (Some(expected), Some(head)) => alike(&settled(expected, ignored), &settled(head, ignored)),
        _ => expected_head == head,
    };
    heads_alike && expected_tail == tail
}

const HEADER_LENGTH: &str = "inference-header-content-length";

/// The JSON of a body and the bytes that follow it.
fn split(answer: &HttpAnswer) -> (Vec<u8>, Vec<u8>) {
    let mut head = plain(answer);
    let length = answer.header(HEADER_LENGTH).and_then(|length| length.parse().ok()).unwrap_or(head.len());
    let tail = head.split_off(length.min(head.len()));
    (head, tail)
}

/// The body without its compression.
fn plain(answer: &HttpAnswer) -> Vec<u8> {
    let mut plain = Vec::new();
    let read = match answer.header("content-encoding") {
        Some("gzip") => flate2::read::GzDecoder::new(answer.body.as_slice()).read_to_end(&mut plain),
        Some("deflate") => flate2::read::ZlibDecoder::new(answer.body.as_slice()).read_to_end(&mut plain),
        _ => return answer.body.clone(),
    };
    read.expect("a body that is compressed as its header says");
    plain
}

/// JSON, with NaN and Infinity written bare as well.
fn json(text: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(text).ok()?;
    let strict = serde_json::from_str(text);
    strict
        .or_else(|_| {
            // Every second piece is inside quotes, unless a quote is escaped: then this isn't JSON either, and bytes are compared.
            let quote =
                |piece: &str| piece.replace("-Infinity", "\"-inf\"").replace("Infinity", "\"inf\"").replace("NaN", "\"nan\"");
            let pieces = text.split('"').enumerate();
            let pieces: Vec<_> =
                pieces.map(|(number, piece)| if number % 2 == 0 { quote(piece) } else { piece.to_owned() }).collect();
            serde_json::from_str(&pieces.join("\""))
        })
        .ok()
}

/// The message that a method answers with; none for methods of other services.
fn output_of(path: &str) -> Option<MessageDescriptor> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let service = pool.get_service_by_name(service)?;
    service.methods().find(|known| known.name() == method).map(|method| method.output())
}

fn messages_alike(message: Option<&MessageDescriptor>, expected: &Bytes, answer: &Bytes, ignored: &Ignored) -> bool {
    let Some(message) = message else { return expected == answer };
    let decoded = |bytes: &Bytes| {
        let decoded = DynamicMessage::decode(message.clone(), bytes.clone()).expect("a message of the method's type");
        let options = SerializeOptions::new().skip_default_fields(false).use_proto_field_name(true);
        settled(decoded.serialize_with_options(serde_json::value::Serializer, &options).unwrap(), ignored)
    };
    alike(&decoded(expected), &decoded(answer))
}

fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            let (Some(a), Some(b)) = (one.as_f64(), other.as_f64()) else { return false };
            let whole = !one.is_f64() && !other.is_f64();
            one == other || (!whole && (a - b).abs() <= (RELATIVE * a.abs().max(b.abs())).max(ABSOLUTE))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| alike(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| alike(value, other)))
        }
        _ => one == other,
    }
}

/// A body without what says nothing about the server.
fn settled(mut body: Value, ignored: &Ignored) -> Value {
    // Every list of models is the body itself or one of these.
    let lists = match &mut body {
        Value::Object(members) => {
            members.iter_mut().filter(|(name, _)| matches!(name.as_str(), "models" | "model_stats")).map(|(_, list)| list).collect()
        }
        list => vec![list],
    };
    for list in lists.into_iter().filter_map(Value::as_array_mut) {
        list.retain(|entry| entry["name"].as_str().is_none_or(|name| ignored.models.contains(name)));
        for entry in list {
            // Each server says in its own words why a model is not there.
            if entry["reason"].as_str().is_some_and(|reason| !reason.is_empty()) {
                entry["reason"] = Value::Null;
            }
        }
    }
    // The error of one answer in a stream.
    if body["error_message"].as_str().is_some_and(|message| !message.is_empty()) {
        body["error_message"] = Value::Null;
    }
    for place in &ignored.volatile {
        if place.starts_with("order") {
            sort(&mut body);
        } else {
            let steps: Vec<&str> = place.split('.').collect();
            blank(&mut body, &steps);
        }
    }
    body
}

/// Sorts the lists of a body that have names in them.
fn sort(body: &mut Value) {
    match body {
        Value::Array(list) => list.sort_by_key(|entry| format!("{} {}", entry["name"], entry["version"])),
        Value::Object(members) => members.values_mut().for_each(sort),
        _ => {}
    }
}

/// Blanks what a path such as `list[*].*count` names; `*` stands for any letters of one step.
fn blank(value: &mut Value, steps: &[&str]) {
    let Some((step, rest)) = steps.split_first() else {
        *value = Value::Null;
        return;
    };
    let (name, listed) = step.strip_suffix("[*]").map_or((*step, false), |name| (name, true));
    let Value::Object(members) = value else { return };
    for (_, member) in
        members.iter_mut().filter(|(found, _)| name.strip_prefix('*').map_or(*found == name, |end| found.ends_with(end)))
    {
        match member {
            Value::Array(list) if listed => list.iter_mut().for_each(|entry| blank(entry, rest)),
            member => blank(member, rest),
        }
    }
}

#[test]
fn bodies_are_alike_where_they_mean_the_same() {
    let check = |expected: &str, found: &str, volatile: &[&str]| {
        let volatile = volatile.iter().map(|place| (*place).to_owned()).collect();
        let ignored = Ignored { volatile, models: Rc::new(BTreeSet::from(["a".to_owned(), "b".to_owned()])) };
        let answer = |body: &str| HttpAnswer { status: 200, headers: Vec::new(), body: body.as_bytes().to_vec() };
        http_bodies_alike(&answer(expected), &answer(found), &ignored)
    };
    assert!(check("{\"a\":1.0,\"b\":[true]}", "{\"b\":[true],\"a\":1.000001}", &[]));
    assert!(!check("[1.0]", "[1.001]", &[]) && !check("[9007199254740993]", "[9007199254740992]", &[]));
    assert!(!check("{\"a\":1}", "{\"a\":1,\"b\":2}", &[]) && !check("[1]", "[1,1]", &[]) && !check("[1]", "[\"1\"]", &[]));
    assert!(
        check("[NaN,-Infinity]", "[ NaN, -Infinity ]", &[])
            && !check("[NaN]", "[Infinity]", &[])
            && !check("[NaN]", "[\"x\"]", &[])
    );
    let orders = ["[{\"name\":\"a\"},{\"name\":\"b\"}]", "[{\"name\":\"b\"},{\"name\":\"a\"}]"];
    assert!(check(orders[0], orders[1], &["order of entries"]) && !check(orders[0], orders[1], &[]));
    let others = "[{\"name\":\"a\"},{\"name\":\"elsewhere\"},{\"name\":\"b\"}]";
    assert!(check(others, orders[0], &[]) && !check(others, "[{\"name\":\"a\"}]", &[]));
    let reasons =
        ["[{\"name\":\"a\",\"reason\":\"x\"}]", "[{\"name\":\"a\",\"reason\":\"y\"}]", "[{\"name\":\"a\",\"reason\":\"\"}]"];
    assert!(check(reasons[0], reasons[1], &[]) && !check(reasons[0], reasons[2], &[]));
    let counts = ["{\"s\":[{\"n\":\"m\",\"count\":1}]}", "{\"s\":[{\"n\":\"m\",\"count\":2}]}", "{\"s\":[{\"n\":\"m\"}]}"];
    assert!(check(counts[0], counts[1], &["s[*].*count"]) && !check(counts[0], counts[1], &[]));
    assert!(!check(counts[0], counts[2], &["s[*].*count"]), "what is blanked must be there");
    let typed = |content_type: &str| {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        let answer = |headers| HttpAnswer { status: 200, headers, body: b"{}".to_vec() };
        let ignored = Ignored { volatile: Vec::new(), models: Rc::default() };
        let json = vec![("content-type".to_owned(), "application/json".to_owned())];
        http_bodies_alike(&answer(json), &answer(headers), &ignored)
    };
    assert!(typed("application/json") && !typed("text/plain"));
}
