//! All buffers of a process: making, settling, orphans, fork.
//!
//! The registry's lock makes revokers one at a time. It is held
//!
//! * while buffers are revoked and drained: bulk operations on objects only,
//!   which run no foreign code;
//! * across `fork`, from just before to just after;
//! * never while a reference is released, while waiting for the interpreter, or
//!   by an owner inside its gate.
//!
//! So whoever holds it gets done, attached or not, and an attached thread may
//! wait for it without holding up the collector for long.
//!
//! What draining leaves (last references; counts that a bulk operation would
//! carry across zero) goes to `leftovers`, and is released with no lock held,
//! one at a time. The list belongs to the registry, not to the thread that
//! drained: a finalizer may end that thread, and the next one goes on.
//!
//! | a buffer is | from | to |
//! |---|---|---|
//! | live | `register` | `retire` by its thread's end, or a fork in which its thread is not the child's |
//! | orphan | `retire` | the next settling of all, or of the cold |
//! | free | it has been settled | `register`, or freed where many are free |
//!
//! Closing: `closed` is set, then everything is settled. An owner reads `closed`
//! inside its gate before it acquires; the heavy barrier of the settling stands
//! between. So either the owner's credits are found, or it sees `closed`.
//!
//! Idle: the heartbeat sleeps when nothing is held. It sets `idle`, issues a
//! heavy barrier, and looks once more; an owner that has installed credits
//! issues a light one, and reads `idle`. So one of them sees the other.

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::buffer::{Buffer, Leftover, Shape};
use super::counted::{Address, Counted};
use super::sync::{heavy, light, lock, AtomicBool, Mutex, MutexGuard, Ordering};
use super::totals::Totals;

/// Free buffers kept for later threads; more are given back to the system.
const KEPT_FREE: usize = 64;

/// A buffer that the registry owns. Its memory lives until the registry, under
/// its lock, frees it, which it does with free buffers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(NonNull<Buffer>);

// SAFETY: a Buffer may be shared between threads; see `Buffer`.
unsafe impl Send for Handle {}

impl Handle {
    /// The buffer.
    ///
    /// # Safety
    ///
    /// By the thread that registered it, before it retires it.
    pub unsafe fn as_ref<'a>(self) -> &'a Buffer {
        // SAFETY: it lives until after it has been retired.
        unsafe { self.0.as_ref() }
    }

    /// Its address, for thread-local storage.
    pub fn as_ptr(self) -> *mut Buffer {
        self.0.as_ptr()
    }

    /// Back from its address.
    pub fn from_ptr(buffer: *mut Buffer) -> Option<Handle> {
        NonNull::new(buffer).map(Handle)
    }
}

/// A name for the calling thread, its own among running threads.
pub type Thread = usize;

/// What [`Registry::count`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count<T> {
    /// References that all buffers hold.
    pub credits: u64,
    /// What the caller saw at that moment.
    pub seen: T,
    /// Another thread is dropping a reference at this moment, which `seen` may
    /// have or may not: look again.
    pub unsettled: bool,
}

/// Which buffers to settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The calling thread's own.
    Own(Handle),
    /// All, orphans included.
    All,
    /// The slots that the last looks of the heartbeat found cold, and orphans.
    Cold,
}

/// What the heartbeat's look found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// There is something to settle or to release.
    pub work: bool,
    /// Some buffer holds something.
    pub occupied: bool,
}

/// Counts of buffers, and sums over them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Over all buffers, past and present.
    pub totals: Totals,
    /// Buffers in use.
    pub live: usize,
    /// Buffers of ended threads, not yet settled.
    pub orphans: usize,
    /// Looks of the heartbeat.
    pub beats: u64,
    /// How buffers are made.
    pub shape: Option<Shape>,
}

/// Everything under the lock.
#[derive(Debug)]
pub struct State {
    shape: Shape,
    /// A buffer has been made: the shape is fixed.
    used: bool,
    live: Vec<Handle>,
    orphans: Vec<Handle>,
    free: Vec<Handle>,
    leftovers: Vec<Leftover>,
    /// What is being released at the moment: by which thread, which object.
    releases: Vec<(Thread, Address)>,
    /// Sums of buffers past, and what settling counts.
    totals: Totals,
    beats: u64,
}

