//! Gives libtorch its CUDA half, if it is installed.
//!
//! The program links only `libtorch_cpu`, so that one binary runs on machines with and without a
//! GPU. libtorch finds its CUDA half if that is loaded before the first question about CUDA: the
//! first answer stays for the life of the process, and seeding, `backward` and a look for devices
//! all ask.

use std::{fmt, sync::OnceLock};

/// Whether libtorch's CUDA libraries are in this process. It doesn't tell whether there is a GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CudaLibrary {
    /// Loaded.
    Loaded,
    /// This libtorch is a CPU build, or the system can't have CUDA.
    Absent,
    /// They are there but can't be loaded: what the loader said.
    Failed(String),
}

impl fmt::Display for CudaLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CudaLibrary::Loaded => f.write_str("libtorch's CUDA libraries are loaded"),
            CudaLibrary::Absent => f.write_str("this libtorch has no CUDA libraries"),
            CudaLibrary::Failed(why) => {
                write!(f, "libtorch's CUDA libraries can't be loaded: {why}")
            }
        }
    }
}

/// Loads libtorch's CUDA libraries, the first time; later calls give the same answer. Takes about
/// 0.1 s when they are there.
///
/// [`ComputeThread::spawn`](super::ComputeThread::spawn) and
/// [`DeviceChoice::resolve`](super::DeviceChoice::resolve) call it. A program that calls tch itself
/// before those must call this first, or there is no CUDA in that process.
pub fn load_cuda() -> CudaLibrary {
    // The one static of this room: it mirrors libtorch, which is one for the whole process.
    static LOADED: OnceLock<CudaLibrary> = OnceLock::new();
    LOADED.get_or_init(load).clone()
}

#[cfg(not(target_os = "linux"))]
fn load() -> CudaLibrary {
    CudaLibrary::Absent
}

#[cfg(target_os = "linux")]
fn load() -> CudaLibrary {
    use std::{ffi::CString, os::unix::ffi::OsStrExt};

    let Some(library) = linux::folder_of_libtorch().map(|dir| dir.join("libtorch_cuda.so")) else {
        return CudaLibrary::Absent;
    };
    if !library.exists() {
        return CudaLibrary::Absent;
    }
    match CString::new(library.as_os_str().as_bytes()) {
        Ok(path) => match linux::open_for_all(&path) {
            Ok(()) => CudaLibrary::Loaded,
            Err(why) => CudaLibrary::Failed(why),
        },
        Err(error) => CudaLibrary::Failed(error.to_string()),
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        ffi::{CStr, OsStr, c_int, c_void},
        os::unix::ffi::OsStrExt,
        path::{Path, PathBuf},
    };

    /// The folder from which the running process has loaded `libtorch_cpu.so`.
    pub(super) fn folder_of_libtorch() -> Option<PathBuf> {
        let mut found: Option<PathBuf> = None;
        // SAFETY: `visit` has the signature asked for, and gets back the pointer to `found`, which
        // outlives the call and is used by nothing else during it.
        unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut found).cast()) };
        found
    }

    /// Called for each loaded library, on the calling thread; ends the walk with a 1.
    unsafe extern "C" fn visit(
        library: *mut libc::dl_phdr_info,
        _size: usize,
        found: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader passes a description that is valid during this call, whose name is a
        // C string or null; `found` is what `folder_of_libtorch` passed.
        let (name, found) = unsafe {
            let name = (*library).dlpi_name;
            if name.is_null() {
                return 0;
            }
            (CStr::from_ptr(name), &mut *found.cast::<Option<PathBuf>>())
        };
        let path = Path::new(OsStr::from_bytes(name.to_bytes()));
        if path.file_name() != Some(OsStr::new("libtorch_cpu.so")) {
            return 0;
        }
        *found = path.parent().map(Path::to_owned);
        1
    }

    /// Loads a library, with its symbols visible to all others, for the life of the process.
    pub(super) fn open_for_all(path: &CStr) -> Result<(), String> {
        // SAFETY: loading runs the library's initialisers; this one is libtorch's own, from the
        // folder of the libtorch that is already running. It is never closed.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if !handle.is_null() {
            return Ok(());
        }
        // SAFETY: dlerror gives null or a C string that is valid until this thread's next call of
        // the loader; it is copied before that.
        let why = unsafe {
            let error = libc::dlerror();
            if error.is_null() { None } else { Some(CStr::from_ptr(error)) }
        };
        Err(why.map_or_else(|| "the loader gave no reason".into(), |w| w.to_string_lossy().into()))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_running_libtorch_is_found() {
        // Uses libtorch, so that the linker keeps it.
        tch::get_num_threads();
        let folder = linux::folder_of_libtorch().expect("libtorch is linked");
        assert!(folder.join("libtorch_cpu.so").exists(), "{}", folder.display());
    }

    #[test]
    fn a_library_that_is_not_one_is_an_error_that_names_it() {
        let error = linux::open_for_all(c"/no/libtorch_cuda.so").unwrap_err();
        assert!(error.contains("/no/libtorch_cuda.so"), "{error}");
    }

    #[test]
    fn a_second_call_answers_as_the_first() {
        assert_eq!(load_cuda(), load_cuda());
    }
}
