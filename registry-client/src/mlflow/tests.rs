//! Against a server that does what a test tells it: what only a server that misbehaves can show.

mod answers;
mod fake;
mod reading;
mod telling;

use super::*;
use crate::listing::ListedModel;
use crate::name::ModelName;

#[test]
fn places() {
    let check = |place: &str, expected: Result<&str, &str>| match (parse(place), expected) {
        (Ok(url), Ok(expected)) => assert_eq!(url.as_str(), expected, "{place}"),
        (Err(error), Err(part)) => {
            let text = error.to_string();
            assert!(text.contains(part) && !text.contains("hunter2"), "{place}: {text}");
        }
        (outcome, _) => panic!("{place}: {outcome:?}"),
    };
    check("mlflow+http://127.0.0.1:5000", Ok("http://127.0.0.1:5000/"));
    check("MLflow+https://host.example/team/mlflow/", Ok("https://host.example/team/mlflow/"));
    check("http://127.0.0.1:5000", Err("is no URL of one"));
    check("mlflow+", Err("is no URL of one"));
    check("mlflow+ftp://host", Err("is at no host"));
    check("mlflow+http://ann:hunter2@host", Err("credentials in it"));
    check("mlflow+http://host?token=hunter2", Err("has a query"));
    assert!(MlflowSource::is_at("mlflow+http://x") && !MlflowSource::is_at("s3://x") && !MlflowSource::is_at("ml"));
}

#[test]
fn credentials_are_never_shown() {
    for (credentials, header) in [
        (MlflowCredentials::None, None),
        (MlflowCredentials::Token("hunter2".into()), Some("Bearer hunter2")),
        (MlflowCredentials::Basic { username: "ann".into(), password: "hunter2".into() }, Some("Basic YW5uOmh1bnRlcjI=")),
    ] {
        let sent = credentials.header().unwrap();
        assert_eq!(sent.as_ref().map(|sent| sent.to_str().unwrap()), header);
        for text in [format!("{credentials:?}"), format!("{sent:?}")] {
            assert!(!text.contains("hunter2") && !text.contains("YW5u"), "{text}");
        }
    }
    let broken = MlflowCredentials::Token("hunter2\n".into());
    let options = MlflowOptions { credentials: broken, ..MlflowOptions::default() };
    let error = MlflowSource::new("mlflow+http://127.0.0.1:1", options).err().unwrap().to_string();
    assert!(error.contains("can't be sent") && !error.contains("hunter2"), "{error}");
}

fn model_of<'a>(listing: &'a Listing, name: &str) -> &'a ListedModel {
    let name = ModelName::new(name).unwrap();
    listing.models.get(&name).unwrap_or_else(|| panic!("{name} is not listed: {listing:?}"))
}
