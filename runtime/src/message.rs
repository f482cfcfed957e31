//! Messages: plain serde types with a name, told apart by shape.

use std::collections::BTreeSet;

use serde::{Serialize, de::DeserializeOwned};
use serde_reflection::{Format, Registry, Samples, Tracer, TracerConfig};
use sha2::{Digest, Sha256};

use crate::{codec::scope, system::System};

/// A value that an actor can receive, and the type of its answer.
///
/// The name is written out because it travels: two types of one name but of another shape are told
/// apart by their [`Fingerprint`] when two nodes meet, and calls between them are refused as not
/// sent.
///
/// ```
/// use footlight_runtime::Message;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Greet { name: String }
///
/// impl Message for Greet {
///     type Reply = String;
///     const NAME: &'static str = "hello.greet";
/// }
/// ```
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// The answer. An error that the receiver wants to report is a `Result` here.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The name under which the message travels, by custom `room.message`.
    const NAME: &'static str;
}

/// 64 bits over the shape of a message and of its reply, or of an actor's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Fingerprint(pub u64);

/// The first 64 bits of the SHA-256 of a name: how names travel in the envelope.
pub fn name_hash(name: &str) -> u64 {
    first_64(&Sha256::digest(name.as_bytes()))
}

fn first_64(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

/// The fingerprint of a message: its own shape and its reply's.
pub fn fingerprint_of_message<M: Message>(system: &System) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update(M::NAME);
    hash.update(shape::<M>(system));
    hash.update(shape::<M::Reply>(system));
    Fingerprint(first_64(&hash.finalize()))
}

/// The fingerprint of any one type.
pub fn fingerprint_of<T: DeserializeOwned>(system: &System) -> Fingerprint {
    Fingerprint(first_64(&Sha256::digest(shape::<T>(system))))
}

/// How often a type is walked through before it is taken as too wide to know.
const MOST_PASSES: usize = 10_000;

/// The shape of a type as bytes, found by letting serde walk through it with made-up values.
///
/// A type whose `Deserialize` refuses every made-up value (a checked newtype, say) is taken as
/// opaque: such a change of shape is then seen only when decoding fails.
fn shape<T: DeserializeOwned>(system: &System) -> Vec<u8> {
    match scope::tracing(system, trace::<T>) {
        // The registry is a BTreeMap: its order is its own, not a hash map's.
        Ok(pair) => format!("{pair:?}").into_bytes(),
        Err(error) => {
            let name = std::any::type_name::<T>();
            tracing::debug!(name, %error, "a type's shape can't be traced: taken as opaque");
            b"opaque".to_vec()
        }
    }
}

/// One pass sees one variant of each enum; the tracer goes on with an enum in the next pass only if
/// its name is taken off the list of incomplete ones, and tells that list only at the end. So the
/// walk starts over with each set of names that it learns.
fn trace<T: DeserializeOwned>() -> Result<(Format, Registry), serde_reflection::Error> {
    let samples = Samples::new();
    let mut enums = BTreeSet::<String>::new();
    let mut passes = 0;
    loop {
        let mut tracer = Tracer::new(TracerConfig::default());
        let format = loop {
            let (format, _) = tracer.trace_type_once::<T>(&samples)?;
            passes += 1;
            let mut go_on = false;
            for name in &enums {
                go_on |= tracer.check_incomplete_enum(name).is_some();
            }
            if !go_on {
                break format;
            }
            if passes >= MOST_PASSES {
                return Err(serde_reflection::Error::NotSupported("so many variants"));
            }
        };
        match tracer.registry() {
            Err(serde_reflection::Error::MissingVariants(names))
                if names.iter().any(|name| !enums.contains(name)) =>
            {
                enums.extend(names);
            }
            outcome => return Ok((format, outcome?)),
        }
    }
}
