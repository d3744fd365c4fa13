//! References to Python objects for threads that are not attached.
//!
//! A thread that is not attached to the interpreter must not touch an object,
//! not even its count. A [`Ref`] can be cloned and dropped there all the same:
//! it is a loan of a reference that was counted while someone was attached
//! ([`crate::core::account`]), and loans pass through the thread's buffer without
//! an atomic instruction.
//!
//! An object whose last `Ref` and last Python reference are gone is finalized
//! within two heartbeats, whichever threads sleep.
//!
//! Until 3.13, a thread that comes back from [`Python::detach`] while the interpreter
//! shuts down is ended by unwinding, which PyO3 0.28 lets through its caller's
//! frames. [`detach`] is the same, but has the thread hang there.

mod exiting;
mod service;

use std::convert::Infallible;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};

use pyo3::prelude::*;

use crate::core::{Account, Address};

pub use service::{accounts, flush, flush_all, set_heartbeat, set_reserve, summary};
pub(crate) use service::{
    count, enrol, give_back, give_back_missed, heartbeat, is_used, lend, lend_missed, prepare, release, set_slots,
    tls_offset, MOST_RESERVE, MOST_SLOTS,
};

/// [`Python::detach`] for threads that may come back while the interpreter shuts
/// down, such as daemon threads: they hang, as they do from 3.14 on.
///
/// ```
/// # use pyo3::prelude::*;
/// # Python::initialize();
/// let sum: u64 = Python::attach(|py| refbuf::detached::detach(py, || (1..=10).sum()));
/// assert_eq!(sum, 55);
/// ```
pub fn detach<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    crate::interp::unwinding::detached(py, work)
}

/// A reference to a Python object that any thread may clone and drop, attached or
/// not.
///
/// While at least one `Ref` exists, `sys.getrefcount` sees the reserve as well:
/// tens of thousands of references that are not yet lent.
///
/// The garbage collector does not see what a `Ref` refers to: a cycle through one
/// is never collected.
///
/// Where more clones are made at once than the reserve has, a clone attaches to
/// refill it. So do not clone while holding a lock that attached threads wait
/// for.
///
/// ```
/// use pyo3::prelude::*;
/// use pyo3::types::PyList;
/// use refbuf::Ref;
///
/// # Python::initialize();
/// let list = Python::attach(|py| Ref::new(py, PyList::new(py, [1, 2, 3]).unwrap().unbind()));
/// // No interpreter here.
/// let threads: Vec<_> = (0..4).map(|_| std::thread::spawn({ let list = list.clone(); move || drop(list.clone()) })).collect();
/// threads.into_iter().for_each(|thread| thread.join().unwrap());
/// Python::attach(|py| assert_eq!(list.bind(py).len(), 3));
/// ```
pub struct Ref<T> {
    account: NonNull<Account>,
    /// The object. Not a reference of its own: the loan is.
    object: ManuallyDrop<Py<T>>,
}

// SAFETY: as for `Py<T>`: the object is reached with a `Python` token only, and
// loans may be given back by any thread.
unsafe impl<T> Send for Ref<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Ref<T> {}

impl<T> Ref<T> {
    /// Enrols the object: opens an account for it, or joins the one that it has.
    /// Takes a lock; clone the result rather than enrol again, which is sound, too.
    ///
    /// The object must be the main interpreter's: PyO3 does not let an extension into another.
    ///
    /// ```
    /// # use pyo3::{prelude::*, types::PyString};
    /// # Python::initialize();
    /// let name = Python::attach(|py| refbuf::Ref::new(py, PyString::new(py, "spam").unbind()));
    /// # Python::attach(|py| drop(name.into_py(py)));
    /// ```
    pub fn new(py: Python<'_>, object: Py<T>) -> Ref<T> {
        let object = ManuallyDrop::new(object);
        // SAFETY: attached; the reference is ours, and becomes the loan.
        let account = unsafe { enrol(py, object.as_ptr()) };
        // SAFETY: an account is never null.
        Ref { account: unsafe { NonNull::new_unchecked(account.cast_mut()) }, object }
    }

    /// By which buffers know the account.
    #[inline(always)]
    fn address(&self) -> Address {
        self.account.as_ptr() as Address
    }

    /// The object, for an attached thread.
    ///
    /// ```
    /// # use pyo3::{prelude::*, types::PyList};
    /// # Python::initialize();
    /// # Python::attach(|py| {
    /// let list = refbuf::Ref::new(py, PyList::empty(py).unbind());
    /// list.bind(py).append("spam").unwrap();
    /// # });
    /// ```
    pub fn bind<'py>(&self, py: Python<'py>) -> &Bound<'py, T> {
        self.object.bind(py)
    }

    /// The reference itself: the loan becomes the caller's own.
    ///
    /// ```
    /// # use pyo3::{prelude::*, types::PyList};
    /// # Python::initialize();
    /// # Python::attach(|py| {
    /// let list = refbuf::Ref::new(py, PyList::empty(py).unbind());
    /// let list: Py<PyList> = list.into_py(py);
    /// # });
    /// ```
    pub fn into_py(self, _py: Python<'_>) -> Py<T> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: attached; the loan is withdrawn, and not given back: `this` is
        // not dropped.
        unsafe {
            this.account.as_ref().withdraw();
            ManuallyDrop::take(&mut this.object)
        }
    }

    /// Drops it, as an attached thread may: the object is finalized at once if this
    /// was the last reference, unless another thread's table holds credits.
    ///
    /// ```
    /// # use pyo3::{prelude::*, types::PyList};
    /// # Python::initialize();
    /// # Python::attach(|py| {
    /// let list = refbuf::Ref::new(py, PyList::empty(py).unbind());
    /// let copy = list.clone();
    /// list.release(py);
    /// assert_eq!(copy.bind(py).len(), 0);
    /// copy.release(py);
    /// # });
    /// ```
    pub fn release(self, py: Python<'_>) {
        let this = ManuallyDrop::new(self);
        // SAFETY: attached; the loan is given up here, since `this` is not dropped.
        unsafe { release(py, this.address()) }
    }

    /// The same as [`into_py`](Self::into_py), bound.
    pub fn into_bound(self, py: Python<'_>) -> Bound<'_, T> {
        self.into_py(py).into_bound(py)
    }

    /// Whether two refer to the same object.
    pub fn is(&self, other: &Ref<T>) -> bool {
        self.object.as_ptr() == other.object.as_ptr()
    }
}

