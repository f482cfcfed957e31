//! What an actor's host keeps for it as long as it lives.

use std::any::Any;

/// Something that belongs to an actor from its start to its end: reserved processors and GPUs, say.
///
/// It is given back when the actor has ended, however it did, and before those who watch the actor
/// are told: whoever starts another in its place finds it free. The actor reads it with
/// [`Context::claim`](crate::Context::claim).
pub trait Claim: Any + Send + Sync {
    /// The actor has ended, or never started. May be called more than once.
    fn give_back(&self);
}
