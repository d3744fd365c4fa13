//! The primitives that the core stands on: std's, or loom's under `cfg(loom)`.
//!
//! Also the asymmetric barrier. A buffer's owner pays a *light* barrier (which
//! only the compiler sees) on each operation; whoever revokes a buffer pays the
//! *heavy* one. Together they act as a sequentially consistent fence on both
//! sides: `membarrier(2)`, private expedited, runs one on every running thread
//! of the process (and a thread that is not running has passed one in the
//! kernel). Where the system lacks it, both are real fences.
//!
//! Source: membarrier(2); the same split as in userspace RCU and in seize.

#[cfg(loom)]
pub use loom::sync::{
    atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    Condvar, Mutex, MutexGuard,
};
#[cfg(not(loom))]
pub use std::sync::{
    atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    Condvar, Mutex, MutexGuard,
};

/// Cells that one party at a time touches, and others at most read for
/// statistics: never part of a protocol, so loom need not explore them.
pub use std::sync::atomic::{AtomicI64 as PlainI64, AtomicU32 as PlainU32, AtomicU64 as PlainU64};

pub use barrier::{heavy, in_order, light, needs_fences, prepare, Barrier};

#[cfg(loom)]
mod barrier {
    /// Which barrier is in use.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Barrier {
        /// Fences on both sides.
        Fences,
    }

    /// Under loom both sides fence.
    pub fn prepare(_allow_membarrier: bool) -> Barrier {
        Barrier::Fences
    }

    /// Under loom they are needed.
    pub fn needs_fences() -> bool {
        true
    }

    /// For the compiler, of which loom knows nothing.
    pub fn in_order() {}

    /// The owner's side.
    pub fn light() {
        loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
    }

    /// The revoker's side.
    pub fn heavy() {
        loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(not(loom))]
mod barrier {
    use std::sync::atomic::{compiler_fence, fence, AtomicBool, Ordering};

    /// Which barrier is in use.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Barrier {
        /// `membarrier(2)`: the owner's side costs nothing.
        Membarrier,
        /// Fences on both sides.
        Fences,
    }

    /// Whether the heavy side is `membarrier`. Written before the first buffer
    /// exists and in a forked child, where no other thread runs.
    static MEMBARRIER: AtomicBool = AtomicBool::new(false);

    /// Chooses the barrier for this process. Call before the first buffer is
    /// registered, and again in a forked child, which is a process of its own.
    pub fn prepare(allow_membarrier: bool) -> Barrier {
        let registered = allow_membarrier && membarrier(Command::RegisterPrivateExpedited);
        MEMBARRIER.store(registered, Ordering::SeqCst);
        if registered {
            Barrier::Membarrier
        } else {
            Barrier::Fences
        }
    }

    /// Whether the owner's side must be a real fence.
    #[inline(always)]
    pub fn needs_fences() -> bool {
        !MEMBARRIER.load(Ordering::Relaxed)
    }

    /// The owner's side, where it need not: for the compiler alone.
    #[inline(always)]
    pub fn in_order() {
        compiler_fence(Ordering::SeqCst);
    }

    /// The owner's side, whichever it is.
    #[inline(always)]
    pub fn light() {
        if needs_fences() {
            fence(Ordering::SeqCst);
        } else {
            in_order();
        }
    }

    /// The revoker's side.
    pub fn heavy() {
        fence(Ordering::SeqCst);
        if MEMBARRIER.load(Ordering::Relaxed) && !membarrier(Command::PrivateExpedited) {
            no_barrier();
        }
    }

    /// A registered command fails for lack of memory in the kernel, or where it has been
    /// forbidden since. Going on without would be unsound, and a panic would leave tables
    /// shut for ever.
    #[cold]
    fn no_barrier() -> ! {
        eprintln!("refbuf: membarrier(2) failed after it had been registered; stopping the process");
        std::process::abort()
    }

    /// linux/membarrier.h.
    #[derive(Clone, Copy)]
    enum Command {
        PrivateExpedited = 1 << 3,
        RegisterPrivateExpedited = 1 << 4,
    }

    #[cfg(target_os = "linux")]
    fn membarrier(command: Command) -> bool {
        // SAFETY: membarrier takes two integers here and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, command as libc::c_int, 0, 0) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn membarrier(command: Command) -> bool {
        let _ = command as i32;
        false
    }
}

/// Waits a little, longer each time, for another thread to get somewhere.
pub struct Backoff {
    #[cfg(not(loom))]
    rounds: u32,
}

impl Backoff {
    /// A wait that has not begun.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Backoff {
            #[cfg(not(loom))]
            rounds: 0,
        }
    }

    /// One wait: a spin, then a yield, then a nap, so that a thread which was
    /// preempted gets its processor back.
    pub fn wait(&mut self) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(not(loom))]
        {
            self.rounds = self.rounds.saturating_add(1);
            match self.rounds {
                0..=64 => std::hint::spin_loop(),
                65..=128 => std::thread::yield_now(),
                _ => std::thread::sleep(std::time::Duration::from_micros(50)),
            }
        }
    }
}

/// Locks, and shrugs at poison: no code under our locks can leave a state half
/// changed by panicking.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits until woken, or for no reason.
pub fn wait<'a, T>(woken: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    woken.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
}
