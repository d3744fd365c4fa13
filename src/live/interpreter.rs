//! CPython: when its code may be patched, and what the slow ways are.
//!
//! The caller is attached, no other thread has a thread state, and the settlers have
//! ended: so nobody else is in `_Py_DecRefShared`, or comes back to it. A thread that was
//! never Python's may attach meanwhile, by a callback, and be in other code of the
//! interpreter's: it finds a site, or the jump that does the same.

use std::mem::offset_of;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::plan::{ONE, SHARED};
use super::recorder::{self, OWNER};
use super::trampoline::{self, BufferLayout, Context, Purpose};
use crate::interp;
use crate::interp::attachment;
use crate::interp::bindings::{
    RefBuf_Buffer, RefBuf_Slot, REFBUF_CREDITS, REFBUF_CREDIT_LIMIT, REFBUF_HASH_SHIFT, REFBUF_MIX,
    REFBUF_OFFSET_SHARED, REFBUF_OFFSET_TID, REFBUF_REFUND,
};
use crate::interp::errno::Errno;

const _: () = assert!(REFBUF_OFFSET_SHARED as u64 == SHARED && ONE == 4, "sites count at that place");
const _: () = assert!(REFBUF_OFFSET_TID as usize == OWNER, "the owner is there");
const _: () =
    assert!(REFBUF_CREDIT_LIMIT.is_power_of_two() && REFBUF_CREDIT_LIMIT < REFBUF_CREDITS, "one bit says full");

const LAYOUT: BufferLayout = BufferLayout {
    busy: offset_of!(RefBuf_Buffer, busy) as i32,
    attention: offset_of!(RefBuf_Buffer, attention) as i32,
    byte_mask: offset_of!(RefBuf_Buffer, byte_mask) as i32,
    slots: offset_of!(RefBuf_Buffer, slots) as i32,
    skip: offset_of!(RefBuf_Buffer, skip) as i32,
    slot_size: size_of::<RefBuf_Slot>() as i32,
    slot_word: offset_of!(RefBuf_Slot, word) as i32,
    mix: REFBUF_MIX as u64,
    hash_shift: REFBUF_HASH_SHIFT,
    credits: REFBUF_CREDITS,
    credit_limit: REFBUF_CREDIT_LIMIT,
    refund: REFBUF_REFUND as i32,
};

/// `_Py_DecRefShared`.
pub(super) fn entry() -> usize {
    interp::release_address()
}

/// The slow way of an add. May be called wherever the interpreter counts: touches no
/// object's code, and leaves errno as it was.
pub(super) unsafe extern "C" fn increment(op: *mut PyObject) {
    let _errno = Errno::kept();
    // SAFETY: the site counts a reference to a live object of another thread.
    unsafe {
        if attachment::current_state().is_null() {
            interp::count_many(op, 1);
        } else {
            interp::inc_ref_missed(op);
        }
    }
}

/// The slow way of a drop: takes the reference in, if it can. As for `increment`.
unsafe extern "C" fn take_in(op: *mut PyObject) -> bool {
    let _errno = Errno::kept();
    // SAFETY: the site drops a reference to an object that this thread does not own.
    unsafe { !attachment::current_state().is_null() && interp::take_in(op) }
}

/// The slow way of the entry. What the interpreter does to errno when an object dies is its
/// own business.
unsafe extern "C" fn decrement(op: *mut PyObject) {
    // SAFETY: the caller's promises are those of _Py_DecRefShared.
    unsafe {
        if !take_in(op) {
            interp::release_foreign(op);
        }
    }
}

/// To count through the buffers.
pub(super) fn to_buffer() -> Purpose {
    Purpose::Buffer {
        increment: increment as unsafe extern "C" fn(*mut PyObject) as usize,
        decrement: decrement as unsafe extern "C" fn(*mut PyObject) as usize,
        take_in: take_in as unsafe extern "C" fn(*mut PyObject) -> bool as usize,
    }
}

/// To write down what CPython counts.
pub(super) fn to_record() -> Purpose {
    Purpose::Record { note: recorder::note as unsafe extern "C" fn(usize) as usize }
}

/// What trampolines go by here.
pub(super) fn context(purpose: Purpose) -> Context {
    Context { word: interp::tls_offset(), buffer: LAYOUT, purpose, vector_bytes: trampoline::vector_bytes() }
}

/// Why live mode cannot be used here; the interpreter's build apart.
pub(crate) fn obstacle() -> Option<String> {
    if interp::tls_offset() == 0 {
        return Some("live mode needs the membarrier system call, which this system does not have".into());
    }
    (!trampoline::has_xsave()).then(|| "live mode needs a processor and a system with xsave".into())
}

/// Threads besides the caller that have a state in any interpreter.
fn others(_py: Python<'_>) -> usize {
    extern "C" {
        fn PyInterpreterState_Head() -> *mut ffi::PyInterpreterState;
        fn PyInterpreterState_Next(state: *mut ffi::PyInterpreterState) -> *mut ffi::PyInterpreterState;
        fn PyInterpreterState_ThreadHead(state: *mut ffi::PyInterpreterState) -> *mut ffi::PyThreadState;
        fn PyThreadState_Next(state: *mut ffi::PyThreadState) -> *mut ffi::PyThreadState;
    }
    let mut count = 0;
    // SAFETY: attached; lists that the interpreter keeps.
    unsafe {
        let mut interpreter = PyInterpreterState_Head();
        while !interpreter.is_null() {
            let mut thread = PyInterpreterState_ThreadHead(interpreter);
            while !thread.is_null() {
                count += usize::from(thread != attachment::current_state());
                thread = PyThreadState_Next(thread);
            }
            interpreter = PyInterpreterState_Next(interpreter);
        }
    }
    count
}

/// Refuses to do `what` now; one sentence.
pub(super) fn refuse_others(py: Python<'_>, what: &str) -> Result<(), String> {
    match others(py) {
        0 => Ok(()),
        n => Err(format!(
            "{what} while {n} other Python thread{} run{} is not safe: do it before threads are started, \
             or after they have ended",
            if n == 1 { "" } else { "s" },
            if n == 1 { "s" } else { "" },
        )),
    }
}

/// Does it while no settler runs.
pub(super) fn quietly<T>(py: Python<'_>, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    interp::life::without_settlers(py, work)
}
