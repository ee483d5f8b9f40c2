use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bascule_serving::{DeviceMemory, ErrorCode, ModelSettings, ModelStatus, RegistryPart, Status, VersionStatus};
use chrono::{DateTime, TimeDelta};
use metrics::with_local_recorder;

use super::*;
use crate::sandbox;

/// Registers what a version records to, and records once.
fn serve(metrics: &Metrics, model: &str, version: u64) -> Counter {
    with_local_recorder(metrics, || {
        let labels = [("model", model.to_owned()), ("version", version.to_string())];
        metrics::histogram!("bascule_load_seconds", &labels).record(0.3);
        let requests = metrics::counter!("bascule_requests_total", &labels);
        requests.increment(1);
        requests
    })
}

fn series_of(text: &str, model: &str, version: u64) -> usize {
    let labels = format!("model=\"{model}\",version=\"{version}\"");
    text.lines().filter(|line| line.contains(&labels)).count()
}

#[test]
fn the_text_is_what_prometheus_reads() {
    let metrics = Metrics::new();
    with_local_recorder(&metrics, || {
        metrics::describe_counter!("swaps_total", Unit::Count, "Swaps \\ by\nmodel.");
        metrics::describe_histogram!("wait_seconds", Unit::Seconds, "Waiting.");
        metrics::describe_gauge!("never_set", "Not shown.");
        metrics::counter!("swaps_total", "model" => "b").increment(2);
        metrics::counter!("swaps_total", "model" => "a \"q\" \\ \n").increment(1);
        metrics::gauge!("depth").set(1.5);
        metrics::gauge!("depth").decrement(0.25);
        let wait = metrics::histogram!("wait_seconds");
        for seconds in [0.0001, 0.00011, 0.02, 31.0, f64::NAN] {
            wait.record(seconds);
        }
        metrics::histogram!("rows", "model" => "a").record(3.0);
    });
    let computed =
        [Family::gauge("build_info", "The build.").with(&[("version", "1")], f64::INFINITY), Family::gauge("empty", "No series.")];
    let expected = r#"# HELP build_info The build.
# TYPE build_info gauge
build_info{version="1"} +Inf
# TYPE depth gauge
depth 1.25
# TYPE rows histogram
rows_bucket{model="a",le="1"} 0
rows_bucket{model="a",le="2"} 0
rows_bucket{model="a",le="4"} 1
rows_bucket{model="a",le="8"} 1
rows_bucket{model="a",le="16"} 1
rows_bucket{model="a",le="32"} 1
rows_bucket{model="a",le="64"} 1
rows_bucket{model="a",le="128"} 1
rows_bucket{model="a",le="256"} 1
rows_bucket{model="a",le="+Inf"} 1
rows_sum{model="a"} 3
rows_count{model="a"} 1
# HELP swaps_total Swaps \\ by\nmodel.
# TYPE swaps_total counter
swaps_total{model="a \"q\" \\ \n"} 1
swaps_total{model="b"} 2
# HELP wait_seconds Waiting.
# TYPE wait_seconds histogram
wait_seconds_bucket{le="0.0001"} 1
wait_seconds_bucket{le="0.00025"} 2
wait_seconds_bucket{le="0.0005"} 2
wait_seconds_bucket{le="0.001"} 2
wait_seconds_bucket{le="0.0025"} 2
wait_seconds_bucket{le="0.005"} 2
wait_seconds_bucket{le="0.01"} 2
wait_seconds_bucket{le="0.025"} 3
wait_seconds_bucket{le="0.05"} 3
wait_seconds_bucket{le="0.1"} 3
wait_seconds_bucket{le="0.25"} 3
wait_seconds_bucket{le="0.5"} 3
wait_seconds_bucket{le="1"} 3
wait_seconds_bucket{le="2.5"} 3
wait_seconds_bucket{le="5"} 3
wait_seconds_bucket{le="10"} 3
wait_seconds_bucket{le="30"} 3
wait_seconds_bucket{le="+Inf"} 4
wait_seconds_sum 31.02021
wait_seconds_count 4
"#;
    assert_eq!(metrics.render(&computed), expected);
}

#[test]
fn a_name_of_two_kinds_keeps_its_first() {
    let metrics = Metrics::new();
    with_local_recorder(&metrics, || {
        metrics::counter!("things", "a" => "1").increment(1);
        metrics::gauge!("things", "a" => "1").set(7.0);
        metrics::histogram!("things", "a" => "2").record(7.0);
    });
    assert_eq!(metrics.render(&[]), "# TYPE things counter\nthings{a=\"1\"} 1\nthings{a=\"2\"} 0\n");
}

