//! The right to answer one message.

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use crate::{
    codec,
    error::{Cause, Failure},
    remote::ReplyPort,
    work::InHand,
};

/// The right to answer one message, once, from wherever it is held.
///
/// Dropped without an answer it tells the caller: *not sent* if the handler had not begun, *may
/// have run* if it had. For a cast there is nobody to tell, and the answer is thrown away.
///
/// ```
/// use footlight_runtime::{Actor, Context, DeferredHandler, Message, ReplyTo, Result};
/// # use footlight_runtime::{Error, NodeId, System, env::Env, id::Incarnation, registry::Types};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Arrive;
/// impl Message for Arrive { type Reply = usize; const NAME: &'static str = "gate.arrive"; }
///
/// /// Lets those who arrive go on when there are two.
/// struct Gate(Vec<ReplyTo<usize>>);
/// # impl Actor for Gate {
/// #     type Args = ();
/// #     const NAME: &'static str = "gate.gate";
/// #     async fn start(_: (), _: &Context<Self>) -> Result<Self> { Ok(Gate(Vec::new())) }
/// # }
///
/// impl DeferredHandler<Arrive> for Gate {
///     async fn handle(&mut self, _: Arrive, reply: ReplyTo<usize>, _: &Context<Self>) {
///         self.0.push(reply);
///         if self.0.len() == 2 {
///             self.0.drain(..).for_each(|reply| reply.send(2));
///         }
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let env = Env::system().map_err(Error::other)?;
/// # let system = System::start(NodeId(1), Incarnation(1), Types::default(), env).await?;
/// # let gate = system.spawn::<Gate>(()).await?;
/// let both = futures::future::join(gate.call(Arrive), gate.call(Arrive)).await;
/// assert_eq!(both, (Ok(2), Ok(2)));
/// # Ok(()) }
/// ```
pub struct ReplyTo<R> {
    port: Option<Port<R>>,
    begun: bool,
    /// Counted as work until it is answered.
    in_hand: Option<InHand>,
}

/// The way back to a caller on another node.
pub(crate) struct WirePort {
    pub(crate) port: Box<dyn ReplyPort>,
    pub(crate) in_hand: Option<InHand>,
}

enum Port<R> {
    Local(oneshot::Sender<Result<R, Failure>>),
    Wire(Box<dyn ReplyPort>, fn(&R) -> Result<codec::Encoded, codec::CodecError>),
}

impl<R: Serialize + DeserializeOwned + Send + 'static> ReplyTo<R> {
    pub(crate) fn local(sender: oneshot::Sender<Result<R, Failure>>) -> Self {
        ReplyTo { port: Some(Port::Local(sender)), begun: false, in_hand: None }
    }

    pub(crate) fn wire(port: WirePort) -> Self {
        let WirePort { port, in_hand } = port;
        let port = Some(Port::Wire(port, codec::encode::<R>));
        ReplyTo { port, begun: false, in_hand }
    }

    /// For a cast: nobody waits.
    pub(crate) fn nobody() -> Self {
        ReplyTo { port: None, begun: false, in_hand: None }
    }

    /// Answers. A caller that has given up by now is no error.
    pub fn send(mut self, reply: R) {
        match self.port.take() {
            Some(Port::Local(sender)) => drop(sender.send(Ok(reply))),
            Some(Port::Wire(port, encode)) => port
                .answer(encode(&reply).map_err(|error| {
                    Failure::may_have_run(Cause::CannotEncode(error.to_string()))
                })),
            None => {}
        }
    }

    /// Whether somebody waits for the answer (a call, not a cast) as far as this side knows.
    pub fn is_awaited(&self) -> bool {
        match &self.port {
            Some(Port::Local(sender)) => !sender.is_closed(),
            Some(Port::Wire(..)) => true,
            None => false,
        }
    }
}

impl<R> ReplyTo<R> {
    /// From here on the handler may have run.
    pub(crate) fn begin(&mut self) {
        self.begun = true;
    }

    /// A call is in hand until it is answered, whenever that is. A cast is only until it is handled: gives back what
    /// counts it.
    pub(crate) fn hold(&mut self, in_hand: Option<InHand>) -> Option<InHand> {
        if self.port.is_none() {
            return in_hand;
        }
        self.in_hand = in_hand;
        None
    }

    /// Answers with a failure in place of a reply.
    pub(crate) fn fail(mut self, failure: Failure) {
        self.finish(failure);
    }

    fn finish(&mut self, failure: Failure) {
        match self.port.take() {
            Some(Port::Local(sender)) => drop(sender.send(Err(failure))),
            Some(Port::Wire(port, _)) => port.answer(Err(failure)),
            None => {}
        }
    }
}

impl<R> Drop for ReplyTo<R> {
    fn drop(&mut self) {
        let failure = if self.begun {
            Failure::may_have_run(Cause::Stopped)
        } else {
            Failure::not_sent(Cause::Stopped)
        };
        self.finish(failure);
    }
}

impl<R> std::fmt::Debug for ReplyTo<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyTo").field("begun", &self.begun).finish_non_exhaustive()
    }
}
