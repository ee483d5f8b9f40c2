use std::sync::Arc;

use super::*;
use crate::testing::{generation, name};

const NOW: Duration = Duration::from_secs(100);
const DRAIN_UNTIL: Duration = Duration::from_secs(9999);
const GPU: Device = Device::Cuda(0);

/// Residencies as text: number, then `=` for current, `!` for not, then the phase: `p`ending, `f`etching, `v`erifying, `v300` waiting for
/// 300 bytes, `l`oading, `r`eady, `d`raining, `x` failed and due, `x150` failed until second 150. A leading `*` says restored. Ids
/// count from 1; each one that is ready or draining has 100 bytes.
fn residencies(text: &str) -> Vec<ResidencyView> {
    let one = |(index, text): (usize, &str)| {
        let restored = text.starts_with('*');
        let text = text.trim_start_matches('*');
        let at = text.find(['=', '!']).unwrap();
        let (phase, number) = text[at + 1..].split_at(1);
        let phase = match phase {
            "p" => Phase::Pending,
            "f" => Phase::Fetching,
            "v" => Phase::Verifying { needs: needs(number) },
            "l" => Phase::Loading,
            "r" => Phase::Ready,
            "d" => Phase::Draining { until: DRAIN_UNTIL },
            "o" => Phase::Draining { until: NOW },
            "x" => Phase::Failed { retry_at: Duration::from_secs(number.parse().unwrap_or(100)) },
            other => panic!("phase {other}"),
        };
        ResidencyView {
            id: ResidencyId(index as u64 + 1),
            version: text[..at].parse().unwrap(),
            current: text.as_bytes()[at] == b'=',
            restored,
            reserved: DeviceBytes::main(if matches!(phase, Phase::Ready | Phase::Draining { .. }) { 100 } else { 0 }),
            phase,
        }
    };
    text.split_whitespace().enumerate().map(one).collect()
}

/// `300` of main memory, or `300+20` with 20 of a GPU.
fn needs(text: &str) -> Option<DeviceBytes> {
    let (main, gpu) = text.split_once('+').unwrap_or((text, "0"));
    let mut needs = DeviceBytes::main(main.parse().ok()?);
    needs.add(GPU, gpu.parse().ok()?);
    Some(needs)
}

/// What should be, as text: resident versions, then `s`, `n`, `c`, `f` and a number for stable, next, candidate, fallback.
fn aspired(text: &str) -> Aspired {
    let mut aspired = Aspired::default();
    for word in text.split_whitespace() {
        match word.split_at(1) {
            ("s", number) => aspired.stable = number.parse().ok(),
            ("n", number) => aspired.next = number.parse().ok(),
            ("c", number) => aspired.candidate = Some((number.parse().unwrap(), 1000)),
            ("f", number) => aspired.fallback = number.parse().ok(),
            _ => {
                let version = word.parse().unwrap();
                aspired.versions.insert(version, Arc::new(generation(&name("m"), version, "")));
            }
        }
    }
    aspired
}

fn shown(plan: &Plan) -> String {
    let action = |action: &Action| match action {
        Action::Begin { version } => format!("begin v{version}"),
        Action::Fetch { id } => format!("fetch {}", id.0),
        Action::Load { id, bytes } => format!("load {} of {}", id.0, bytes.to_string().replace(" bytes", "")),
        Action::Refuse { id, .. } => format!("refuse {}", id.0),
        Action::Unload { id } => format!("unload {}", id.0),
        Action::Abandon { id } => format!("abandon {}", id.0),
        Action::Evict { model } => format!("evict {model}"),
    };
    let mut words: Vec<String> = plan.actions.iter().map(action).collect();
    words.extend(plan.waits_for_slot.then(|| "wait for a slot".to_owned()));
    words.extend(plan.waits_for_memory.then(|| "wait for memory".to_owned()));
    words.extend(plan.wake_at.filter(|at| *at != DRAIN_UNTIL).map(|at| format!("wake at {}", at.as_secs())));
    words.join(", ")
}

struct World {
    transition: TransitionPolicy,
    budget: Budget,
    fetch_slots: usize,
    idle: Vec<Idle>,
    busy: DeviceBytes,
}

fn world() -> World {
    World {
        transition: TransitionPolicy::AvailabilityPreserving,
        budget: Budget::default(),
        fetch_slots: 1,
        idle: Vec::new(),
        busy: DeviceBytes::default(),
    }
}