#[test]
fn a_version_that_left_is_shown_three_more_times() {
    let metrics = Metrics::new();
    let kept = serve(&metrics, "m", 2);
    drop(serve(&metrics, "m", 1));
    metrics.retire("m", 1);
    for scrape in 0..RETIRED_SCRAPES {
        assert_ne!(series_of(&metrics.render(&[]), "m", 1), 0, "{scrape}");
    }
    let text = metrics.render(&[]);
    assert_eq!(series_of(&text, "m", 1), 0);
    assert_ne!(series_of(&text, "m", 2), 0);
    drop(kept);
}

#[test]
fn a_model_s_own_series_go_with_its_last_version() {
    let metrics = Metrics::new();
    with_local_recorder(&metrics, || metrics::counter!("bascule_swaps_total", "model" => "m").increment(2));
    let swaps = |metrics: &Metrics| metrics.render(&[]).contains("bascule_swaps_total{model=\"m\"} 2\n");
    let kept = serve(&metrics, "m", 2);
    drop(serve(&metrics, "m", 1));
    metrics.retire("m", 1);
    assert!((0..2 * RETIRED_SCRAPES).all(|_| swaps(&metrics)));
    drop(kept);
    metrics.retire("m", 2);
    assert!((0..RETIRED_SCRAPES).all(|_| swaps(&metrics)));
    assert!(!swaps(&metrics));
}

#[test]
fn a_version_that_left_goes_in_time_without_any_scrape() {
    let metrics = Metrics::new();
    let start = Instant::now();
    drop(serve(&metrics, "m", 1));
    metrics.retire_at("m", 1, start);
    metrics.retire_at("m", 2, start + RETIRED_TIME);
    assert_eq!(series_of(&metrics.render_at(&[], start + RETIRED_TIME), "m", 1), 0);
}

#[test]
fn a_version_that_came_back_keeps_its_count() {
    let metrics = Metrics::new();
    drop(serve(&metrics, "m", 1));
    metrics.retire("m", 1);
    let back = serve(&metrics, "m", 1);
    let shown = |metrics: &Metrics| metrics.render(&[]).contains("bascule_requests_total{model=\"m\",version=\"1\"} 2\n");
    assert!((0..5 * RETIRED_SCRAPES).all(|_| shown(&metrics)));
    drop(back);
    metrics.retire("m", 1);
    assert!((0..RETIRED_SCRAPES).all(|_| shown(&metrics)));
    assert!(!shown(&metrics));
}

#[test]
fn a_thousand_swaps_leave_a_bounded_number_of_series() {
    for scraped in [true, false] {
        let metrics = Metrics::new();
        let mut serving = serve(&metrics, "m", 1);
        let per_version = series_of(&metrics.render(&[]), "m", 1);
        for version in 2..=1_000 {
            serving = serve(&metrics, "m", version);
            metrics.retire("m", version - 1);
            if scraped {
                metrics.render(&[]);
            }
        }
        let text = metrics.render(&[]);
        let shown = text.lines().filter(|line| line.contains("version=")).count();
        let versions = if scraped { RETIRED_SCRAPES as usize } else { MAX_RETIRED };
        assert!(shown <= (versions + 1) * per_version, "{shown} series after 1000 swaps, scraped: {scraped}");
        assert_eq!(series_of(&text, "m", 1_000), per_version);
        serving.increment(1);
    }
}

/// What `promtool check metrics` objects to, and what makes a text unreadable.
fn faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut kinds = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            helped.insert(name.to_owned());
            if !help.ends_with('.') {
                faults.push(format!("{name}: the help is no sentence"));
            }
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name.to_owned(), kind.to_owned());
        } else {
            let series = line.rsplit_once(' ').unwrap().0;
            if !seen.insert(series.to_owned()) {
                faults.push(format!("{series} is there twice"));
            }
        }
    }
    for (name, kind) in &kinds {
        let unit = name.strip_suffix("_total").unwrap_or(name);
        let wrong_unit = ["_ms", "_us", "_ns", "_milliseconds", "_microseconds", "_minutes", "_kb", "_mb", "_percent"];
        for (wrong, what) in [
            (!helped.contains(name), "has no help"),
            ((kind == "counter") != name.ends_with("_total"), "counters end in _total and nothing else does"),
            (["_sum", "_count", "_bucket"].iter().any(|suffix| name.ends_with(suffix)), "has a histogram's suffix"),
            (wrong_unit.iter().any(|suffix| unit.ends_with(suffix)), "is not in base units"),
            (name.contains(kind.as_str()), "names its kind"),
        ] {
            if wrong {
                faults.push(format!("{name}: {what}"));
            }
        }
    }
    faults
}

