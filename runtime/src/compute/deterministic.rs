//! The same bits from the same numbers, on a GPU too.

use std::ffi::{CStr, c_void};

use super::{ComputeError, load_cuda};

/// Has libtorch choose deterministic algorithms from here on, in the whole process: PyTorch's
/// `torch.use_deterministic_algorithms(True, warn_only=True)`, with cuDNN's search for the fastest algorithm off. What has
/// only an algorithm that is not deterministic warns on standard error and goes on.
///
/// cuBLAS besides needs `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment, before CUDA is first used. On the
/// processor nothing changes: there the number of threads decides the bits
/// ([`ComputeOptions::threads`](super::ComputeOptions::threads)).
///
/// # Errors
/// [`ComputeError::Torch`] if this libtorch has no such settings under the names of 2.11.
pub fn deterministic() -> Result<(), ComputeError> {
    load_cuda();
    tch::Cuda::cudnn_set_benchmark(false);
    // tch has nothing for these; they are functions of C++, under its names.
    type GlobalContext = unsafe extern "C" fn() -> *mut c_void;
    type SetOne = unsafe extern "C" fn(*mut c_void, bool);
    type SetTwo = unsafe extern "C" fn(*mut c_void, bool, bool);
    let context = symbol(c"_ZN2at13globalContextEv")?;
    let algorithms = symbol(c"_ZN2at7Context26setDeterministicAlgorithmsEbb")?;
    let cudnn = symbol(c"_ZN2at7Context21setDeterministicCuDNNEb")?;
    // SAFETY: the mangled names give the signatures: `Context& globalContext()`, and of `Context` the methods
    // `setDeterministicAlgorithms(bool, bool)` and `setDeterministicCuDNN(bool)`, which give nothing. In the C++ ABI of
    // Linux and macOS a reference and `this` are pointers, and a method is a function with `this` first. They set flags of
    // an object that lives as long as the process.
    unsafe {
        let context = std::mem::transmute::<*mut c_void, GlobalContext>(context)();
        std::mem::transmute::<*mut c_void, SetTwo>(algorithms)(context, true, true);
        std::mem::transmute::<*mut c_void, SetOne>(cudnn)(context, true);
    }
    Ok(())
}

/// Where a function of libtorch is.
fn symbol(name: &CStr) -> Result<*mut c_void, ComputeError> {
    // SAFETY: looks a name up among the libraries that are loaded.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if symbol.is_null() {
        let name = name.to_string_lossy();
        return Err(ComputeError::Torch(format!("this libtorch has no {name}, as 2.11 has")));
    }
    Ok(symbol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_says_that_it_is_set() {
        deterministic().unwrap();
        type Get = unsafe extern "C" fn(*const c_void) -> bool;
        type GlobalContext = unsafe extern "C" fn() -> *const c_void;
        let context = symbol(c"_ZN2at13globalContextEv").unwrap();
        for name in [
            c"_ZNK2at7Context23deterministicAlgorithmsEv",
            c"_ZNK2at7Context31deterministicAlgorithmsWarnOnlyEv",
            c"_ZNK2at7Context18deterministicCuDNNEv",
        ] {
            let get = symbol(name).unwrap();
            // SAFETY: as above: `bool … () const`.
            let set = unsafe {
                let context = std::mem::transmute::<*mut c_void, GlobalContext>(context)();
                std::mem::transmute::<*mut c_void, Get>(get)(context)
            };
            assert!(set, "{name:?}");
        }
    }

    #[test]
    fn a_function_that_is_not_there_is_named() {
        let error = symbol(c"_ZN2at4gone").unwrap_err().to_string();
        assert!(error.contains("this libtorch has no _ZN2at4gone"), "{error}");
    }
}
