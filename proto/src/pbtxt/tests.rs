use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

use super::*;
use crate::FILE_DESCRIPTOR_SET;
use crate::inference::ModelConfig;
use crate::inference::model_config::SchedulingChoice;

static MODEL_CONFIG: LazyLock<MessageDescriptor> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    pool.get_message_by_name("inference.ModelConfig").unwrap()
});

fn read(text: &str) -> Result<ModelConfig, PbtxtError> {
    parse(&MODEL_CONFIG, text).map(|message| message.transcode_to().unwrap())
}

/// Both texts say the same.
fn same(text: &str, plain: &str) {
    let config = read(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    assert_eq!(config, read(plain).unwrap(), "{text:?}");
}

fn refused(text: &str, error: &str) {
    match read(text) {
        Ok(message) => panic!("{text:?} was read as {message:?}"),
        Err(found) => assert_eq!(found.to_string(), error, "{text:?}"),
    }
}

#[test]
fn lists_may_be_bracketed_with_or_without_a_colon() {
    let plain = "input { name: 'a' } input { name: 'b' dims: 1 dims: -1 }";
    same("input [ { name: 'a' }, { name: 'b' dims: [ 1, -1 ] } ]", plain);
    same("input: [{name:'a'},{name:'b' dims:[1,-1]}]", plain);
    same("input: { name: 'a' } input < name: 'b' dims: [1] dims: [-1] >", plain);
    same("input [] output: [] input { dims: [] }", "input {}");
}

#[test]
fn separators_comments_and_blank_lines_mean_nothing() {
    let plain = "name: 'm' max_batch_size: 8";
    same("\u{feff}name: 'm', max_batch_size: 8;", plain);
    same("# first\r\n\tname # why\n : 'm'# last\nmax_batch_size:8", plain);
    same("  # nothing\n", "");
}

#[test]
fn maps_are_entries_of_key_and_value() {
    let plain = "parameters { key: 'a' value { string_value: '1' } }";
    same("parameters { key: 'a' value: { string_value: '1' } }", plain);
    same("parameters: [ { value { string_value: '1' } key: 'a' } ]", plain);
    same("parameters { key: 'a' } parameters { key: 'a' value { string_value: '1' } }", plain);
    same("metric_tags { value: 'v' }", "metric_tags { key: '' value: 'v' }");
    let text = "dynamic_batching { priority_queue_policy { key: 18446744073709551615 } }";
    let choice = read(text).unwrap().scheduling_choice;
    let Some(SchedulingChoice::DynamicBatching(batching)) = choice else {
        panic!("not dynamic: {choice:?}");
    };
    assert!(batching.priority_queue_policy.keys().eq(&[u64::MAX]));
}

#[test]
fn texts_take_escapes_and_join() {
    let check = |literal: &str, expected: &str| {
        let config = read(&format!("name: {literal}")).unwrap();
        assert_eq!(config.name, expected, "{literal}");
    };
    check(r#""it's""#, "it's");
    check(r#"'say "x"'"#, "say \"x\"");
    check("'a' \"b\"\n 'c'", "abc");
    check(r"'\a\b\f\n\r\t\v\\\'\?'", "\x07\x08\x0c\n\r\t\x0b\\'?");
    check(r#""\"""#, "\"");
    check(r"'\1019\x41g\x9'", "A9Ag\t");
    check(r"'\303\244 ä \u00e4 \U0001F600'", "ä ä ä 😀");
    check("'# no comment'", "# no comment");
}

#[test]
fn numbers_take_every_notation() {
    let batch = |literal: &str, expected: i32| {
        same(&format!("max_batch_size: {literal}"), &format!("max_batch_size: {expected}"));
    };
    batch("0x1F", 31);
    batch("017", 15);
    batch("- 3", -3);
    batch("-2147483648", i32::MIN);
    let float = |literal: &str, expected: f32| {
        let control = format!("control {{ fp32_false_true: {literal} }}");
        let text = format!("sequence_batching {{ control_input {{ {control} }} }}");
        let choice = read(&text).unwrap().scheduling_choice;
        let Some(SchedulingChoice::SequenceBatching(sequence)) = choice else {
            panic!("not a sequence: {choice:?}");
        };
        let found = sequence.control_input[0].control[0].fp32_false_true[0];
        assert_eq!(found.to_bits(), expected.to_bits(), "{literal}");
    };
    float("1", 1.0);
    float("-.5", -0.5);
    float("1.", 1.0);
    float("2.5e-1f", 0.25);
    float("3F", 3.0);
    float("-INF", f32::NEG_INFINITY);
    float("nan", f32::NAN);
}

#[test]
fn booleans_and_enum_values_take_every_notation() {
    for yes in ["true", "True", "t", "1"] {
        same(&format!("response_cache {{ enable: {yes} }}"), "response_cache { enable: true }");
    }
    for no in ["false", "False", "f", "0"] {
        same(&format!("response_cache {{ enable: {no} }}"), "response_cache { }");
    }
    same("input { data_type: 11 }", "input { data_type: TYPE_FP32 }");
}

#[test]
fn what_is_not_in_the_schema_is_named() {
    refused("name: 'm'\n  max_bach_size: 8", "line 2, column 3: unknown field max_bach_size in inference.ModelConfig");
    refused("input [ {}, { nam: 'x' } ]", "line 1, column 15: field input[1]: unknown field nam in inference.ModelInput");
    refused(
        "input {} input { data_type: FP32 }",
        "line 1, column 29: field input[1].data_type: unknown value FP32 for inference.DataType",
    );
    refused("input { data_type: -1 }", "line 1, column 20: field input[0].data_type: unknown value -1 for inference.DataType");
    refused(
        "parameters { key: 'a' value: { text: '1' } }",
        "line 1, column 32: field parameters.value: unknown field text in inference.ModelParameter",
    );
    refused("[a.b] { }", "line 1, column 1: expected a field name, found '['");
}

#[test]
fn a_value_of_another_type_is_refused() {
    refused("max_batch_size: \"8\"", "line 1, column 17: field max_batch_size: expected a signed 32-bit integer, found '\"8\"'");
    refused("max_batch_size: 8.0", "line 1, column 17: field max_batch_size: expected a signed 32-bit integer, found '8.0'");
    refused("max_batch_size: [ 8 ]", "line 1, column 17: field max_batch_size: expected a signed 32-bit integer, found '['");
    refused("name: m", "line 1, column 7: field name: expected a text in quotes, found 'm'");
    refused("name { }", "line 1, column 6: field name: expected ':', found '{'");
    refused("input: 3", "line 1, column 8: field input[0]: expected '{', found '3'");
    refused("input { dims: [ 1, x ] }", "line 1, column 20: field input[0].dims[1]: expected a signed 64-bit integer, found 'x'");
    refused(
        "input { data_type: 'TYPE_FP32' }",
        "line 1, column 20: field input[0].data_type: expected a value of inference.DataType, \
         found ''TYPE_FP32''",
    );
    refused("response_cache { enable: 2 }", "line 1, column 26: field response_cache.enable: expected true or false, found '2'");
}

#[test]
fn numbers_out_of_range_are_refused() {
    refused(
        "max_batch_size: - 2147483649",
        "line 1, column 17: field max_batch_size: '- 2147483649' is out of range for a signed \
         32-bit integer",
    );
    refused(
        "input { dims: 9223372036854775808 }",
        "line 1, column 15: field input[0].dims[0]: '9223372036854775808' is out of range for a \
         signed 64-bit integer",
    );
    refused(
        "version_policy { latest { num_versions: -1 } }",
        "line 1, column 41: field version_policy.latest.num_versions: '-1' is out of range for an \
         unsigned 32-bit integer",
    );
    let huge = "9".repeat(100_000);
    let error = read(&format!("max_batch_size: {huge}")).unwrap_err();
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn what_is_set_twice_is_refused() {
    refused("name: 'a'\nname: 'b'", "line 2, column 1: field name: set more than once");
    refused(
        "dynamic_batching {} sequence_batching {}",
        "line 1, column 21: field sequence_batching: cannot be set beside dynamic_batching",
    );
    refused(
        "model_warmup { inputs { value { zero_data: true random_data: true } } }",
        "line 1, column 49: field model_warmup[0].inputs.value.random_data: cannot be set beside \
         zero_data",
    );
}

#[test]
fn broken_syntax_is_refused_where_it_breaks() {
    refused("input [ { name: 'x' }", "line 1, column 22: field input: expected ',' or ']', found the end of the text");
    refused("input {\n name: 'x'\n", "line 3, column 1: field input[0]: expected a field name or '}', found the end of the text");
    refused("input < name: 'x' }", "line 1, column 19: field input[0]: expected a field name or '>', found '}'");
    refused("input { dims: [ 1, ] }", "line 1, column 20: field input[0].dims[1]: expected a signed 64-bit integer, found ']'");
    refused("name 'x'", "line 1, column 6: field name: expected ':', found ''x''");
    refused("}", "line 1, column 1: expected a field name, found '}'");
    refused("name: 'x' ,, backend: 'y'", "line 1, column 12: expected a field name, found ','");
    refused("name: 'ä' ö", "line 1, column 11: field name: a character that begins no value");
}

#[test]
fn malformed_literals_are_refused() {
    let text = |literal: &str, column: usize, problem: &str| {
        refused(&format!("name: {literal}"), &format!("line 1, column {column}: field name: {problem}"));
    };
    text("'abc", 7, "a text without its closing quote");
    text("'abc\n'", 7, "a text without its closing quote");
    text("'a\\", 9, "a malformed escape in a text");
    for escape in [r"\q", r"\400", r"\x", r"\u12", r"\ud800", r"\U00110000", r"\ü"] {
        text(&format!("'{escape}'"), 8, "a malformed escape in a text");
    }
    text(r"'\xff'", 7, "text is not valid UTF-8");
    let number = |literal: &str, problem: &str| {
        refused(&format!("max_batch_size: {literal}"), &format!("line 1, column 17: field max_batch_size: {problem}"));
    };
    number("08", "a malformed octal number");
    number("0x", "a malformed hexadecimal number");
    number("0x1g", "a malformed hexadecimal number");
    number("1x", "a malformed number");
    number("1.2.3", "a malformed number");
    number("1e+", "a malformed number");
    number(".", "a character that begins no value");
    number("é", "a character that begins no value");
}

#[test]
fn every_prefix_and_every_changed_byte_gets_an_answer() {
    let text = "name: \"m\\u00e4\\x41\" # c\ninput [ { dims: [ -1, 0x2, 017 ] data_type: TYPE_FP32 }, \
                < reshape: { shape: [] } > ]\nparameters: { key: 'k' value { string_value: 'v' } };\n\
                sequence_batching { direct { minimum_slot_utilization: 2.5e-1f } }";
    read(text).unwrap();
    for end in 0..text.len() {
        check_place(&text[..end]);
    }
    for at in 0..text.len() {
        for byte in 0..128 {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] = byte;
            check_place(std::str::from_utf8(&bytes).unwrap());
        }
    }
}

/// Whatever the text, an error lies inside of it.
fn check_place(text: &str) {
    if let Err(error) = read(text) {
        let line = text.split('\n').nth(error.line - 1).unwrap();
        assert!(error.column <= line.chars().count() + 1, "{error} in {text:?}");
    }
}
