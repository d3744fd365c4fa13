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
//! | a full collection starts | everything is settled and served |
//! | `fork` | owners are kept out from just before to just after; the child settles all |
//! | exit | no credits from now on; everything is settled and served; the settler ends |
//! | after that | the thread that exits serves accounts whose last loan it gives back |
//!
//! Each extension that links this crate has a service of its own. The C API's is
//! the module `refbuf`'s.

use std::any::Any;
use std::io;
use std::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::PyCFunction;

use super::exiting;
use crate::core::account::Account;
use crate::core::desk::{Bank, Books, Desk};
use crate::core::heartbeat::{Heartbeat, Host};
use crate::core::registry::{Registry, Summary, Thread};
use crate::core::sync::{Barrier, MutexGuard};
use crate::core::{Address, Buffer, Counted, Outcome, Scope, Shape};
use crate::interp;
use crate::interp::attachment::{attach, attachment, has_state, nap_detached, Attachment};
use crate::interp::barrier;
use crate::interp::life::{self, Buffers, Service};
use crate::interp::settler_thread;
use crate::interp::unwinding::detached;
use crate::interp::word::Word;

/// Of accounts, a thread uses few at a time.
const SHAPE: Shape = Shape { slots: 128, first_batch: 3, largest_batch: 12, parked: 1 };

const _: () = assert!(Shape::DEFAULT.bytes() + SHAPE.bytes() <= 32 * 1024, "R5: both buffers of a thread");

/// References that an account begins with. Far more than a few threads draw
/// before the settler comes, and far fewer than make an object immortal in 3.12.
const RESERVE: u32 = 1 << 16;

/// More would bring an object near the count at which 3.12 takes it for immortal.
pub(crate) const MOST_RESERVE: u32 = 1 << 24;

/// The largest table of accounts: see `SHAPE`.
pub(crate) const MOST_SLOTS: usize = SHAPE.slots;

extern "C" {
    /// The calling thread's word; src/interp/thread_words.c.
    #[allow(improper_ctypes)] // C only ever sees a buffer's head.
    fn refbuf_account_word() -> *mut *mut Buffer;
}

static BUFFERS: Buffers<Account> =
    Buffers { registry: Registry::new(SHAPE), heartbeat: Heartbeat::new(10_000), word: Word::new(refbuf_account_word) };
static DESK: Desk = Desk::new(ring, wait);
/// See [`set_reserve`].
static RESERVE_NOW: AtomicU32 = AtomicU32::new(RESERVE);
/// Since the exit has begun: the thread that exits.
static EXITING: OnceLock<exiting::Exiting> = OnceLock::new();
/// Credits may be given out: fork and exit are seen to.
static READY: OnceLock<()> = OnceLock::new();

thread_local! {
    static THREAD_END: ThreadEnd = const { ThreadEnd };
}

/// Hands the buffer to the registry when the thread ends.
struct ThreadEnd;

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        BUFFERS.retire();
    }
}

// -- loans --------------------------------------------------------------------

/// One loan more.
///
/// # Safety
///
/// The caller has a loan of the account.
#[inline(always)]
pub(crate) unsafe fn lend(account: Address) {
    // SAFETY: the caller's promise; the buffer is this thread's.
    unsafe {
        let mut aside = false;
        if let Some(buffer) = current() {
            aside = buffer.skips();
            if !aside && buffer.spend(account) {
                return;
            }
        }
        lend_missed(account, aside)
    }
}

/// One loan less.
///
/// # Safety
///
/// The caller has a loan of the account, and loses it.
#[inline(always)]
pub(crate) unsafe fn give_back(account: Address) {
    // SAFETY: the caller's promise; the buffer is this thread's.
    unsafe {
        let mut aside = false;
        if let Some(buffer) = current() {
            aside = buffer.skips();
            if !aside && buffer.refund(account) {
                return;
            }
        }
        give_back_missed(account, aside)
    }
}

#[inline(always)]
fn current<'a>() -> Option<&'a Buffer> {
    // SAFETY: this thread's, as long as the word says so.
    BUFFERS.current().map(|handle| unsafe { handle.as_ref() })
}

