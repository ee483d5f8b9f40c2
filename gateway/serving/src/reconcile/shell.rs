//! The task around the reconciler: it reads the mailbox and the clock, and carries out what was decided.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bascule_registry::{Clock, Generation, ModelName, VersionKey};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::Reconciler;
use super::bring::{FetchProgress, Stock, admitted};
use super::event::{Effect, Event, Now, ResidencyId, Snapshot};
use crate::devices::Placements;
use crate::drain::drain;
use crate::engine::{Admit, EngineOptions};
use crate::loader::{self, LoadFailure, Runtimes, Surroundings};
use crate::memory;
use crate::persist::Writer;
use crate::state::FailedStep;
use crate::trial::Trial;
use crate::{CrowdedTrial, Gpus, Marks};

/// Events that are taken in before the table is published and the snapshot replaced.
const MAX_EVENTS: usize = 256;

/// Everything that carries out what the reconciler decides.
pub(crate) struct Shell {
    reconciler: Reconciler,
    snapshots: watch::Sender<Arc<Snapshot>>,
    stock: Arc<Stock>,
    starting: bool,
    /// Where fetches and drains run; the shell itself has a thread of its own.
    tasks: Handle,
    /// Where fetches run.
    background: Handle,
    runtimes: Arc<Runtimes>,
    clock: Arc<dyn Clock>,
    mailbox: mpsc::WeakSender<Event>,
    writer: Arc<Writer>,
    on_retired: Arc<dyn Fn(&VersionKey) + Send + Sync>,
    on_trim: Arc<dyn Fn() + Send + Sync>,
    around: Arc<Around>,
    marks: Option<Arc<dyn Marks>>,
    wanted: Arc<Mutex<HashSet<ModelName>>>,
    fetches: HashMap<ResidencyId, AbortHandle>,
}

/// What decides where versions run and are tried.
struct Around {
    /// Whether a version may be loaded, as things stand now.
    admit: Admit,
    trial: Option<Arc<dyn Trial>>,
    crowded: CrowdedTrial,
    gpus: Arc<dyn Gpus>,
    placements: Placements,
}

impl Around {
    fn surroundings(&self) -> Surroundings<'_> {
        let placements = self.placements.clone();
        Surroundings { trial: self.trial.as_deref(), crowded: self.crowded, gpus: self.gpus.as_ref(), placements }
    }
}

impl Shell {
    pub(crate) fn new(
        mut reconciler: Reconciler,
        options: &EngineOptions,
        stock: Arc<Stock>,
        runtimes: Arc<Runtimes>,
        mailbox: mpsc::WeakSender<Event>,
        writer: Arc<Writer>,
        wanted: Arc<Mutex<HashSet<ModelName>>>,
    ) -> (Shell, watch::Receiver<Arc<Snapshot>>) {
        let first = Arc::new(reconciler.empty_snapshot());
        let (snapshots, receiver) = watch::channel(first);
        let shell = Shell {
            reconciler,
            snapshots,
            stock,
            starting: true,
            tasks: Handle::current(),
            background: options.background.clone().unwrap_or_else(Handle::current),
            runtimes,
            clock: Arc::clone(&options.clock),
            mailbox,
            writer,
            on_retired: Arc::clone(&options.on_retired),
            on_trim: Arc::clone(&options.on_trim),
            around: Arc::new(Around {
                admit: Arc::clone(&options.admit),
                trial: options.trial.clone(),
                crowded: options.crowded_trial,
                gpus: Arc::clone(&options.gpus),
                placements: Placements::default(),
            }),
            marks: options.marks.clone(),
            wanted,
            fetches: HashMap::new(),
        };
        (shell, receiver)
    }

