//! How another extension written in Rust uses the refbuf that is installed.
//!
//! A process has one set of buffers: that of the imported `refbuf` module. This
//! module reaches it through its capsule, as the C header does, so an extension
//! that links this crate does not bring a second one.
//!
//! ```no_run
//! use pyo3::prelude::*;
//!
//! #[pyfunction]
//! fn twice(py: Python<'_>, object: Py<PyAny>) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
//!     let refbuf = refbuf::client::Api::import(py)?;
//!     let copy = refbuf.clone_ref(py, &object);
//!     Ok((object, copy))
//! }
//! ```

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::interp::bindings::{RefBuf_API, REFBUF_ABI_VERSION};

/// The C API of the installed refbuf. Copy it freely; it lives for good.
#[derive(Clone, Copy, Debug)]
pub struct Api(&'static RefBuf_API);

// SAFETY: the table never changes, and its functions may be called by any
// attached thread, as the `Python` arguments below make sure.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

impl Api {
    /// Imports refbuf.
    ///
    /// # Errors
    ///
    /// ImportError where refbuf is not installed, or is of another ABI version
    /// than this crate.
    pub fn import(py: Python<'_>) -> PyResult<Api> {
        // By itself: PyCapsule_Import would hide why it fails.
        py.import("refbuf")?;
        // SAFETY: attached; the name is a C string.
        let table = unsafe { ffi::PyCapsule_Import(c"refbuf._C_API".as_ptr(), 0) };
        if table.is_null() {
            return Err(PyErr::fetch(py));
        }
        // SAFETY: a capsule of that name points to this struct, which lives for
        // good; its first fields are the same in all versions.
        let api = unsafe { &*table.cast::<RefBuf_API>() };
        if api.abi_version != REFBUF_ABI_VERSION || (api.size as usize) < size_of::<RefBuf_API>() {
            return Err(PyImportError::new_err(format!(
                "this extension was compiled for ABI version {REFBUF_ABI_VERSION} of refbuf, and version {} is \
                 installed: rebuild the extension or install the matching refbuf",
                api.abi_version
            )));
        }
        Ok(Api(api))
    }

    /// A new reference, counted through this thread's buffer.
    pub fn clone_ref<T>(&self, py: Python<'_>, object: &Py<T>) -> Py<T> {
        let op = object.as_ptr();
        // SAFETY: attached, `op` is alive; from_owned_ptr takes the reference
        // that IncRef counts; it is of the type that `object` is of.
        unsafe {
            (self.0.IncRef.unwrap_unchecked())(op);
            Bound::from_owned_ptr(py, op).cast_into_unchecked().unbind()
        }
    }

    /// Drops a reference through this thread's buffer. May run a finalizer.
    pub fn drop_ref<T>(&self, _py: Python<'_>, object: Py<T>) {
        // SAFETY: attached; the reference is ours to drop.
        unsafe { (self.0.DecRef.unwrap_unchecked())(object.into_ptr()) }
    }

    /// The program's references to an object, without the buffers' credits.
    pub fn ref_count<T>(&self, _py: Python<'_>, object: &Py<T>) -> isize {
        // SAFETY: attached, the object is alive.
        unsafe { (self.0.RefCount.unwrap_unchecked())(object.as_ptr()) }
    }

    /// Settles this thread's buffer. May run finalizers.
    pub fn flush(&self, _py: Python<'_>) {
        // SAFETY: attached.
        unsafe { (self.0.Flush.unwrap_unchecked())() }
    }

    /// Settles every buffer. May run finalizers.
    pub fn flush_all(&self, _py: Python<'_>) {
        // SAFETY: attached.
        unsafe { (self.0.FlushAll.unwrap_unchecked())() }
    }
}
