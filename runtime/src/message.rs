//! Messages: plain serde types with a name, told apart by shape.

use serde::{Serialize, de::DeserializeOwned};
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

/// The shape of a type as bytes, found by letting serde walk through it with made-up values.
///
/// A type whose `Deserialize` refuses every made-up value (a checked newtype, say) is taken as
/// opaque: such a change of shape is then seen only when decoding fails.
fn shape<T: DeserializeOwned>(system: &System) -> Vec<u8> {
    scope::tracing(system, || {
        let mut tracer = serde_reflection::Tracer::new(serde_reflection::TracerConfig::default());
        let traced = tracer
            .trace_simple_type::<T>()
            .and_then(|(format, _)| tracer.registry().map(|registry| (format, registry)));
        match traced {
            // The registry is a BTreeMap: its order is its own, not a hash map's.
            Ok(pair) => format!("{pair:?}").into_bytes(),
            Err(error) => {
                tracing::debug!(%error, "a type's shape can't be traced: taken as opaque");
                b"opaque".to_vec()
            }
        }
    })
}
