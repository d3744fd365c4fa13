//! Objects that may be in the middle of their deallocation.
//!
//! Deallocation may run code that counts the object: a count of one is set, the code runs, the
//! one is taken back, and what is left says whether the object was resurrected, if anybody
//! looks. A credit from then is left. What follows depends on the type:
//!
//! | type | a credit from then |
//! |---|---|
//! | collected, with a finalizer | puts the end off to a beat; the finalizer has run once for all |
//! | an extension's, not collected, with a finalizer | the finalizer runs again |
//! | with `tp_del`, the finalizer of before PEP 442 | it runs again |
//! | of an extension that frees at once, such as Cython's `__dealloc__` | is in memory that has been freed |
//!
//! Newer releases make the thread that runs a `tp_finalize` the object's owner
//! (`_PyObject_ResurrectStart`; 3.13.5 does), and who owns an object counts it without a buffer;
//! 3.13.0 does not, nor do extensions by themselves. So no credits come in on objects of the second and third
//! kind, nor on those of the last that may be at that point: merged, since an object that
//! dies in its owner's hands is counted without a buffer; and no longer tracked by the collector,
//! if they ever were.
//!
//! Source: `PyObject_CallFinalizerFromDealloc` in Objects/object.c, `subtype_dealloc` in
//! Objects/typeobject.c; `generate_dealloc_function` in Cython/Compiler/ModuleNode.py.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::ffi::{self, PyObject, PyTypeObject};

use super::object::is_merged;

/// The interpreter's code: from, to. What deallocates there sees what its finalizers leave,
/// or runs none.
static INTERPRETER: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// Looks where the interpreter's code is. At import.
pub(super) fn start() {
    // SAFETY: a static type of CPython's.
    let of_list = unsafe { ffi::PyList_Type.tp_dealloc };
    let code = of_list.map_or(0..0, |dealloc| code_around(dealloc as usize));
    INTERPRETER[0].store(code.start, Ordering::Relaxed);
    INTERPRETER[1].store(code.end, Ordering::Relaxed);
}

/// Whether `op` shows that it is not in the middle of its deallocation, or that a credit
/// would do no harm there.
///
/// # Safety
///
/// Attached; `op` is alive.
pub(super) unsafe fn shows(op: *mut PyObject) -> bool {
    // SAFETY: the caller's promise; types are alive as long as their objects are.
    unsafe {
        let class = ffi::Py_TYPE(op);
        let collected = ffi::PyType_HasFeature(class, ffi::Py_TPFLAGS_HAVE_GC) != 0;
        if (*class).tp_del.is_some() || (!collected && (*class).tp_finalize.is_some()) {
            return false;
        }
        !is_merged(op) || (collected && ffi::PyObject_GC_IsTracked(op) != 0) || ends_in_the_interpreter(class)
    }
}

/// Whether all that deallocates an object of this class is the interpreter's.
///
/// # Safety
///
/// As for `shows`.
unsafe fn ends_in_the_interpreter(mut class: *mut PyTypeObject) -> bool {
    let [from, to] = [0, 1].map(|end| INTERPRETER[end].load(Ordering::Relaxed));
    while !class.is_null() {
        // SAFETY: the caller's promise; a class keeps its bases.
        let (dealloc, base) = unsafe { ((*class).tp_dealloc, (*class).tp_base) };
        if !dealloc.is_some_and(|dealloc| (from..to).contains(&(dealloc as usize))) {
            return false;
        }
        class = base;
    }
    true
}

/// The executable segment that holds this address.
#[cfg(target_os = "linux")]
fn code_around(address: usize) -> Range<usize> {
    struct Search {
        address: usize,
        found: Range<usize>,
    }

    unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, search: *mut libc::c_void) -> libc::c_int {
        // SAFETY: what dl_iterate_phdr promises; `search` is the one below.
        let (base, headers, search) = unsafe {
            let info = &*info;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            (info.dlpi_addr as usize, headers, &mut *search.cast::<Search>())
        };
        for header in headers.iter().filter(|header| header.p_flags & libc::PF_X != 0) {
            let start = base.wrapping_add(header.p_vaddr as usize);
            let segment = start..start.wrapping_add(header.p_memsz as usize);
            if header.p_type == libc::PT_LOAD && segment.contains(&search.address) {
                search.found = segment;
                return 1;
            }
        }
        0
    }

    let mut search = Search { address, found: 0..0 };
    // SAFETY: the callback gets the search, which nobody else has meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

/// Elsewhere it is not known: merged objects that are not tracked are counted as CPython does.
#[cfg(not(target_os = "linux"))]
fn code_around(_address: usize) -> Range<usize> {
    0..0
}