fn check_in(world: &World, what: &str, aspire: &str, text: &str, expected: &str) {
    let (aspired, residencies) = (aspired(aspire), residencies(text));
    let view = ModelView { aspired: &aspired, transition: world.transition, residencies: &residencies };
    let means = Means { budget: &world.budget, fetch_slots: world.fetch_slots };
    let plan = plan(&view, &means, || Yielding { idle: world.idle.clone(), busy: world.busy.clone() }, NOW);
    assert_eq!(shown(&plan), expected, "{what}");
}

fn check(what: &str, aspire: &str, text: &str, expected: &str) {
    check_in(&world(), what, aspire, text, expected);
}

#[test]
fn one_version_after_another_comes_in() {
    check("nothing is there", "1 2 n2", "", "begin v1, begin v2");
    check("what should be stable first", "1 2 3 n2 c3", "1=p 2=p 3=p", "fetch 2");
    check("then the candidate", "1 2 3 n2 c1 s2", "1=p 2=r 3=p", "fetch 1");
    check("then the highest", "1 2 3 n2 s2", "1=p 2=r 3=p", "fetch 3");
    check("one at a time: fetching", "1 2 n2", "1=p 2=f", "");
    check("one at a time: verifying", "1 2 n2", "1=p 2=v", "");
    check("one at a time: loading", "1 2 n2", "1=p 2=l", "");
    check("one at a time: draining", "1 2 n2", "1=p 2=p 3!d", "");
    check("all of it is there", "1 2 n2 s2", "1=r 2=r", "");
}

#[test]
fn what_serves_leaves_only_after_its_successor_is_ready() {
    check("the new one comes first", "1 2 n2 s1 f1", "1=r 2=p", "fetch 2");
    check("nothing goes while it loads", "1 2 n2 s1 f1", "1=r 2=l", "");
    check("nothing goes while it fails", "1 2 n2 s1 f1", "1=r 2=x150", "wake at 150");
    check("then the old one goes", "2 n2 s2", "1!r 2=r", "unload 1");
    check("new content of the same number", "1 n1 s1", "1!r", "begin v1");
    check("and its old content until then", "1 n1 s1", "1!r 1=l", "");
    check("and after it", "1 n1 s1", "1!r 1=r", "unload 1");
    check("the other that is ready does not make up for stable", "1 2 n1 s1", "1!r 2=r 1=p", "fetch 3");
    check("what answers nobody goes at once, also during a load", "2 3 n3 s2 f2", "1!r 2=r 3=l", "unload 1");
    check("the lowest first, one at a time", "4 n4 s4", "1!r 2!r 4=r", "unload 1");
    check("one at a time", "4 n4 s4", "1!d 2!r 4=r", "");
    check("all at once where all goes", "", "1!r 2!r 3!d", "unload 1, unload 2");
    check("a load that can't be stopped is waited for", "", "1!l", "");
}

#[test]
fn where_memory_counts_more_the_old_one_leaves_first() {
    let world = World { transition: TransitionPolicy::ResourcePreserving, ..world() };
    check_in(&world, "the old one goes", "2 n2", "1!r", "begin v2, unload 1");
    check_in(&world, "nothing comes before it is gone", "2 n2", "1!d 2=p", "");
    check_in(&world, "then the new one comes", "2 n2", "2=p", "fetch 1");
    check_in(&world, "new content of the same number", "1 n1 s1", "1!r 1=p", "unload 1");
}

#[test]
fn failures_are_tried_again_and_hold_up_nobody() {
    check("not before its time", "1 n1", "1=x101", "wake at 101");
    check("in its time", "1 n1", "1=x100", "fetch 1");
    check("the earliest of several", "1 2 n2", "1=x120 2=x110", "wake at 110");
    check("another goes meanwhile", "1 2 n2", "1=p 2=x110", "fetch 1, wake at 110");
    check("what never failed goes before what did", "1 2 n2", "1=p 2=x90", "fetch 1");
    check("for ever, while aspired", "", "1!x90", "abandon 1");
}

#[test]
fn what_is_no_longer_wanted_is_given_up_where_it_can_be() {
    check("pending, fetching, verifying, failed", "9 n9", "1!p 2!f 3!v 4!x150 9=r", "abandon 1, abandon 2, abandon 3, abandon 4");
    check("and its place is taken at once", "2 n2", "1!f 2=p", "abandon 1, fetch 2");
    check("new content while the old is fetched", "1 n1", "1!f", "abandon 1, begin v1");
}

