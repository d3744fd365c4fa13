//! A free-threaded object's counts.
//!
//! | field | holds | written by |
//! |---|---|---|
//! | `ob_tid` | the owner's thread id; 0 once merged | the owner; the collector, with the world stopped |
//! | `ob_ref_local` | the owner's references; all ones is immortal | the owner |
//! | `ob_ref_shared` | everyone else's, above two flag bits; may be negative | anyone, atomically |
//!
//! | flags | means |
//! |---|---|
//! | 0 | none |
//! | 1 | weak references may exist |
//! | 2 | queued: the owner has been asked to merge; the queue has a reference |
//! | 3 | merged: the shared count is all there is |
//!
//! Credits are counted in `ob_ref_shared`. A decrement by another thread that
//! finds flags 0 or 1 and a count of zero queues the object in place of
//! subtracting; one that leaves a merged object at zero frees it. So bulk
//! subtraction stops short of both: at zero while neither merged nor queued, at one while
//! merged. The rest goes through CPython, one by one.
//!
//! Source: Include/object.h (3.13), Include/refcount.h (3.14),
//! `_Py_DecRefSharedDebug` in Objects/object.c, Python/brc.c; PEP 703.

use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicIsize, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::thread as os_thread;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::dying;
use super::thread::thread_id;
use crate::core::{Address, Counted};
use crate::interp::bindings::{REFBUF_OFFSET_LOCAL, REFBUF_OFFSET_SHARED, REFBUF_OFFSET_TID};
use crate::interp::unwinding::HangOnUnwind;

const SHARED_SHIFT: u32 = 2;
const FLAGS: isize = 3;
const QUEUED: isize = 2;
const MERGED: isize = 3;
/// One reference in `ob_ref_shared`.
const SHARED_ONE: isize = 1 << SHARED_SHIFT;
/// `ob_ref_local` of an immortal object.
const IMMORTAL: u32 = u32::MAX;

/// `ob_tid`.
///
/// # Safety
///
/// `op` is alive, for as long as the result is used; so for the others.
#[inline(always)]
pub(super) unsafe fn owner<'a>(op: *mut PyObject) -> &'a AtomicUsize {
    // SAFETY: the field is a uintptr_t that CPython accesses atomically.
    unsafe { AtomicUsize::from_ptr(op.byte_add(REFBUF_OFFSET_TID as usize).cast()) }
}

/// `ob_ref_local`.
///
/// # Safety
///
/// As for `owner`.
#[inline(always)]
pub(super) unsafe fn local<'a>(op: *mut PyObject) -> &'a AtomicU32 {
    // SAFETY: the field is a uint32_t that CPython accesses atomically.
    unsafe { AtomicU32::from_ptr(op.byte_add(REFBUF_OFFSET_LOCAL as usize).cast()) }
}

/// `ob_ref_shared`.
///
/// # Safety
///
/// As for `owner`.
#[inline(always)]
pub(super) unsafe fn shared<'a>(op: *mut PyObject) -> &'a AtomicIsize {
    // SAFETY: the field is a Py_ssize_t that CPython accesses atomically.
    unsafe { AtomicIsize::from_ptr(op.byte_add(REFBUF_OFFSET_SHARED as usize).cast()) }
}

/// Whether `op` is never freed, nor counted.
///
/// # Safety
///
/// As for `owner`.
#[inline(always)]
pub(crate) unsafe fn is_immortal(op: *mut PyObject) -> bool {
    // SAFETY: the caller's promise.
    unsafe { local(op) }.load(Ordering::Relaxed) == IMMORTAL
}

/// Whether the calling thread owns `op`, and counts it without atomics.
///
/// # Safety
///
/// As for `owner`.
#[inline(always)]
pub(super) unsafe fn is_owned(op: *mut PyObject) -> bool {
    // SAFETY: the caller's promise.
    unsafe { owner(op) }.load(Ordering::Relaxed) == thread_id()
}

/// Whether the calling thread made `op`, as far as is known: none has a merged
/// object.
///
/// # Safety
///
/// As for `owner`.
pub(crate) unsafe fn is_made_here(op: *mut PyObject) -> bool {
    // SAFETY: the caller's promise.
    unsafe { is_owned(op) }
}

/// Whether its shared count is all there is.
///
/// # Safety
///
/// As for `owner`.
pub(super) unsafe fn is_merged(op: *mut PyObject) -> bool {
    // SAFETY: the caller's promise.
    unsafe { shared(op) }.load(Ordering::Relaxed) & FLAGS == MERGED
}

