//! A slot: one session, used by whoever moved it from idle to running.
//!
//! The fences order each step of the slot against the pool's queue length and closing flag: of two threads that each write one and
//! then read the other, at least one sees what the other wrote. That is what keeps a wake-up from being lost.

use crate::sync::{AtomicU8, Ordering, UnsafeCell, fence};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const CLOSED: u8 = 2;

/// One session and who may touch it.
#[derive(Debug)]
pub(crate) struct Slot<S> {
    state: AtomicU8,
    session: UnsafeCell<Option<S>>,
}

// SAFETY: the session is reached only by the thread that moved `state` from IDLE to RUNNING (or to CLOSED), and that thread makes
// its writes visible with the store that ends its turn. So a `&Slot` gives one thread at a time a `&mut S`, which is what `S: Send` allows.
#[expect(unsafe_code, reason = "the slot is the one place where a session crosses threads without a lock")]
unsafe impl<S: Send> Sync for Slot<S> {}

impl<S> Slot<S> {
    pub(crate) fn new(session: S) -> Slot<S> {
        Slot { state: AtomicU8::new(IDLE), session: UnsafeCell::new(Some(session)) }
    }

    /// Whether a claim could succeed now; a hint.
    pub(crate) fn is_idle(&self) -> bool {
        fence(Ordering::SeqCst);
        self.state.load(Ordering::SeqCst) == IDLE
    }

    /// Takes the slot for a run.
    pub(crate) fn claim(&self) -> bool {
        fence(Ordering::SeqCst);
        let claimed = self.state.compare_exchange(IDLE, RUNNING, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        fence(Ordering::SeqCst);
        claimed
    }

    /// Lends the session to the thread that claimed the slot.
    pub(crate) fn with_session<R>(&self, access: impl FnOnce(&mut S) -> R) -> Option<R> {
        self.session.with_mut(|session| {
            // SAFETY: callers hold the slot in RUNNING, which only one thread can (see `Sync` above).
            #[expect(unsafe_code, reason = "exclusive by the state machine")]
            let session = unsafe { &mut *session };
            session.as_mut().map(access)
        })
    }

    /// Ends a run.
    pub(crate) fn release(&self) {
        self.state.store(IDLE, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Takes the session out for good; `None` while somebody runs it. Only the owner calls this.
    pub(crate) fn close(&self) -> Option<S> {
        fence(Ordering::SeqCst);
        self.state.compare_exchange(IDLE, CLOSED, Ordering::SeqCst, Ordering::SeqCst).ok()?;
        self.take()
    }

    /// Takes the session out for good, by the thread that runs it.
    pub(crate) fn abandon(&self) -> Option<S> {
        self.state.store(CLOSED, Ordering::SeqCst);
        self.take()
    }

    fn take(&self) -> Option<S> {
        self.session.with_mut(|session| {
            // SAFETY: the slot is CLOSED and was closed by this thread, so nobody else holds the session nor ever will.
            #[expect(unsafe_code, reason = "exclusive by the state machine")]
            let session = unsafe { &mut *session };
            session.take()
        })
    }
}