fn version(number: u64, stage: &str, state: &str) -> VersionStatus {
    let mut version = VersionStatus::default();
    version.version = number;
    version.stage = stage.to_owned();
    version.state = state.to_owned();
    version
}

fn status() -> Status {
    let mut serving = version(2, "ready", "READY");
    serving.role = Some("stable".to_owned());
    serving.traffic_bp = 9_000;
    serving.queued = 3;
    serving.memory_bytes = Some(1000);
    serving.device = Some("cuda:0, cuda:1".to_owned());
    // Its content changes: the same number is there twice.
    let mut changing = version(2, "loading", "LOADING");
    changing.memory_bytes = Some(200);
    changing.memory_measured = true;
    let mut kept_out = version(3, "failed", "UNAVAILABLE");
    kept_out.failed_step = Some("quarantine".to_owned());
    let versions = vec![version(1, "unloaded", "UNAVAILABLE"), serving, changing, kept_out];
    let mut status = Status {
        models: vec![Arc::new(ModelStatus { name: "m".to_owned(), versions, ..ModelStatus::default() })],
        ready: true,
        ..Status::default()
    };
    status.registry.last_good_look = Some(DateTime::UNIX_EPOCH);
    status.registry.journal = Some(RegistryPart {
        last_good_look: Some(DateTime::UNIX_EPOCH),
        last_error: Some("gone".into()),
        ..RegistryPart::default()
    });
    status.memory.budget_bytes = Some(1 << 30);
    status.memory.devices =
        vec![DeviceMemory { device: "cuda:0".to_owned(), reserved_bytes: 10, free_bytes: Some(20), ..DeviceMemory::default() }];
    status
}

#[test]
fn gauges_are_read_from_the_status() {
    let now = DateTime::UNIX_EPOCH + TimeDelta::milliseconds(2500);
    let text = Metrics::new().render(&families(&status(), now));
    for line in [
        "bascule_ready 1",
        "bascule_models 1",
        "bascule_quarantined_versions 1",
        "bascule_memory_budget_bytes 1073741824",
        "bascule_registry_look_age_seconds 2.5",
        "bascule_registry_healthy 1",
        "bascule_journal_look_age_seconds 2.5",
        "bascule_journal_healthy 0",
        "bascule_device_memory_reserved_bytes{device=\"cuda:0\"} 10",
        "bascule_device_memory_free_bytes{device=\"cuda:0\"} 20",
        "bascule_version_device{model=\"m\",version=\"2\",device=\"cuda:1\"} 1",
        "bascule_queue_depth{model=\"m\",version=\"2\"} 3",
        "bascule_version_traffic_ratio{model=\"m\",version=\"2\"} 0.9",
        "bascule_version_memory_bytes{model=\"m\",version=\"2\",estimate=\"true\"} 1200",
        "bascule_version_state{model=\"m\",version=\"2\",state=\"READY\"} 1",
        "bascule_version_state{model=\"m\",version=\"2\",state=\"LOADING\"} 0",
        "bascule_version_state{model=\"m\",version=\"3\",state=\"UNAVAILABLE\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("version=\"1\""), "what was unloaded has no series");
    assert_eq!(faults(&text), Vec::<String>::new());
}

#[test]
fn every_name_of_the_gateway_keeps_prometheus_rules() {
    let metrics = Metrics::new();
    let recorded = with_local_recorder(&metrics, || {
        bascule_serving::meters::describe();
        crate::grpc::meters::describe();
        crate::http::meters::describe();
        let servable = sandbox::servable("m", 1, &sandbox::constant(1.0), ModelSettings::default(), "fake");
        (crate::grpc::meters::Meters::new(), servable)
    });
    let described = metrics.store.read().unwrap().described();
    assert!(described.len() > 10, "{described:?}");
    for (name, kind) in described {
        metrics.series(&Key::from_name(name), kind);
    }
    let text = metrics.render(&families(&status(), DateTime::UNIX_EPOCH));
    assert_eq!(faults(&text), Vec::<String>::new());
    let outcomes = text.lines().filter(|line| line.starts_with("bascule_requests_total{model")).count();
    assert_eq!(outcomes, ErrorCode::ALL.len() + 1);
    drop(recorded);
}