/// The object kind of the registry: CPython's.
#[derive(Debug)]
pub(super) enum PyCell {}

// SAFETY: `add`, `take` and `has_others` touch the count fields only, and `admits_credits`
// looks at the type and the collector's bits; `take` leaves one reference of a merged object,
// and those that `ob_ref_local` holds of another.
unsafe impl Counted for PyCell {
    #[inline]
    unsafe fn add(object: Address, n: u32) {
        // Relaxed: whoever counts a reference has one already.
        // SAFETY: the caller's promise.
        unsafe { shared(object as *mut PyObject) }.fetch_add(n as isize * SHARED_ONE, Ordering::Relaxed);
    }

    unsafe fn take(object: Address, n: u32) -> u32 {
        let op = object as *mut PyObject;
        // An object may have become immortal since: its count is not kept then.
        // SAFETY: the caller's promise.
        if unsafe { is_immortal(op) } {
            return 0;
        }
        // SAFETY: the caller's promise.
        let shared = unsafe { shared(op) };
        let mut before = shared.load(Ordering::Relaxed);
        loop {
            let count = before >> SHARED_SHIFT;
            let spare = match before & FLAGS {
                MERGED => count - 1,
                // The owner has been asked to merge, and the queue has a reference: until then
                // the count may be negative, and nobody frees the object.
                QUEUED => n as isize,
                _ => count,
            };
            let taken = spare.clamp(0, n as isize);
            if taken == 0 {
                return n;
            }
            let after = before - taken * SHARED_ONE;
            // Release: what this thread did with the object comes before whoever
            // drops the last reference frees it; acquire: as CPython's own.
            match shared.compare_exchange_weak(before, after, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return n - taken as u32,
                Err(now) => before = now,
            }
        }
    }

    unsafe fn has_others(object: Address) -> bool {
        let op = object as *mut PyObject;
        // SAFETY: the caller's promise.
        unsafe { total(op) > 1 }
    }

    unsafe fn admits_credits(object: Address) -> bool {
        // SAFETY: the caller's promise.
        unsafe { dying::shows(object as *mut PyObject) }
    }

    unsafe fn release(object: Address) {
        let op = object as *mut PyObject;
        // SAFETY: the caller's promises. Another thread's object is dropped as CPython
        // itself would: in live mode, its function leads back to the buffers.
        unsafe {
            if is_immortal(op) {
                return;
            }
            if !is_owned(op) {
                return release_foreign(op);
            }
        }
        let guard = HangOnUnwind;
        // SAFETY: the caller's promises are those of Py_DecRef.
        unsafe { Py_DecRef(op) };
        mem::forget(guard);
    }
}

/// Moves a reference of the caller's from the owner's count to the shared one, so that
/// another thread may drop it without the owner's help: CPython would have the
/// owner merge the two, whenever it runs next. Runs no foreign code.
///
/// # Safety
///
/// Attached; the caller owns the reference, and keeps it.
pub(crate) unsafe fn share_one(op: *mut PyObject) {
    // SAFETY: the caller's promises. What is counted first keeps the object, so
    // dropping the other frees nothing.
    unsafe {
        if !is_immortal(op) && is_owned(op) {
            PyCell::add(op as usize, 1);
            PyCell::release(op as usize);
        }
    }
}

/// Counts `n` more references at once.
///
/// # Safety
///
/// Attached; `op` is alive.
pub(crate) unsafe fn count_many(op: *mut PyObject, n: u32) {
    // SAFETY: the caller's promises.
    unsafe {
        if !is_immortal(op) {
            PyCell::add(op as usize, n);
        }
    }
}

/// Takes back up to `n` references in bulk, without foreign code; says how many are
/// left for `release_one`.
///
/// # Safety
///
/// Attached; the caller owns the references, and loses those taken.
pub(crate) unsafe fn take_many(op: *mut PyObject, n: u32) -> u32 {
    // SAFETY: the caller's promises.
    unsafe { PyCell::take(op as usize, n) }
}

/// Drops a reference. May run any code.
///
/// # Safety
///
/// Attached; the caller owns the reference, and loses it.
pub(crate) unsafe fn release_one(op: *mut PyObject) {
    // SAFETY: the caller's promises.
    unsafe { PyCell::release(op as usize) }
}