/// Attached or not.
///
/// ```
/// # use pyo3::{prelude::*, types::PyList};
/// # Python::initialize();
/// let list = Python::attach(|py| refbuf::Ref::new(py, PyList::empty(py).unbind()));
/// let copy = list.clone();
/// assert!(copy.is(&list));
/// ```
impl<T> Clone for Ref<T> {
    #[inline(always)]
    fn clone(&self) -> Ref<T> {
        // SAFETY: we have a loan.
        unsafe { lend(self.address()) };
        // SAFETY: the copy is not a reference of its own; see the field.
        Ref { account: self.account, object: unsafe { ptr::read(&self.object) } }
    }
}

/// Attached or not.
impl<T> Drop for Ref<T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: our loan, which ends here.
        unsafe { give_back(self.address()) }
    }
}

/// Does not touch the object.
///
/// ```
/// # use pyo3::{prelude::*, types::PyList};
/// # Python::initialize();
/// let list = Python::attach(|py| refbuf::Ref::new(py, PyList::empty(py).unbind()));
/// assert!(format!("{list:?}").starts_with("Ref(0x"));
/// ```
impl<T> fmt::Debug for Ref<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Ref").field(&self.object.as_ptr()).finish()
    }
}

/// Attaches, if need be.
///
/// ```
/// # use pyo3::{prelude::*, types::PyList};
/// # use refbuf::Ref;
/// # Python::initialize();
/// let list: Py<PyList> = Python::attach(|py| PyList::empty(py).unbind());
/// let list: Ref<PyList> = list.into();
/// let list: Py<PyList> = list.into();
/// # Python::attach(|_| drop(list));
/// ```
impl<T> From<Py<T>> for Ref<T> {
    fn from(object: Py<T>) -> Ref<T> {
        Python::attach(|py| Ref::new(py, object))
    }
}

/// ```
/// # use pyo3::{prelude::*, types::PyList};
/// # use refbuf::Ref;
/// # Python::initialize();
/// # Python::attach(|py| {
/// let list: Ref<PyList> = PyList::empty(py).into();
/// let list: Bound<'_, PyList> = list.into_bound(py);
/// # });
/// ```
impl<T> From<Bound<'_, T>> for Ref<T> {
    fn from(object: Bound<'_, T>) -> Ref<T> {
        let py = object.py();
        Ref::new(py, object.unbind())
    }
}

/// Attaches, if need be.
impl<T> From<Ref<T>> for Py<T> {
    fn from(object: Ref<T>) -> Py<T> {
        Python::attach(|py| object.into_py(py))
    }
}

/// For arguments, and for fields with `#[pyo3(set)]`.
///
/// ```
/// # use pyo3::{prelude::*, types::PyList};
/// # use refbuf::Ref;
/// #[pyclass]
/// struct Holder {
///     #[pyo3(get, set)]
///     items: Ref<PyList>,
/// }
/// # Python::initialize();
/// # Python::attach(|py| {
/// let holder = Bound::new(py, Holder { items: PyList::empty(py).into() }).unwrap();
/// holder.setattr("items", PyList::new(py, [1]).unwrap()).unwrap();
/// assert_eq!(holder.getattr("items").unwrap().len().unwrap(), 1);
/// # });
/// ```
impl<'a, 'py, T> FromPyObject<'a, 'py> for Ref<T>
where
    Py<T>: FromPyObject<'a, 'py>,
{
    type Error = <Py<T> as FromPyObject<'a, 'py>>::Error;

    fn extract(object: pyo3::Borrowed<'a, 'py, PyAny>) -> Result<Ref<T>, Self::Error> {
        Ok(Ref::new(object.py(), <Py<T> as FromPyObject<'a, 'py>>::extract(object)?))
    }
}

/// For results.
impl<'py, T> IntoPyObject<'py> for Ref<T> {
    type Target = T;
    type Output = Bound<'py, T>;
    type Error = Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Bound<'py, T>, Infallible> {
        Ok(self.into_bound(py))
    }
}

/// For fields with `#[pyo3(get)]`.
impl<'a, 'py, T> IntoPyObject<'py> for &'a Ref<T> {
    type Target = T;
    type Output = pyo3::Borrowed<'a, 'py, T>;
    type Error = Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Infallible> {
        Ok(self.object.bind_borrowed(py))
    }
}
