//! The moments of a process at which buffers must be seen to: fork and exit.
//!
//! A process has up to two kinds of buffers, objects' and accounts', each with a
//! registry and a settler: a [`Service`]. One set of hooks serves both.
//!
//! Fork has two pairs of hooks. Python's (`os.register_at_fork`) may run any
//! code: the settlers settle everything and end before, so that the child of an otherwise
//! single-threaded program is one of a single-threaded process, and no object that is dead
//! already has its finalizer run in both. It is not this thread that settles, since other
//! modules' hooks have it hold their locks by then. What was still held, because a finalizer
//! took too long, the child settles. The C library's (`pthread_atfork`) run right around the system
//! call, in whatever code called it: they hold the registries' locks across it.
//!
//! Accounts come first: their objects may be in the other kind of buffers, and
//! their locks are the first where both are taken.
//!
//! Source: Modules/posixmodule.c, `PyOS_BeforeFork` and its kin.

use std::any::Any;
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::OnceLock;
use std::time::Duration;

use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict};

use super::barrier;
use super::settler_thread;
use super::unwinding::detached;
use super::word::Word;
use crate::core::heartbeat::{Heartbeat, Host};
use crate::core::registry::{Handle, Registry, Thread};
use crate::core::Counted;

/// How long fork and exit wait for a settler, which may be in a finalizer that
/// waits for them.
const PATIENCE: Duration = Duration::from_millis(500);

/// Buffers of one kind: all that belongs to them.
pub(crate) struct Buffers<O> {
    pub(crate) registry: Registry<O>,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) word: Word,
}

impl<O: Counted> Buffers<O> {
    /// This thread's buffer, if it has one.
    #[inline(always)]
    pub(crate) fn current(&self) -> Option<Handle> {
        self.word.get()
    }

    /// This thread's buffer, made if need be by `register`; none where the thread
    /// or the process is ending. `arm` has the thread's end call [`retire`](Self::retire),
    /// and says whether it will.
    pub(crate) fn current_or_new(
        &self,
        register: fn(&Registry<O>) -> Option<Handle>,
        arm: impl FnOnce() -> bool,
    ) -> Option<Handle> {
        if let Some(handle) = self.current() {
            return Some(handle);
        }
        if !arm() {
            return None;
        }
        let handle = register(&self.registry)?;
        self.word.replace(Some(handle));
        Some(handle)
    }

    /// The thread ends: its buffer goes to the registry. Python's thread state is
    /// gone by then, so no object is touched.
    pub(crate) fn retire(&self) {
        if let Some(handle) = self.word.replace(None) {
            self.registry.retire(handle);
            self.wake_if_idle();
        }
    }

    /// Credits have been installed, or a buffer retired.
    pub(crate) fn wake_if_idle(&self) {
        if self.registry.must_wake() {
            self.heartbeat.wake();
        }
    }

    /// No credits without one who gives them back; none at all once closed.
    pub(crate) fn start_settler(&'static self, host: impl Host) {
        if !self.registry.is_closed() {
            self.heartbeat.start(&self.registry, host);
        }
    }

    /// Whether credits may come into a buffer now. Asked inside the gate: see the
    /// registry on closing.
    #[inline]
    pub(crate) fn admits(&self) -> bool {
        self.heartbeat.is_running() && !self.registry.is_closed()
    }

    /// The settler ends, if it does so in time.
    fn stop_settler(&self, py: Python<'_>) {
        detached(py, || self.heartbeat.stop(PATIENCE));
    }
}