/// What CPython's macro does for an object of another thread.
///
/// # Safety
///
/// As for `Counted::release`; `op` is neither immortal nor owned by this thread.
#[inline]
pub(crate) unsafe fn release_foreign(op: *mut PyObject) {
    let guard = HangOnUnwind;
    // SAFETY: the caller's promises are those of _Py_DecRefShared, which this is.
    unsafe {
        let release: unsafe extern "C-unwind" fn(*mut PyObject) = mem::transmute(RELEASE.load(Ordering::Relaxed));
        release(op);
    }
    mem::forget(guard);
}

/// `_Py_DecRefShared`, or in live mode what it was before its entry was hooked. Where its swap is, it
/// asks once more whether the reference can be taken in.
static RELEASE: AtomicPtr<()> = AtomicPtr::new(_Py_DecRefShared as *mut ());

/// The address of `_Py_DecRefShared`, also where calls of it go through a table.
pub(crate) fn release_address() -> usize {
    _Py_DecRefShared as *const () as usize
}

/// Where `_Py_DecRefShared` as CPython has it can be called from now on.
pub(crate) fn set_original_release(address: usize) {
    RELEASE.store(ptr::with_exposed_provenance_mut(address), Ordering::Relaxed);
}

/// Both counts together, as `Py_REFCNT` has them.
///
/// # Safety
///
/// As for `owner`; `op` is not immortal.
unsafe fn total(op: *mut PyObject) -> isize {
    // SAFETY: the caller's promise.
    let (local, shared) = unsafe { (local(op), shared(op)) };
    local.load(Ordering::Relaxed) as isize + (shared.load(Ordering::Relaxed) >> SHARED_SHIFT)
}

extern "C-unwind" {
    /// pyo3 declares it as unable to unwind; see [`crate::interp::unwinding`].
    fn Py_DecRef(op: *mut PyObject);
    /// Include/object.h.
    fn _Py_DecRefShared(op: *mut PyObject);
}

/// Checks what the headers said against a real object: who owns it, and which
/// field moves when its owner and when another thread counts it.
pub(super) fn check_layout(py: Python<'_>) -> Result<(), String> {
    // SAFETY: attached; the type is a static type of CPython's.
    let scratch = unsafe { ffi::PyList_New(0) };
    if scratch.is_null() {
        return Err("no scratch object could be made".into());
    }
    // SAFETY: `scratch` is alive until the end.
    let result = unsafe { observe(py, scratch) };
    // SAFETY: the reference that PyList_New gave us.
    unsafe { ffi::Py_DecRef(scratch) };
    result
}

/// # Safety
///
/// `op` is alive, and of this thread's making.
unsafe fn observe(py: Python<'_>, op: *mut PyObject) -> Result<(), String> {
    // SAFETY: the caller's promise.
    let (owner, local, shared) = unsafe { (owner(op), local(op), shared(op)) };
    let counts = || (local.load(Ordering::Relaxed), shared.load(Ordering::Relaxed));
    if owner.load(Ordering::Relaxed) != thread_id() {
        return Err("ob_tid is not the thread that made an object".into());
    }
    let (before_local, before_shared) = counts();
    // SAFETY: attached, `op` is alive.
    unsafe { ffi::Py_IncRef(op) };
    let after_own = counts();
    // SAFETY: the reference just counted.
    unsafe { ffi::Py_DecRef(op) };
    if after_own != (before_local + 1, before_shared) {
        return Err("a reference counted by its owner did not show in ob_ref_local".into());
    }
    let address = op as usize;
    let elsewhere = py.detach(|| {
        os_thread::Builder::new()
            .name("refbuf-check".into())
            .spawn(move || {
                Python::attach(|_| {
                    // SAFETY: attached, `op` is alive until this thread is joined.
                    unsafe { ffi::Py_IncRef(address as *mut PyObject) };
                });
            })
            .map_err(|error| format!("no thread could be started to look from: {error}"))?
            .join()
            .map_err(|_| "the thread that looked failed".to_owned())
    });
    let after_other = counts();
    if elsewhere.is_ok() {
        // SAFETY: the reference that the other thread counted.
        unsafe { ffi::Py_DecRef(op) };
    }
    elsewhere?;
    if after_other != (before_local, before_shared + SHARED_ONE) {
        return Err("a reference counted by another thread did not show in ob_ref_shared".into());
    }
    Ok(())
}
