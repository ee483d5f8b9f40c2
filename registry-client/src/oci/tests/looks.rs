//! What is listed, and with how many requests.

use super::fake::{Answer, Request};
use super::*;
use crate::digest::Digest;

/// How many requests there were, by method.
fn count(fake: &Fake) -> (usize, usize) {
    let asked = fake.asked();
    let with = |method: &str| asked.iter().filter(|request| request.method == method).count();
    (with("GET"), with("HEAD"))
}

#[tokio::test]
async fn a_look_that_finds_nothing_new_is_few_requests() {
    let fake = Fake::start().await;
    for version in 1..=300 {
        fake.push("team/digits", &version.to_string(), &[("model.onnx", version.to_string().as_bytes())]);
    }
    fake.tag("team/digits", "299", "champion");
    fake.tag("team/digits", "300", "challenger");
    let (registry, clock) = open(&fake.place("team/digits"));
    let first = list(&registry).await;
    let digits = &first.models[&name("digits")];
    assert!(first.complete && digits.problems.is_empty() && digits.versions.len() == 300, "{:?}", digits.problems);
    let aliases: Vec<_> = digits.aliases.iter().map(|(alias, version)| (alias.as_str(), *version)).collect();
    assert_eq!(aliases, [("challenger", 300), ("champion", 299)]);
    assert_eq!(count(&fake), (302, 2), "the lists and each manifest, and the aliases");
    assert!(registry.list(Some(&first.cursor)).await.unwrap().is_none());
    assert_eq!(count(&fake), (2, 2), "the lists of repositories and tags, and the aliases");
    clock.advance(REPAIR_INTERVAL);
    assert!(registry.list(Some(&first.cursor)).await.unwrap().is_none());
    assert_eq!(count(&fake), (2, 302), "at the repair interval each tag, and no manifest");
}

#[tokio::test]
async fn tags_that_move_are_followed_and_tags_that_go_are_gone() {
    let fake = Fake::start().await;
    fake.push("digits", "1", MODEL);
    fake.push("digits", "2", &[("model.onnx", b"the second")]);
    fake.tag("digits", "1", "champion");
    let (registry, clock) = open(&fake.place("digits"));
    let first = list(&registry).await;
    fake.tag("digits", "2", "champion");
    let moved = registry.list(Some(&first.cursor)).await.unwrap().expect("an alias has moved");
    assert_eq!(moved.models[&name("digits")].aliases["champion"], 2);

    let digest = fake.push("digits", "2", &[("model.onnx", b"the second, mended")]);
    clock.advance(REPAIR_INTERVAL);
    let changed = registry.list(Some(&moved.cursor)).await.unwrap().expect("a number has other content");
    let digits = &changed.models[&name("digits")];
    assert_eq!((digits.versions[&2].digest, digits.versions[&2].bytes), (digest, 18));
    assert!(digits.aliases.is_empty());
    let [problem] = &digits.problems[..] else { panic!("{:?}", digits.problems) };
    assert!(problem.contains("\"champion\"") && problem.contains("no numbered tag"), "{problem}");

    fake.change(|content| content.manifests.retain(|(_, tag), _| tag != "1"));
    let less = registry.list(Some(&changed.cursor)).await.unwrap().expect("a tag has gone");
    assert!(less.complete && less.models[&name("digits")].versions.keys().eq(&[2]));
}

#[tokio::test]
async fn repositories_below_are_models_too() {
    let fake = Fake::start().await;
    for repository in ["team/models", "team/models/digits", "team/models/deep/other", "team/models/deep/digits", "team/modelsx/y"] {
        fake.push(repository, "1", &[("model.onnx", repository.as_bytes())]);
    }
    let (registry, _) = open(&fake.place("team/models"));
    let listing = list(&registry).await;
    let names: Vec<_> = listing.models.keys().map(ModelName::as_str).collect();
    assert_eq!(names, ["digits", "models", "other"]);
    let [problem] = &listing.problems[..] else { panic!("{:?}", listing.problems) };
    assert!(problem.contains("team/models/deep/digits is ignored: team/models/digits is model digits"), "{problem}");
    let dest = tempfile::tempdir().unwrap();
    let other = &listing.models[&name("other")].versions[&1];
    registry.fetch(other, dest.path(), &crate::source::NoProgress).await.unwrap();
    assert_eq!(std::fs::read(dest.path().join("model.onnx")).unwrap(), b"team/models/deep/other");
}