#[test]
fn after_a_restart_what_served_comes_first() {
    check("before its successor", "1 2 n2 f1", "1=p 2=p", "fetch 1");
    check("but not once it failed", "1 2 n2 f1", "1=x90 2=p", "fetch 2");
    check("also where its content has changed since", "1 n1 f1", "*1!p 1=p", "fetch 1");
    check("it is not given up", "1 n1 f1", "*1!f 1=p", "");
    check("unless something answers by now", "1 2 n2 s2", "*1!f 2=r 1=p", "abandon 1, fetch 3");
    check("or nothing is wanted", "", "*1!f", "abandon 1");
}

#[test]
fn fetches_wait_for_their_slot() {
    let world = World { fetch_slots: 0, ..world() };
    check_in(&world, "none is free", "1 n1", "1=p", "wait for a slot");
    check_in(&world, "none is needed", "1 n1 s1", "1=r", "");
}

fn budget(devices: &[(Device, u64, u64, u64)]) -> Budget {
    let mut budget = Budget::default();
    budget.limit(&devices.iter().map(|(device, limit, _, _)| (*device, *limit)).collect());
    let bytes = |device, bytes| {
        let mut all = DeviceBytes::default();
        all.add(device, bytes);
        all
    };
    for (device, _, reserved, freeing) in devices {
        budget.reserve(&bytes(*device, *reserved));
        budget.expect_back(&bytes(*device, *freeing));
    }
    budget
}

fn with_budget(limit: u64, reserved: u64, freeing: u64) -> World {
    World { budget: budget(&[(Device::Cpu, limit, reserved, freeing)]), ..world() }
}

fn idle(model: &str, last_use: u64, reserved_bytes: u64) -> Idle {
    Idle { model: name(model), last_use, reserved: DeviceBytes::main(reserved_bytes) }
}

#[test]
fn memory_is_there_before_sessions_are_made() {
    check("no limit", "1 n1", "1=v300", "load 1 of 300");
    check_in(&with_budget(300, 0, 0), "just enough", "1 n1", "1=v300", "load 1 of 300");
    check_in(&with_budget(300, 1, 0), "not enough, ever", "1 n1", "1=v300", "refuse 1");
    check_in(&with_budget(300, 300, 300), "enough once a drain ends", "1 n1", "1=v300", "wait for memory");
    check_in(&with_budget(300, 300, 299), "a drain gives too little", "1 n1", "1=v300", "refuse 1");
    check_in(&with_budget(300, 100, 0), "enough once the old one is gone", "2 n2", "1!r 2=v300", "unload 1, wait for memory");
    check_in(&with_budget(300, 100, 0), "what serves does not go for it", "1 2 n2 s1 f1", "1=r 2=v300", "refuse 2");
}

#[test]
fn idle_models_give_way_least_recently_used_first() {
    let world = |limit, idle| World { idle, ..with_budget(limit, 300, 0) };
    let three = || vec![idle("a", 9, 100), idle("b", 2, 100), idle("c", 2, 100)];
    check_in(&world(300, three()), "one is enough", "1 n1", "1=v100", "evict b, wait for memory");
    check_in(&world(300, three()), "two are", "1 n1", "1=v200", "evict b, evict c, wait for memory");
    check_in(&world(300, three()), "nobody goes for nothing", "1 n1", "1=v301", "refuse 1");
    check_in(&world(400, three()), "nobody goes where there is room", "1 n1", "1=v100", "load 1 of 100");
    check_in(&world(300, Vec::new()), "nobody is idle", "1 n1", "1=v100", "refuse 1");
}

#[test]
fn what_others_use_now_is_waited_for() {
    let world = |busy| World { busy: DeviceBytes::main(busy), idle: vec![idle("a", 9, 100)], ..with_budget(300, 300, 0) };
    let waits = "wait for memory, wake at 100";
    check_in(&world(200), "all of it is enough", "1 n1", "1=v300", waits);
    check_in(&world(200), "nobody goes before there is enough", "1 n1", "1=v200", waits);
    check_in(&world(200), "unless it is enough", "1 n1", "1=v100", "evict a, wait for memory");
    check_in(&world(150), "and what is never enough is refused", "1 n1", "1=v300", "refuse 1");
    check_in(&world(500), "as is what exceeds the budget", "1 n1", "1=v301", "refuse 1");
}

