//! A thread that owns what computes.

use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::unconstrained,
};

use super::{ComputeError, Device, load_cuda, memory::keep_freed};

/// How a [`ComputeThread`] is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ComputeOptions {
    /// With how many threads libtorch computes one operation on the processor; `None` leaves it to
    /// libtorch, which takes one for each core.
    ///
    /// 1 unless told: how a sum is split among threads decides its last bits, so results that are
    /// to be the same on every machine need a fixed number. libtorch's MKL has one number for the
    /// whole process (the last one set), so give all threads of a process the same.
    pub threads: Option<i32>,
    /// How many closures may wait; 64 unless told. More callers wait for a place.
    pub queue: usize,
}

impl Default for ComputeOptions {
    fn default() -> Self {
        ComputeOptions { threads: Some(1), queue: 64 }
    }
}

/// A thread of its own that owns `S` (models, optimisers) and runs closures on it.
///
/// - Closures run one at a time, in the order in which [`run`](ComputeThread::run) was first
///   polled.
/// - A panic in a closure, or the loss of the device, ends the thread: what it owns can't be
///   trusted any more. Those who wait, and all who come later, get [`ComputeError::Ended`].
/// - Dropping this ends the thread after the closure in hand; nothing waits for it. `S` is dropped
///   on its thread.
///
/// `S` is made on the thread and never leaves it, so it needs not be `Send`.
///
/// ```
/// # use footlight_runtime::compute::{ComputeError, ComputeThread, Device};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), ComputeError> {
/// let thread = ComputeThread::spawn("weights", Device::Cpu, |device| {
///     Ok(tch::Tensor::f_ones([2, 3], (tch::Kind::Float, device.to_tch()))?)
/// })
/// .await?;
/// let sum = thread.run(|weights| Ok(f64::try_from(weights.f_sum(tch::Kind::Double)?)?)).await?;
/// assert_eq!(sum, 6.0);
/// # Ok(())
/// # }
/// ```
pub struct ComputeThread<S> {
    jobs: mpsc::Sender<Job<S>>,
    /// Held by who puts a closure into the queue: one who comes when there is room again must not
    /// overtake those who were promised it and have not woken up yet.
    line: Mutex<()>,
    shared: Arc<Shared>,
}

type Job<S> = Box<dyn FnOnce(&mut S) -> ControlFlow<()> + Send>;

struct Shared {
    name: String,
    /// Set when the handle is gone: what still waits in the queue has no one to answer to.
    abandoned: AtomicBool,
    /// Why the thread has ended; set before its queue closes.
    why: OnceLock<String>,
}

impl Shared {
    fn ended(&self) -> ComputeError {
        let why = self.why.get().map_or("it was told to stop", String::as_str);
        ComputeError::Ended { thread: self.name.clone(), why: why.into() }
    }
}