/// What the inline path could not serve. `aside`: it has not looked, and the
/// operation is counted already.
///
/// # Safety
///
/// As for `lend`.
#[cold]
#[inline(never)]
pub(crate) unsafe fn lend_missed(account: Address, aside: bool) {
    let buffer = if aside { None } else { current_or_new() };
    let Some(buffer) = buffer.filter(|buffer| !buffer.denies(account)) else {
        // SAFETY: the caller's promise.
        return unsafe { Account::add(account, 1) };
    };
    BUFFERS.start_settler(Settler);
    // SAFETY: this thread's buffer; the caller's promise.
    if unsafe { buffer.increment_missed::<Account>(account, || BUFFERS.admits()) } == Outcome::Installed {
        BUFFERS.wake_if_idle();
    }
}

/// What the inline path could not serve, as for `lend_missed`.
///
/// # Safety
///
/// As for `give_back`.
#[cold]
#[inline(never)]
pub(crate) unsafe fn give_back_missed(account: Address, aside: bool) {
    let buffer = if aside { None } else { current_or_new() };
    let outcome = match buffer {
        Some(buffer) if !buffer.denies(account) => {
            BUFFERS.start_settler(Settler);
            // SAFETY: this thread's buffer; the caller's promise.
            unsafe { buffer.decrement_missed::<Account>(account, || BUFFERS.admits()) }
        }
        _ => Outcome::Passed,
    };
    match outcome {
        Outcome::Hit => {}
        Outcome::Installed => BUFFERS.wake_if_idle(),
        Outcome::Passed => {
            // SAFETY: the loan is still the caller's, who gives it up.
            unsafe { Account::release(account) };
            if BUFFERS.registry.is_closed() {
                serve_late();
            }
        }
    }
}

fn current_or_new<'a>() -> Option<&'a Buffer> {
    READY.get()?;
    // Arms the destructor; fails once it has run.
    let handle = BUFFERS.current_or_new(Registry::try_register, || THREAD_END.try_with(|_| ()).is_ok())?;
    // SAFETY: this thread's, as long as the word says so.
    Some(unsafe { handle.as_ref() })
}

// -- accounts -----------------------------------------------------------------

/// Enrols an object, and takes over one reference to it, which becomes the
/// caller's loan.
///
/// # Safety
///
/// Attached to the main interpreter; the caller owns the reference.
pub(crate) unsafe fn enrol(py: Python<'_>, object: *mut PyObject) -> *const Account {
    prepare(py);
    watch_collector(py);
    // SAFETY: the caller's promises; the desk is a static.
    unsafe {
        interp::share_one(object);
        DESK.enrol(object as Address, RESERVE_NOW.load(Ordering::Relaxed), &mut Objects)
    }
}

