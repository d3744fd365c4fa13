//! Accounts of real objects: this thread's buffer for them, the settler, and the
//! moments of an interpreter's life.
//!
//! A second registry, of [`Account`]s, beside the one of objects that attached
//! threads of free-threaded builds have. Its buffers are smaller, so that both
//! fit in 32 KiB a thread (rule R5).
//!
//! | moment | what happens |
//! |---|---|
//! | heartbeat | cold credits go back to their accounts, detached; accounts that ask are served, attached |
//! | a dry reserve | the thread attaches and refills: see [`wait`] |
//! | `fork` | owners are kept out from just before to just after; the child settles all |
//! | exit | no credits from now on; everything is settled and served; the settler ends |
//!
//! Each extension that links this crate has a service of its own.

use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};
use std::thread;
use std::time::Duration;

use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::sync::OnceExt;
use pyo3::types::{PyCFunction, PyDict};

use crate::core::account::{Account, Bank, Desk};
use crate::core::heartbeat::{Heartbeat, Host};
use crate::core::registry::{Handle, Registry, State, Summary, Thread};
use crate::core::sync::MutexGuard;
use crate::core::{Address, Buffer, Counted, Outcome, Scope, Shape};
use crate::interp;
use crate::interp::barrier;
use crate::interp::unwinding::detached;

/// Of accounts, a thread uses few at a time.
const SHAPE: Shape = Shape { slots: 128, first_batch: 3, largest_batch: 12, parked: 1 };

const _: () = assert!(Shape::DEFAULT.bytes() + SHAPE.bytes() <= 32 * 1024, "R5: both buffers of a thread");

/// References that an account begins with. Far more than a few threads draw
/// before the settler comes, and far fewer than make an object immortal in 3.12.
const RESERVE: u32 = 1 << 16;

/// More would bring an object near the count at which 3.12 takes it for immortal.
const MOST_RESERVE: u32 = 1 << 24;

/// How long fork and exit wait for the settler.
const PATIENCE: Duration = Duration::from_millis(500);

static REGISTRY: Registry<Account> = Registry::new(SHAPE);
static HEARTBEAT: Heartbeat = Heartbeat::new(10_000);
static DESK: Desk = Desk::new(ring, wait);
/// See [`set_reserve`].
static RESERVE_NOW: AtomicU32 = AtomicU32::new(RESERVE);
/// Credits may be given out: the moments above are seen to.
static HOOKED: OnceLock<()> = OnceLock::new();

thread_local! {
    /// This thread's buffer; null where it has none.
    static BUFFER: Cell<*mut Buffer> = const { Cell::new(ptr::null_mut()) };
    static THREAD_END: ThreadEnd = const { ThreadEnd };
    /// From before a fork to after it.
    static ACROSS_FORK: RefCell<Option<AcrossFork>> = const { RefCell::new(None) };
}

/// Hands the buffer to the registry when the thread ends.
struct ThreadEnd;

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        if let Some(handle) = Handle::from_ptr(BUFFER.replace(ptr::null_mut())) {
            REGISTRY.retire(handle);
            wake_if_idle();
        }
    }
}

// -- loans --------------------------------------------------------------------

/// One loan more.
///
/// # Safety
///
/// The caller has a loan of the account.
#[inline]
pub(crate) unsafe fn lend(account: Address) {
    if let Some(buffer) = current() {
        if buffer.skips() {
            // Counted already, when standing aside began.
            // SAFETY: the caller's promise.
            return unsafe { Account::add(account, 1) };
        }
        if buffer.spend(account) {
            return;
        }
    }
    // SAFETY: the caller's promise.
    unsafe { lend_missed(account) }
}

/// One loan less.
///
/// # Safety
///
/// The caller has a loan of the account, and loses it.
#[inline]
pub(crate) unsafe fn give_back(account: Address) {
    if let Some(buffer) = current() {
        if buffer.skips() {
            // SAFETY: the caller's loan, who gives it up.
            return unsafe { Account::release(account) };
        }
        if buffer.refund(account) {
            return;
        }
    }
    // SAFETY: the caller's promise.
    unsafe { give_back_missed(account) }
}

