//! Who is in the cluster: SWIM, as a state machine without socket, clock or thread.
//!
//! ```text
//! packets, timers ──> Swim ──> SwimAction: packets to send, timers to set,
//!                                          Up, Suspect, Cleared, Down, Left, Renamed, Rejoined
//! ```
//!
//! The protocol is SWIM (Das, Gupta, Motivala 2002) with suspicion and refutation, by the package
//! `foca`; [`Swim`] adds what foca 2.0.0 leaves open. Only membership declares a node down: a lost
//! connection alone does not.
//!
//! What a user of [`Swim`] may rely on (the tests cite these):
//! - **ME-1** After `Up(m)` comes exactly one of `Down(m)`, `Left(m)` or `Renamed { old: m, .. }`
//!   before anything else starts or ends `m`; after `Renamed { new, .. }`, `new` counts as up.
//! - **ME-2** A member is a node in one life: a restarted node is another [`MemberId`].
//! - **ME-3** No packet, whatever its bytes, makes it panic or allocate more than the packet's size
//!   times a small constant.
//! - **ME-4** A member that takes part can't speak in another's name: a packet is refused unless
//!   the connection's certificate is that of the sender it names.
//! - **ME-5** A refuted suspicion has no effect on the suspect (foca 2.0.0 tells it to change its
//!   identity all the same).
//! - **ME-6** Members that lost each other find each other again once they can, also if each is the
//!   last of its part.
//! - **ME-7** When a cut heals whose halves have declared each other down, the half with fewer
//!   members (of equal ones that without the smallest node) comes back as new: `Rejoined`. To the
//!   other half nothing has happened. While the halves are still finding out about the cut, or one
//!   hears the other and is not heard, both may come back as new.

mod action;
mod codec;
mod identity;
mod settings;
mod swim;

#[cfg(test)]
mod simulation;

pub use action::{Member, MemberState, SwimAction, SwimError, SwimTimer};
pub use codec::MAX_PACKET;
pub use identity::MemberId;
pub use settings::{InvalidSettings, Settings};
pub use swim::Swim;
