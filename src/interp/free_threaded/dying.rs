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
//! (`_PyObject_ResurrectStart`; 3.13.5 does), and who owns an object counts it without a
//! buffer; 3.13.0 does not, nor do extensions by themselves. So no credits come in on objects
//! of the second and third kind, nor on those of the last that may be at that point: merged,
//! since the thread in whose hands an object of its own dies counts it without a buffer; and no
//! longer tracked by the collector, if they ever were.
//!
//! What is left: a deallocation by the owner that has another thread count the object, and waits
//! for it. That thread sees an object as any other.
//!
//! Source: `PyObject_CallFinalizerFromDealloc` in Objects/object.c, `subtype_dealloc` in
//! Objects/typeobject.c; `generate_dealloc_function` in Cython/Compiler/ModuleNode.py.

use std::ops::Range;
use std::sync::OnceLock;

use pyo3::ffi::{self, PyObject, PyTypeObject};

use super::object::is_merged;

/// The interpreter's code. What deallocates there sees what its finalizers leave, or runs
/// none. Extensions that are linked into the same file cannot be told apart from it.
static INTERPRETER: OnceLock<Vec<Range<usize>>> = OnceLock::new();

/// Looks where the interpreter's code is. At import.
pub(super) fn start() {
    // SAFETY: a static type of CPython's.
    let of_list = unsafe { ffi::PyList_Type.tp_dealloc };
    INTERPRETER.get_or_init(|| of_list.map_or_else(Vec::new, |dealloc| code_of_file(dealloc as usize)));
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
    let interpreter = INTERPRETER.get().map_or(&[][..], Vec::as_slice);
    let holds = |address: usize| interpreter.iter().any(|code| code.contains(&address));
    while !class.is_null() {
        // SAFETY: the caller's promise; a class keeps its bases.
        let (dealloc, base) = unsafe { ((*class).tp_dealloc, (*class).tp_base) };
        if !dealloc.is_some_and(|dealloc| holds(dealloc as usize)) {
            return false;
        }
        class = base;
    }
    true
}

/// The executable segments of the file that this address is in.
#[cfg(target_os = "linux")]
fn code_of_file(address: usize) -> Vec<Range<usize>> {
    struct Search {
        address: usize,
        found: Vec<Range<usize>>,
    }

    unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, search: *mut libc::c_void) -> libc::c_int {
        // SAFETY: what dl_iterate_phdr promises; `search` is the one below.
        let (base, headers, search) = unsafe {
            let info = &*info;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            (info.dlpi_addr as usize, headers, &mut *search.cast::<Search>())
        };
        let is_code = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0;
        let place = |header: &libc::Elf64_Phdr| {
            let start = base.wrapping_add(header.p_vaddr as usize);
            start..start.wrapping_add(header.p_memsz as usize)
        };
        let code: Vec<_> = headers.iter().filter(is_code).map(place).collect();
        let is_it = code.iter().any(|code| code.contains(&search.address));
        if is_it {
            search.found = code;
        }
        is_it.into()
    }

    let mut search = Search { address, found: Vec::new() };
    // SAFETY: the callback gets the search, which nobody else has meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

/// Elsewhere it is not known: merged objects that are not tracked are counted as CPython does.
#[cfg(not(target_os = "linux"))]
fn code_of_file(_address: usize) -> Vec<Range<usize>> {
    Vec::new()
}