    /// Works until every handle on the engine is gone, on a thread of its own: what it does takes longer the more models there are, and
    /// no request waits for that.
    ///
    /// # Errors
    /// No thread can be had.
    pub(crate) fn start(self, events: mpsc::Receiver<Event>) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new().name("reconciler".to_owned());
        thread.spawn(move || runtime.block_on(self.run(events))).map(drop)
    }

    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        self.settle(Vec::new());
        loop {
            let first = match self.reconciler.wake_at() {
                None => events.recv().await,
                Some(at) => {
                    let until = Instant::now() + at.saturating_sub(self.clock.elapsed());
                    match timeout_at(until, events.recv()).await {
                        Ok(event) => event,
                        Err(_) => Some(Event::Tick),
                    }
                }
            };
            let Some(first) = first else { return };
            let mut batch = vec![first];
            while batch.len() < MAX_EVENTS {
                let Ok(event) = events.try_recv() else { break };
                batch.push(event);
            }
            self.settle(batch);
        }
    }

    fn now(&self) -> Now {
        Now { at: self.clock.elapsed(), utc: self.clock.now() }
    }

    /// Takes the events in, publishes once, replaces the snapshot, and carries out what follows.
    fn settle(&mut self, events: Vec<Event>) {
        let now = self.now();
        let mut answered = Vec::new();
        for event in events {
            match &event {
                Event::Wanted { model } => answered.push(model.clone()),
                Event::Fetched { id, .. } => drop(self.fetches.remove(id)),
                _ => {}
            }
            self.reconciler.handle(event, now);
        }
        let (effects, snapshot) = self.reconciler.settle(now);
        self.snapshots.send_replace(Arc::new(snapshot));
        if self.starting && self.reconciler.has_decided() {
            self.starting = false;
            self.stock.end_start();
        }
        for effect in effects {
            self.carry_out(effect);
        }
        if !answered.is_empty() {
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            for model in answered {
                wanted.remove(&model);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Fetch { id, generation, progress } => self.fetch(id, generation, progress),
            Effect::CancelFetch { id } => {
                if let Some(fetch) = self.fetches.remove(&id) {
                    fetch.abort();
                }
            }
            Effect::Verify { id, job } => {
                let (runtimes, around) = (Arc::clone(&self.runtimes), Arc::clone(&self.around));
                let work = move |_: &mpsc::WeakSender<Event>| {
                    let result = loader::verify(&runtimes, &job, &around.surroundings()).map(Box::new);
                    Event::Verified { id, result }
                };
                self.on_thread("loader", work, |failure| Event::Verified { id, result: Err(failure) });
            }
            Effect::Try { id, job, verified } => {
                let around = Arc::clone(&self.around);
                let work = move |_: &mpsc::WeakSender<Event>| {
                    let result = loader::try_out(*verified, &job, &around.surroundings()).map(Box::new);
                    Event::Tried { id, result }
                };
                self.on_thread("loader", work, |failure| Event::Tried { id, result: Err(failure) });
            }
            Effect::Load { id, job } => {
                let (clock, marks, around) = (Arc::clone(&self.clock), self.marks.clone(), Arc::clone(&self.around));
                let work = move |mailbox: &mpsc::WeakSender<Event>| {
                    let warming = mailbox.clone();
                    let on_warming = move || tell(&warming, Event::Warming { id });
                    // Its trial may have taken long.
                    let admitted = admitted(&around.admit, &job.generation);
                    let admitted = admitted.map_err(|why| LoadFailure::new(FailedStep::Loading, why));
                    let result = admitted.and_then(|()| loader::load(*job, marks, on_warming, || clock.now()));
                    Event::Loaded { id, result }
                };
                self.on_thread("loader", work, |failure| Event::Loaded { id, result: Err(failure) });
            }
            Effect::Drain { id, servable, timeout } => {
                let mailbox = self.mailbox.clone();
                self.tasks.spawn(async move {
                    let drained = drain(servable, timeout).await;
                    post(&mailbox, Event::Drained { id, drained }).await;
                });
            }
            Effect::Trim => {
                let on_trim = Arc::clone(&self.on_trim);
                let work = move |_: &mpsc::WeakSender<Event>| {
                    memory::lower_priority();
                    Event::Trimmed(memory::trim(&*on_trim))
                };
                self.on_thread("memory trim", work, |_| Event::Trimmed(None));
            }
            Effect::Persist { write, what } => self.writer.write(write, what),
            Effect::Retired { key } => (self.on_retired)(&key),
        }
    }

    fn fetch(&mut self, id: ResidencyId, generation: Arc<Generation>, progress: Arc<FetchProgress>) {
        let (stock, mailbox) = (Arc::clone(&self.stock), self.mailbox.clone());
        let task = self.background.spawn(async move {
            let result = stock.bring(&generation, &progress).await;
            post(&mailbox, Event::Fetched { id, result }).await;
        });
        self.fetches.insert(id, task.abort_handle());
    }

    /// Does work that blocks on a thread of its own. How many there are at a time is the reconciler's to say.
    fn on_thread(
        &self,
        name: &str,
        work: impl FnOnce(&mpsc::WeakSender<Event>) -> Event + Send + 'static,
        otherwise: impl FnOnce(LoadFailure) -> Event,
    ) {
        let mailbox = self.mailbox.clone();
        let thread = std::thread::Builder::new().name(name.to_owned());
        let started = thread.spawn(move || {
            let event = work(&mailbox);
            tell(&mailbox, event);
        });
        if let Err(error) = started {
            tracing::error!(name, %error, "cannot start a thread");
            let event = otherwise(LoadFailure::new(FailedStep::Loading, format!("cannot start a thread: {error}")));
            let mailbox = self.mailbox.clone();
            self.tasks.spawn(async move { post(&mailbox, event).await });
        }
    }
}

/// Tells the reconciler from a thread that may block. Where the engine has ended, nobody needs to know.
fn tell(mailbox: &mpsc::WeakSender<Event>, event: Event) {
    if let Some(mailbox) = mailbox.upgrade() {
        drop(mailbox.blocking_send(event));
    }
}

/// Tells the reconciler from a task. Where the engine has ended, nobody needs to know.
async fn post(mailbox: &mpsc::WeakSender<Event>, event: Event) {
    if let Some(mailbox) = mailbox.upgrade() {
        drop(mailbox.send(event).await);
    }
}
