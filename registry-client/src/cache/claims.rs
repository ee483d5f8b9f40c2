//! Large files that are being fetched: whoever wants one of them for another version waits, and then finds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::digest::Digest;

/// What is being fetched, and what says that it has ended: a semaphore that is closed then.
#[derive(Default)]
pub(super) struct Claims(Mutex<HashMap<Digest, Arc<Semaphore>>>);

/// The right to fetch these files. Gone with the fetch, whatever its outcome.
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    files: Vec<Digest>,
    ended: Arc<Semaphore>,
}

impl Claims {
    /// Claims these files, all of them or none; where others have one of them, says what to wait for before asking again. Who waits
    /// has claimed nothing, so nobody waits for ever.
    pub(super) fn claim(&self, files: Vec<Digest>) -> Result<Claim<'_>, Arc<Semaphore>> {
        let mut claimed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(others) = files.iter().find_map(|file| claimed.get(file)) {
            return Err(Arc::clone(others));
        }
        let ended = Arc::new(Semaphore::new(0));
        claimed.extend(files.iter().map(|file| (*file, Arc::clone(&ended))));
        Ok(Claim { claims: self, files, ended })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = self.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
        for file in &self.files {
            claimed.remove(file);
        }
        drop(claimed);
        self.ended.close();
    }
}
