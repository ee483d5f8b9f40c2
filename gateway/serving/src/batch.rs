//! What waits for a session, and the rule that makes a batch of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bascule_handoff::{Turn, Waiting};
use bascule_runtime_api::Tensor;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::InferError;
use crate::flight::Ticket;
use crate::stats::RunTimes;

/// Longer delays are this long: points in time that far away can still be told.
const LONGEST_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The inputs of a request, in the order of the signature.
pub(crate) type Inputs = SmallVec<[Tensor; 1]>;

/// What a run gave one request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) outputs: Vec<Tensor>,
    pub(crate) queued: Duration,
    pub(crate) times: RunTimes,
}

/// One queued request.
pub(crate) struct Pending {
    pub(crate) inputs: Inputs,
    pub(crate) rows: u32,
    /// 0 is the highest.
    pub(crate) priority: usize,
    pub(crate) queued_at: Instant,
    pub(crate) deadline: Option<Instant>,
    /// When the queue gives it up.
    pub(crate) expires_at: Option<Instant>,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) reply: oneshot::Sender<Result<Answer, InferError>>,
}

impl Pending {
    /// Whether nobody waits for it any more while it is queued.
    fn is_dead(&self, now: Instant) -> bool {
        self.reply.is_closed() || self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether nobody waits for it any more once it was taken out of the queue, whose time limit no longer counts.
    pub(crate) fn is_forsaken(&self, now: Instant) -> bool {
        self.reply.is_closed() || self.deadline.is_some_and(|at| at <= now)
    }

    /// Tells whoever may still listen.
    pub(crate) fn expire(self, now: Instant) {
        let error = match self.deadline {
            Some(deadline) if deadline <= now => InferError::DeadlineExceeded,
            _ => queue_timed_out(),
        };
        self.answer(Err(error));
    }

    pub(crate) fn answer(self, result: Result<Answer, InferError>) {
        // The caller may have gone: then nobody is to be told.
        drop(self.reply.send(result));
    }

    /// Whether both can share a run.
    fn joins(&self, other: &Pending) -> bool {
        self.inputs.iter().zip(&other.inputs).all(|(a, b)| a.shape().get(1..) == b.shape().get(1..))
    }
}

pub(crate) fn queue_timed_out() -> InferError {
    InferError::Overloaded { what: "the model's queue".to_owned(), retry_after: crate::table::RETRY_AFTER }
}

/// When requests are joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchRule {
    /// Rows in one run at the most; 1 where nothing is joined.
    pub(crate) max_rows: u32,
    pub(crate) max_delay: Duration,
    /// Ascending.
    pub(crate) preferred: Vec<u32>,
}

/// What waits, by priority, oldest first.
pub(crate) struct WaitingRequests {
    levels: Vec<VecDeque<Pending>>,
    len: usize,
}

impl WaitingRequests {
    pub(crate) fn new(levels: usize) -> WaitingRequests {
        WaitingRequests { levels: (0..levels.max(1)).map(|_| VecDeque::new()).collect(), len: 0 }
    }

    /// Takes the next batch, or says how long to wait for it. What nobody waits for any more is dropped on the way.
    pub(crate) fn take(&mut self, rule: &BatchRule, now: Instant, closing: bool) -> Turn<Vec<Pending>> {
        let Some(head_level) = self.drop_dead_heads(now) else {
            return Turn::Nothing;
        };
        let picked = self.pick(rule, head_level, now);
        let rows = picked.rows;
        if rule.max_delay.is_zero() || closing || picked.full {
            return Turn::Run(self.remove(&picked.places));
        }
        let preferred = rule.preferred.iter().rev().find(|size| **size <= rows);
        if let Some(size) = preferred {
            let places = picked.prefix_of(*size);
            return Turn::Run(self.remove(places));
        }
        let at = picked.oldest + rule.max_delay.min(LONGEST_DELAY);
        // A head that would expire while others are waited for goes now.
        if at <= now || picked.first_expiry.is_some_and(|expiry| expiry <= at) {
            return Turn::Run(self.remove(&picked.places));
        }
        Turn::Gather { at, len: self.len + 1 }
    }

    /// Drops the dead at the head of each level; the first level that has a live one.
    fn drop_dead_heads(&mut self, now: Instant) -> Option<usize> {
        let mut first = None;
        for (index, level) in self.levels.iter_mut().enumerate() {
            while let Some(pending) = level.pop_front_if(|pending| pending.is_dead(now)) {
                self.len -= 1;
                pending.expire(now);
            }
            if first.is_none() && !level.is_empty() {
                first = Some(index);
            }
        }
        first
    }