#[inline(always)]
fn current<'a>() -> Option<&'a Buffer> {
    // SAFETY: this thread registered it, and it is cleared before it is retired.
    unsafe { BUFFER.get().as_ref() }
}

/// # Safety
///
/// As for `lend`.
#[cold]
#[inline(never)]
unsafe fn lend_missed(account: Address) {
    let Some(buffer) = current_or_new() else {
        // SAFETY: the caller's promise.
        return unsafe { Account::add(account, 1) };
    };
    if buffer.denies(account) {
        // SAFETY: the caller's promise.
        return unsafe { Account::add(account, 1) };
    }
    start_settler();
    // SAFETY: this thread's buffer; the caller's promise.
    if unsafe { buffer.increment_missed::<Account>(account, admit) } == Outcome::Installed {
        wake_if_idle();
    }
}

/// # Safety
///
/// As for `give_back`.
#[cold]
#[inline(never)]
unsafe fn give_back_missed(account: Address) {
    let outcome = match current_or_new() {
        Some(buffer) if !buffer.denies(account) => {
            start_settler();
            // SAFETY: this thread's buffer; the caller's promise.
            unsafe { buffer.decrement_missed::<Account>(account, admit) }
        }
        _ => Outcome::Passed,
    };
    match outcome {
        Outcome::Hit => {}
        Outcome::Installed => wake_if_idle(),
        // SAFETY: the loan is still the caller's, who gives it up.
        Outcome::Passed => unsafe { Account::release(account) },
    }
}

fn current_or_new<'a>() -> Option<&'a Buffer> {
    if let Some(buffer) = current() {
        return Some(buffer);
    }
    HOOKED.get()?;
    // Arms the destructor; fails once it has run.
    THREAD_END.try_with(|_| ()).ok()?;
    BUFFER.set(REGISTRY.try_register()?.as_ptr());
    current()
}

fn admit() -> bool {
    HEARTBEAT.is_running() && !REGISTRY.is_closed()
}

fn start_settler() {
    if !REGISTRY.is_closed() {
        HEARTBEAT.start(&REGISTRY, Settler);
    }
}

fn wake_if_idle() {
    if REGISTRY.must_wake() {
        HEARTBEAT.wake();
    }
}

// -- accounts -----------------------------------------------------------------

/// Opens an account for an object, and takes over one reference to it, which
/// becomes the caller's loan.
///
/// # Safety
///
/// Attached to the main interpreter; the caller owns the reference.
pub(crate) unsafe fn open(py: Python<'_>, object: *mut PyObject) -> *const Account {
    hook(py);
    let size = RESERVE_NOW.load(Ordering::Relaxed);
    // SAFETY: the caller's promises; the desk is a static.
    unsafe {
        interp::count_many(object, size);
        DESK.open(object as Address, size)
    }
}

/// The reserve of objects that are enrolled from now on: so many references are
/// counted on each. 65,536 unless changed; at least 1, at most 2^24.
pub fn set_reserve(references: u32) {
    RESERVE_NOW.store(references.clamp(1, MOST_RESERVE), Ordering::Relaxed);
}

/// An account asks for an attached moment.
fn ring() {
    start_settler();
    HEARTBEAT.wake();
}