/// Gives up a loan, and the credits that this thread has with it; serves the
/// account at once, if it was the last. May run finalizers.
///
/// # Safety
///
/// Attached to the main interpreter, where any code may run; the caller has a
/// loan, and loses it.
pub(crate) unsafe fn release(py: Python<'_>, account: Address) {
    if let Some(own) = BUFFERS.current() {
        // SAFETY: this thread's buffer, outside its gate; accounts ask for no
        // attachment. Where the settler is at the table, wait for it.
        unsafe {
            if !own.as_ref().settle_one::<Account>(account) {
                BUFFERS.registry.settle(Scope::Own(own));
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { Account::release(account) };
    serve(py);
}

/// The reserve of objects that are enrolled from now on: so many references are
/// counted on each. 65,536 unless changed; at least 1, at most 2^24.
pub fn set_reserve(references: u32) {
    RESERVE_NOW.store(references.clamp(1, MOST_RESERVE), Ordering::Relaxed);
}

/// Slots of each thread's table of accounts, a power of two up to 128. False where
/// a table has been made already.
pub(crate) fn set_slots(slots: usize) -> bool {
    BUFFERS.registry.reshape(Shape { slots, ..SHAPE })
}

/// Whether a table has been made.
pub(crate) fn is_used() -> bool {
    BUFFERS.registry.is_used()
}

/// An account asks for an attached moment.
fn ring() {
    BUFFERS.start_settler(Settler);
    BUFFERS.heartbeat.wake();
}

/// A reserve is dry: refills it, and attaches for that if need be. So a clone may
/// wait for the interpreter where more references are drawn at once than the reserve
/// has. A thread that comes too late hangs, as all do that attach while the
/// interpreter goes away; one that has no thread state must not even try, since making
/// one is not safe then: see `note_exit`.
#[cold]
fn wait() {
    match attachment() {
        Attachment::Main => refill(),
        // It may not count the main interpreter's objects, with a GIL of its own. The
        // settler will: it has been called.
        // SAFETY: attached, as it says.
        Attachment::Other => unsafe { nap_detached(NAP) },
        Attachment::None => attach_and_refill(),
    }
}

/// Between two looks at a reserve that somebody else has to fill.
const NAP: Duration = Duration::from_millis(10);

fn attach_and_refill() {
    let is_native = !has_state();
    let attaching = is_native.then(Attaching::start);
    // The exit closes, then looks whether someone is attaching.
    let is_late = is_native && BUFFERS.registry.is_closed();
    // A state that the thread has let go of may be one of another interpreter.
    let attached = (!is_late).then(|| attach(|_| interp::is_main_interpreter().then(refill)));
    let refilled = attached.flatten().flatten().is_some();
    // Before the nap: the exit does not wait for who hangs here.
    drop(attaching);
    if !refilled {
        thread::sleep(NAP);
    }
}

/// Attached to the main interpreter. Runs no foreign code.
fn refill() {
    // SAFETY: as it says.
    unsafe { DESK.refill(&mut Objects) };
}

/// Native threads that attach for a refill.
static ATTACHING: AtomicUsize = AtomicUsize::new(0);

/// How long the exit waits for them.
const EXIT_PATIENCE: Duration = Duration::from_millis(500);

/// Counts one of them.
struct Attaching;

impl Attaching {
    fn start() -> Attaching {
        ATTACHING.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Attaching
    }
}

impl Drop for Attaching {
    fn drop(&mut self) {
        ATTACHING.fetch_sub(1, Ordering::SeqCst);
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

    fn take(&mut self, object: Address, n: u32) -> u32 {
        // SAFETY: attached, as above; these references are the account's.
        unsafe { interp::take_many(object as *mut PyObject, n) }
    }

    fn release(&mut self, object: Address, n: u32) {
        for _ in 0..n {
            // SAFETY: attached, as above; these references are the account's.
            unsafe { interp::release_one(object as *mut PyObject) }
        }
    }
}

/// Serves accounts that ask. May run finalizers. Where the thread is attached to
/// another interpreter than the objects', leaves that to the settler.
fn serve(_py: Python<'_>) {
    if interp::is_main_interpreter() {
        // SAFETY: attached to the objects' interpreter, outside any gate: called where
        // any code may run.
        unsafe { DESK.serve(&mut Objects) };
    }
}

/// After exit there is no settler. The thread that exits, while it is attached and
/// destroys modules, serves the accounts that it leaves.
#[cold]
fn serve_late() {
    if DESK.is_asked() && EXITING.get().is_some_and(exiting::Exiting::is_here_and_attached) {
        // SAFETY: attached, as it says: a reference that is dropped may run any code.
        serve(unsafe { Python::assume_attached() });
    }
}

/// Gives back what all threads' buffers hold, and releases what nobody refers to
/// any more. May run finalizers.
pub fn flush_all(py: Python<'_>) {
    BUFFERS.heartbeat.retry();
    // SAFETY: outside any gate; accounts are no objects of the interpreter's.
    // Leftovers there are none: accounts take everything back.
    unsafe { BUFFERS.registry.settle(Scope::All) };
    serve(py);
}

/// Gives back what the calling thread's buffer holds, and releases what nobody
/// refers to any more. May run finalizers.
pub fn flush(py: Python<'_>) {
    let own = READY.get().and_then(|()| BUFFERS.current());
    if let Some(own) = own {
        // SAFETY: this thread's, outside its gate; see `flush_all`.
        unsafe { BUFFERS.registry.settle(Scope::Own(own)) };
    }
    serve(py);
}

/// What loans have come to, over all threads.
pub fn summary() -> Summary {
    BUFFERS.registry.summary()
}

/// Accounts that are open.
pub fn accounts() -> usize {
    DESK.books().len()
}

/// The heartbeat in force.
pub(crate) fn heartbeat() -> Duration {
    BUFFERS.heartbeat.period()
}

/// How long an object may live without any reference: two of these. 10 ms unless
/// changed.
pub fn set_heartbeat(period: Duration) {
    BUFFERS.heartbeat.set_period(period);
}

/// References that an account and the buffers hold on an object and no program
/// does, and what `look` says at that moment. `look` runs under locks, and must not
/// come back here.
pub(crate) fn count<T>(object: *mut PyObject, look: impl FnOnce() -> T) -> (u64, T) {
    let books = DESK.books();
    match books.account(object as Address) {
        None => (0, look()),
        Some(account) => {
            let count = BUFFERS.registry.count(account.address(), 0, || (account.balance().1, look()));
            let (reserve, seen) = count.seen;
            (count.credits + u64::from(reserve), seen)
        }
    }
}

/// From the thread pointer to the thread's buffer, for inline paths; 0 where they
/// may not be used.
pub(crate) fn tls_offset() -> isize {
    match barrier::chosen() {
        Some(Barrier::Membarrier) => BUFFERS.word.offset(),
        _ => 0,
    }
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

    fn is_alone(&self) -> bool {
        settler_thread::are_alone()
    }

    fn longest_nap(&self) -> Option<Duration> {
        settler_thread::longest_nap()
    }

    fn spawn(life: impl FnOnce() + Send + 'static) -> io::Result<()> {
        settler_thread::spawn(life)
    }
}

// -- the interpreter's life ---------------------------------------------------

/// Sets the hooks, once. Where that fails, nothing is buffered: loans are then
/// counted on their accounts. Nor is it while another thread is at it: that runs Python
/// code, which may come back here or fork, so nobody waits for it.
pub(crate) fn prepare(py: Python<'_>) {
    static CLAIMED: AtomicBool = AtomicBool::new(false);
    if CLAIMED.load(Ordering::Relaxed) || CLAIMED.swap(true, Ordering::Relaxed) {
        return;
    }
    if life::start(py, &Accounts).is_ok() {
        let _ = READY.set(());
    }
}

/// Hears of collections, from the first enrolment on: a program that has none does
/// not pay for it.
fn watch_collector(py: Python<'_>) {
    // Claimed, not waited for: as in `prepare`.
    static CLAIMED: AtomicBool = AtomicBool::new(false);
    if CLAIMED.load(Ordering::Relaxed) || CLAIMED.swap(true, Ordering::Relaxed) {
        return;
    }
    let on_gc = PyCFunction::new_closure(py, None, None, |arguments, _| {
        let (phase, info) = arguments.extract::<(String, Bound<'_, PyAny>)>()?;
        // Not the frequent, partial ones.
        if phase == "start" && info.get_item("generation")?.extract::<u32>()? >= 2 {
            flush_all(arguments.py());
        }
        PyResult::Ok(())
    });
    // Without it the heartbeat closes accounts all the same, a little later.
    let _ = on_gc.and_then(|on_gc| py.import("gc")?.getattr("callbacks")?.call_method1("append", (on_gc,)));
}

/// Buffers of accounts, in the moments of the process.
struct Accounts;

impl Service for Accounts {
    type Object = Account;
    const PLACE: usize = 0;

    fn buffers(&self) -> &'static Buffers<Account> {
        &BUFFERS
    }

    fn start_settler(&self) {
        BUFFERS.start_settler(Settler);
    }

    fn thread(&self) -> Thread {
        0
    }

    fn is_asked(&self) -> bool {
        DESK.is_asked()
    }

    fn settle_all(&self, py: Python<'_>) {
        flush_all(py);
    }

    fn note_exit(&self, py: Python<'_>) {
        let _ = EXITING.set(exiting::Exiting::here(py));
        BUFFERS.registry.close();
        fence(Ordering::SeqCst);
        // Who has not seen that it is closed gets its thread state while that is safe.
        let deadline = Instant::now() + EXIT_PATIENCE;
        detached(py, || {
            while ATTACHING.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
                thread::sleep(Duration::from_micros(100));
            }
        });
    }

    fn hold_more(&self) -> Box<dyn Any> {
        Box::new(DESK.books())
    }

    fn let_go_in_child(&self, books: Box<dyn Any>) {
        // Those threads are not here, and the exit would wait for them.
        ATTACHING.store(0, Ordering::Relaxed);
        if let Ok(books) = books.downcast::<MutexGuard<'static, Books>>() {
            DESK.after_fork_in_child(*books);
        }
    }
}