/// Buffers of one kind, as the moments of a process know them. What is provided is
/// the same for both kinds.
pub(crate) trait Service: Sync + 'static {
    /// What the buffers hold credits on.
    type Object: Counted;

    /// Which of the two comes first: 0, accounts; 1, objects.
    const PLACE: usize;

    /// The buffers.
    fn buffers(&self) -> &'static Buffers<Self::Object>;

    /// Starts a settler, unless there is one.
    fn start_settler(&self);

    /// The registry's name for the calling thread.
    fn thread(&self) -> Thread;

    /// Whether something waits for a settler besides credits.
    fn is_asked(&self) -> bool {
        false
    }

    /// Settles everything, and releases what nobody refers to any more. May run
    /// finalizers.
    fn settle_all(&self, py: Python<'_>);

    /// In a forked child, among other modules' hooks.
    fn settle_in_child(&self, py: Python<'_>) {
        self.settle_all(py);
    }

    /// The exit has begun, in this thread.
    fn note_exit(&self, _py: Python<'_>) {}

    /// Locks that come before the registry's, to be held across a fork.
    fn hold_more(&self) -> Box<dyn Any> {
        Box::new(())
    }

    /// Those locks, in the child.
    fn let_go_in_child(&self, _more: Box<dyn Any>) {}
}

/// A `Service` without its type.
trait Moments: Sync {
    fn before_fork(&self, py: Python<'_>);
    fn after_fork_in_parent(&self);
    fn after_fork_in_child(&self, py: Python<'_>);
    fn on_exit(&self, py: Python<'_>);
    fn hold(&self) -> Held;
    fn let_go(&self, held: Held);
    fn let_go_in_child(&self, held: Held);
}

/// A service, and its locks.
type HeldBy = (&'static dyn Moments, Held);

/// A service's locks: its registry's, and those before it.
struct Held {
    registry: Box<dyn Any>,
    more: Box<dyn Any>,
}

impl<S: Service> Moments for S {
    fn before_fork(&self, py: Python<'_>) {
        self.buffers().heartbeat.hold();
        self.buffers().stop_settler(py);
    }

    fn after_fork_in_parent(&self) {
        let Buffers { registry, heartbeat, .. } = self.buffers();
        // It may not have ended in time.
        heartbeat.resume();
        let beat = registry.beat();
        if beat.work || beat.occupied || self.is_asked() {
            self.start_settler();
        }
    }

    fn after_fork_in_child(&self, py: Python<'_>) {
        self.settle_in_child(py);
    }

    fn on_exit(&self, py: Python<'_>) {
        self.note_exit(py);
        self.buffers().registry.close();
        self.settle_all(py);
        // Held for good: one that somebody is about to start would attach to an interpreter
        // that goes away.
        self.buffers().heartbeat.hold();
        self.buffers().stop_settler(py);
        // What the settler had in hand, if it was stopped in the middle.
        self.settle_all(py);
    }

    fn hold(&self) -> Held {
        let more = self.hold_more();
        Held { registry: Box::new(self.buffers().registry.before_fork()), more }
    }

    fn let_go(&self, held: Held) {
        if let Ok(state) = held.registry.downcast() {
            self.buffers().registry.after_fork_in_parent(*state);
        }
    }

    fn let_go_in_child(&self, held: Held) {
        let Buffers { registry, heartbeat, word } = self.buffers();
        heartbeat.after_fork_in_child();
        if let Ok(state) = held.registry.downcast() {
            registry.after_fork_in_child(*state, word.get(), self.thread());
        }
        Service::let_go_in_child(self, held.more);
    }
}

/// Services that have been started, each in its place. Read without a lock: in a
/// forked child, nobody is there to give one back.
static STARTED: [OnceLock<&'static dyn Moments>; 2] = [const { OnceLock::new() }; 2];

thread_local! {
    /// From before a fork to after it. Never destroyed: a thread may fork in its last moments.
    static ACROSS_FORK: ManuallyDrop<RefCell<Vec<HeldBy>>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

fn started() -> impl Iterator<Item = &'static dyn Moments> {
    STARTED.iter().filter_map(OnceLock::get).copied()
}

/// From now on the service is seen to. Once for each.
///
/// # Errors
///
/// What Python raises where a hook cannot be set. Then the service must not be
/// used.
pub(crate) fn start<S: Service>(py: Python<'_>, service: &'static S) -> PyResult<()> {
    barrier::prepare();
    service.buffers().word.find();
    if started().next().is_none() {
        set_hooks(py)?;
    }
    let _ = STARTED[S::PLACE].set(service);
    Ok(())
}

/// Does something while no settler runs, as a fork does.
#[cfg(all(buffered, feature = "live"))]
pub(crate) fn without_settlers<T>(py: Python<'_>, work: impl FnOnce() -> T) -> T {
    started().for_each(|service| service.before_fork(py));
    let result = work();
    started().for_each(|service| service.after_fork_in_parent());
    result
}

fn set_hooks(py: Python<'_>) -> PyResult<()> {
    let function =
        |run: fn(Python<'_>)| PyCFunction::new_closure(py, None, None, move |arguments, _| run(arguments.py()));
    let fork = PyDict::new(py);
    fork.set_item("before", function(|py| started().for_each(|service| service.before_fork(py)))?)?;
    fork.set_item("after_in_parent", function(|_| started().for_each(|service| service.after_fork_in_parent()))?)?;
    fork.set_item("after_in_child", function(|py| started().for_each(|service| service.after_fork_in_child(py)))?)?;
    py.import("os")?.call_method("register_at_fork", (), Some(&fork))?;
    // SAFETY: the handlers are functions of ours, and the module stays loaded.
    let status = unsafe { libc::pthread_atfork(Some(at_fork_prepare), Some(at_fork_parent), Some(at_fork_child)) };
    if status != 0 {
        return Err(PyMemoryError::new_err("no memory for the hooks of fork"));
    }
    let on_exit = function(|py| started().for_each(|service| service.on_exit(py)))?;
    py.import("atexit")?.call_method1("register", (on_exit,))?;
    Ok(())
}

extern "C" fn at_fork_prepare() {
    let held = started().map(|service| (service, service.hold())).collect();
    settler_thread::before_fork();
    let _ = ACROSS_FORK.try_with(|slot| slot.replace(held));
}

/// What `at_fork_prepare` has locked.
fn across_fork() -> Vec<HeldBy> {
    ACROSS_FORK.try_with(|slot| slot.take()).unwrap_or_default()
}

extern "C" fn at_fork_parent() {
    across_fork().into_iter().for_each(|(service, held)| service.let_go(held));
}

extern "C" fn at_fork_child() {
    barrier::prepare_in_child();
    settler_thread::after_fork_in_child();
    across_fork().into_iter().for_each(|(service, held)| service.let_go_in_child(held));
}
