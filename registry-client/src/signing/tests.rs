use super::*;

/// The first key of RFC 8032, section 7.1, and what OpenSSL signs with it.
const SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
const PUBLIC: &str = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
const SIGNATURE: &str = "1C0yAAqNQwkEBxINorUAFvVkr6t4HRBQQGdrV4RW7JcrkpF2D3y1dfn7CMVK49NYw0CmkTE3jEM9FXuJiAFBAg==";

fn known() -> SecretKey {
    SecretKey::parse_file(&format!("# a comment\n\n ed25519-secret:{SEED} \n")).unwrap()
}

#[test]
fn a_signature_is_that_of_another_implementation() {
    let manifest = Digest::of(b"a manifest");
    let signed = known().sign(&manifest);
    assert_eq!((signed.key.as_str(), signed.signature.as_str()), (PUBLIC, SIGNATURE));
    let key: PublicKey = PUBLIC.parse().unwrap();
    assert_eq!(key.id(), "21fe31dfa154a261");
    assert!(key.verifies(&manifest, SIGNATURE));
    assert!(!key.verifies(&Digest::of(b"another"), SIGNATURE));
    assert!(!SecretKey::generate().unwrap().public().verifies(&manifest, SIGNATURE));
    for at in [0, 5, 43, 50, 85] {
        let mut altered = SIGNATURE.to_owned().into_bytes();
        altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
        assert!(!key.verifies(&manifest, std::str::from_utf8(&altered).unwrap()), "{at}");
    }
    for wrong in ["", "AAAA", SEED, &SIGNATURE[..80], &format!("{SIGNATURE}{SIGNATURE}"), &format!("{SIGNATURE}\n"), "é"] {
        assert!(!key.verifies(&manifest, wrong), "{wrong}");
    }
}

#[test]
fn keys_are_written_and_read_and_no_error_shows_a_private_one() {
    let (secret, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    assert_ne!(secret.public(), other.public());
    let text = secret.to_file();
    assert_eq!(SecretKey::parse_file(&text).unwrap().public(), secret.public());
    let both = secret.public().to_file() + &other.public().to_file();
    assert_eq!(PublicKey::parse_file(&both).unwrap(), [secret.public(), other.public()]);
    assert!(!format!("{secret:?}").contains(text.lines().last().unwrap().trim_start_matches("ed25519-secret:")));
    assert_eq!(SecretKey::parse_file(PUBLIC).unwrap_err(), KeyError::IsPublic);
    for wrong in ["", "# only this", "ed25519-secret:", "ed25519-secret:AAAA", SEED, &format!("{}{}", text.as_str(), text.as_str())]
    {
        let error = SecretKey::parse_file(wrong).unwrap_err();
        assert!(error == KeyError::Secret && !error.to_string().contains(SEED), "{wrong}");
    }
    let secret_line = format!("ed25519-secret:{SEED}");
    assert_eq!(secret_line.parse::<PublicKey>(), Err(KeyError::IsSecret));
    assert!(PublicKey::parse_file("# nothing\n").is_err());
    // The neutral element, with which one signature fits every message.
    let weak = "ed25519:AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    assert!(matches!(weak.parse::<PublicKey>(), Err(KeyError::Weak { .. })));
    for wrong in ["", "ed25519:", &PUBLIC[8..], &PUBLIC.replace('=', ""), &format!("{PUBLIC}="), &PUBLIC.to_uppercase()] {
        assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
    }
}

#[test]
fn stored_signatures_are_read_strictly_enough() {
    let signature = known().sign(&Digest::of(b"a manifest"));
    let stored = serde_json::to_value(StoredSignature::new(signature.clone())).unwrap();
    assert_eq!(stored, serde_json::json!({"schema": 1, "key": PUBLIC, "signature": SIGNATURE}));
    assert_eq!(StoredSignature::parse(stored.to_string().as_bytes()), Ok(signature));
    let newer = serde_json::json!({"schema": 2, "key": PUBLIC, "signature": SIGNATURE}).to_string();
    assert!(StoredSignature::parse(newer.as_bytes()).unwrap_err().contains("schema 2"));
    assert!(StoredSignature::parse(b"{}").is_err() && StoredSignature::parse(b"\xff").is_err());
}