impl<S: 'static> ComputeThread<S> {
    /// Starts a thread with the default [`ComputeOptions`] and makes its state there with `init`.
    ///
    /// `name` is the thread's name for debuggers (Linux shows its first 15 bytes) and errors.
    ///
    /// # Errors
    /// What `init` gives; [`ComputeError::Panicked`] if it panics; [`ComputeError::Thread`] if
    /// there is no thread to be had.
    pub async fn spawn<F>(
        name: impl Into<String>,
        device: Device,
        init: F,
    ) -> Result<Self, ComputeError>
    where
        F: FnOnce(Device) -> Result<S, ComputeError> + Send + 'static,
    {
        Self::spawn_with(ComputeOptions::default(), name, device, init).await
    }

    /// As [`spawn`](ComputeThread::spawn), with options.
    ///
    /// # Errors
    /// The same.
    pub async fn spawn_with<F>(
        options: ComputeOptions,
        name: impl Into<String>,
        device: Device,
        init: F,
    ) -> Result<Self, ComputeError>
    where
        F: FnOnce(Device) -> Result<S, ComputeError> + Send + 'static,
    {
        let (jobs, queue) = mpsc::channel(options.queue.max(1));
        let (ready, started) = oneshot::channel();
        let shared = Arc::new(Shared {
            name: name.into(),
            abandoned: AtomicBool::new(false),
            why: OnceLock::new(),
        });
        let this = ComputeThread { jobs, line: Mutex::new(()), shared: shared.clone() };
        thread::Builder::new()
            // A name with a zero byte would be refused by the system.
            .name(shared.name.replace('\0', "?"))
            .spawn(move || {
                let made = attempt(|| {
                    load_cuda();
                    keep_freed();
                    if let Some(threads) = options.threads {
                        // libtorch sets a new thread up at the first question about it, from
                        // what another thread set last; after that this thread has its own.
                        tch::get_num_threads();
                        tch::set_num_threads(threads.max(1));
                    }
                    init(device)
                });
                match made {
                    Ok(state) => {
                        if ready.send(Ok(())).is_ok() {
                            work(state, queue, &shared);
                        }
                    }
                    // Nobody waits any more if this can't be sent.
                    Err(error) => drop(ready.send(Err(error))),
                }
            })
            .map_err(|error| ComputeError::Thread {
                thread: this.shared.name.clone(),
                why: error.to_string(),
            })?;
        started.await.map_err(|_| this.shared.ended())??;
        Ok(this)
    }

    /// Runs `closure` on the thread and gives what it gives.
    ///
    /// A closure that is in the queue is run even if the caller stops waiting for it, for as long
    /// as the thread is there.
    ///
    /// # Errors
    /// What the closure gives: `?` makes a [`ComputeError`] of tch's errors.
    /// [`ComputeError::Panicked`] if it panics, and from then on [`ComputeError::Ended`].
    pub async fn run<R, F>(&self, closure: F) -> Result<R, ComputeError>
    where
        F: FnOnce(&mut S) -> Result<R, ComputeError> + Send + 'static,
        R: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let shared = self.shared.clone();
        let job: Job<S> = Box::new(move |state| {
            let result = attempt(|| closure(state));
            let next = match &result {
                Err(error @ (ComputeError::Panicked(_) | ComputeError::DeviceLost(_))) => {
                    // Before the answer, so that its receiver finds the reason already. Only this
                    // thread sets it, and only once.
                    let _ = shared.why.set(error.to_string());
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            };
            // A caller that went away needs no answer.
            drop(answer.send(result));
            next
        });
        // The lock is fair to those who stand in line. tokio's task budget would send some away
        // before they are in it, and they would come back in another order.
        let put = async {
            let _turn = self.line.lock().await;
            self.jobs.send(job).await
        };
        unconstrained(put).await.map_err(|_| self.shared.ended())?;
        answered.await.map_err(|_| self.shared.ended())?
    }

    /// The name that the thread was given.
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}

impl<S> Drop for ComputeThread<S> {
    fn drop(&mut self) {
        self.shared.abandoned.store(true, Ordering::Relaxed);
    }
}

fn work<S>(mut state: S, mut queue: mpsc::Receiver<Job<S>>, shared: &Shared) {
    while let Some(job) = queue.blocking_recv() {
        if shared.abandoned.load(Ordering::Relaxed) || job(&mut state).is_break() {
            return;
        }
    }
}

