//! The exported C symbols, and the capsule through which extensions find them.
//!
//! Semantics are those of the CPython functions with the same ending. The header
//! `include/refbuf.h` documents them; here they are thin.
//!
//! No function panics across this boundary: what they call allocates at the
//! most, and a finalizer's exception is the interpreter's to report.

use std::ffi::c_int;
use std::ptr;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use crate::core::{Account, Address, Shape};
use crate::interp::bindings::{RefBuf_API, RefBuf_Account, RefBuf_Import, RefBuf_Stats, REFBUF_ABI_VERSION};
use crate::interp::errno::Errno;
use crate::{detached, interp, process};

/// `Py_IncRef` through the buffer. Like it, does nothing with NULL.
///
/// # Safety
///
/// As for `Py_XINCREF`.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_IncRef(op: *mut PyObject) {
    // SAFETY: the caller's promises.
    unsafe { RefBuf_XIncRef(op) }
}

/// `Py_DecRef` through the buffer. Like it, does nothing with NULL.
///
/// # Safety
///
/// As for `Py_XDECREF`.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_DecRef(op: *mut PyObject) {
    // SAFETY: the caller's promises.
    unsafe { RefBuf_XDecRef(op) }
}

/// `Py_XINCREF` through the buffer.
///
/// # Safety
///
/// As for `Py_XINCREF`.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_XIncRef(op: *mut PyObject) {
    if !op.is_null() {
        // SAFETY: the caller's promises.
        unsafe { interp::inc_ref(op) }
    }
}

/// `Py_XDECREF` through the buffer.
///
/// # Safety
///
/// As for `Py_XDECREF`.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_XDecRef(op: *mut PyObject) {
    if !op.is_null() {
        // SAFETY: the caller's promises.
        unsafe { interp::dec_ref(op) }
    }
}

/// `Py_NewRef` through the buffer.
///
/// # Safety
///
/// As for `Py_NewRef`.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_NewRef(op: *mut PyObject) -> *mut PyObject {
    // SAFETY: the caller's promises.
    unsafe { interp::inc_ref(op) }
    op
}

/// `Py_XNewRef` through the buffer.
///
/// # Safety
///
/// As for `Py_XNewRef`.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_XNewRef(op: *mut PyObject) -> *mut PyObject {
    // SAFETY: the caller's promises.
    unsafe { RefBuf_XIncRef(op) }
    op
}

/// The program's references to `op`: `Py_REFCNT` without the buffers' credits.
///
/// # Safety
///
/// As for `Py_REFCNT`.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_RefCount(op: *mut PyObject) -> ffi::Py_ssize_t {
    // SAFETY: the caller's promises.
    unsafe { process::ref_count(op) }
}

/// Settles the calling thread's buffers. May run finalizers.
///
/// # Safety
///
/// The thread is attached.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_Flush() {
    // SAFETY: the caller's promise.
    process::flush(unsafe { Python::assume_attached() });
}

/// Settles every buffer. May run finalizers.
///
/// # Safety
///
/// The thread is attached.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_FlushAll() {
    // SAFETY: the caller's promise.
    process::flush_all(unsafe { Python::assume_attached() });
}

/// Fills in the sums over all buffers.
///
/// # Safety
///
/// `stats` can be written to.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_GetStats(stats: *mut RefBuf_Stats) {
    // SAFETY: the caller's promise.
    unsafe { stats.write(collect_stats()) };
}

/// The sums over all buffers.
pub(crate) fn collect_stats() -> RefBuf_Stats {
    let summary = process::summary();
    let totals = summary.totals;
    let shape = summary.shape.unwrap_or(Shape::DEFAULT);
    let account_shape = detached::summary().shape.unwrap_or(Shape::DEFAULT);
    RefBuf_Stats {
        hits: totals.hits(),
        misses: totals.misses,
        acquires: totals.acquires,
        take_ins: totals.take_ins,
        evictions: totals.evictions,
        settles: totals.settles,
        parked: totals.parked,
        atomics: totals.atomics,
        credits: totals.credits,
        threads: summary.live as u64,
        orphans: summary.orphans as u64,
        beats: summary.beats,
        slots: shape.slots as u64,
        buffer_bytes: shape.bytes() as u64,
        accounts: detached::accounts() as u64,
        account_slots: account_shape.slots as u64,
        account_buffer_bytes: account_shape.bytes() as u64,
    }
}

// -- accounts: what threads may do that are not attached ---------------------

/// Enrols `op`: a reference that any thread may count. NULL with a RuntimeError in
/// a sub-interpreter.
///
/// # Safety
///
/// Attached; `op` is alive.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_Enroll(op: *mut PyObject) -> *mut RefBuf_Account {
    // SAFETY: the caller's promise.
    let py = unsafe { Python::assume_attached() };
    if !interp::is_main_interpreter() {
        PyRuntimeError::new_err(
            "refbuf enrols objects of the main interpreter only, and this is a subinterpreter: enrol there",
        )
        .restore(py);
        return ptr::null_mut();
    }
    // SAFETY: attached; the new reference becomes the loan.
    unsafe {
        ffi::Py_IncRef(op);
        detached::enrol(py, op).cast_mut().cast()
    }
}