#[test]
fn every_device_has_a_budget_of_its_own() {
    let world = |main, gpu| World { budget: budget(&[(Device::Cpu, 300, main, 0), (GPU, 50, gpu, 0)]), ..world() };
    check_in(&world(0, 0), "both have room", "1 n1", "1=v300+50", "load 1 of 300 and 50 of cuda:0");
    check_in(&world(0, 1), "the gpu has none", "1 n1", "1=v300+50", "refuse 1");
    check_in(&world(1, 0), "main memory has none", "1 n1", "1=v300+50", "refuse 1");
    check_in(&world(0, 50), "a full gpu is nothing to who does not use it", "1 n1", "1=v300", "load 1 of 300");
    let on_gpu = |model: &str, last_use| {
        let mut idle = idle(model, last_use, 10);
        idle.reserved.add(GPU, 30);
        idle
    };
    let crowded = World { idle: vec![idle("a", 1, 200), on_gpu("b", 2), on_gpu("c", 3)], ..world(0, 50) };
    check_in(&crowded, "only who has memory there gives way", "1 n1", "1=v10+20", "evict b, wait for memory");
    check_in(&crowded, "as many as it takes", "1 n1", "1=v10+40", "evict b, evict c, wait for memory");
    let (aspired, residencies) = (aspired("1 n1"), residencies("1=v10+20"));
    let view = ModelView { aspired: &aspired, transition: TransitionPolicy::AvailabilityPreserving, residencies: &residencies };
    let budget = world(0, 45).budget;
    let plan = plan(&view, &Means { budget: &budget, fetch_slots: 1 }, Yielding::default, NOW);
    let [Action::Refuse { cause, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
    let expected = "it needs 20 bytes by estimate, and of the memory budget of 50 bytes for cuda:0 45 are reserved: 5 are left";
    assert_eq!(cause, expected);
}

#[test]
fn a_drain_that_does_not_end_holds_up_nothing() {
    check("in its time", "2 n2", "1!d 2=p", "");
    check("overdue", "2 n2", "1!o 2=p", "fetch 2");
    check("of a version that is wanted again", "1 n1", "1=o", "begin v1");
}

#[test]
fn a_refusal_shows_its_arithmetic() {
    let (aspired, residencies) = (aspired("1 n1"), residencies("1=v300"));
    let view = ModelView { aspired: &aspired, transition: TransitionPolicy::AvailabilityPreserving, residencies: &residencies };
    let means = Means { budget: &with_budget(1000, 800, 0).budget, fetch_slots: 1 };
    let plan = plan(&view, &means, Yielding::default, NOW);
    let [Action::Refuse { cause, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
    assert_eq!(cause, "it needs 300 bytes by estimate, and of the memory budget of 1000 bytes 800 are reserved: 200 are left");
}

fn choice(aspire: &str, text: &str, transition: TransitionPolicy) -> String {
    let choice = choose(&aspired(aspire), transition, &residencies(text));
    let id = |id: Option<ResidencyId>| id.map_or("-".to_owned(), |id| id.0.to_string());
    let others: Vec<String> = choice.others.iter().map(|id| id.0.to_string()).collect();
    format!("{} {} [{}]", id(choice.stable), id(choice.candidate.map(|(id, _)| id)), others.join(" "))
}

#[test]
fn the_table_names_one_residency_a_version() {
    use TransitionPolicy::{AvailabilityPreserving as Available, ResourcePreserving as Frugal};
    assert_eq!(choice("1 2 3 s2 c3", "1=r 2=r 3=r", Available), "2 3 [1]");
    assert_eq!(choice("1 2 3 s2 c3", "1=l 2=r 3=x1", Available), "2 - []");
    assert_eq!(choice("1 s1", "1!r 1=r", Available), "2 - []", "new content goes before old");
    assert_eq!(choice("1 s1", "1!r 1=l", Available), "1 - []", "old content until the new is ready");
    assert_eq!(choice("1 s1", "1!r 1=l", Frugal), "- - []", "unless memory counts more");
    assert_eq!(choice("1 2 s2", "1=d 2=r 3!r", Available), "2 - []", "nothing that drains or is not wanted");
    assert_eq!(choice("1 2 s1 c1", "1=r 2=r", Available), "1 - [2]", "stable is not its own candidate");
    assert_eq!(choice("", "1!r", Available), "- - []");
}
