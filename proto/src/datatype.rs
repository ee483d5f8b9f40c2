//! The two spellings of a tensor element type: `TYPE_FP32` in a configuration, `FP32` in requests,
//! answers and metadata.

use crate::inference::DataType;

/// Every element type with its name in requests and answers. [`DataType::TypeInvalid`] has none.
const NAMES: [(DataType, &str); 14] = [
    (DataType::TypeBool, "BOOL"),
    (DataType::TypeUint8, "UINT8"),
    (DataType::TypeUint16, "UINT16"),
    (DataType::TypeUint32, "UINT32"),
    (DataType::TypeUint64, "UINT64"),
    (DataType::TypeInt8, "INT8"),
    (DataType::TypeInt16, "INT16"),
    (DataType::TypeInt32, "INT32"),
    (DataType::TypeInt64, "INT64"),
    (DataType::TypeFp16, "FP16"),
    (DataType::TypeFp32, "FP32"),
    (DataType::TypeFp64, "FP64"),
    (DataType::TypeString, "BYTES"),
    (DataType::TypeBf16, "BF16"),
];

/// The name that requests and answers use, such as `"FP32"`; `TYPE_STRING` is `"BYTES"`.
///
/// `None` for `TYPE_INVALID`.
pub fn protocol_name(data_type: DataType) -> Option<&'static str> {
    NAMES.iter().find_map(|&(candidate, name)| (candidate == data_type).then_some(name))
}

/// The configuration's type for a name such as `"FP32"`, exactly as spelt in requests.
///
/// `None` for every other text, the configuration's own spelling included.
pub fn from_protocol_name(name: &str) -> Option<DataType> {
    NAMES.iter().find_map(|&(data_type, candidate)| (candidate == name).then_some(data_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_valid_type_has_one_name_that_leads_back() {
        let mut valid = 0;
        for number in 0..=i32::from(u8::MAX) {
            let Ok(data_type) = DataType::try_from(number) else {
                continue;
            };
            match protocol_name(data_type) {
                Some(name) => {
                    assert_eq!(from_protocol_name(name), Some(data_type));
                    valid += 1;
                }
                None => assert_eq!(data_type, DataType::TypeInvalid),
            }
        }
        assert_eq!(valid, NAMES.len());
    }

    #[test]
    fn the_names_differ_from_the_configuration_only_in_prefix_and_string() {
        for (data_type, name) in NAMES {
            let stripped = data_type.as_str_name().strip_prefix("TYPE_").unwrap();
            let expected = if stripped == "STRING" { "BYTES" } else { stripped };
            assert_eq!(name, expected);
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for name in ["", "fp32", "TYPE_FP32", "STRING", "FP32 ", "INVALID"] {
            assert_eq!(from_protocol_name(name), None, "{name:?}");
        }
    }
}
