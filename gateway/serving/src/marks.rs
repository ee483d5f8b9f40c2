//! Marks of what runs at this moment, for whoever finds them after the process was ended by a crash of native code: only what ran then can
//! have caused it.

use std::sync::Arc;

use bascule_registry::Generation;
use bascule_runtime_api::{Device, Footprint, Interrupt, RunContext, RunError, Session, Signature, Tensor};

/// Where marks are made, in memory that outlives the process.
pub trait Marks: Send + Sync {
    /// A mark for one session of a version; `None` where there is no room for one more.
    fn mark(&self, generation: &Generation) -> Option<Box<dyn Mark>>;
}

/// One session's mark, not set at first. Dropping it gives its room back.
pub trait Mark: Send {
    /// Set while the session runs. Called around each run: it must cost next to nothing.
    fn set(&self, is_running: bool);
}

/// Sets a mark for as long as this lives.
struct Set<'a>(&'a dyn Mark);

impl<'a> Set<'a> {
    fn now(mark: &'a dyn Mark) -> Set<'a> {
        mark.set(true);
        Set(mark)
    }
}

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Makes a session under a mark, and has it marked in each of its runs.
pub(crate) fn marked<E>(
    mark: Option<Box<dyn Mark>>,
    load: impl FnOnce() -> Result<Box<dyn Session>, E>,
) -> Result<Box<dyn Session>, E> {
    let Some(mark) = mark else { return load() };
    let session = {
        let _set = Set::now(mark.as_ref());
        load()?
    };
    Ok(Box::new(Marked { session, mark }))
}

struct Marked {
    session: Box<dyn Session>,
    mark: Box<dyn Mark>,
}

impl Session for Marked {
    fn signature(&self) -> &Signature {
        self.session.signature()
    }

    fn run(&mut self, inputs: &[Tensor], context: &RunContext<'_>) -> Result<Vec<Tensor>, RunError> {
        let _set = Set::now(self.mark.as_ref());
        self.session.run(inputs, context)
    }

    fn interrupter(&self) -> Option<Arc<dyn Interrupt>> {
        self.session.interrupter()
    }

    fn footprint(&self) -> Footprint {
        self.session.footprint()
    }

    fn device(&self) -> Device {
        self.session.device()
    }

    fn warnings(&self) -> Vec<String> {
        self.session.warnings()
    }
}
