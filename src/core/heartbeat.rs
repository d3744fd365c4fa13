//! The settler: a thread that gives cold credits back (rule R3).
//!
//! It looks at all buffers twice each heartbeat, detached. A slot found
//! unchanged by two looks after the one that saw its last change is cold, so an
//! object whose last program reference went into a slot is released between 1
//! and 1.5 heartbeats later. Only where there is something to settle does the
//! settler attach. Where nothing is held it sleeps until it is woken.
//!
//! | `phase` | means |
//! |---|---|
//! | `ABSENT` | no settler: the next miss starts one |
//! | `STARTING` | one thread is starting it |
//! | `RUNNING` | it runs: credits may be acquired |
//! | `FAILED` | the system gave no thread; no credits are acquired until `retry` |
//!
//! Starting and waking block on nobody, so that an increment may do both (R2):
//! the handle that is woken is leaked, a few words for each settler ever started
//! (one, and one more after a fork).

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::counted::Counted;
use super::registry::{Registry, Scope, Thread as ThreadName};

const ABSENT: u32 = 0;
const STARTING: u32 = 1;
const RUNNING: u32 = 2;
const FAILED: u32 = 3;

/// Looks at all buffers for each heartbeat.
const LOOKS: u32 = 2;

/// How the settler gets to objects.
pub trait Host: Send + 'static {
    /// Runs `work` where objects may be touched and finalizers may run; or does
    /// not, where the interpreter is going away.
    fn attached(&self, work: &mut dyn FnMut());

    /// The registry's name for the calling thread.
    fn thread(&self) -> ThreadName;
}

/// The settler thread and how others speak to it.
#[derive(Debug)]
pub struct Heartbeat {
    phase: AtomicU32,
    stop: AtomicBool,
    /// Settlers that have ended.
    ended: AtomicU32,
    period: AtomicU64,
    thread: AtomicPtr<Thread>,
}

impl Heartbeat {
    /// No settler yet; `period` in microseconds.
    pub const fn new(period: u64) -> Self {
        Heartbeat {
            phase: AtomicU32::new(ABSENT),
            stop: AtomicBool::new(false),
            ended: AtomicU32::new(0),
            period: AtomicU64::new(period),
            thread: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// The heartbeat.
    pub fn period(&self) -> Duration {
        Duration::from_micros(self.period.load(Ordering::Relaxed))
    }

    /// Changes the heartbeat, at once: the settler may be in the middle of a long
    /// one.
    pub fn set_period(&self, period: Duration) {
        self.period.store(period.as_micros() as u64, Ordering::Relaxed);
        self.wake();
    }

    /// Whether the settler runs. One load: on the path of every acquire.
    #[inline]
    pub fn is_running(&self) -> bool {
        self.phase.load(Ordering::Acquire) == RUNNING
    }

    /// Starts the settler unless there is one, or the system has refused one.
    pub fn start<O: Counted>(&'static self, registry: &'static Registry<O>, host: impl Host) {
        if self.phase.load(Ordering::Relaxed) != ABSENT
            || self.phase.compare_exchange(ABSENT, STARTING, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return;
        }
        self.stop.store(false, Ordering::Release);
        let settler = thread::Builder::new().name("refbuf-settler".into()).spawn(move || self.run(registry, &host));
        match settler {
            Ok(settler) => {
                // Leaked on purpose: see the head of this file.
                let handle = Box::into_raw(Box::new(settler.thread().clone()));
                self.thread.store(handle, Ordering::Release);
                // The settler may have been told to stop, and be gone, by now.
                let _ = self.phase.compare_exchange(STARTING, RUNNING, Ordering::AcqRel, Ordering::Relaxed);
            }
            Err(_) => self.phase.store(FAILED, Ordering::Release),
        }
    }

    /// Lets the next miss try again, where the system had refused a thread.
    pub fn retry(&self) {
        let _ = self.phase.compare_exchange(FAILED, ABSENT, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Wakes the settler. Never blocks.
    pub fn wake(&self) {
        // Acquire: pairs with the release in `start`.
        let handle = self.thread.load(Ordering::Acquire);
        if !handle.is_null() {
            // SAFETY: handles are leaked, so it is there for good.
            unsafe { &*handle }.unpark();
        }
    }

    /// Asks the settler to end, and waits for it up to `patience`; it may be in
    /// a finalizer that waits for the caller. True if it has ended.
    /// The caller must be detached.
    pub fn stop(&self, patience: Duration) -> bool {
        let ended = self.ended.load(Ordering::Acquire);
        if matches!(self.phase.load(Ordering::Acquire), ABSENT | FAILED) {
            return true;
        }
        self.stop.store(true, Ordering::Release);
        let deadline = Instant::now() + patience;
        // Not until there is none: a thread that still counts may start another.
        while self.ended.load(Ordering::Acquire) == ended {
            self.wake();
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_micros(100));
        }
        true
    }

    /// In a forked child: the settler is not here.
    pub fn after_fork_in_child(&self) {
        self.thread.store(ptr::null_mut(), Ordering::Relaxed);
        self.phase.store(ABSENT, Ordering::Release);
    }

    /// The settler's life.
    fn run<O: Counted>(&self, registry: &'static Registry<O>, host: &impl Host) {
        while !self.stop.load(Ordering::Acquire) {
            let beat = registry.beat();
            if beat.work {
                host.attached(&mut || {
                    // SAFETY: attached, by the host; this thread has no buffer
                    // entered, and holds no lock.
                    unsafe {
                        registry.settle(Scope::Cold);
                        registry.release_leftovers(host.thread());
                    }
                });
            }
            if beat.work || beat.occupied {
                thread::park_timeout(self.period() / LOOKS);
            } else if registry.fall_idle() {
                thread::park();
            }
        }
        self.phase.store(ABSENT, Ordering::Release);
        self.ended.fetch_add(1, Ordering::Release);
    }
}
