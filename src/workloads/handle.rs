//! What a thread that is not attached has of an object: refbuf's way, and those that
//! PyO3 offers.
//!
//! | variant | clone | drop |
//! |---|---|---|
//! | `detached` | `Ref`: this thread's table | the same |
//! | `attach-per-clone` | attaches | attaches |
//! | `arc` | `Arc`: an atomic add | an atomic subtraction |
//! | `pool` | attaches | PyO3's pool of references to drop, behind one lock |
//!
//! Workers have a thread state, which attaching then finds: the best case for those
//! that attach. A thread that was never attached makes one each time.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::thread;

use pyo3::prelude::*;

use crate::detached::Ref;

/// A reference that threads which are not attached take and drop.
pub(super) trait Handle: Send + Sync + 'static {
    /// For a reference, attached.
    fn new(py: Python<'_>, object: Py<PyAny>) -> Self;

    /// One reference more. Not attached. Dropping it is one less.
    fn take(&self) -> Self;

    /// The reference itself, attached.
    fn into_object(self, py: Python<'_>) -> Py<PyAny>;
}

impl Handle for Ref<PyAny> {
    fn new(py: Python<'_>, object: Py<PyAny>) -> Self {
        Ref::new(py, object)
    }

    #[inline(always)]
    fn take(&self) -> Self {
        self.clone()
    }

    fn into_object(self, py: Python<'_>) -> Py<PyAny> {
        self.into_py(py)
    }
}

impl Handle for Arc<Py<PyAny>> {
    fn new(_py: Python<'_>, object: Py<PyAny>) -> Self {
        Arc::new(object)
    }

    #[inline(always)]
    fn take(&self) -> Self {
        self.clone()
    }

    fn into_object(self, py: Python<'_>) -> Py<PyAny> {
        self.clone_ref(py)
    }
}

/// Cloned attached, dropped wherever it is.
pub(super) struct Pooled(Py<PyAny>);

impl Handle for Pooled {
    fn new(_py: Python<'_>, object: Py<PyAny>) -> Self {
        Pooled(object)
    }

    #[inline(always)]
    fn take(&self) -> Self {
        Pooled(attached(|py| self.0.clone_ref(py)))
    }

    fn into_object(self, _py: Python<'_>) -> Py<PyAny> {
        self.0
    }
}

/// Cloned attached, dropped attached.
pub(super) struct Attached(ManuallyDrop<Py<PyAny>>);

impl Handle for Attached {
    fn new(_py: Python<'_>, object: Py<PyAny>) -> Self {
        Attached(ManuallyDrop::new(object))
    }

    #[inline(always)]
    fn take(&self) -> Self {
        Attached(ManuallyDrop::new(attached(|py| self.0.clone_ref(py))))
    }

    fn into_object(self, _py: Python<'_>) -> Py<PyAny> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

impl Drop for Attached {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: not used any more.
        attached(|_| unsafe { ManuallyDrop::drop(&mut self.0) });
    }
}

/// Attaches; hangs where the interpreter is going away, as all do that come too
/// late.
#[inline(always)]
fn attached<T>(work: impl FnOnce(Python<'_>) -> T) -> T {
    Python::try_attach(work).unwrap_or_else(|| loop {
        thread::park();
    })
}
