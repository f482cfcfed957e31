//! Replies, or parts of messages, that come as a stream of items.

use std::{
    fmt,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt, stream::BoxStream};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
    ser::Error as _,
};
use tokio::sync::mpsc;

use crate::{
    codec::{self, scope},
    error::{Cause, Failure},
};

/// Items that arrive one after another, in order, from this node or another.
///
/// It can stand anywhere in a message or a reply and is sent once. The receiver's pace holds the
/// sender back: across nodes at most [`STREAM_WINDOW`] items are under way. It ends with `None`
/// when the sender is done; if the sender's node is lost or an item can't be decoded, the last item
/// is an `Err`.
///
/// ```
/// # use footlight_runtime::Streamed;
/// # use futures::StreamExt;
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let (sender, mut numbers) = Streamed::channel(4);
/// tokio::spawn(async move {
///     for n in 0..3u32 {
///         if sender.send(n).await.is_err() { return } // nobody listens any more
///     }
/// });
/// assert_eq!(numbers.next().await, Some(Ok(0)));
/// # });
/// ```
pub struct Streamed<T> {
    // Behind a lock because `Serialize` has only `&self` and must take the stream out.
    items: Mutex<Option<BoxStream<'static, Result<T, Failure>>>>,
}

/// Most items of one stream that are under way between two nodes.
pub const STREAM_WINDOW: usize = 64;

/// The sending half of [`Streamed::channel`].
#[derive(Debug)]
pub struct StreamSender<T>(mpsc::Sender<T>);

impl<T> StreamSender<T> {
    /// Sends an item, waiting for room. Gives it back when nobody listens any more.
    pub async fn send(&self, item: T) -> Result<(), T> {
        self.0.send(item).await.map_err(|back| back.0)
    }

    /// Sends an item if there is room. Gives it back if there is none, or nobody listens any more.
    pub fn try_send(&self, item: T) -> Result<(), T> {
        self.0.try_send(item).map_err(mpsc::error::TrySendError::into_inner)
    }

    /// Waits until nobody listens any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl<T: Send + 'static> Streamed<T> {
    /// A stream and the end that feeds it, with room for `capacity` items between them (at least
    /// one).
    pub fn channel(capacity: usize) -> (StreamSender<T>, Self) {
        let (sender, mut receiver) = mpsc::channel(capacity.max(1));
        let items = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        (StreamSender(sender), Self::from_stream(items))
    }

    /// Any stream.
    pub fn from_stream(items: impl Stream<Item = T> + Send + 'static) -> Self {
        Streamed { items: Mutex::new(Some(items.map(Ok).boxed())) }
    }
}

impl<T> Stream for Streamed<T> {
    type Item = Result<T, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let items = self.items.get_mut().unwrap_or_else(|poison| poison.into_inner());
        match items {
            Some(items) => items.as_mut().poll_next(cx),
            None => Poll::Ready(None),
        }
    }
}

impl<T: Serialize + Send + 'static> Serialize for Streamed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let items = self.items.lock().unwrap_or_else(|poison| poison.into_inner()).take();
        let items = items.ok_or_else(|| S::Error::custom("a stream can be sent only once"))?;
        // An error of the stream it came from ends it: there is nothing to encode any more.
        let encoded = items.map(|item| match item {
            Ok(item) => codec::encode(&item),
            Err(failure) => Err(codec::CodecError::Encode {
                type_name: std::any::type_name::<T>(),
                why: format!("the stream broke: {failure}"),
            }),
        });
        scope::put_stream(encoded.boxed()).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de, T: DeserializeOwned + Send + 'static> Deserialize<'de> for Streamed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if scope::is_tracing() {
            // The shape of a stream is its index and its items' shape.
            <(u32, T)>::deserialize(deserializer)?;
            return Ok(Streamed { items: Mutex::new(None) });
        }
        let index = u32::deserialize(deserializer)?;
        let parcels = scope::take_stream(index).map_err(D::Error::custom)?;
        let items = parcels.map(|parcel| {
            parcel?
                .decode()
                .map_err(|error| Failure::may_have_run(Cause::CannotDecode(error.to_string())))
        });
        Ok(Streamed { items: Mutex::new(Some(items.boxed())) })
    }
}

impl<T> fmt::Debug for Streamed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Streamed")
    }
}