#[tokio::test]
async fn a_registry_that_lists_no_repositories_is_asked_once_in_a_while() {
    let fake = Fake::start().await;
    fake.bend(|request| (request.path() == "/v2/_catalog").then(|| Answer::of(404, "page not found")));
    let (registry, clock) = open(&fake.place("team/digits"));
    let empty = list(&registry).await;
    assert!(empty.complete && empty.models.is_empty());
    assert!(empty.problems[0].contains("team/digits has no tags"), "{:?}", empty.problems);
    fake.push("team/digits", "1", MODEL);
    let listing = list(&registry).await;
    assert!(listing.complete && listing.problems.is_empty() && listing.models.len() == 1);
    let catalogs = |fake: &Fake| fake.asked().iter().filter(|request| request.path() == "/v2/_catalog").count();
    assert_eq!(catalogs(&fake), 1);
    clock.advance(REPAIR_INTERVAL);
    list(&registry).await;
    assert_eq!(catalogs(&fake), 1);
}

#[tokio::test]
async fn lists_are_followed_from_page_to_page_and_not_for_ever() {
    let fake = Fake::start().await;
    for version in 1..=5 {
        fake.push("digits", &version.to_string(), MODEL);
    }
    let address = fake.address;
    fake.bend(move |request| {
        let page = match request.target.strip_prefix("/v2/digits/tags/list?")? {
            "n=1000" => Answer::of(200, r#"{"tags":["1","2"]}"#).with("link", r#"</v2/digits/tags/list?last=2&n=2>; rel="next""#),
            "last=2&n=2" => Answer::of(200, r#"{"tags":["3","../../x","4"]}"#)
                .with("link", format!(r#"<http://{address}/v2/digits/tags/list?last=4&n=2>; rel="next""#)),
            // A list without an end.
            _ => Answer::of(200, r#"{"tags":["5"]}"#).with("link", r#"</v2/digits/tags/list?last=5&n=2>; rel="next""#),
        };
        Some(page)
    });
    let (registry, _) = open(&fake.place("digits"));
    let listing = list(&registry).await;
    assert!(listing.models[&name("digits")].versions.keys().eq(&[1, 2, 3, 4, 5]));
    assert_eq!(fake.asked().iter().filter(|request| request.path().ends_with("/tags/list")).count(), 4);
}

/// Registries choose how long their pages are: one name each, none where nobody may see what would be there.
#[tokio::test]
async fn a_catalog_with_a_page_for_every_name_is_followed() {
    const REPOSITORIES: usize = 1_200;
    let fake = Fake::start().await;
    let last = format!("models/m{:04}", REPOSITORIES - 1);
    fake.push(&last, "1", MODEL);
    fake.bend(|request| {
        let query = request.target.strip_prefix("/v2/_catalog?")?;
        let nth = query.strip_prefix("last=").map_or(0, |nth| nth.parse::<usize>().unwrap());
        // One page in a hundred is empty. Other repositories belong to others.
        let name = match nth {
            _ if nth % 100 == 50 => None,
            _ if nth + 1 == REPOSITORIES => Some(format!("models/m{nth:04}")),
            _ => Some(format!("others/m{nth:04}")),
        };
        let page = Answer::of(200, serde_json::json!({ "repositories": name.as_slice() }).to_string());
        let more = nth + 1 < REPOSITORIES;
        Some(if more { page.with("link", format!("</v2/_catalog?last={}>; rel=\"next\"", nth + 1)) } else { page })
    });
    let (registry, _) = open(&fake.place("models"));
    let listing = list(&registry).await;
    assert!(listing.complete && listing.problems.is_empty(), "{:?}", listing.problems);
    assert!(listing.models.keys().eq([&name("m1199")]), "{:?}", listing.models.keys());
    assert_eq!(fake.asked().iter().filter(|request| request.path() == "/v2/_catalog").count(), REPOSITORIES);
}

/// Which repositories there are is not known then: nothing may be taken for gone.
#[tokio::test]
async fn a_catalog_without_an_end_is_named_with_its_bound_and_takes_nothing_away() {
    let fake = Fake::start().await;
    fake.push("models", "1", MODEL);
    fake.push("models/digits", "1", MODEL);
    let endless = |request: &Request| {
        request.target.strip_prefix("/v2/_catalog?")?;
        let names: Vec<_> = (0..=100_000).map(|nth| format!("others/m{nth}")).collect();
        Some(Answer::of(200, serde_json::json!({ "repositories": names }).to_string()))
    };
    let catalogs = |fake: &Fake| fake.asked().iter().filter(|request| request.path() == "/v2/_catalog").count();
    fake.bend(endless);
    let (registry, clock) = open(&fake.place("models"));
    let first = list(&registry).await;
    assert!(first.models.keys().eq([&name("models")]), "it is known without the list");
    assert!(!first.complete, "models/digits was not seen, and is there");
    let problem = &first.problems[0];
    assert!(problem.contains("the list of repositories") && problem.contains("more than 100000 names"), "{problem}");
    assert!(!list(&registry).await.complete);
    assert_eq!(catalogs(&fake), 1, "it takes long: not at every look");

    fake.straighten();
    clock.advance(REPAIR_INTERVAL);
    let known = list(&registry).await;
    assert!(known.complete && known.problems.is_empty() && known.models.len() == 2, "{:?}", known.problems);

    // One page that is too large is no other case.
    fake.bend(|request| (request.path() == "/v2/_catalog").then(|| Answer::of(200, vec![b' '; (4 << 20) + 1])));
    let kept = list(&registry).await;
    assert!(!kept.complete && kept.models == known.models, "{:?}", kept.problems);
    assert!(kept.problems[0].contains("more than 4194304 bytes"), "{:?}", kept.problems);
}

/// The same where it is the first that is asked for.
#[tokio::test]
async fn a_catalog_in_one_page_that_is_too_large_takes_nothing_away() {
    let fake = Fake::start().await;
    fake.push("models/digits", "1", MODEL);
    fake.bend(|request| (request.path() == "/v2/_catalog").then(|| Answer::of(200, vec![b' '; (4 << 20) + 1])));
    let (registry, _) = open(&fake.place("models"));
    let first = list(&registry).await;
    assert!(!first.complete && first.models.is_empty());
    assert!(first.problems[0].contains("more than 4194304 bytes"), "{:?}", first.problems);
}

#[tokio::test]
async fn a_repository_that_can_not_be_read_stays_as_it_was() {
    let fake = Fake::start().await;
    fake.push("models/digits", "1", MODEL);
    fake.push("models/other", "1", MODEL);
    let (registry, _) = open(&fake.place("models"));
    let before = list(&registry).await;
    assert_eq!(before.models.len(), 2);
    fake.push("models/other", "2", MODEL);
    fake.bend(|request| request.path().contains("/digits/").then(|| Answer::of(500, "")));
    let half = registry.list(Some(&before.cursor)).await.unwrap().expect("a version is new");
    assert!(!half.complete);
    assert_eq!(half.models[&name("digits")], before.models[&name("digits")]);
    assert_eq!(half.models[&name("other")].versions.len(), 2);
    assert!(half.problems[0].contains("models/digits") && half.problems[0].contains("500"), "{:?}", half.problems);

    fake.bend(|_| Some(Answer::of(500, r#"{"errors":[{"code":"UNKNOWN","message":"disk is gone"}]}"#)));
    let error = registry.list(Some(&half.cursor)).await.unwrap_err();
    assert!(whole(&error).contains("disk is gone"), "{}", whole(&error));
    fake.straighten();
    let after = list(&registry).await;
    assert!(after.complete && after.problems.is_empty() && after.models[&name("digits")] == before.models[&name("digits")]);
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_not_asked_for_each_of_many_models() {
    let fake = Fake::start().await;
    fake.push("models", "1", MODEL);
    for nth in 0..40 {
        fake.push(&format!("models/m{nth}"), "1", MODEL);
    }
    let (registry, _) = open(&fake.place("models"));
    let before = list(&registry).await;
    fake.asked();
    fake.bend(|request| request.path().starts_with("/v2/models/m").then(|| Answer::of(500, "")));
    let kept = list(&registry).await;
    assert!(!kept.complete && kept.models == before.models, "all stay as they were");
    let asked = fake.asked().len();
    assert!(asked <= 2 + 8 + 3, "the lists, the limit, and what was under way: {asked}");
    fake.straighten();
    assert!(list(&registry).await.complete);
}

#[tokio::test]
async fn versions_that_break_a_rule_are_named_and_the_others_count() {
    let fake = Fake::start().await;
    fake.push("digits", "1", MODEL);
    fake.push("digits", "2", &[("../model.onnx", b"x")]);
    fake.push("digits", "3", MODEL);
    fake.change(|content| {
        let big = vec![b' '; (4 << 20) + 1];
        content.manifests.insert(("digits".into(), "4".into()), big);
        content.manifests.insert(("digits".into(), "5".into()), b"<html>".to_vec());
    });
    // The bytes of the third are not those that its digest names.
    let lie = format!("sha256:{}", Digest::of(b"another"));
    fake.bend(move |request| {
        let lies = request.path() == "/v2/digits/manifests/3";
        lies.then(|| Answer::of(200, "{}").with("docker-content-digest", lie.clone()))
    });
    let (registry, _) = open(&fake.place("digits"));
    let listing = list(&registry).await;
    let digits = &listing.models[&name("digits")];
    assert!(digits.versions.keys().eq(&[1]));
    for part in [
        "version 2 is left out: its layer 0 can't be used: file path",
        "version 3: ",
        "whose sha256 is",
        "version 4: ",
        "more than 4194304 bytes",
        "version 5 is left out: its OCI manifest is not valid",
    ] {
        assert!(digits.problems.iter().any(|problem| problem.contains(part)), "{part}: {:?}", digits.problems);
    }
    assert!(!listing.complete, "what could not be read may be there the next time");
}
