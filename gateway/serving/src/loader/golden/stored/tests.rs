use proptest::prelude::*;
use serde_json::from_str;

use super::*;

/// Writes a tensor as text, reads the text, and gives both.
fn round(tensor: &Tensor) -> (String, Tensor) {
    let text = serde_json::to_string(&GoldenTensor::of(tensor)).unwrap();
    let read = from_str::<GoldenTensor>(&text).unwrap().tensor().unwrap();
    (text, read)
}

fn check<T: Element>(elements: &[T], expected: &str) {
    let tensor = Tensor::from_elements([elements.len() as i64], elements).unwrap();
    let (text, read) = round(&tensor);
    assert_eq!(read, tensor, "{text}");
    assert!(text.ends_with(&format!(r#""data":{expected}}}"#)), "{text} should have {expected}");
}

#[test]
fn every_datatype_reads_as_it_was_written() {
    check(&[0.1_f32, -0.0, f32::MIN_POSITIVE, 16777216.0], "[0.1,-0.0,1.1754944e-38,16777216.0]");
    check(&[0.1_f64, f64::MAX, 5e-324], "[0.1,1.7976931348623157e+308,5e-324]");
    check(&[f16::from_f32(0.1), f16::MAX, f16::MIN_POSITIVE_SUBNORMAL], "[0.1,65500.0,6e-8]");
    check(&[bf16::from_f32(0.1), bf16::MAX], "[0.1,3.39e+38]");
    check(&[u64::MAX, 9_007_199_254_740_993], "[18446744073709551615,9007199254740993]");
    check(&[i64::MIN, -9_007_199_254_740_993], "[-9223372036854775808,-9007199254740993]");
    check(&[u32::MAX], "[4294967295]");
    check(&[i32::MIN], "[-2147483648]");
    check(&[u16::MAX], "[65535]");
    check(&[i16::MIN], "[-32768]");
    check(&[u8::MAX], "[255]");
    check(&[i8::MIN], "[-128]");
    let truths = Tensor::new(DataType::Bool, [2, 1], vec![1, 0].into()).unwrap();
    let (text, read) = round(&truths);
    assert_eq!((text.as_str(), read), (r#"{"datatype":"BOOL","shape":[2,1],"data":[true,false]}"#, truths));
}

#[test]
fn numbers_that_json_lacks_are_strings() {
    check(&[f32::INFINITY, f32::NEG_INFINITY], r#"["Infinity","-Infinity"]"#);
    check(&[f16::INFINITY, f16::NEG_INFINITY], r#"["Infinity","-Infinity"]"#);
    check(&[bf16::INFINITY], r#"["Infinity"]"#);
    check(&[f64::NEG_INFINITY], r#"["-Infinity"]"#);
    for datatype in [DataType::Fp16, DataType::Bf16, DataType::Fp32, DataType::Fp64] {
        let text = format!(r#"{{"datatype":"{datatype}","shape":[1],"data":["NaN"]}}"#);
        let tensor = from_str::<GoldenTensor>(&text).unwrap().tensor().unwrap();
        assert!(crate::nan::has_nan(&tensor, 1), "{datatype}");
        assert_eq!(round(&tensor).0, text);
    }
    for (datatype, data) in [("FP32", r#"["nan"]"#), ("FP32", r#"["1"]"#), ("INT32", r#"["NaN"]"#)] {
        let text = format!(r#"{{"datatype":"{datatype}","shape":[1],"data":{data}}}"#);
        let error = from_str::<GoldenTensor>(&text).unwrap().tensor().unwrap_err();
        assert!(error.starts_with(&format!("element 0: expected {datatype}, got ")), "{error}");
    }
}

#[test]
fn strings_are_text_where_they_are_utf8_and_base64_where_they_are_not() {
    let tensor = Tensor::from_byte_strings([3], &[&b"caf\xc3\xa9 \"\0"[..], b"", b"\xff\x00"]).unwrap();
    let (text, read) = round(&tensor);
    assert_eq!(read, tensor);
    assert!(text.ends_with(r#""data":["café \"\u0000","",{"base64":"/wA="}]}"#), "{text}");
    for data in [r#"[{"base64": "?"}]"#, r#"[{"base64": 1}]"#, r#"[{"hex": "ff"}]"#, r#"[{}]"#, "[null]"] {
        let text = format!(r#"{{"datatype":"BYTES","shape":[1],"data":{data}}}"#);
        let error = from_str::<GoldenTensor>(&text).unwrap().tensor().unwrap_err();
        assert!(error.starts_with("expected strings, or objects"), "{data}: {error}");
    }
}

#[test]
fn every_half_precision_number_reads_as_it_was_written() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let halves: Vec<f16> = all.iter().map(|bits| f16::from_bits(*bits)).filter(|number| !number.is_nan()).collect();
    let brains: Vec<bf16> = all.iter().map(|bits| bf16::from_bits(*bits)).filter(|number| !number.is_nan()).collect();
    for tensor in [Tensor::from_elements([halves.len() as i64], &halves), Tensor::from_elements([brains.len() as i64], &brains)] {
        let tensor = tensor.unwrap();
        assert!(round(&tensor).1 == tensor, "{}", tensor.datatype());
    }
}

proptest! {
    #[test]
    fn any_number_reads_as_it_was_written(singles: Vec<u32>, doubles: Vec<u64>) {
        let singles: Vec<f32> = singles.into_iter().map(f32::from_bits).filter(|number| !number.is_nan()).collect();
        let doubles: Vec<f64> = doubles.into_iter().map(f64::from_bits).filter(|number| !number.is_nan()).collect();
        let (singles, doubles) = (
            Tensor::from_elements([singles.len() as i64], &singles).unwrap(),
            Tensor::from_elements([doubles.len() as i64], &doubles).unwrap(),
        );
        prop_assert_eq!(&round(&singles).1, &singles);
        prop_assert_eq!(&round(&doubles).1, &doubles);
    }
}