impl State {
    const fn new(shape: Shape) -> State {
        State {
            shape,
            used: false,
            live: Vec::new(),
            orphans: Vec::new(),
            free: Vec::new(),
            leftovers: Vec::new(),
            releases: Vec::new(),
            totals: ZERO,
            beats: 0,
        }
    }

    /// References that all buffers hold on `object`. Exact while owners are kept
    /// out, as from `before_fork` on.
    pub fn credits_of(&self, object: Address) -> u64 {
        let buffers = self.live.iter().chain(&self.orphans);
        // SAFETY: buffers on these lists live, and the lock is held: this is
        // what it guards.
        let credits: u64 = buffers.map(|handle| unsafe { handle.0.as_ref() }.credits_of(object)).sum();
        let left = self.leftovers.iter().filter(|leftover| leftover.object == object);
        credits + left.map(|leftover| u64::from(leftover.count)).sum::<u64>()
    }
}

const ZERO: Totals = Totals {
    misses: 0,
    acquires: 0,
    take_ins: 0,
    evictions: 0,
    settles: 0,
    parked: 0,
    atomics: 0,
    refunds: 0,
    credits_in: 0,
    credits_out: 0,
    credits: 0,
};

/// All buffers for objects of one kind.
#[derive(Debug)]
pub struct Registry<O> {
    state: Mutex<State>,
    closed: AtomicBool,
    idle: AtomicBool,
    kind: PhantomData<fn() -> O>,
}

impl<O: Counted> Registry<O> {
    /// A registry without buffers.
    #[cfg(not(loom))]
    pub const fn new(shape: Shape) -> Self {
        Registry {
            state: Mutex::new(State::new(shape)),
            closed: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            kind: PhantomData,
        }
    }

    /// A registry without buffers.
    #[cfg(loom)]
    pub fn new(shape: Shape) -> Self {
        Registry {
            state: Mutex::new(State::new(shape)),
            closed: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            kind: PhantomData,
        }
    }

    // -- buffers come and go --------------------------------------------------

    /// Changes how buffers are made. False where one has been made already.
    pub fn reshape(&self, shape: Shape) -> bool {
        let mut state = lock(&self.state);
        if !state.used {
            state.shape = shape;
        }
        !state.used
    }

    /// Whether a buffer has been made.
    pub fn is_used(&self) -> bool {
        lock(&self.state).used
    }

    /// A buffer for the calling thread; none once the registry is closed.
    pub fn register(&self) -> Option<Handle> {
        self.register_with(lock(&self.state))
    }

    /// The same, for an increment, which waits for nobody (R2): none while
    /// another thread has the lock.
    pub fn try_register(&self) -> Option<Handle> {
        self.register_with(self.state.try_lock().ok()?)
    }

    fn register_with(&self, mut state: MutexGuard<'_, State>) -> Option<Handle> {
        if self.is_closed() {
            return None;
        }
        state.used = true;
        let shape = state.shape;
        let handle = state.free.pop().unwrap_or_else(|| {
            let buffer = Box::into_raw(Buffer::new(shape));
            // SAFETY: a Box is never null.
            Handle(unsafe { NonNull::new_unchecked(buffer) })
        });
        // SAFETY: made above, or on no other list than that of free ones.
        unsafe { handle.as_ref() }.gate().renew();
        state.live.push(handle);
        Some(handle)
    }

    /// The calling thread ends: its buffer becomes an orphan. Touches no object,
    /// so it may run detached.
    pub fn retire(&self, handle: Handle) {
        let mut state = lock(&self.state);
        state.live.retain(|live| *live != handle);
        state.orphans.push(handle);
    }

    // -- settling -------------------------------------------------------------