/// A reserve is dry: attaches, and refills it. So a clone may wait for the
/// interpreter where more references are drawn at once than the reserve has. A
/// thread that comes too late for that hangs, as all do that attach while the
/// interpreter goes away.
#[cold]
fn wait() {
    // SAFETY: attached.
    let refilled = Python::try_attach(|_| unsafe { DESK.refill(&mut Objects) });
    if refilled.is_none() {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Where references are counted.
struct Objects;

impl Bank for Objects {
    fn count(&mut self, object: Address, n: u32) {
        // SAFETY: whoever serves the desk is attached, and the account's
        // references keep the object.
        unsafe { interp::count_many(object as *mut PyObject, n) }
    }

    fn release(&mut self, object: Address, n: u32) {
        // SAFETY: attached, as above; these references are the account's.
        unsafe { interp::release_many(object as *mut PyObject, n) }
    }
}

/// Serves accounts that ask. May run finalizers.
fn serve(_py: Python<'_>) {
    // SAFETY: attached, outside any gate: called where any code may run.
    unsafe { DESK.serve(&mut Objects) };
}

/// Gives back what all threads' buffers hold, and releases what nobody refers to
/// any more. May run finalizers.
pub fn flush_all(py: Python<'_>) {
    HEARTBEAT.retry();
    // SAFETY: outside any gate; accounts are no objects of the interpreter's.
    unsafe { settle(Scope::All) };
    serve(py);
}

/// # Safety
///
/// Outside any gate.
unsafe fn settle(scope: Scope) {
    // SAFETY: the caller's promise. Leftovers there are none: accounts take
    // everything back.
    unsafe { REGISTRY.settle(scope) };
}

/// What loans have come to, over all threads.
pub fn summary() -> Summary {
    REGISTRY.summary()
}

/// How long an object may live without any reference: two of these. 10 ms unless
/// changed.
pub fn set_heartbeat(period: Duration) {
    HEARTBEAT.set_period(period);
}

// -- the settler --------------------------------------------------------------

/// Settles without the interpreter, and attaches for accounts that ask.
struct Settler;

impl Host for Settler {
    fn attached(&self, work: &mut dyn FnMut()) {
        work();
    }

    fn chores(&self) -> bool {
        // What is still there afterwards came meanwhile, and has rung.
        DESK.is_asked() && Python::try_attach(serve).is_some() && DESK.is_asked()
    }

    fn thread(&self) -> Thread {
        0
    }
}

// -- the interpreter's life ---------------------------------------------------

/// Sets all hooks, once. Where that fails, nothing is buffered: loans are then
/// counted on their accounts.
fn hook(py: Python<'_>) {
    static ONCE: Once = Once::new();
    ONCE.call_once_py_attached(py, || {
        barrier::prepare();
        if set_hooks(py).is_ok() {
            let _ = HOOKED.set(());
        }
    });
}

fn set_hooks(py: Python<'_>) -> PyResult<()> {
    let function =
        |run: fn(Python<'_>)| PyCFunction::new_closure(py, None, None, move |arguments, _| run(arguments.py()));
    let fork = PyDict::new(py);
    fork.set_item("before", function(before_fork)?)?;
    fork.set_item("after_in_parent", function(after_fork_in_parent)?)?;
    fork.set_item("after_in_child", function(flush_all)?)?;
    py.import("os")?.call_method("register_at_fork", (), Some(&fork))?;
    // SAFETY: the handlers are functions of ours, in a module that stays loaded.
    unsafe { libc::pthread_atfork(Some(at_fork_prepare), Some(at_fork_parent), Some(at_fork_child)) };
    py.import("atexit")?.call_method1("register", (function(on_exit)?,))?;
    Ok(())
}

fn on_exit(py: Python<'_>) {
    REGISTRY.close();
    flush_all(py);
    detached(py, || HEARTBEAT.stop(PATIENCE));
    flush_all(py);
}

fn before_fork(py: Python<'_>) {
    detached(py, || HEARTBEAT.stop(PATIENCE));
}

fn after_fork_in_parent(_py: Python<'_>) {
    HEARTBEAT.resume();
    let beat = REGISTRY.beat();
    if beat.work || beat.occupied || DESK.is_asked() {
        start_settler();
    }
}

/// Locks held across a fork.
struct AcrossFork {
    registry: MutexGuard<'static, State>,
    _desk: MutexGuard<'static, Vec<*mut Account>>,
}

extern "C" fn at_fork_prepare() {
    let registry = REGISTRY.before_fork();
    let across = AcrossFork { registry, _desk: DESK.before_fork() };
    let _ = ACROSS_FORK.try_with(|slot| slot.replace(Some(across)));
}

fn across_fork() -> Option<AcrossFork> {
    ACROSS_FORK.try_with(|slot| slot.take()).ok().flatten()
}

extern "C" fn at_fork_parent() {
    if let Some(across) = across_fork() {
        REGISTRY.after_fork_in_parent(across.registry);
    }
}

extern "C" fn at_fork_child() {
    barrier::prepare_in_child();
    HEARTBEAT.after_fork_in_child();
    if let Some(across) = across_fork() {
        REGISTRY.after_fork_in_child(across.registry, Handle::from_ptr(BUFFER.get()), 0);
    }
}