/// Runs what the user gave; a panic becomes an error. Whoever sees `Panicked` drops the state.
fn attempt<R>(work: impl FnOnce() -> Result<R, ComputeError>) -> Result<R, ComputeError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(ComputeError::from_panic(&*panic)))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc, sync::mpsc as blocking, thread::ThreadId};

    use super::*;
    use futures::poll;

    /// State that can't leave its thread, and tells from where it was dropped.
    struct State {
        seen: Rc<Cell<Vec<u32>>>,
        dropped: Option<oneshot::Sender<ThreadId>>,
    }

    impl Drop for State {
        fn drop(&mut self) {
            if let Some(dropped) = self.dropped.take() {
                dropped.send(thread::current().id()).ok();
            }
        }
    }

    async fn start() -> (ComputeThread<State>, oneshot::Receiver<ThreadId>) {
        let (dropped, when_dropped) = oneshot::channel();
        let thread = ComputeThread::spawn("test", Device::Cpu, |_| {
            Ok(State { seen: Rc::default(), dropped: Some(dropped) })
        });
        (thread.await.unwrap(), when_dropped)
    }

    #[test]
    fn the_handle_can_be_shared_though_the_state_cannot() {
        fn shared<T: Send + Sync>() {}
        shared::<ComputeThread<State>>();
    }

    #[tokio::test]
    async fn closures_run_in_order_on_one_thread_that_is_not_the_callers() {
        let (thread, _) = start().await;
        let runs = (0..200).map(|n| {
            thread.run(move |state| {
                let mut seen = state.seen.take();
                seen.push(n);
                state.seen.set(seen);
                Ok(thread::current().id())
            })
        });
        let ids = futures::future::try_join_all(runs).await.unwrap();
        assert!(ids.iter().all(|&id| id == ids[0] && id != thread::current().id()));
        let seen = thread.run(|state| Ok(state.seen.take())).await.unwrap();
        assert_eq!(seen, (0..200).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn who_comes_when_there_is_room_again_does_not_overtake_those_who_wait_for_it() {
        let (thread, _) = start().await;
        let (go, wait) = blocking::channel::<()>();
        let (tell, drained) = blocking::channel::<u32>();
        let run = |n: u32, tell: blocking::Sender<u32>| {
            Box::pin(thread.run(move |state| {
                let mut seen = state.seen.take();
                seen.push(n);
                state.seen.set(seen);
                tell.send(n).ok();
                Ok(())
            }))
        };
        let (begin, begun) = blocking::channel();
        let mut gate = Box::pin(thread.run(move |_| {
            begin.send(()).ok();
            Ok(wait.recv().ok())
        }));
        assert!(poll!(&mut gate).is_pending());
        begun.recv().unwrap();
        // Some in the queue, some before it.
        let queue = ComputeOptions::default().queue as u32;
        let mut runs: Vec<_> = (0..queue + 10).map(|n| run(n, tell.clone())).collect();
        for waits in &mut runs {
            assert!(poll!(waits).is_pending());
        }
        go.send(()).unwrap();
        // All that were in the queue have run, and none of those before it has been polled again.
        while drained.recv().unwrap() + 1 < queue {}
        let late = run(queue + 10, tell);
        runs.push(late);
        assert!(poll!(runs.last_mut().unwrap()).is_pending());
        gate.await.unwrap();
        futures::future::try_join_all(runs).await.unwrap();
        let seen = thread.run(|state| Ok(state.seen.take())).await.unwrap();
        assert_eq!(seen, (0..=queue + 10).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn an_error_of_libtorch_is_a_value_and_the_thread_goes_on() {
        let (thread, _) = start().await;
        let error = thread
            .run(|_| {
                let a = tch::Tensor::f_ones([2, 3], tch::kind::FLOAT_CPU)?;
                Ok(a.f_matmul(&a)?)
            })
            .await
            .unwrap_err();
        let ComputeError::Torch(text) = error else { panic!("{error:?}") };
        assert_eq!(text, "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)");
        assert_eq!(thread.run(|_| Ok(5)).await, Ok(5));
    }

    #[tokio::test]
    async fn after_a_panic_those_who_wait_and_those_who_come_learn_why_it_ended() {
        let (thread, when_dropped) = start().await;
        let (go, wait) = blocking::channel::<()>();
        let broken = thread.run(move |_| -> Result<(), _> {
            wait.recv().ok();
            panic!("the model broke")
        });
        let waiting = thread.run(|_| Ok(()));
        let (broken, waiting, ()) = futures::join!(broken, waiting, async {
            go.send(()).unwrap();
        });
        assert_eq!(broken, Err(ComputeError::Panicked("the model broke".into())));
        let ended = ComputeError::Ended {
            thread: "test".into(),
            why: "a computation panicked: the model broke".into(),
        };
        assert_eq!(waiting, Err(ended.clone()));
        assert_eq!(thread.run(|_| Ok(())).await, Err(ended));
        when_dropped.await.expect("the state is dropped");
    }

    #[tokio::test]
    async fn a_lost_device_ends_the_thread() {
        let (thread, _) = start().await;
        let lost =
            ComputeError::from(tch::TchError::Torch("CUDA error: misaligned address".into()));
        assert!(matches!(lost, ComputeError::DeviceLost(_)));
        let sent = lost.clone();
        assert_eq!(thread.run(move |_| Err::<(), _>(sent)).await, Err(lost));
        let later = thread.run(|_| Ok(())).await;
        assert!(matches!(later, Err(ComputeError::Ended { .. })), "{later:?}");
    }

    #[tokio::test]
    async fn a_state_that_can_not_be_made_is_an_error_of_spawn() {
        let failed = ComputeThread::<()>::spawn("x", Device::Cpu, |_| {
            Err(ComputeError::Torch("no such file".into()))
        });
        assert_eq!(failed.await.err(), Some(ComputeError::Torch("no such file".into())));
        let panicked = ComputeThread::<()>::spawn("x", Device::Cpu, |_| panic!("on purpose"));
        assert_eq!(panicked.await.err(), Some(ComputeError::Panicked("on purpose".into())));
    }

    #[tokio::test]
    async fn dropping_the_handle_ends_the_thread_after_the_closure_in_hand() {
        let (thread, when_dropped) = start().await;
        let (begun, has_begun) = oneshot::channel();
        let (go, wait) = blocking::channel::<()>();
        let (done, is_done) = oneshot::channel();
        let (never, is_never) = oneshot::channel();
        {
            let mut in_hand = Box::pin(thread.run(move |_| {
                begun.send(thread::current().id()).ok();
                wait.recv().ok();
                done.send(()).ok();
                Ok(())
            }));
            let mut in_queue = Box::pin(thread.run(move |_| {
                never.send(()).ok();
                Ok(())
            }));
            assert!(poll!(&mut in_hand).is_pending());
            assert!(poll!(&mut in_queue).is_pending());
        }
        let id = has_begun.await.unwrap();
        drop(thread);
        go.send(()).unwrap();
        is_done.await.unwrap();
        assert_eq!(when_dropped.await, Ok(id), "the state is dropped on its own thread");
        assert!(is_never.await.is_err(), "nobody waits for the one in the queue");
    }

    #[tokio::test]
    async fn a_full_queue_makes_the_caller_wait() {
        let options = ComputeOptions { queue: 1, ..ComputeOptions::default() };
        let thread =
            ComputeThread::spawn_with(options, "x", Device::Cpu, |_| Ok(())).await.unwrap();
        let (begun, has_begun) = oneshot::channel();
        let (go, wait) = blocking::channel::<()>();
        let mut in_hand = Box::pin(thread.run(move |()| {
            begun.send(()).ok();
            wait.recv().ok();
            Ok(1)
        }));
        assert!(poll!(&mut in_hand).is_pending());
        has_begun.await.unwrap();
        let mut in_queue = Box::pin(thread.run(|()| Ok(2)));
        assert!(poll!(&mut in_queue).is_pending());
        assert_eq!(thread.jobs.capacity(), 0);
        let mut outside = Box::pin(thread.run(|()| Ok(3)));
        assert!(poll!(&mut outside).is_pending());
        go.send(()).unwrap();
        assert_eq!(futures::join!(in_hand, in_queue, outside), (Ok(1), Ok(2), Ok(3)));
    }

    #[tokio::test]
    async fn libtorch_computes_with_one_thread_unless_told_and_each_keeps_its_number() {
        let options = ComputeOptions { threads: Some(2), ..ComputeOptions::default() };
        let two = ComputeThread::spawn_with(options, "two", Device::Cpu, |_| Ok(())).await.unwrap();
        let (one, _) = start().await;
        assert_eq!(two.run(|()| Ok(tch::get_num_threads())).await, Ok(2));
        assert_eq!(one.run(|_| Ok(tch::get_num_threads())).await, Ok(1));
    }
}
