//! A run under way, who waits for it, and the ways to stop it.
//!
//! Invariant: once a flight is stopped its run ends soon, whether it had begun or not. The flag is set before the session is
//! interrupted, and a session looks at the flag once interrupts reach it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bascule_runtime_api::Interrupt;

/// One run of a session.
pub(crate) struct Flight {
    /// Taken away when the run ends, so that whoever is late can't stop the next one.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    /// Callers that still want the answer.
    waiting: AtomicUsize,
    stopped: AtomicBool,
}

impl Flight {
    pub(crate) fn new(interrupt: Option<Arc<dyn Interrupt>>, callers: usize) -> Flight {
        Flight { interrupt: Mutex::new(interrupt), waiting: callers.into(), stopped: AtomicBool::new(false) }
    }

    /// Stops the run, or keeps it from beginning.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(interrupt) = &*self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupt.interrupt();
        }
    }

    /// Whether somebody stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// What the run is to look at when it begins.
    pub(crate) fn cancelled(&self) -> &AtomicBool {
        &self.stopped
    }

    /// The run is over.
    pub(crate) fn end(&self) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A caller went away; the last one stops the run.
    fn abandon(&self) {
        if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.stop();
        }
    }
}

/// The part of a queued request that its caller keeps a hand on.
#[derive(Default)]
pub(crate) struct Ticket {
    taken: AtomicBool,
    run: Mutex<Boarding>,
}

#[derive(Default)]
enum Boarding {
    #[default]
    Waiting,
    /// In this run.
    Aboard(Arc<Flight>),
    /// The caller went away.
    Gone,
}

impl Ticket {
    /// Whether an instance has taken the request out of the queue.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    /// An instance has taken the request out of the queue.
    pub(crate) fn take(&self) {
        self.taken.store(true, Ordering::Release);
    }

    /// The request is part of this run, and of no earlier one any more.
    pub(crate) fn board(&self, flight: &Arc<Flight>) {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*run, Boarding::Gone) {
            flight.abandon();
        } else {
            *run = Boarding::Aboard(Arc::clone(flight));
        }
    }

    /// The caller went away.
    pub(crate) fn abandon(&self) {
        let before = std::mem::replace(&mut *self.run.lock().unwrap_or_else(PoisonError::into_inner), Boarding::Gone);
        if let Boarding::Aboard(flight) = before {
            flight.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Interrupts(AtomicUsize);

    impl Interrupt for Interrupts {
        fn interrupt(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_last_caller_to_leave_stops_the_run_also_before_it_began() {
        let interrupts = Arc::new(Interrupts::default());
        let flight = Arc::new(Flight::new(Some(interrupts.clone()), 3));
        let [early, first, last] = [Ticket::default(), Ticket::default(), Ticket::default()];
        early.abandon();
        for ticket in [&early, &first, &last] {
            ticket.board(&flight);
        }
        first.abandon();
        first.abandon();
        assert_eq!((flight.is_stopped(), interrupts.0.load(Ordering::SeqCst)), (false, 0), "one still waits");
        last.abandon();
        assert_eq!((flight.is_stopped(), interrupts.0.load(Ordering::SeqCst)), (true, 1));
    }

    #[test]
    fn whoever_leaves_after_the_end_interrupts_nothing() {
        let interrupts = Arc::new(Interrupts::default());
        let (flight, ticket) = (Arc::new(Flight::new(Some(interrupts.clone()), 1)), Ticket::default());
        ticket.board(&flight);
        flight.end();
        ticket.abandon();
        assert_eq!(interrupts.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_request_that_runs_again_leaves_its_first_run() {
        let (joined, alone) = (Arc::new(Flight::new(None, 2)), Arc::new(Flight::new(None, 1)));
        let ticket = Ticket::default();
        ticket.board(&joined);
        ticket.board(&alone);
        ticket.abandon();
        assert_eq!((joined.is_stopped(), alone.is_stopped()), (false, true));
    }
}
