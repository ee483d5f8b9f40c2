//! Two futures of one task, of which one is woken all the time and the other next to never.
//!
//! A task polls all that it waits for whenever it is woken. What a connection waits for aside from its bytes, timers and tokens, costs
//! more to poll than a small request, and tokens have locks that all connections share. So the one aside is polled only when it was woken
//! itself.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Wake, Waker};

use futures::future::Either;
use futures::task::AtomicWaker;

/// What wakes the one aside, and notes it.
#[derive(Debug, Default)]
struct Bell {
    task: AtomicWaker,
    rang: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// Waits for whichever ends first; `main` goes first where both have.
pub(crate) async fn race<M: Future, A: Future>(main: Pin<&mut M>, aside: A) -> Either<M::Output, A::Output> {
    // Main may use up what tokio lets a task do at a time, each time: the one aside must not wait for what is left.
    let (mut main, mut aside) = (main, pin!(tokio::task::unconstrained(aside)));
    let bell = Arc::new(Bell { rang: AtomicBool::new(true), ..Bell::default() });
    let waker = Waker::from(Arc::clone(&bell));
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = main.as_mut().poll(context) {
            return Poll::Ready(Either::Left(output));
        }
        // Before the look at the note: who rings afterwards wakes this task.
        bell.task.register(context.waker());
        if bell.rang.swap(false, Ordering::AcqRel)
            && let Poll::Ready(output) = aside.as_mut().poll(&mut std::task::Context::from_waker(&waker))
        {
            return Poll::Ready(Either::Right(output));
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn the_one_aside_is_polled_when_it_was_woken() {
        let polls = Cell::new(0);
        let (wake, woken) = tokio::sync::oneshot::channel();
        let mut woken = pin!(woken);
        let aside = std::future::poll_fn(|context| {
            polls.set(polls.get() + 1);
            woken.as_mut().poll(context)
        });
        let main = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            let before = polls.get();
            wake.send(7).unwrap();
            std::future::pending::<()>().await;
            before
        };
        let mut main = pin!(main);
        let Either::Right(Ok(7)) = race(main.as_mut(), aside).await else { panic!("only the one aside ends") };
        assert_eq!(polls.get(), 2, "once at first, once when it was woken");
    }

    #[tokio::test]
    async fn a_main_one_that_takes_all_it_may_holds_up_nobody() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let mut greedy = pin!(async {
            loop {
                // Both spend of what a task may do at a time.
                sender.send(()).await.unwrap();
                receiver.recv().await;
            }
        });
        let (wake, mut woken) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move { wake.send(7).await });
        let outcome: Either<(), Option<i32>> = race(greedy.as_mut(), woken.recv()).await;
        assert!(matches!(outcome, Either::Right(Some(7))));
    }

    #[tokio::test]
    async fn the_main_one_goes_first() {
        let outcome = race(pin!(async { 1 }), async { 2 }).await;
        assert!(matches!(outcome, Either::Left(1)));
    }
}
