//! What travels: references, streams, opaque values, and the shapes of messages.

use futures::StreamExt;

use super::*;
use crate::{
    HostTensor, Streamed,
    codec::{self, Opaque, Parcel},
    message::fingerprint_of_message,
};

/// There and back through the codec, as between two nodes.
fn through_the_codec<T: Serialize + serde::de::DeserializeOwned>(value: &T, system: &System) -> T {
    Parcel::local(codec::encode(value).unwrap(), system).decode().unwrap()
}

#[tokio::test]
async fn a_reference_inside_a_message_still_reaches_its_actor() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap().fenced("lease", 3);
    let arrived = through_the_codec(&WatchIt { other: probe.clone() }, &system).other;
    assert_eq!(arrived, probe);
    soon(arrived.call(Echo { text: "x".into() })).await.unwrap();
    let older = probe.fenced("lease", 2);
    assert!(soon(older.call(Echo { text: "x".into() })).await.is_err(), "the fence travelled too");
}

#[tokio::test]
async fn a_reference_outside_a_message_is_an_error_and_no_panic() {
    let error = bincode::serde::decode_from_slice::<ActorRef<Probe>, _>(
        &[1, 1, 20, 0],
        bincode::config::standard(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("in messages only"), "{error}");
}

#[tokio::test]
async fn a_stream_brings_all_its_items_in_order_and_its_reader_sets_the_pace() {
    let (sender, stream) = Streamed::channel(2);
    let sent = tokio::spawn(async move {
        let mut sent = 0;
        while sent < 1000 && sender.send(sent).await.is_ok() {
            sent += 1;
        }
        sent
    });
    let items: Vec<_> = soon(stream.map(|item| item.unwrap()).collect()).await;
    assert_eq!(items, (0..1000).collect::<Vec<_>>());
    assert_eq!(soon(sent).await.unwrap(), 1000);
}

#[tokio::test]
async fn a_dropped_stream_stops_its_producer() {
    let (sender, stream) = Streamed::<u32>::channel(2);
    drop(stream);
    assert_eq!(sender.send(1).await, Err(1));
    soon(sender.closed()).await;
}

#[tokio::test]
async fn a_stream_and_a_tensor_travel_beside_the_bytes() {
    #[derive(Serialize, Deserialize)]
    struct Mixed {
        before: HostTensor,
        items: Streamed<HostTensor>,
        after: HostTensor,
    }
    let system = system().await;
    let tensor = |n: f32| HostTensor::from_vec(vec![n; 1000], &[10, 100]).unwrap();
    let (sender, items) = Streamed::channel(4);
    for n in 0..3 {
        sender.send(tensor(n as f32)).await.unwrap();
    }
    drop(sender);
    let mixed = Mixed { before: tensor(8.0), items, after: tensor(9.0) };
    let encoded = codec::encode(&mixed).unwrap();
    assert!(encoded.body.len() < 200, "{} bytes", encoded.body.len());
    let arrived: Mixed = Parcel::local(encoded, &system).decode().unwrap();
    assert_eq!(arrived.before.as_slice::<f32>().unwrap()[0], 8.0);
    assert_eq!(arrived.after.as_slice::<f32>().unwrap()[999], 9.0);
    let items: Vec<f32> =
        soon(arrived.items.map(|item| item.unwrap().as_slice::<f32>().unwrap()[0]).collect()).await;
    assert_eq!(items, [0.0, 1.0, 2.0]);
    assert!(codec::encode(&mixed).is_err(), "a stream is sent once");
}

#[tokio::test]
async fn an_opaque_value_is_opened_by_its_final_receiver() {
    #[derive(Serialize, Deserialize)]
    struct Letter {
        content: Opaque,
    }
    let system = system().await;
    let tensor = HostTensor::from_vec(vec![1i64, 2, 3], &[3]).unwrap();
    let letter = Letter { content: Opaque::of(&("weights".to_owned(), tensor)).unwrap() };
    let arrived = through_the_codec(&letter, &system).content;
    let (name, tensor) = arrived.decode::<(String, HostTensor)>(&system).unwrap();
    assert_eq!((name.as_str(), tensor.as_slice::<i64>().unwrap()), ("weights", &[1, 2, 3][..]));
    let wrong = Opaque::of(&1u8).unwrap().decode::<(String, HostTensor)>(&system);
    assert!(wrong.is_err());
}

#[tokio::test]
async fn messages_of_one_name_and_another_shape_are_told_apart() {
    macro_rules! shaped {
        ($module:ident, $body:ty, $reply:ty) => {
            mod $module {
                use super::*;
                #[derive(Serialize, Deserialize)]
                pub(super) struct Shaped {
                    field: $body,
                }
                impl Message for Shaped {
                    type Reply = $reply;
                    const NAME: &'static str = "test.shaped";
                }
            }
        };
    }
    shaped!(one, u32, ());
    shaped!(same, u32, ());
    shaped!(wider, u64, ());
    shaped!(reply, u32, u8);
    shaped!(tensor, HostTensor, ());
    shaped!(stream, Streamed<u32>, ());
    shaped!(stream_of_more, Streamed<u64>, ());
    let system = system().await;
    let print = [
        fingerprint_of_message::<one::Shaped>(&system),
        fingerprint_of_message::<wider::Shaped>(&system),
        fingerprint_of_message::<reply::Shaped>(&system),
        fingerprint_of_message::<tensor::Shaped>(&system),
        fingerprint_of_message::<stream::Shaped>(&system),
        fingerprint_of_message::<stream_of_more::Shaped>(&system),
    ];
    for (n, one) in print.iter().enumerate() {
        assert!(!print[n + 1..].contains(one), "{n}");
    }
    assert_eq!(print[0], fingerprint_of_message::<same::Shaped>(&system));
}

#[tokio::test]
async fn shapes_are_known_behind_enums_too() {
    macro_rules! shaped {
        ($module:ident { $($variant:tt)* }) => {
            mod $module {
                use super::*;
                #[derive(Serialize, Deserialize)]
                pub(super) enum Choice { $($variant)* }
                #[derive(Serialize, Deserialize)]
                pub(super) struct Shaped {
                    choice: Vec<Choice>,
                    at: std::net::SocketAddr,
                }
                impl Message for Shaped {
                    type Reply = std::result::Result<Choice, crate::error::Failure>;
                    const NAME: &'static str = "test.shaped";
                }
            }
        };
    }
    shaped!(one { A, B(u8), C { deep: Option<Box<Choice>> } });
    shaped!(same { A, B(u8), C { deep: Option<Box<Choice>> } });
    shaped!(more { A, B(u8), C { deep: Option<Box<Choice>> }, D });
    shaped!(moved { B(u8), A, C { deep: Option<Box<Choice>> } });
    shaped!(wider { A, B(u16), C { deep: Option<Box<Choice>> } });
    let system = system().await;
    let print = [
        fingerprint_of_message::<one::Shaped>(&system),
        fingerprint_of_message::<more::Shaped>(&system),
        fingerprint_of_message::<moved::Shaped>(&system),
        fingerprint_of_message::<wider::Shaped>(&system),
    ];
    for (n, one) in print.iter().enumerate() {
        assert!(!print[n + 1..].contains(one), "{n}");
    }
    assert_eq!(print[0], fingerprint_of_message::<same::Shaped>(&system));
}

#[tokio::test]
async fn an_actor_is_started_by_name_with_arguments_that_travelled() {
    let system = system().await;
    let addr = system.spawn_by_name("test.probe", Opaque::of(&()).unwrap()).await.unwrap();
    soon(ActorRef::<Probe>::at(addr, &system).call(Echo { text: "x".into() })).await.unwrap();
    let error = system.spawn_by_name("test.nobody", Opaque::of(&()).unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("no actor type `test.nobody`"), "{error}");
    let error = system.spawn_by_name("test.probe", Opaque::of(&5u64).unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("left over"), "{error}");
}
