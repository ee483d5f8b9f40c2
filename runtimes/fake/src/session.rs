//! One loaded model.

use std::sync::Arc;

use bascule_runtime_api::{Device, Footprint, Interrupt, RunContext, RunError, Session, Signature, Tensor};

use crate::log::RunRecord;
use crate::{FakeLog, FakeModel, ops};

/// A session; it records itself when it is made and when it is dropped.
#[derive(Debug)]
pub(crate) struct FakeSession {
    model: FakeModel,
    signature: Signature,
    runs: u64,
    /// Of main memory. What it takes of a device is not taken in earnest.
    _memory: Vec<u8>,
    device: Device,
    number: u64,
    log: Arc<FakeLog>,
}

impl FakeSession {
    /// Takes the model's main memory, every page of it.
    pub(crate) fn new(model: FakeModel, signature: Signature, device: Device, log: Arc<FakeLog>) -> Result<FakeSession, String> {
        let mut memory = Vec::new();
        let length = usize::try_from(model.footprint(device).host_bytes).unwrap_or(usize::MAX);
        memory.try_reserve_exact(length).map_err(|error| format!("'bytes' is {length}: {error}"))?;
        // Not 0: a page of zeroes may take no memory.
        memory.resize(length, 1);
        let number = log.loaded(&model.tag);
        Ok(FakeSession { model, signature, runs: 0, _memory: memory, device, number, log })
    }

    fn answer(&self, inputs: &[Tensor], record: &RunRecord<'_>) -> Result<Vec<Tensor>, RunError> {
        if self.model.block {
            record.wait_at_gate()?;
        }
        record.wait(self.model.delay())?;
        assert!(!self.model.panic_on_run, "the fake model '{}' panics on every run", self.model.tag);
        match self.model.fail_run_every {
            Some(every) if self.runs.is_multiple_of(every) => {
                Err(RunError::Failed { message: format!("run {} fails, as every {every}th does", self.runs) })
            }
            _ => ops::compute(&self.model, &self.signature, inputs),
        }
    }
}

impl Session for FakeSession {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor], context: &RunContext<'_>) -> Result<Vec<Tensor>, RunError> {
        let rows = inputs.first().and_then(|input| input.shape().first()).copied().unwrap_or(1);
        self.runs += 1;
        let mut record = self.log.begin(self.number, rows);
        let result = self.signature.check_inputs(inputs).and_then(|()| {
            // From here on interrupts reach the run.
            if context.is_cancelled() { Err(RunError::Interrupted) } else { self.answer(inputs, &record) }
        });
        record.ended(&result);
        result
    }

    fn interrupter(&self) -> Option<Arc<dyn Interrupt>> {
        Some(Arc::new(FakeInterrupter { session: self.number, log: Arc::clone(&self.log) }))
    }

    fn footprint(&self) -> Footprint {
        self.model.footprint(self.device)
    }

    fn device(&self) -> Device {
        self.device
    }
}

impl Drop for FakeSession {
    fn drop(&mut self) {
        self.log.dropped(self.number, &self.model.tag);
    }
}

struct FakeInterrupter {
    session: u64,
    log: Arc<FakeLog>,
}

impl Interrupt for FakeInterrupter {
    fn interrupt(&self) {
        self.log.interrupt(self.session);
    }
}
