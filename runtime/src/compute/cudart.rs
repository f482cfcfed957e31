//! The part of CUDA's runtime library that copies beside what computes: streams, events, and copies that nobody waits
//! for. tch has none of it.
//!
//! The library is in the process already where libtorch can use a GPU, and its C interface stays the same within a
//! major version. Functions are looked up by name, so that a program starts where there is none.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr,
    sync::OnceLock,
};

use tch::TchError;

use super::ComputeError;

/// What CUDA's functions give: 0 if all is well.
type Status = c_int;
/// `cudaErrorNotReady`: what was asked for has not happened yet, which is no error.
const NOT_READY: Status = 600;
/// `cudaStream_t` and `cudaEvent_t`.
type Handle = *mut c_void;

/// A stream of our own does not wait for the default one, on which libtorch computes.
const STREAM_NON_BLOCKING: c_uint = 1;
/// Who waits sleeps, and nobody asks when it was.
const EVENT_BLOCKING_SYNC_NO_TIMING: c_uint = 1 | 2;
/// `cudaMemcpyHostToDevice`, `cudaMemcpyDeviceToHost`.
const TO_DEVICE: c_int = 1;
const TO_HOST: c_int = 2;

type SetDevice = unsafe extern "C" fn(c_int) -> Status;
type Create = unsafe extern "C" fn(*mut Handle, c_uint) -> Status;
type OfOne = unsafe extern "C" fn(Handle) -> Status;
type Wait = unsafe extern "C" fn(Handle, Handle, c_uint) -> Status;
type Record = unsafe extern "C" fn(Handle, Handle) -> Status;
type Copy = unsafe extern "C" fn(Handle, *const c_void, usize, c_int, Handle) -> Status;
type LastError = unsafe extern "C" fn() -> Status;
type ErrorString = unsafe extern "C" fn(Status) -> *const c_char;

/// The functions, by their names without `cuda`.
struct Functions {
    set_device: SetDevice,
    stream_create: Create,
    stream_destroy: OfOne,
    stream_wait_event: Wait,
    event_create: Create,
    event_destroy: OfOne,
    event_record: Record,
    event_query: OfOne,
    event_synchronize: OfOne,
    memcpy_async: Copy,
    get_last_error: LastError,
    get_error_string: ErrorString,
}

/// The functions of the library that is loaded; none if there is no such library. Call
/// [`load_cuda`](super::load_cuda) first.
fn functions() -> Option<&'static Functions> {
    // As `load_cuda`'s: it mirrors what is loaded, which is one for the whole process.
    static FOUND: OnceLock<Option<Functions>> = OnceLock::new();
    FOUND.get_or_init(look_up).as_ref()
}

fn look_up() -> Option<Functions> {
    macro_rules! function {
        ($name:literal, $signature:ty) => {{
            // SAFETY: looks a name up among the libraries that are loaded.
            let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, $name.as_ptr()) };
            if symbol.is_null() {
                return None;
            }
            // SAFETY: the library declares this name with this signature (cuda_runtime_api.h), and no other one has names
            // that begin with `cuda`.
            unsafe { std::mem::transmute::<*mut c_void, $signature>(symbol) }
        }};
    }
    Some(Functions {
        set_device: function!(c"cudaSetDevice", SetDevice),
        stream_create: function!(c"cudaStreamCreateWithFlags", Create),
        stream_destroy: function!(c"cudaStreamDestroy", OfOne),
        stream_wait_event: function!(c"cudaStreamWaitEvent", Wait),
        event_create: function!(c"cudaEventCreateWithFlags", Create),
        event_destroy: function!(c"cudaEventDestroy", OfOne),
        event_record: function!(c"cudaEventRecord", Record),
        event_query: function!(c"cudaEventQuery", OfOne),
        event_synchronize: function!(c"cudaEventSynchronize", OfOne),
        memcpy_async: function!(c"cudaMemcpyAsync", Copy),
        get_last_error: function!(c"cudaGetLastError", LastError),
        get_error_string: function!(c"cudaGetErrorString", ErrorString),
    })
}

impl Functions {
    /// An error as libtorch would tell it, so that the loss of a device is recognised.
    fn check(&self, status: Status) -> Result<(), ComputeError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: takes no argument. It clears the error, which libtorch would take for one of its own calls'.
        unsafe { (self.get_last_error)() };
        // SAFETY: any number is allowed; what comes back is a constant C string, or null.
        let text = unsafe { (self.get_error_string)(status) };
        let text = if text.is_null() {
            format!("error {status}")
        } else {
            // SAFETY: a C string that is never freed, as above.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(TchError::Torch(format!("CUDA error: {text}")).into())
    }
}

/// Makes a GPU the calling thread's own: streams and events that it makes from here on are of that one.
///
/// # Errors
/// CUDA's, or that there is no CUDA.
pub(super) fn set_device(index: usize) -> Result<(), ComputeError> {
    let absent = || ComputeError::Torch("CUDA's runtime library is not loaded".to_owned());
    let functions = functions().ok_or_else(absent)?;
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    // SAFETY: any number is allowed.
    functions.check(unsafe { (functions.set_device)(index) })
}

