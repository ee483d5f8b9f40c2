//! How long a reader waits for what a caller sends.
//!
//! Timers cost more than most requests take to come, and most are there, or all but there, when they are asked for. So a timer is set
//! only where something has to be waited for, and set again only where it ends too early.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Some thirty years.
const FAR: Duration = Duration::from_secs(1 << 30);

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slow {
    /// The next part.
    Part,
    /// All parts together.
    Whole,
}

/// Time for one message or body.
pub(crate) struct Patience {
    stall_timeout: Duration,
    /// Counts from when a part first had to be waited for.
    total_timeout: Duration,
    timers: Option<Timers>,
    /// Whether the next wait is timed.
    is_timed: bool,
}

struct Timers {
    stall: Pin<Box<Sleep>>,
    total: Pin<Box<Sleep>>,
}

impl Patience {
    pub(crate) fn new(stall_timeout: Duration, total_timeout: Duration) -> Patience {
        Patience { stall_timeout, total_timeout, timers: None, is_timed: true }
    }

    /// Leaves the first wait without a timer: for a reader that somebody polls again in any case before long.
    pub(crate) fn polled_again(mut self) -> Patience {
        self.is_timed = false;
        self
    }

    /// Waits for the next part.
    pub(crate) async fn while_waiting<T>(&mut self, part: impl Future<Output = T>) -> Result<T, Slow> {
        let mut part = pin!(part);
        let mut since = None;
        std::future::poll_fn(|context| match part.as_mut().poll(context) {
            Poll::Ready(part) => Poll::Ready(Ok(part)),
            Poll::Pending => self.poll_slow(context, *since.get_or_insert_with(Instant::now)).map(Err),
        })
        .await
    }

    fn poll_slow(&mut self, context: &mut Context<'_>, since: Instant) -> Poll<Slow> {
        if !std::mem::replace(&mut self.is_timed, true) {
            return Poll::Pending;
        }
        let (stall_timeout, total_timeout) = (self.stall_timeout, self.total_timeout);
        // A time-out too long for the clock is none that anybody lives to see.
        let until = |timeout| Box::pin(sleep_until(since.checked_add(timeout).unwrap_or(since + FAR)));
        let new = || Timers { stall: until(stall_timeout), total: until(total_timeout) };
        let timers = self.timers.get_or_insert_with(new);
        while timers.stall.as_mut().poll(context).is_ready() {
            if since.elapsed() >= stall_timeout {
                return Poll::Ready(Slow::Part);
            }
            timers.stall.as_mut().reset(since.checked_add(stall_timeout).unwrap_or(since + FAR));
        }
        timers.total.as_mut().poll(context).map(|()| Slow::Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_hours(1);

    async fn forever(patience: &mut Patience) -> Slow {
        patience.while_waiting(std::future::pending::<()>()).await.unwrap_err()
    }

    #[tokio::test]
    async fn parts_and_the_whole_have_their_time() {
        assert_eq!(forever(&mut Patience::new(SHORT, LONG)).await, Slow::Part);
        assert_eq!(forever(&mut Patience::new(LONG, SHORT)).await, Slow::Whole);
    }

    #[tokio::test]
    async fn a_part_has_its_own_time_however_long_the_others_took() {
        let mut patience = Patience::new(SHORT, LONG);
        for _ in 0..3 {
            // The timer that the first wait has set ends within the second one.
            assert_eq!(patience.while_waiting(tokio::task::yield_now()).await, Ok(()));
            let waited = Instant::now();
            assert_eq!(forever(&mut patience).await, Slow::Part);
            assert!(waited.elapsed() >= SHORT);
        }
    }

    #[tokio::test]
    async fn what_is_there_sets_no_timer() {
        let mut quick = Patience::new(SHORT, LONG);
        assert_eq!(quick.while_waiting(std::future::ready(7)).await, Ok(7));
        assert!(quick.timers.is_none());
        let mut untimed = Patience::new(SHORT, LONG).polled_again();
        assert_eq!(untimed.while_waiting(tokio::task::yield_now()).await, Ok(()));
        assert!(untimed.timers.is_none());
        assert_eq!(forever(&mut untimed).await, Slow::Part);
    }
}