    /// Takes credits back from the buffers of `scope`, in bulk. What is left
    /// goes to the leftovers: call [`release_leftovers`](Self::release_leftovers)
    /// afterwards.
    ///
    /// # Safety
    ///
    /// Attached, and outside the thread's own gate. `Scope::Own` is the calling
    /// thread's.
    pub unsafe fn settle(&self, scope: Scope) {
        let mut state = lock(&self.state);
        let State { live, orphans, leftovers, totals, .. } = &mut *state;
        // The owner is here, outside its gate, and the lock keeps others out.
        if let Scope::Own(own) = scope {
            // SAFETY: the caller's promises.
            return unsafe { own.as_ref().drain::<O>(false, leftovers, totals) };
        }
        let only_cold = scope == Scope::Cold;
        // Owners whose slots are all hot are not disturbed.
        // SAFETY: live, and the lock is held.
        let wanted = |handle: &Handle| !only_cold || unsafe { handle.0.as_ref() }.is_due();
        let wanted: Vec<Handle> = live.iter().copied().filter(wanted).collect();
        // SAFETY: the lock is held.
        unsafe { revoke_all(&wanted) };
        for handle in &wanted {
            // SAFETY: revoked, under the lock; the caller is attached.
            unsafe { handle.0.as_ref().drain::<O>(only_cold, leftovers, totals) };
        }
        // SAFETY: the lock is held.
        unsafe { restore_all(&wanted) };
        for handle in orphans.iter() {
            // SAFETY: its owner is gone; the caller is attached.
            unsafe { handle.0.as_ref().drain::<O>(false, leftovers, totals) };
        }
        recycle_orphans(&mut state);
    }

    /// Releases what settling has left, one reference at a time, with no lock
    /// held. Finalizers run here.
    ///
    /// # Safety
    ///
    /// Attached, outside the thread's own gate, where any code may run; `by` is
    /// the calling thread.
    pub unsafe fn release_leftovers(&self, by: Thread) {
        loop {
            let object = {
                let mut state = lock(&self.state);
                let State { leftovers, releases, .. } = &mut *state;
                let Some(last) = leftovers.last_mut() else { return };
                last.count -= 1;
                let object = last.object;
                if last.count == 0 {
                    leftovers.pop();
                }
                releases.push((by, object));
                object
            };
            // SAFETY: the reference was the registry's, and is no longer.
            unsafe { O::release(object) };
            let mut state = lock(&self.state);
            let State { leftovers, releases, .. } = &mut *state;
            // The last of ours: releases nest, where a finalizer settles.
            if let Some(at) = releases.iter().rposition(|release| *release == (by, object)) {
                releases.swap_remove(at);
            }
            // After one of many the others may go in bulk.
            if let Some(last) = leftovers.last_mut().filter(|last| last.object == object) {
                // SAFETY: attached; these references are the registry's.
                last.count = unsafe { O::take(object, last.count) };
                if last.count == 0 {
                    leftovers.pop();
                }
            }
        }
    }

    /// Whether a thread other than `by` is releasing a leftover now.
    pub fn others_release(&self, by: Thread) -> bool {
        lock(&self.state).releases.iter().any(|(thread, _)| *thread != by)
    }

    /// References that all buffers hold on `object`.
    pub fn credits_of(&self, object: Address) -> u64 {
        self.count(object, 0, || ()).credits
    }

    /// References that all buffers hold on `object`, and what `look` says at that
    /// moment, such as the object's own count: every owner and settler is kept
    /// out meanwhile. `look` runs under the lock, and must not come back here.
    pub fn count<T>(&self, object: Address, by: Thread, look: impl FnOnce() -> T) -> Count<T> {
        let state = lock(&self.state);
        // SAFETY: the lock is held.
        unsafe { revoke_all(&state.live) };
        let count = Count {
            credits: state.credits_of(object),
            seen: look(),
            unsettled: state.releases.iter().any(|(thread, released)| *thread != by && *released == object),
        };
        // SAFETY: the lock is held.
        unsafe { restore_all(&state.live) };
        count
    }

    // -- the heartbeat --------------------------------------------------------

    /// One look at all buffers. Touches no object, so it may run detached.
    pub fn beat(&self) -> Beat {
        let mut state = lock(&self.state);
        state.beats += 1;
        let mut beat = Beat { work: !state.leftovers.is_empty() || !state.orphans.is_empty(), occupied: false };
        for handle in &state.live {
            // SAFETY: live, and the lock is held.
            let census = unsafe { handle.0.as_ref() }.census();
            beat.work |= census.cold;
            beat.occupied |= census.occupied;
        }
        beat
    }

    /// The heartbeat is about to sleep: true if there is really nothing held.
    pub fn fall_idle(&self) -> bool {
        self.idle.store(true, Ordering::Relaxed);
        heavy();
        let beat = self.beat();
        if beat.work || beat.occupied {
            self.idle.store(false, Ordering::Relaxed);
        }
        !(beat.work || beat.occupied)
    }

