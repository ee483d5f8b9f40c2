//! Where the codec works when a message is large: beside the threads that serve connections.

use std::sync::Arc;

use bascule_serving::InferError;
use tokio::sync::Semaphore;

/// A place for each processor: what takes long is not made shorter by more of it at once.
#[derive(Debug, Clone)]
pub(crate) struct Workers(Arc<Semaphore>);

impl Workers {
    pub(crate) fn new() -> Workers {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Workers(Arc::new(Semaphore::new(processors)))
    }

    /// Runs work here and now where it is light, else on the blocking pool. It goes on when its caller goes away, so it has to own
    /// what counts its memory.
    ///
    /// # Errors
    /// Those of the work, and an internal one where it panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        is_heavy: bool,
        work: impl FnOnce() -> Result<T, InferError> + Send + 'static,
    ) -> Result<T, InferError> {
        if !is_heavy {
            return work();
        }
        // Nobody closes the semaphore.
        let worker = Arc::clone(&self.0).acquire_owned().await.ok();
        let working = tokio::task::spawn_blocking(move || {
            let _worker = worker;
            work()
        });
        match working.await {
            Ok(result) => result,
            Err(error) => Err(InferError::Internal { message: format!("a codec ended early: {error}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn light_work_stays_and_heavy_work_goes() {
        let workers = Workers::new();
        let here = thread::current().id();
        assert_eq!(workers.run(false, || Ok(thread::current().id())).await.unwrap(), here);
        assert_ne!(workers.run(true, || Ok(thread::current().id())).await.unwrap(), here);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let failed = Workers::new().run(true, || -> Result<(), InferError> { panic!("secret") }).await;
        assert!(matches!(failed, Err(InferError::Internal { .. })));
    }
}
