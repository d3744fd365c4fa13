//! The collector, settling, and how the settler gets to objects.
//!
//! | moment | what happens |
//! |---|---|
//! | the collector starts | every buffer is settled; the collecting thread acquires nothing until it stops |
//! | heartbeat | the settler attaches and settles what is cold; and looks after what else is to be watched |
//! | fork, exit | see [`crate::interp::life`] |
//!
//! Sources: Modules/gcmodule.c and Python/gc_free_threading.c on callbacks.

use std::any::Any;
use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::object::PyCell;
use super::thread::{current, in_main_interpreter, release_leftovers, set_collecting, thread_id, Abstaining, BUFFERS};
use crate::core::heartbeat::Host;
use crate::core::registry::Thread;
use crate::core::Scope;
use crate::interp::life::{self, Buffers, Service};
use crate::interp::settler_thread;
use crate::interp::unwinding::detached;

/// How long a flush waits for references that another thread is releasing.
const FLUSH_PATIENCE: Duration = Duration::from_millis(100);

/// What the settler does besides settling, as long as somebody wants it done.
pub(crate) trait Watch: Sync {
    /// A look, detached. After how long the next one should be; none where nothing is to be watched.
    fn look(&self) -> Option<Duration>;

    /// Whether there is anything to be watched.
    fn is_wanted(&self) -> bool;

    /// Locks that are to be held across a fork.
    fn hold(&self) -> Box<dyn Any>;
}

static WATCH: OnceLock<&'static dyn Watch> = OnceLock::new();

/// From now on settlers look at this, too. The first one stays.
#[cfg(feature = "live")]
pub(crate) fn set_watch(watch: &'static dyn Watch) {
    let _ = WATCH.set(watch);
}

fn watch() -> Option<&'static dyn Watch> {
    WATCH.get().copied()
}

/// How the settler attaches.
pub(super) struct Settler;

impl Host for Settler {
    fn attached(&self, work: &mut dyn FnMut()) {
        // Not at all once the interpreter is going away. A thread that tries to
        // attach too late hangs, inside PyO3, and harms nobody.
        let _abstaining = Abstaining::new();
        let _ = Python::try_attach(|_| work());
    }

    fn watch(&self) -> Option<Duration> {
        watch().and_then(|watch| watch.look())
    }

    fn thread(&self) -> Thread {
        thread_id()
    }

    fn is_alone(&self) -> bool {
        settler_thread::are_alone()
    }

    fn longest_nap(&self) -> Option<Duration> {
        settler_thread::longest_nap()
    }

    fn spawn(life: impl FnOnce() + Send + 'static) -> io::Result<()> {
        settler_thread::spawn(life)
    }
}

/// Buffers of objects, in the moments of the process.
struct Objects;

impl Service for Objects {
    type Object = PyCell;
    const PLACE: usize = 1;

    fn buffers(&self) -> &'static Buffers<PyCell> {
        &BUFFERS
    }

    fn start_settler(&self) {
        BUFFERS.start_settler(Settler);
    }

    fn thread(&self) -> Thread {
        thread_id()
    }

    fn is_asked(&self) -> bool {
        watch().is_some_and(|watch| watch.is_wanted())
    }

    fn hold_more(&self) -> Box<dyn Any> {
        watch().map_or_else(|| Box::new(()) as Box<dyn Any>, |watch| watch.hold())
    }

    fn settle_all(&self, _py: Python<'_>) {
        settle_all();
    }

    fn settle_in_child(&self, _py: Python<'_>) {
        BUFFERS.heartbeat.retry();
        // SAFETY: attached to the main interpreter, whose hook this is; outside the gate.
        unsafe { BUFFERS.registry.settle(Scope::All) };
        // Finalizers may want locks that other modules' hooks have yet to make anew: the
        // settler has them run, a while later.
        if BUFFERS.registry.beat().work || self.is_asked() {
            self.start_settler();
        }
    }
}

/// Settles the calling thread's buffer.
pub(crate) fn flush(_py: Python<'_>) {
    if !in_main_interpreter() {
        return;
    }
    retry_settler();
    if let Some(own) = current() {
        // SAFETY: attached to the main interpreter, outside the gate.
        unsafe { BUFFERS.registry.settle(Scope::Own(own)) };
    }
    // SAFETY: attached to the main interpreter; callers expect finalizers.
    unsafe { release_leftovers() };
}

/// Settles every buffer. When it returns, all credits that existed are back,
/// but for references whose finalizer another thread is running.
pub(crate) fn flush_all(py: Python<'_>) {
    if !in_main_interpreter() {
        return;
    }
    settle_all();
    // What another thread took over before us is its to release: give it time.
    let deadline = Instant::now() + FLUSH_PATIENCE;
    while BUFFERS.registry.others_release(thread_id()) && Instant::now() < deadline {
        detached(py, || std::thread::sleep(Duration::from_micros(50)));
    }
}

/// The system may have refused a thread, and nobody may miss who would start another.
fn retry_settler() {
    BUFFERS.heartbeat.retry();
    if Objects.is_asked() {
        BUFFERS.start_settler(Settler);
    }
}

fn settle_all() {
    retry_settler();
    // SAFETY: attached to the main interpreter, outside the gate, where
    // finalizers may run: called from Python.
    unsafe {
        BUFFERS.registry.settle(Scope::All);
        release_leftovers();
    }
}

/// Sets all hooks. At import.
pub(super) fn start(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    life::start(py, &Objects)?;
    py.import("gc")?.getattr("callbacks")?.call_method1("append", (wrap_pyfunction!(on_gc, module)?,))?;
    Ok(())
}

// -- the collector ------------------------------------------------------------

/// One of `gc.callbacks`. "start" comes before the world is stopped, "stop" when
/// all is over.
#[pyfunction]
fn on_gc(phase: &str, _info: &Bound<'_, PyAny>) {
    let starts = phase == "start";
    // First: from here on this thread acquires nothing.
    set_collecting(starts);
    if starts {
        settle_all();
    }
}
