//! Stops runs that hold the thread of their caller for too long.
//!
//! One thread of the process looks every few milliseconds at what runs inline. A run is told of by writing to a place that belongs
//! to its own thread, so callers share no lock, and nobody is woken while the watchdog is awake; it sleeps once nothing has run
//! inline for a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::flight::Flight;

/// From one look to the next: a run is stopped at most this much late.
const INTERVAL: Duration = Duration::from_millis(2);

/// Looks in a row that find no new run before the watchdog sleeps.
const IDLE_LOOKS: u32 = 100;

/// `None` where its thread could not be started.
static WATCHDOG: LazyLock<Option<Arc<Watchdog>>> = LazyLock::new(Watchdog::start);

thread_local! {
    static SEAT: Arc<Seat> = Seat::of_this_thread();
}

/// What one thread runs inline.
#[derive(Default)]
struct Seat(Mutex<Seated>);

#[derive(Default)]
struct Seated {
    run: Option<(Instant, Arc<Flight>)>,
    /// Runs so far.
    runs: u64,
}

/// A run of this thread that is watched until this is dropped.
pub(crate) struct Watched(Arc<Seat>);

/// Has the run that this thread is about to make stopped at `due`; `None` where nothing can watch it.
pub(crate) fn watch(due: Instant, flight: &Arc<Flight>) -> Option<Watched> {
    let watchdog = WATCHDOG.as_ref()?;
    let seat = SEAT.with(Arc::clone);
    {
        let mut seated = seat.lock();
        seated.run = Some((due, Arc::clone(flight)));
        seated.runs += 1;
    }
    // The watchdog says that it sleeps before it looks at the seats for the last time: it has seen this run, or this sees it asleep.
    if watchdog.asleep.load(Ordering::SeqCst) {
        watchdog.wake_up();
    }
    Some(Watched(seat))
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.lock().run = None;
    }
}

impl Seat {
    fn of_this_thread() -> Arc<Seat> {
        let seat = Arc::default();
        if let Some(watchdog) = WATCHDOG.as_ref() {
            watchdog.seats().push(Arc::downgrade(&seat));
        }
        seat
    }

    fn lock(&self) -> MutexGuard<'_, Seated> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Watchdog {
    /// One a thread that has run inline and is alive.
    seats: Mutex<Vec<Weak<Seat>>>,
    asleep: AtomicBool,
    wake: Condvar,
}

/// What a look found.
struct Look {
    runs: u64,
    somebody_runs: bool,
}

impl Watchdog {
    fn start() -> Option<Arc<Watchdog>> {
        let watchdog = Arc::new(Watchdog::default());
        let watching = Arc::clone(&watchdog);
        match thread::Builder::new().name("inline watchdog".to_owned()).spawn(move || watching.patrol()) {
            Ok(_) => Some(watchdog),
            Err(error) => {
                tracing::error!(%error, "no request runs on the thread that brought it: cannot start the thread that watches such runs");
                None
            }
        }
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Weak<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_up(&self) {
        let _seats = self.seats();
        self.asleep.store(false, Ordering::SeqCst);
        self.wake.notify_one();
    }

    fn patrol(&self) {
        let (mut runs, mut idle_looks) = (0, 0);
        let mut seats = self.seats();
        loop {
            if idle_looks < IDLE_LOOKS {
                seats = self.wake.wait_timeout(seats, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
            } else {
                self.asleep.store(true, Ordering::SeqCst);
                if !look(&mut seats).somebody_runs {
                    let asleep = |_: &mut Vec<Weak<Seat>>| self.asleep.load(Ordering::SeqCst);
                    seats = self.wake.wait_while(seats, asleep).unwrap_or_else(PoisonError::into_inner);
                }
                self.asleep.store(false, Ordering::SeqCst);
            }
            let found = look(&mut seats);
            idle_looks = if found.somebody_runs || found.runs != runs { 0 } else { idle_looks + 1 };
            runs = found.runs;
        }
    }
}

/// Stops what is overdue, and forgets threads that have ended.
fn look(seats: &mut Vec<Weak<Seat>>) -> Look {
    let now = Instant::now();
    let mut found = Look { runs: 0, somebody_runs: false };
    seats.retain(|seat| {
        let Some(seat) = seat.upgrade() else { return false };
        let mut seated = seat.lock();
        found.runs = found.runs.wrapping_add(seated.runs);
        found.somebody_runs |= seated.run.is_some();
        let overdue = seated.run.take_if(|(due, _)| *due <= now);
        // Stopping takes the locks of a runtime, which whoever wants to leave the seat must not wait for.
        drop(seated);
        if let Some((_, flight)) = overdue {
            flight.stop();
        }
        true
    });
    found
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{SyncSender, sync_channel};

    use bascule_runtime_api::Interrupt;

    use super::*;

    /// Only a failure waits this long.
    const PATIENCE: Duration = Duration::from_secs(60);

    struct Told(SyncSender<()>);

    impl Interrupt for Told {
        fn interrupt(&self) {
            self.0.send(()).unwrap();
        }
    }

    /// Makes a run of a thread of its own that is overdue at once, and waits until it is stopped.
    fn overdue() {
        let (sender, interrupted) = sync_channel(1);
        let flight = Arc::new(Flight::new(Some(Arc::new(Told(sender))), 1));
        let running = Arc::clone(&flight);
        let runner = thread::spawn(move || {
            let watched = watch(Instant::now(), &running).unwrap();
            interrupted.recv_timeout(PATIENCE).unwrap();
            drop(watched);
        });
        runner.join().unwrap();
        assert!(flight.is_stopped());
    }

    #[test]
    fn only_what_is_overdue_is_stopped() {
        let patient = Arc::new(Flight::new(None, 1));
        let watched = watch(Instant::now() + PATIENCE, &patient).unwrap();
        overdue();
        overdue();
        assert!(!patient.is_stopped());
        let seat = Arc::clone(&watched.0);
        assert!(seat.lock().run.is_some());
        drop(watched);
        assert!(seat.lock().run.is_none(), "it has left its seat");
    }

    #[test]
    fn a_watchdog_that_sleeps_is_woken() {
        let watchdog = WATCHDOG.as_ref().unwrap();
        let started = Instant::now();
        while !watchdog.asleep.load(Ordering::SeqCst) {
            assert!(started.elapsed() < PATIENCE, "it never sleeps");
            thread::yield_now();
        }
        overdue();
    }
}
