//! A source of several parts, one of which has not been read yet.

use super::*;

fn half_read() -> Look {
    let mut listing = listing(false, []);
    listing.unread = true;
    Look::Listed(Box::new(listing))
}

#[test]
fn a_fresh_gateway_is_not_ready_before_all_of_its_source_was_read() {
    let mut bench = bench();
    bench.looked(half_read());
    bench.run();
    assert!(!bench.snapshot.readiness.is_ready(), "what is missing may be all that there is");
    bench.looked(Look::Unchanged);
    bench.run();
    assert!(!bench.snapshot.readiness.is_ready());
    bench.look_and_run();
    assert!(bench.snapshot.readiness.is_ready());
}

#[test]
fn what_served_before_a_restart_waits_for_no_part_of_its_source() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    bench.restart();
    bench.looked(half_read());
    bench.run();
    assert_eq!(bench.stages("m"), "1 ready*");
    assert!(bench.snapshot.readiness.is_ready());
}
