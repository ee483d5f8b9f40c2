//! A runtime behind a table: what it gives is checked before it is believed.

#![expect(unsafe_code, reason = "the border is C: each call gets what the ABI says, and places for its results")]

use std::ffi::c_void;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::time::Instant;

use bascule_runtime_api::plugin::{
    About, Call, Described, Given, GivenTensor, INTERRUPTED, INVALID_INPUT, Lent, LentTensor, LoadFault, MAX_RANK, OK, Plugin,
};
use bascule_runtime_api::{
    DataType, Device, Footprint, Interrupt, LoadError, LoadOptions, RunContext, RunError, Session, Signature, Tensor, TensorSpec,
};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A runtime that was made by a plugin.
pub struct Host {
    table: &'static Plugin,
    runtime: *mut c_void,
}

// SAFETY: the ABI says that its functions may be called from any thread.
unsafe impl Send for Host {}
// SAFETY: see above.
unsafe impl Sync for Host {}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: made by `open`; its sessions hold the host.
        unsafe {
            (self.table.close)(self.runtime);
        }
    }
}

impl Host {
    /// Makes the runtime of a table, with settings of its own.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn open(table: &'static Plugin, settings: &impl Serialize) -> Result<Host, LoadError> {
        let settings = json(settings)?;
        let (mut runtime, mut error) = (ptr::null_mut(), Given::NOTHING);
        // SAFETY: see above.
        let status = unsafe { (table.open)(Lent::of(&settings), &raw mut runtime, &raw mut error) };
        loaded(status, error)?;
        Ok(Host { table, runtime })
    }

    /// What it says it is.
    ///
    /// # Errors
    /// Where that can't be read.
    pub fn about(&self) -> Result<About, LoadError> {
        let mut about = Given::NOTHING;
        // SAFETY: see above.
        unsafe { (self.table.about)(self.runtime, &raw mut about) };
        read(&taken(about))
    }

    /// The version of the library behind it.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn version(&self) -> Result<String, LoadError> {
        let (mut version, mut error) = (Given::NOTHING, Given::NOTHING);
        // SAFETY: see above.
        let status = unsafe { (self.table.version)(self.runtime, &raw mut version, &raw mut error) };
        loaded(status, error)?;
        Ok(String::from_utf8_lossy(&taken(version)).into_owned())
    }

    /// See [`bascule_runtime_api::Runtime::check_device`].
    ///
    /// # Errors
    /// What the plugin says.
    pub fn check_device(&self, device: Device) -> Result<(), LoadError> {
        let (device, mut error) = (json(&device)?, Given::NOTHING);
        // SAFETY: see above.
        let status = unsafe { (self.table.check_device)(self.runtime, Lent::of(&device), &raw mut error) };
        loaded(status, error)
    }

    /// See [`bascule_runtime_api::Runtime::estimate`].
    ///
    /// # Errors
    /// What the plugin says.
    pub fn estimate(&self, dir: &Path, options: &LoadOptions) -> Result<Footprint, LoadError> {
        let options = json(options)?;
        let (mut footprint, mut error) = (Given::NOTHING, Given::NOTHING);
        let dir = dir.as_os_str().as_encoded_bytes();
        // SAFETY: see above.
        let status =
            unsafe { (self.table.estimate)(self.runtime, Lent::of(dir), Lent::of(&options), &raw mut footprint, &raw mut error) };
        loaded(status, error)?;
        read(&taken(footprint))
    }

    /// See [`bascule_runtime_api::Runtime::load`].
    ///
    /// # Errors
    /// What the plugin says.
    pub fn load(self: &Arc<Self>, dir: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, LoadError> {
        let told = json(options)?;
        let (mut session, mut described, mut error) = (ptr::null_mut(), Given::NOTHING, Given::NOTHING);
        let dir = dir.as_os_str().as_encoded_bytes();
        // SAFETY: see above.
        let status = unsafe {
            let (dir, told) = (Lent::of(dir), Lent::of(&told));
            (self.table.load)(self.runtime, dir, told, &raw mut session, &raw mut described, &raw mut error)
        };
        loaded(status, error)?;
        let session = Owned { host: Arc::clone(self), session };
        let described: Described = read(&taken(described))?;
        for remark in &described.remarks {
            tracing::info!(entrypoint = %options.entrypoint.display(), "{remark}");
        }
        Ok(Box::new(HostedSession { owned: session, described }))
    }
}

/// A session of a plugin, which ends with this.
struct Owned {
    host: Arc<Host>,
    session: *mut c_void,
}

// SAFETY: a session is used by one thread at a time, and belongs to none.
unsafe impl Send for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by `load`, and used for the last time.
        unsafe {
            (self.host.table.unload)(self.session);
        }
    }
}

struct HostedSession {
    owned: Owned,
    described: Described,
}

impl Session for HostedSession {
    fn signature(&self) -> &Signature {
        &self.described.signature
    }

