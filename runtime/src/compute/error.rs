//! What goes wrong in a computation.

use tch::TchError;

use crate::tensor::TensorError;

/// A computation failed.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ComputeError {
    /// libtorch refused: shapes that don't fit, a bad index, no memory. What the thread owns is as
    /// good as before.
    #[error("libtorch: {0}")]
    Torch(String),
    /// CUDA failed in a way that lasts as long as the process: no later call on a GPU will work.
    /// End the node; its supervisor moves the work.
    #[error("the GPU is lost to this process, which has to be started again: {0}")]
    DeviceLost(String),
    /// The closure panicked. What the thread owned may be half changed, so the thread has ended.
    #[error("a computation panicked: {0}")]
    Panicked(String),
    /// The thread has ended before it could run this; nothing of it was done.
    #[error("compute thread `{thread}` has ended: {why}")]
    Ended {
        /// The thread's name.
        thread: String,
        /// What ended it.
        why: String,
    },
    /// A device was named that isn't there.
    #[error("no device {wanted}: {why}")]
    NoDevice {
        /// The device as it was named.
        wanted: String,
        /// What there is, and why not more.
        why: String,
    },
    /// Bytes and shape don't make a tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A tensor whose elements can't stand in a message.
    #[error("a tensor of {0} can't be sent: convert it to one of the types of DType first")]
    Kind(String),
    /// The operating system gave no thread.
    #[error("can't start compute thread `{thread}`: {why}")]
    Thread {
        /// The thread's name.
        thread: String,
        /// What the system said.
        why: String,
    },
}

impl From<TchError> for ComputeError {
    fn from(error: TchError) -> Self {
        let text = match &error {
            TchError::Torch(text) => first_line(text),
            other => first_line(&other.to_string()),
        };
        if is_lost(&text) { ComputeError::DeviceLost(text) } else { ComputeError::Torch(text) }
    }
}

impl ComputeError {
    /// The error for a panic with this text. tch's methods without `f_` panic with libtorch's
    /// message in them.
    pub(super) fn from_panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic without a text");
        // What unwrapping one of tch's errors says.
        let text = match text.strip_prefix("called `Result::unwrap()` on an `Err` value: Torch(\"")
        {
            Some(quoted) => format!("libtorch: {}", shorten(quoted, MOST)),
            None => shorten(text, MOST),
        };
        if is_lost(&text) { ComputeError::DeviceLost(text) } else { ComputeError::Panicked(text) }
    }
}

/// The longest text of a panic that is kept, in bytes.
const MOST: usize = 2000;

/// libtorch's message without the C++ stack that follows it. Some name every backend there is.
fn first_line(text: &str) -> String {
    shorten(text.lines().next().unwrap_or_default(), 300)
}

/// Cuts off libtorch's stack, which stands after a line end or, where a panic quotes it, after an
/// escaped one; and what is beyond `most` bytes.
fn shorten(text: &str, most: usize) -> String {
    let end = ["\nException raised from", "\\nException raised from"]
        .iter()
        .filter_map(|stack| text.find(stack))
        .min()
        .unwrap_or(text.len());
    let text = text[..end].trim();
    if text.len() <= most {
        return text.into();
    }
    format!("{} …", &text[..text.floor_char_boundary(most)].trim_end())
}

/// Whether the text tells of a CUDA error that sticks. CUDA's documentation names those that leave
/// the process unusable; new ones are added, so the list here is that of the harmless ones.
fn is_lost(text: &str) -> bool {
    const HARMLESS: [&str; 5] = [
        "out of memory",
        "invalid device ordinal",
        "invalid argument",
        "invalid configuration argument",
        "too many resources requested for launch",
    ];
    text.split_once("CUDA error: ")
        .is_some_and(|(_, what)| !HARMLESS.iter().any(|harmless| what.starts_with(harmless)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ILLEGAL: &str = "CUDA error: an illegal memory access was encountered\n\
        CUDA kernel errors might be asynchronously reported at some other API call.\n\
        Exception raised from c10_cuda_check_implementation at CUDAException.cpp:43";

    #[test]
    fn of_libtorchs_message_only_the_first_line_is_told() {
        let error = ComputeError::from(TchError::Torch(
            "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)\nException raised from meta \
             at Linear.cpp:42 (most recent call first):\nframe #0: c10::Error::Error"
                .into(),
        ));
        assert_eq!(
            error,
            ComputeError::Torch("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)".into())
        );
    }

    #[test]
    fn a_cuda_error_that_sticks_loses_the_device_and_want_of_memory_does_not() {
        let from = |text: &str| ComputeError::from(TchError::Torch(text.into()));
        assert_eq!(
            from(ILLEGAL),
            ComputeError::DeviceLost("CUDA error: an illegal memory access was encountered".into())
        );
        for harmless in [
            "CUDA out of memory. Tried to allocate 20.00 GiB",
            "CUDA error: out of memory",
            "CUDA error: invalid device ordinal\nGPU device may be out of range",
        ] {
            assert!(matches!(from(harmless), ComputeError::Torch(_)), "{harmless}");
        }
    }

    #[test]
    fn a_panic_that_quotes_a_lost_device_loses_the_device_too() {
        let quoted = format!("called `Result::unwrap()` on an `Err` value: Torch({ILLEGAL:?})");
        let error = ComputeError::from_panic(&quoted);
        assert!(matches!(&error, ComputeError::DeviceLost(_)), "{error}");
        assert!(!error.to_string().contains("Exception raised"), "{error}");
        let unwrapped = ComputeError::from_panic(
            &"called `Result::unwrap()` on an `Err` value: Torch(\"0D and 3D\\nException raised from x",
        );
        assert_eq!(unwrapped, ComputeError::Panicked("libtorch: 0D and 3D".into()));
        assert_eq!(
            ComputeError::from_panic(&"two\nlines"),
            ComputeError::Panicked("two\nlines".into())
        );
        let long = "ä".repeat(5000);
        assert!(ComputeError::from_panic(&long).to_string().len() < 2100);
    }
}
