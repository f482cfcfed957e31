//! Who sent a message.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::scope;
use crate::{id::NodeId, system::System};

/// The node that sent the message in which this stands: as the receiver's connection has proved it,
/// and no word of the sender's. On the way it takes no byte, so there is nothing to forge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender(NodeId);

impl Sender {
    /// For a message of this node: a receiver on this node finds it so.
    pub fn here(system: &System) -> Self {
        Sender(system.node())
    }

    /// Which node.
    pub fn node(self) -> NodeId {
        self.0
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Sender")]
struct Wire;

impl Serialize for Sender {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sender {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Wire::deserialize(deserializer)?;
        scope::sender().map(Sender).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec::{Opaque, Parcel, encode},
        env::Env,
        id::Incarnation,
        registry::Types,
    };

    #[tokio::test]
    async fn it_is_who_the_connection_says_also_within_an_opaque_value() {
        let types = Types::default();
        let system = System::start(NodeId(7), Incarnation(1), types, Env::system().unwrap());
        let system = system.await.unwrap();
        let mine = || Sender::here(&system);
        assert_eq!(mine().node(), NodeId(7));
        let from = |value, from| {
            let mut parcel = Parcel::local(value, &system);
            parcel.from = from;
            parcel
        };
        let sent = encode(&mine()).unwrap();
        assert!(sent.is_empty(), "{sent:?}");
        assert_eq!(from(sent, NodeId(9)).decode::<Sender>().unwrap().node(), NodeId(9));
        let sent = encode(&Opaque::of(&mine()).unwrap()).unwrap();
        let arrived = from(sent, NodeId(9)).decode::<Opaque>().unwrap();
        assert_eq!(arrived.decode::<Sender>(&system).unwrap().node(), NodeId(9));
        let config = bincode::config::standard();
        let outside = bincode::serde::decode_from_slice::<Sender, _>(&[], config).unwrap_err();
        assert!(outside.to_string().contains("in messages only"), "{outside}");
    }
}