    fn run(&mut self, inputs: &[Tensor], context: &RunContext<'_>) -> Result<Vec<Tensor>, RunError> {
        self.described.signature.check_inputs(inputs)?;
        let lent: Vec<LentTensor> = inputs.iter().map(lend).collect();
        let deadline = context.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).as_nanos());
        let call = Call {
            cancelled: context.cancelled.map_or(ptr::null(), ptr::from_ref),
            deadline_ns: deadline.and_then(|left| u64::try_from(left).ok()).unwrap_or(u64::MAX),
        };
        let outputs = &self.described.signature.outputs;
        let mut given: Vec<GivenTensor> = outputs.iter().map(|_| nothing()).collect();
        let mut error = Given::NOTHING;
        let Owned { host, session } = &self.owned;
        // SAFETY: the session lives and is used by this thread alone; what is lent lives longer than the call; there is room for as many
        // outputs as the signature has.
        let status = unsafe {
            let (inputs, outputs) = (lent.as_ptr(), given.as_mut_ptr());
            (host.table.run)(*session, inputs, lent.len(), &raw const call, outputs, given.len(), &raw mut error)
        };
        if status == OK {
            // All are taken before the first that is wrong ends the run: what is not taken is not released.
            let taken: Vec<Result<Tensor, RunError>> =
                given.into_iter().zip(outputs).map(|(given, spec)| take(given, spec)).collect();
            return taken.into_iter().collect();
        }
        let message = String::from_utf8_lossy(&taken(error)).into_owned();
        Err(match status {
            INVALID_INPUT => RunError::InvalidInput { message },
            INTERRUPTED => RunError::Interrupted,
            _ => RunError::Failed { message },
        })
    }

    fn interrupter(&self) -> Option<Arc<dyn Interrupt>> {
        let Owned { host, session } = &self.owned;
        // SAFETY: the session lives.
        let interrupter = unsafe { (host.table.interrupter)(*session) };
        if interrupter.is_null() {
            return None;
        }
        Some(Arc::new(Interrupter { host: Arc::clone(host), interrupter }))
    }

    fn footprint(&self) -> Footprint {
        self.described.footprint
    }

    fn device(&self) -> Device {
        self.described.device
    }

    fn warnings(&self) -> Vec<String> {
        self.described.warnings.clone()
    }

    fn remarks(&self) -> &[String] {
        &self.described.remarks
    }
}

/// Stops the runs of a session; it may outlive that.
struct Interrupter {
    host: Arc<Host>,
    interrupter: *mut c_void,
}

// SAFETY: the ABI says that it may be used from any thread.
unsafe impl Send for Interrupter {}
// SAFETY: see above.
unsafe impl Sync for Interrupter {}

impl Interrupt for Interrupter {
    fn interrupt(&self) {
        // SAFETY: made by `interrupter`, and not ended yet.
        unsafe { (self.host.table.interrupt)(self.interrupter) }
    }
}

impl Drop for Interrupter {
    fn drop(&mut self) {
        // SAFETY: made by `interrupter`, and used for the last time.
        unsafe {
            (self.host.table.forget)(self.interrupter);
        }
    }
}

/// Bytes that a plugin gave, released with this.
struct Taken(Given);

// SAFETY: the ABI says that they may be released by any thread, and nobody writes to them.
unsafe impl Send for Taken {}

impl AsRef<[u8]> for Taken {
    fn as_ref(&self) -> &[u8] {
        let lent = Lent { data: self.0.data, len: self.0.len };
        // SAFETY: given by the plugin until they are released.
        unsafe { lent.bytes() }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(release) = self.0.release {
            // SAFETY: released once, here.
            unsafe {
                release(self.0.owner);
            }
        }
    }
}

fn taken(given: Given) -> Bytes {
    Bytes::from_owner(Taken(given))
}

fn lend(tensor: &Tensor) -> LentTensor {
    let datatype = DataType::ALL.iter().position(|datatype| *datatype == tensor.datatype()).unwrap_or_default() as u32;
    let shape = tensor.shape();
    LentTensor { datatype, rank: shape.len(), shape: shape.as_ptr(), bytes: Lent::of(tensor.bytes()) }
}

fn nothing() -> GivenTensor {
    GivenTensor { datatype: u32::MAX, rank: 0, shape: [0; MAX_RANK], bytes: Given::NOTHING }
}

/// An output, where it is one.
fn take(given: GivenTensor, spec: &TensorSpec) -> Result<Tensor, RunError> {
    let bytes = taken(given.bytes);
    let failed = |message: String| RunError::Failed { message: format!("output '{}': {message}", spec.name) };
    if DataType::ALL.get(given.datatype as usize) != Some(&spec.datatype) {
        return Err(failed(format!("expected {}, the plugin gave another datatype", spec.datatype)));
    }
    let shape = given.shape.get(..given.rank).ok_or_else(|| failed(format!("the plugin gave {} dimensions", given.rank)))?;
    Tensor::new(spec.datatype, shape, bytes).map_err(|error| failed(error.to_string()))
}

fn loaded(status: i32, error: Given) -> Result<(), LoadError> {
    let error = taken(error);
    if status == OK {
        return Ok(());
    }
    Err(read::<LoadFault>(&error).map_or_else(|unreadable| unreadable, LoadError::from))
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, LoadError> {
    serde_json::to_vec(value).map_err(|error| LoadError::Unsupported { message: format!("can't be told to a plugin: {error}") })
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|error| LoadError::Unsupported { message: format!("the plugin answered something else: {error}") })
}