/// One reference more.
///
/// # Safety
///
/// The caller has a reference through the account, which it keeps meanwhile.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_AccountIncRef(account: *mut RefBuf_Account) {
    // SAFETY: the caller's promise.
    unsafe { detached::lend(account as Address) }
}

/// One reference less.
///
/// # Safety
///
/// The caller has a reference through the account, and loses it.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_AccountDecRef(account: *mut RefBuf_Account) {
    // SAFETY: the caller's promise.
    unsafe { detached::give_back(account as Address) }
}

/// One reference less, and at once.
///
/// # Safety
///
/// As for `RefBuf_AccountDecRef`; attached, where any code may run.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_AccountRelease(account: *mut RefBuf_Account) {
    // SAFETY: the caller's promises.
    unsafe { detached::release(Python::assume_attached(), account as Address) }
}

/// The object, borrowed.
///
/// # Safety
///
/// The caller has a reference through the account.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_AccountObject(account: *mut RefBuf_Account) -> *mut PyObject {
    // SAFETY: the caller's promise.
    unsafe { Account::at(account as Address) }.object() as *mut PyObject
}

/// The object; the reference becomes an ordinary one.
///
/// # Safety
///
/// Attached; the caller has a reference through the account, and loses it.
#[no_mangle]
pub unsafe extern "C" fn RefBuf_AccountWithdraw(account: *mut RefBuf_Account) -> *mut PyObject {
    // SAFETY: the caller's promises.
    unsafe {
        let account = Account::at(account as Address);
        let object = account.object();
        account.withdraw();
        object as *mut PyObject
    }
}

unsafe extern "C" fn account_inc_ref_missed(account: *mut RefBuf_Account, aside: c_int) {
    // SAFETY: the caller's promises are those of RefBuf_AccountIncRef.
    unsafe { detached::lend_missed(account as Address, aside != 0) }
}

unsafe extern "C" fn account_dec_ref_missed(account: *mut RefBuf_Account, aside: c_int) {
    // SAFETY: the caller's promises are those of RefBuf_AccountDecRef.
    unsafe { detached::give_back_missed(account as Address, aside != 0) }
}

unsafe extern "C" fn inc_ref_missed(op: *mut PyObject) {
    let _errno = Errno::kept();
    // SAFETY: the inline path calls this for foreign objects only.
    unsafe { interp::inc_ref_missed(op) }
}

unsafe extern "C" fn dec_ref_missed(op: *mut PyObject) {
    let _errno = Errno::kept();
    // SAFETY: the inline path calls this for foreign objects only.
    unsafe { interp::dec_ref_missed(op) }
}

extern "C" {
    /// What the inline paths compiled into refbuf itself go by.
    static mut refbuf_imported: RefBuf_Import;
}

/// Adds the capsule `_C_API` to the module. The table lives for good.
pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let api = Box::leak(Box::new(RefBuf_API {
        abi_version: REFBUF_ABI_VERSION,
        size: size_of::<RefBuf_API>() as u32,
        buffered: u32::from(interp::BUFFERED),
        reserved: 0,
        tls_offset: interp::tls_offset(),
        account_tls_offset: detached::tls_offset(),
        IncRef: Some(RefBuf_IncRef),
        DecRef: Some(RefBuf_DecRef),
        IncRefMissed: Some(inc_ref_missed),
        DecRefMissed: Some(dec_ref_missed),
        RefCount: Some(RefBuf_RefCount),
        Flush: Some(RefBuf_Flush),
        FlushAll: Some(RefBuf_FlushAll),
        GetStats: Some(RefBuf_GetStats),
        Enroll: Some(RefBuf_Enroll),
        AccountIncRef: Some(RefBuf_AccountIncRef),
        AccountDecRef: Some(RefBuf_AccountDecRef),
        AccountIncRefMissed: Some(account_inc_ref_missed),
        AccountDecRefMissed: Some(account_dec_ref_missed),
        AccountRelease: Some(RefBuf_AccountRelease),
        AccountObject: Some(RefBuf_AccountObject),
        AccountWithdraw: Some(RefBuf_AccountWithdraw),
    }));
    // SAFETY: import time: nothing of ours counts yet.
    unsafe {
        ptr::addr_of_mut!(refbuf_imported).write(RefBuf_Import {
            api,
            tls_offset: api.tls_offset,
            account_tls_offset: api.account_tls_offset,
        });
    }
    // SAFETY: attached; the table and the name live for good.
    let capsule = unsafe {
        let capsule = ffi::PyCapsule_New(ptr::from_mut(api).cast(), c"refbuf._C_API".as_ptr(), None);
        Bound::from_owned_ptr_or_err(module.py(), capsule)?
    };
    module.add("_C_API", capsule)
}
