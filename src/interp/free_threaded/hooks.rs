//! The moments of an interpreter's life at which buffers must be settled.
//!
//! | moment | what happens |
//! |---|---|
//! | the collector starts | every buffer is settled; the collecting thread acquires nothing until it stops |
//! | heartbeat | the settler attaches and settles what is cold |
//! | `fork` | owners are kept out from just before to just after; the child settles the buffers of threads that it has not |
//! | exit | no credits from now on; everything is settled; the settler ends |
//!
//! Fork has two pairs of hooks. Python's (`os.register_at_fork`) may run any
//! code: the settler ends before, so that the child of an otherwise
//! single-threaded program is one of a single-threaded process, and the child
//! settles after. The C library's (`pthread_atfork`) run right around the system
//! call, in whatever code called it: they hold the registry's lock across it.
//!
//! Sources: Modules/gcmodule.c and Python/gc_free_threading.c on callbacks;
//! Modules/posixmodule.c, `PyOS_BeforeFork` and its kin.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::thread::{current, in_main_interpreter, release_leftovers, set_collecting, thread_id, REGISTRY};
use crate::core::heartbeat::{Heartbeat, Host};
use crate::core::registry::{State, Thread};
use crate::core::sync::MutexGuard;
use crate::core::Scope;
use crate::interp::barrier;
use crate::interp::unwinding::detached;

/// The settler, with the default heartbeat of 10 ms.
pub(super) static HEARTBEAT: Heartbeat = Heartbeat::new(10_000);

/// How long fork and exit wait for the settler, which may be in a finalizer
/// that waits for them.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a flush waits for references that another thread is releasing.
const FLUSH_PATIENCE: Duration = Duration::from_millis(100);

/// How the settler attaches.
pub(super) struct Settler;

impl Host for Settler {
    fn attached(&self, work: &mut dyn FnMut()) {
        // Not at all once the interpreter is going away. A thread that tries to
        // attach too late hangs, inside PyO3, and harms nobody.
        let _ = Python::try_attach(|_| {
            super::thread::set_settling(true);
            work();
            super::thread::set_settling(false);
        });
    }

    fn thread(&self) -> Thread {
        thread_id()
    }
}

/// Settles the calling thread's buffer.
pub(crate) fn flush(_py: Python<'_>) {
    if !in_main_interpreter() {
        return;
    }
    HEARTBEAT.retry();
    if let Some(own) = current() {
        // SAFETY: attached to the main interpreter, outside the gate.
        unsafe { REGISTRY.settle(Scope::Own(own)) };
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
    while REGISTRY.others_release(thread_id()) && Instant::now() < deadline {
        detached(py, || std::thread::sleep(Duration::from_micros(50)));
    }
}

fn settle_all() {
    HEARTBEAT.retry();
    // SAFETY: attached to the main interpreter, outside the gate, where
    // finalizers may run: called from Python.
    unsafe {
        REGISTRY.settle(Scope::All);
        release_leftovers();
    }
}

/// Sets all hooks. At import.
pub(super) fn start(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let function = |make: fn(&Bound<'_, PyModule>) -> PyResult<Py<PyAny>>| make(module);
    let on_gc = function(|module| Ok(wrap_pyfunction!(on_gc, module)?.into_any().unbind()))?;
    py.import("gc")?.getattr("callbacks")?.call_method1("append", (on_gc,))?;

    let fork = PyDict::new(py);
    fork.set_item("before", wrap_pyfunction!(before_fork, module)?)?;
    fork.set_item("after_in_parent", wrap_pyfunction!(after_fork_in_parent, module)?)?;
    fork.set_item("after_in_child", wrap_pyfunction!(after_fork_in_child, module)?)?;
    py.import("os")?.call_method("register_at_fork", (), Some(&fork))?;
    // SAFETY: the handlers are functions of ours, and the module stays loaded.
    let status = unsafe { libc::pthread_atfork(Some(at_fork_prepare), Some(at_fork_parent), Some(at_fork_child)) };
    if status != 0 {
        return Err(pyo3::exceptions::PyMemoryError::new_err("no memory for the hooks of fork"));
    }

    py.import("atexit")?.call_method1("register", (wrap_pyfunction!(on_exit, module)?,))?;
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

// -- exit ---------------------------------------------------------------------

#[pyfunction]
fn on_exit(py: Python<'_>) {
    REGISTRY.close();
    settle_all();
    detached(py, || HEARTBEAT.stop(PATIENCE));
    // What the settler had in hand, if it was stopped in the middle.
    settle_all();
}

// -- fork: Python's hooks -----------------------------------------------------

#[pyfunction]
fn before_fork(py: Python<'_>) {
    // From a finalizer in the settler itself, there is no waiting for it.
    if !super::thread::is_settling() {
        detached(py, || HEARTBEAT.stop(PATIENCE));
    }
}

#[pyfunction]
fn after_fork_in_parent() {
    // It may not have ended in time.
    HEARTBEAT.resume();
    let beat = REGISTRY.beat();
    if beat.work || beat.occupied {
        HEARTBEAT.start(&REGISTRY, Settler);
    }
}

#[pyfunction]
fn after_fork_in_child() {
    // SAFETY: attached, and alone in the process.
    unsafe {
        REGISTRY.settle(Scope::All);
        release_leftovers();
    }
}

// -- fork: the C library's hooks ----------------------------------------------

thread_local! {
    /// From before a fork to after it.
    static ACROSS_FORK: RefCell<Option<MutexGuard<'static, State>>> = const { RefCell::new(None) };
}

extern "C" fn at_fork_prepare() {
    let guard = REGISTRY.before_fork();
    let _ = ACROSS_FORK.try_with(|slot| slot.replace(Some(guard)));
}

fn guard_across_fork() -> Option<MutexGuard<'static, State>> {
    ACROSS_FORK.try_with(|slot| slot.take()).ok().flatten()
}

extern "C" fn at_fork_parent() {
    if let Some(guard) = guard_across_fork() {
        REGISTRY.after_fork_in_parent(guard);
    }
}

extern "C" fn at_fork_child() {
    barrier::prepare_in_child();
    HEARTBEAT.after_fork_in_child();
    if let Some(guard) = guard_across_fork() {
        REGISTRY.after_fork_in_child(guard, current(), thread_id());
    }
}