    /// Credits have been installed, or a buffer retired: true if the heartbeat
    /// sleeps, and must be woken by the caller. True once for each sleep.
    pub fn must_wake(&self) -> bool {
        light();
        self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::Relaxed)
    }

    // -- the end --------------------------------------------------------------

    /// No more credits from now on. Settle everything afterwards.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether the registry is closed. Read inside the gate before an acquire.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    // -- fork -----------------------------------------------------------------

    /// Just before `fork`: every owner is kept out of its table, so that none
    /// is half-way through an operation in the child. The guard goes to one of
    /// the two functions below, in either process.
    pub fn before_fork(&self) -> MutexGuard<'_, State> {
        let state = lock(&self.state);
        // SAFETY: the lock is held.
        unsafe { revoke_all(&state.live) };
        state
    }

    /// Just after `fork`, in the parent, or where it failed.
    pub fn after_fork_in_parent(&self, state: MutexGuard<'_, State>) {
        // SAFETY: the lock is held since the buffers were revoked.
        unsafe { restore_all(&state.live) };
    }

    /// Just after `fork`, in the child: the buffers of threads that are not
    /// here become orphans. Their credits are real, and are settled as soon as
    /// the child's thread may touch objects. `by`: the forking thread.
    pub fn after_fork_in_child(&self, mut state: MutexGuard<'_, State>, own: Option<Handle>, by: Thread) {
        // SAFETY: the lock is held since the buffers were revoked.
        unsafe { restore_all(&state.live) };
        if let Some(own) = own {
            // SAFETY: this thread's buffer, until it is retired.
            unsafe { own.as_ref() }.gate().renew();
        }
        let (kept, lost): (Vec<Handle>, Vec<Handle>) =
            std::mem::take(&mut state.live).into_iter().partition(|handle| Some(*handle) == own);
        state.live = kept;
        state.orphans.extend(lost);
        state.releases.retain(|(thread, _)| *thread == by);
        self.idle.store(false, Ordering::Relaxed);
    }

    // -- accounting -----------------------------------------------------------

    /// Sums over all buffers.
    pub fn summary(&self) -> Summary {
        let state = lock(&self.state);
        let mut totals = state.totals;
        for handle in state.live.iter().chain(&state.orphans) {
            // SAFETY: buffers on these lists live, and the lock is held.
            totals.merge(&unsafe { handle.0.as_ref() }.totals());
        }
        Summary {
            totals,
            live: state.live.len(),
            orphans: state.orphans.len(),
            beats: state.beats,
            shape: Some(state.shape),
        }
    }
}

impl<O> Drop for Registry<O> {
    fn drop(&mut self) {
        let state = lock(&self.state);
        for handle in state.live.iter().chain(&state.orphans).chain(&state.free) {
            // SAFETY: made by Box::into_raw, and on one list only.
            drop(unsafe { Box::from_raw(handle.as_ptr()) });
        }
    }
}

/// Keeps the owners of these buffers out, and waits until they are.
///
/// # Safety
///
/// With the registry's lock, and outside the thread's own gate.
unsafe fn revoke_all(live: &[Handle]) {
    if live.is_empty() {
        return;
    }
    for handle in live {
        // SAFETY: live, and the lock is held.
        unsafe { handle.0.as_ref() }.gate().revoke();
    }
    heavy();
    for handle in live {
        // SAFETY: as above.
        unsafe { handle.0.as_ref() }.gate().await_owner();
    }
}

/// # Safety
///
/// With the registry's lock, after `revoke_all`.
unsafe fn restore_all(live: &[Handle]) {
    for handle in live {
        // SAFETY: live, and the lock is held.
        unsafe { handle.0.as_ref() }.gate().restore();
    }
}

/// Settled orphans are free.
fn recycle_orphans(state: &mut State) {
    let State { orphans, free, totals, .. } = state;
    for handle in orphans.drain(..) {
        // SAFETY: on our list, without an owner, and the lock is held.
        totals.merge(&unsafe { handle.0.as_ref() }.recycle());
        if free.len() < KEPT_FREE {
            free.push(handle);
        } else {
            // SAFETY: made by Box::into_raw, and on no list any more.
            drop(unsafe { Box::from_raw(handle.as_ptr()) });
        }
    }
}
