//! CPython: its objects, its threads, and the moments of its life that matter
//! to buffers. One room for each build kind; both have the same door, which is
//! all that `capi` and `py` use.
//!
//! | function | free-threaded | with a GIL |
//! |---|---|---|
//! | `inc_ref`, `dec_ref` | immortal, owned, then this thread's buffer | CPython's own |
//! | `*_missed` | what the inline path of the header could not serve | CPython's own |
//! | `flush`, `flush_all` | settle | nothing to do |
//! | `is_immortal`, `is_made_here` | what the object's own fields say | immortal; nobody keeps who made it |
//! | `start` | checks the layout, sets hooks | nothing to do |
//! | `count_many`, `take_many`, `release_one`, `share_one` | an account's references to an object | the same |

pub(crate) mod attachment;
pub(crate) mod barrier;
#[allow(unreachable_pub)]
pub(crate) mod bindings;
pub(crate) mod config;
pub(crate) mod errno;
pub(crate) mod life;
pub(crate) mod settler_thread;
pub(crate) mod unwinding;
pub(crate) mod word;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Only the main interpreter's objects are buffered, and its module is the only
/// one. PyO3 itself refuses some sub-interpreters, but not those that share the
/// main one's state.
pub(crate) fn refuse_subinterpreter() -> PyResult<()> {
    if is_main_interpreter() {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "refbuf works in the main interpreter only, and this is a subinterpreter: import it in the main interpreter",
    ))
}

/// What is registered by an exit handler is not called: who is first imported in one could
/// not give credits back. `threading` says so for the main thread, which runs them; other threads
/// may still work when it is at its end.
pub(crate) fn refuse_exit(py: Python<'_>) -> PyResult<()> {
    let modules = py.import("sys")?.getattr("modules")?;
    let threading = modules.get_item("threading").ok();
    let asked = |threading: &Bound<'_, PyAny>| {
        let is_main =
            threading.call_method0("main_thread")?.getattr("ident")?.eq(threading.call_method0("get_ident")?)?;
        Ok::<_, PyErr>(is_main && threading.getattr("_SHUTTING_DOWN")?.is_truthy()?)
    };
    if threading.is_some_and(|threading| asked(&threading).unwrap_or(false)) {
        return Err(PyImportError::new_err(
            "refbuf cannot start while the interpreter exits: import it before, at the latest where the exit handler is registered",
        ));
    }
    Ok(())
}

/// Whether the calling thread is attached to the main interpreter. To some
/// interpreter it must be.
pub(crate) fn is_main_interpreter() -> bool {
    extern "C" {
        fn PyInterpreterState_Main() -> *mut ffi::PyInterpreterState;
    }
    // SAFETY: attached.
    unsafe { ffi::PyInterpreterState_Get() == PyInterpreterState_Main() }
}

#[cfg(buffered)]
mod free_threaded;
#[cfg(buffered)]
pub(crate) use free_threaded::*;

#[cfg(not(buffered))]
mod gil;
#[cfg(not(buffered))]
pub(crate) use gil::*;
