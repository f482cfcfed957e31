//! What tests of this program share.

mod needs;
pub(crate) mod stand_in;

pub(crate) use needs::lacks;