    /// Marks the head and what can share its run, without taking it.
    fn pick(&self, rule: &BatchRule, head_level: usize, now: Instant) -> Picked {
        let head = &self.levels[head_level][0];
        let mut picked = Picked {
            places: vec![(head_level, 0)],
            rows_after: vec![head.rows],
            rows: head.rows,
            full: rule.max_rows <= 1 || head.rows >= rule.max_rows,
            oldest: head.queued_at,
            first_expiry: head.expires_at,
        };
        let others = self
            .levels
            .iter()
            .enumerate()
            .skip(head_level)
            .flat_map(|(level, queue)| queue.iter().enumerate().map(move |(place, pending)| ((level, place), pending)));
        for (place, pending) in others.skip(1) {
            if picked.full {
                break;
            }
            if pending.is_dead(now) || !pending.joins(head) {
                continue;
            }
            let rows = picked.rows.saturating_add(pending.rows);
            // Nobody overtakes the one that does not fit, so what is picked can't grow.
            picked.full = rows >= rule.max_rows;
            if rows <= rule.max_rows {
                picked.add(place, pending);
            }
        }
        picked
    }

    fn remove(&mut self, places: &[(usize, usize)]) -> Vec<Pending> {
        // Within a level, places ascend: from the back, removing one leaves the others where they were.
        let mut taken: Vec<Pending> = places.iter().rev().filter_map(|(level, place)| self.levels[*level].remove(*place)).collect();
        taken.reverse();
        self.len -= taken.len();
        for pending in &taken {
            pending.ticket.take();
        }
        taken
    }
}

impl Waiting for WaitingRequests {
    type Entry = Pending;

    fn push(&mut self, entry: Pending) {
        let level = entry.priority.min(self.levels.len() - 1);
        self.levels[level].push_back(entry);
        self.len += 1;
    }

    fn len(&self) -> usize {
        self.len
    }

    fn make_room(&mut self) {
        let now = Instant::now();
        for level in &mut self.levels {
            let (dead, live) = std::mem::take(level).into_iter().partition(|pending| pending.is_dead(now));
            *level = live;
            let dead: VecDeque<Pending> = dead;
            dead.into_iter().for_each(|pending| pending.expire(now));
        }
        self.len = self.levels.iter().map(VecDeque::len).sum();
    }

    fn take_all(&mut self) -> Vec<Pending> {
        self.len = 0;
        self.levels.iter_mut().flat_map(std::mem::take).collect()
    }
}

struct Picked {
    /// Level and place in it, in the order of the batch.
    places: Vec<(usize, usize)>,
    /// Rows up to and including each place.
    rows_after: Vec<u32>,
    rows: u32,
    /// Whether waiting can't add anything.
    full: bool,
    oldest: Instant,
    first_expiry: Option<Instant>,
}

impl Picked {
    fn add(&mut self, place: (usize, usize), pending: &Pending) {
        self.places.push(place);
        self.rows += pending.rows;
        self.rows_after.push(self.rows);
        self.oldest = self.oldest.min(pending.queued_at);
        self.first_expiry = [self.first_expiry, pending.expires_at].into_iter().flatten().min();
    }