/// A queue of copies. libtorch computes on another one.
pub(super) struct Stream {
    handle: Handle,
    functions: &'static Functions,
}

// SAFETY: CUDA's streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the library has its own locks.
unsafe impl Sync for Stream {}

impl Stream {
    /// On the calling thread's GPU.
    ///
    /// # Errors
    /// CUDA's, or that there is no CUDA.
    pub(super) fn new() -> Result<Self, ComputeError> {
        let absent = || ComputeError::Torch("CUDA's runtime library is not loaded".to_owned());
        let functions = functions().ok_or_else(absent)?;
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is written to during the call only.
        let made = unsafe { (functions.stream_create)(&raw mut handle, STREAM_NON_BLOCKING) };
        functions.check(made)?;
        Ok(Stream { handle, functions })
    }

    /// An event that has happened.
    pub(super) fn event(&self) -> Result<Event, ComputeError> {
        let functions = self.functions;
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is written to during the call only.
        let made =
            unsafe { (functions.event_create)(&raw mut handle, EVENT_BLOCKING_SYNC_NO_TIMING) };
        functions.check(made)?;
        Ok(Event { handle, functions })
    }

    /// What is queued from here on waits for what the event stands for.
    pub(super) fn wait_for(&self, event: &Event) -> Result<(), ComputeError> {
        // SAFETY: both handles are live, as their owners are.
        let queued = unsafe { (self.functions.stream_wait_event)(self.handle, event.handle, 0) };
        self.functions.check(queued)
    }

    /// The event stands for all that is queued here so far.
    pub(super) fn record(&self, event: &Event) -> Result<(), ComputeError> {
        // SAFETY: as above.
        let recorded = unsafe { (self.functions.event_record)(event.handle, self.handle) };
        self.functions.check(recorded)
    }

    /// Queues a copy to a GPU.
    ///
    /// # Safety
    /// `from` is `len` bytes of pinned memory, `to` as many of the stream's GPU. Until an event that is recorded behind
    /// it has happened, both stay, `from` is not written to, and `to` is used by nothing that does not wait for it.
    pub(super) unsafe fn copy_to_device(
        &self,
        to: *mut c_void,
        from: *const c_void,
        len: usize,
    ) -> Result<(), ComputeError> {
        // SAFETY: what the caller promises.
        let queued =
            unsafe { (self.functions.memcpy_async)(to, from, len, TO_DEVICE, self.handle) };
        self.functions.check(queued)
    }

    /// Queues a copy from a GPU.
    ///
    /// # Safety
    /// As [`copy_to_device`](Self::copy_to_device), the other way round: `to` is used by nobody until then.
    pub(super) unsafe fn copy_to_host(
        &self,
        to: *mut c_void,
        from: *const c_void,
        len: usize,
    ) -> Result<(), ComputeError> {
        // SAFETY: what the caller promises.
        let queued = unsafe { (self.functions.memcpy_async)(to, from, len, TO_HOST, self.handle) };
        self.functions.check(queued)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the handle is live and not used again. What is queued still happens.
        unsafe { (self.functions.stream_destroy)(self.handle) };
    }
}

/// A mark in a queue.
pub(super) struct Event {
    handle: Handle,
    functions: &'static Functions,
}

// SAFETY: CUDA's events may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    /// Stands for all that libtorch has queued so far: it computes on the default stream, as tch knows no other.
    pub(super) fn record_computed(&self) -> Result<(), ComputeError> {
        // SAFETY: the handle is live; null names the default stream.
        let recorded = unsafe { (self.functions.event_record)(self.handle, ptr::null_mut()) };
        self.functions.check(recorded)
    }

    /// What libtorch computes from here on waits for it.
    pub(super) fn before_computing(&self) -> Result<(), ComputeError> {
        // SAFETY: as above.
        let queued = unsafe { (self.functions.stream_wait_event)(ptr::null_mut(), self.handle, 0) };
        self.functions.check(queued)
    }

    /// Whether it has happened.
    pub(super) fn has_happened(&self) -> Result<bool, ComputeError> {
        // SAFETY: the handle is live.
        match unsafe { (self.functions.event_query)(self.handle) } {
            NOT_READY => Ok(false),
            other => self.functions.check(other).map(|()| true),
        }
    }

    /// Blocks until it has happened.
    pub(super) fn wait(&self) -> Result<(), ComputeError> {
        // SAFETY: the handle is live.
        let waited = unsafe { (self.functions.event_synchronize)(self.handle) };
        self.functions.check(waited)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle is live and not used again; CUDA lets it go when what waits for it has gone on.
        unsafe { (self.functions.event_destroy)(self.handle) };
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::compute::{CudaLibrary, load_cuda};

    #[test]
    fn a_machine_without_a_gpu_gives_an_error_and_no_stream() {
        // Keeps libtorch, and with it CUDA's runtime library, in the test.
        let loaded = load_cuda();
        if loaded == CudaLibrary::Loaded && tch::Cuda::is_available() {
            return;
        }
        let error = Stream::new().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("CUDA"), "{error:?}");
        assert!(set_device(0).is_err());
    }
}
