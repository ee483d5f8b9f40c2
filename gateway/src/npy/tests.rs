use super::*;

fn file(version: u8, header: &str, contents: &[u8]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    file.extend([version, 0]);
    match version {
        1 => file.extend(u16::try_from(header.len()).unwrap().to_le_bytes()),
        _ => file.extend(u32::try_from(header.len()).unwrap().to_le_bytes()),
    }
    file.extend(header.as_bytes());
    file.extend(contents);
    file
}

#[test]
fn every_type_survives_a_round_trip() {
    for (_, datatype) in CODES {
        for shape in [&[2i64, 3][..], &[6], &[], &[0, 4], &[1; 30]] {
            let bytes = element_count(shape).unwrap() * datatype.element_bytes().unwrap();
            let contents: Vec<u8> = (0..bytes).map(|byte| byte as u8 & 1).collect();
            let tensor = Tensor::new(datatype, shape, contents.into()).unwrap();
            let written = write(&tensor).unwrap();
            assert_eq!((written.len() - bytes) % 64, 0, "{datatype} {shape:?}");
            assert_eq!(read(&written).unwrap(), tensor, "{datatype} {shape:?}");
        }
    }
}

#[test]
fn what_numpy_writes_is_read() {
    // np.save(f, np.arange(4, dtype="<i2").reshape(2, 2)), as NumPy 2 writes it.
    let header = format!("{:<117}\n", "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 2), }");
    let tensor = read(&file(1, &header, &[0, 0, 1, 0, 2, 0, 3, 0])).unwrap();
    assert_eq!((tensor.shape(), &*tensor.elements::<i16>().unwrap()), (&[2, 2][..], &[0, 1, 2, 3][..]));
    let big = read(&file(2, "{'descr': '>i2', 'fortran_order': False, 'shape': (1,), }\n", &[1, 2])).unwrap();
    assert_eq!(&*big.elements::<i16>().unwrap(), &[0x0102]);
    let vector = read(&file(3, "{'shape': (2,), 'descr': '|u1', 'fortran_order': True}", &[7, 8])).unwrap();
    assert_eq!(vector.bytes().as_ref(), [7, 8], "one axis has only one order");
}

#[test]
fn what_is_not_an_array_of_numbers_is_named() {
    let header =
        |descr: &str, order: &str, shape: &str| format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let good = header("'<f4'", "False", "(1,)");
    let check = |file: &[u8]| read(file).unwrap_err().to_string();
    assert_eq!(check(b"PK\x03\x04"), "not a .npy file: it does not start with the magic bytes");
    assert_eq!(check(&file(9, &good, &[0; 4])), "format version 9 is not known, expected 1 to 3");
    assert!(check(&file(1, &header("'<f4'", "True", "(2, 2)"), &[0; 16])).contains("Fortran order"));
    for descr in ["'|O'", "'<U3'", "'<c8'", "[('a', '<f4'), ('b', '<i4')]", "'f4'", "'<f16'"] {
        assert!(check(&file(1, &header(descr, "False", "(1,)"), &[0; 4])).starts_with("the array has the type "), "{descr}");
    }
    assert!(matches!(read(&file(1, &good, &[0; 5])), Err(NpyError::Contents(_))), "trailing bytes");
    assert!(matches!(read(&file(1, &good, &[0; 3])), Err(NpyError::Contents(_))), "cut off");
    let huge = header("'<f4'", "False", "(9223372036854775807, 3)");
    assert_eq!(check(&file(1, &huge, &[0; 4])), "not a .npy file: its shape has too many elements");
    assert!(read(&file(1, &header("'<f4'", "False", "(-1,)"), &[])).is_err());
    let whole = file(1, &good, &[0; 4]);
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_err(), "cut at {length}");
    }
    assert_eq!(write(&Tensor::from_byte_strings([1], &["a"]).unwrap()), None);
}