    /// As many as give at most `rows` rows, and at least the head.
    fn prefix_of(&self, rows: u32) -> &[(usize, usize)] {
        let count = self.rows_after.iter().take_while(|after| **after <= rows).count().max(1);
        &self.places[..count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_runtime_api::DataType;

    struct Bench {
        waiting: WaitingRequests,
        replies: Vec<oneshot::Receiver<Result<Answer, InferError>>>,
        start: Instant,
    }

    impl Bench {
        fn new(levels: usize) -> Bench {
            Bench { waiting: WaitingRequests::new(levels), replies: Vec::new(), start: Instant::now() }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        /// Queues a request of `rows` rows and `columns` columns that expires at `expires` ms.
        fn push(&mut self, rows: u32, columns: i64, priority: usize, expires: Option<u64>) {
            let (reply, answer) = oneshot::channel();
            self.replies.push(answer);
            let bytes = vec![0; rows as usize * columns as usize].into();
            let tensor = Tensor::new(DataType::Int8, [i64::from(rows), columns], bytes).unwrap();
            let pending = Pending {
                inputs: SmallVec::from_iter([tensor]),
                rows,
                priority,
                queued_at: self.start,
                deadline: None,
                expires_at: expires.map(|millis| self.at(millis)),
                ticket: Arc::default(),
                reply,
            };
            self.waiting.push(pending);
        }

        fn take(&mut self, rule: &BatchRule, millis: u64, closing: bool) -> String {
            let now = self.at(millis);
            match self.waiting.take(rule, now, closing) {
                Turn::Run(batch) => format!("run {:?}", batch.iter().map(|pending| pending.rows).collect::<Vec<_>>()),
                Turn::Gather { at, len } => format!("wait {} ms or {len}", (at - self.start).as_millis()),
                Turn::Nothing => "nothing".to_owned(),
            }
        }
    }

    fn rule(max_rows: u32, delay_ms: u64, preferred: &[u32]) -> BatchRule {
        BatchRule { max_rows, max_delay: Duration::from_millis(delay_ms), preferred: preferred.to_vec() }
    }

    #[test]
    fn what_fits_runs_together_and_the_rest_stays_in_order() {
        let mut bench = Bench::new(1);
        for rows in [1, 2, 3, 1] {
            bench.push(rows, 4, 0, None);
        }
        assert_eq!(bench.take(&rule(5, 0, &[]), 0, false), "run [1, 2]");
        assert_eq!(bench.take(&rule(5, 0, &[]), 0, false), "run [3, 1]");
        assert_eq!(bench.take(&rule(5, 0, &[]), 0, false), "nothing");
    }

    #[test]
    fn a_request_larger_than_a_batch_runs_alone() {
        let mut bench = Bench::new(1);
        bench.push(9, 4, 0, None);
        bench.push(1, 4, 0, None);
        assert_eq!(bench.take(&rule(4, 100, &[]), 0, false), "run [9]");
    }

    #[test]
    fn different_inner_shapes_never_share_a_run() {
        let mut bench = Bench::new(1);
        for columns in [4, 5, 4] {
            bench.push(1, columns, 0, None);
        }
        assert_eq!(bench.take(&rule(8, 0, &[]), 0, false), "run [1, 1]");
        assert_eq!(bench.take(&rule(8, 0, &[]), 0, false), "run [1]");
    }

    #[test]
    fn a_delay_waits_for_a_full_batch_and_no_longer() {
        let mut bench = Bench::new(1);
        bench.push(1, 4, 0, None);
        let rule = rule(3, 100, &[]);
        assert_eq!(bench.take(&rule, 0, false), "wait 100 ms or 2");
        bench.push(2, 4, 0, None);
        assert_eq!(bench.take(&rule, 0, false), "run [1, 2]");
        bench.push(1, 4, 0, None);
        assert_eq!(bench.take(&rule, 100, false), "run [1]");
        bench.push(1, 4, 0, None);
        assert_eq!(bench.take(&rule, 0, true), "run [1]", "a closing queue waits for nobody");
        bench.push(1, 4, 0, Some(50));
        assert_eq!(bench.take(&rule, 0, false), "run [1]", "a deadline inside the delay is not slept over");
    }

    #[test]
    fn a_batch_that_the_next_request_does_not_fit_into_is_not_waited_for() {
        let mut bench = Bench::new(1);
        bench.push(20, 4, 0, None);
        bench.push(20, 4, 0, None);
        let rule = rule(32, 100, &[]);
        assert_eq!(bench.take(&rule, 0, false), "run [20]");
        assert_eq!(bench.take(&rule, 0, false), "wait 100 ms or 2", "what is left may still grow");
    }

    #[test]
    fn rows_and_delays_beyond_all_measure_are_no_overflow() {
        let mut bench = Bench::new(1);
        bench.push(1, 0, 0, None);
        bench.push(u32::MAX, 0, 0, None);
        bench.push(u32::MAX, 0, 0, None);
        let rule = BatchRule { max_delay: Duration::MAX, ..rule(32, 0, &[]) };
        assert_eq!(bench.take(&rule, 0, false), "run [1]");
        assert_eq!(bench.take(&rule, 0, false), "run [4294967295]");
        bench.take(&rule, 0, false);
        bench.push(1, 4, 0, None);
        assert_eq!(bench.take(&rule, 0, false), "wait 86400000 ms or 2");
    }

    #[test]
    fn a_preferred_size_runs_at_once_and_takes_no_more() {
        let mut bench = Bench::new(1);
        (0..5).for_each(|_| bench.push(1, 4, 0, None));
        let rule = rule(8, 100, &[2, 4]);
        assert_eq!(bench.take(&rule, 0, false), "run [1, 1, 1, 1]");
        assert_eq!(bench.take(&rule, 0, false), "wait 100 ms or 2");
    }

    #[test]
    fn a_higher_priority_goes_first_and_takes_lower_ones_along() {
        let mut bench = Bench::new(2);
        bench.push(1, 4, 1, None);
        bench.push(2, 4, 0, None);
        bench.push(3, 4, 7, None);
        assert_eq!(bench.take(&rule(1, 0, &[]), 0, false), "run [2]");
        assert_eq!(bench.take(&rule(8, 0, &[]), 0, false), "run [1, 3]");
    }

    #[test]
    fn the_dead_are_told_and_never_run() {
        let mut bench = Bench::new(1);
        bench.push(1, 4, 0, Some(10));
        bench.push(2, 4, 0, None);
        bench.push(3, 4, 0, None);
        drop(bench.replies.remove(1));
        assert_eq!(bench.take(&rule(8, 0, &[]), 20, false), "run [3]");
        assert!(matches!(bench.replies[0].try_recv(), Ok(Err(InferError::Overloaded { .. }))));
        assert_eq!(bench.waiting.len(), 0);
    }

    #[test]
    fn a_full_queue_makes_room_by_dropping_the_dead() {
        let mut bench = Bench::new(2);
        bench.push(1, 4, 0, None);
        bench.push(1, 4, 1, None);
        drop(bench.replies.remove(1));
        bench.waiting.make_room();
        assert_eq!(bench.waiting.len(), 1);
    }
}
