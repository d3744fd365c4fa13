//! The settler: a thread that gives cold credits back (rule R3).
//!
//! It looks at all buffers twice each heartbeat, detached. A slot found
//! unchanged by two looks after the one that saw its last change is cold, so an
//! object whose last program reference went into a slot is released between 1
//! and 1.5 heartbeats later. Only where there is something to settle does the
//! settler attach. Where nothing is held, and nothing else to be watched, it sleeps until
//! it is woken.
//!
//! | `phase` | means |
//! |---|---|
//! | `ABSENT` | no settler: the next miss starts one |
//! | `STARTING` | one thread is starting it |
//! | `RUNNING` | it runs: credits may be acquired |
//! | `ENDING` | it has been told to stop, and settles everything; no credits are acquired |
//! | `FAILED` | the system gave no thread; no credits are acquired until `retry` |
//!
//! Above the phase, the word has the settler's number, so that a thread which is
//! late in starting one does not take the next one for its own. `settler` is
//! written by the settler itself, before its first look: whoever installs
//! credits earlier and wakes nobody is found by that look.
//!
//! A settler that is told to stop settles everything before it ends, so that nothing is held
//! when the process forks. By then nobody acquires any more: `ENDING` comes first. A forked child
//! counts its settlers on: one that forks in a finalizer of its own is none any more there.
//!
//! Starting and waking block on nobody, so that an increment may do both (R2):
//! the handle that is woken is kept as long as the heartbeat, a few words for each
//! settler ever started (one, and one more after each fork).

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::counted::Counted;
use super::registry::{Registry, Scope, Thread as ThreadName};

const ABSENT: u32 = 0;
const STARTING: u32 = 1;
const RUNNING: u32 = 2;
const FAILED: u32 = 3;
const ENDING: u32 = 4;
/// Mask of the phase.
const PHASE: u32 = 7;
/// One settler more.
const NEXT: u32 = 8;

/// Looks at all buffers for each heartbeat.
const LOOKS: u32 = 2;

/// How the settler gets to objects.
pub trait Host: Send + 'static {
    /// Runs `work` where objects of the registry's kind may be touched and
    /// released; or does not, where the interpreter is going away.
    fn attached(&self, work: &mut dyn FnMut());

    /// What else there is to do at each look; whether some of it is left.
    fn chores(&self) -> bool {
        false
    }

    /// Looks after what has nothing to do with buffers; after how long again, if at all.
    fn watch(&self) -> Option<Duration> {
        None
    }

    /// The registry's name for the calling thread.
    fn thread(&self) -> ThreadName;

    /// Whether all threads but settlers have ended: then settlers end, too, and with them
    /// the process.
    fn is_alone(&self) -> bool {
        false
    }

    /// After how long an idle settler asks that again; none if it need not.
    fn longest_nap(&self) -> Option<Duration> {
        None
    }

    /// Runs a settler's life in a thread of its own.
    ///
    /// # Errors
    ///
    /// Where the system gives none.
    fn spawn(life: impl FnOnce() + Send + 'static) -> io::Result<()> {
        thread::Builder::new().name("refbuf-settler".into()).spawn(life).map(drop)
    }
}

/// How others wake a settler.
#[derive(Debug)]
struct Settler {
    thread: thread::Thread,
    /// The one before, which somebody may be waking still.
    before: *mut Settler,
}

/// The settler thread and how others speak to it.
#[derive(Debug)]
pub struct Heartbeat {
    /// Phase and number of the settler.
    phase: AtomicU32,
    stop: AtomicBool,
    /// Forks under way: no settler is started meanwhile.
    held: AtomicU32,
    /// Settlers that have ended.
    ended: AtomicU32,
    period: AtomicU64,
    settler: AtomicPtr<Settler>,
}

impl Heartbeat {
    /// No settler yet; `period` in microseconds.
    pub const fn new(period: u64) -> Self {
        Heartbeat {
            phase: AtomicU32::new(ABSENT),
            stop: AtomicBool::new(false),
            held: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            period: AtomicU64::new(period),
            settler: AtomicPtr::new(ptr::null_mut()),
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
        self.phase.load(Ordering::Acquire) & PHASE == RUNNING
    }

    /// Starts the settler unless there is one, or the system has refused one.
    pub fn start<O: Counted, H: Host>(&'static self, registry: &'static Registry<O>, host: H) {
        // SeqCst, as in `run`: either this sees that there is none, or the one that ends sees
        // that it was not told to.
        let absent = self.phase.load(Ordering::SeqCst);
        let number = (absent & !PHASE).wrapping_add(NEXT);
        if absent & PHASE != ABSENT || self.is_held() || !self.pass(absent, number | STARTING) {
            return;
        }
        // SeqCst, as in `hold` and `stop`: either this sees that it is held, or those
        // wait for the settler.
        if self.is_held() {
            self.pass(number | STARTING, number | ABSENT);
            self.ended.fetch_add(1, Ordering::Release);
            return;
        }
        self.stop.store(false, Ordering::SeqCst);
        let run = move || self.run(registry, &host, number);
        match H::spawn(run) {
            // It may have been told to stop, and be gone, by now.
            Ok(()) => self.pass(number | STARTING, number | RUNNING),
            Err(_) => self.pass(number | STARTING, number | FAILED),
        };
    }

    /// From one phase to another, unless it is already past.
    fn pass(&self, from: u32, to: u32) -> bool {
        self.phase.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Lets the next miss try again, where the system had refused a thread.
    pub fn retry(&self) {
        let phase = self.phase.load(Ordering::Relaxed);
        if phase & PHASE == FAILED {
            self.pass(phase, phase & !PHASE | ABSENT);
        }
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst) != 0
    }

    /// From here on no settler is started, until as many calls of `resume`. Then
    /// `stop` ends the one there is. For a fork: until 3.11, a forked child hangs if
    /// another thread was just getting its thread state, as a settler does to attach
    /// (Modules/posixmodule.c, `PyOS_AfterFork_Child`).
    pub fn hold(&self) {
        self.held.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes back `hold`, and a request to end that was given up: the settler goes
    /// on, or has ended, and may be started again.
    pub fn resume(&self) {
        // None was taken where the hooks were set in between.
        let _ = self.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |held| held.checked_sub(1));
        self.stop.store(false, Ordering::SeqCst);
    }

    /// Wakes the settler. Never blocks.
    pub fn wake(&self) {
        // Acquire: pairs with the release in `run`.
        let handle = self.settler.load(Ordering::Acquire);
        if !handle.is_null() {
            // SAFETY: handles live as long as `self`.
            unsafe { &*handle }.thread.unpark();
        }
    }

    /// Whether the calling thread is the settler: in a finalizer that it runs.
    pub fn is_here(&self) -> bool {
        let handle = self.settler.load(Ordering::Acquire);
        // SAFETY: handles live as long as `self`.
        !handle.is_null() && unsafe { &*handle }.thread.id() == thread::current().id()
    }

    /// Asks the settler to end, and waits for it up to `patience`; it may be in
    /// a finalizer that waits for the caller, or is the caller. True if it has
    /// ended. The caller must be detached.
    pub fn stop(&self, patience: Duration) -> bool {
        if self.is_here() {
            return false;
        }
        let ended = self.ended.load(Ordering::Acquire);
        if matches!(self.phase.load(Ordering::SeqCst) & PHASE, ABSENT | FAILED) {
            return true;
        }
        let deadline = Instant::now() + patience;
        // Not until there is none: a thread that still counts may start another.
        while self.ended.load(Ordering::Acquire) == ended {
            // Again and again: another thread that waited may have resumed.
            self.stop.store(true, Ordering::SeqCst);
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
        self.settler.store(ptr::null_mut(), Ordering::Relaxed);
        self.held.store(0, Ordering::Relaxed);
        let number = (self.phase.load(Ordering::Relaxed) & !PHASE).wrapping_add(NEXT);
        self.phase.store(number | ABSENT, Ordering::Release);
    }

    /// The settler's life.
    fn run<O: Counted>(&self, registry: &'static Registry<O>, host: &impl Host, number: u32) {
        // One settler at a time gets here.
        let before = self.settler.load(Ordering::Acquire);
        let handle = Box::into_raw(Box::new(Settler { thread: thread::current(), before }));
        self.settler.store(handle, Ordering::Release);
        loop {
            self.work(registry, host, number);
            if !self.is_settler(number) {
                return;
            }
            // No credits come in from here on.
            self.phase.store(number | ENDING, Ordering::SeqCst);
            self.finish(registry, host);
            if !self.is_settler(number) {
                return;
            }
            self.phase.store(number | ABSENT, Ordering::SeqCst);
            // A `resume` that came too late for the line above has found no one
            // to start: either it sees ABSENT, or this sees that it was there.
            if self.stop.load(Ordering::SeqCst) || !self.pass(number | ABSENT, number | RUNNING) {
                break;
            }
        }
        self.ended.fetch_add(1, Ordering::Release);
    }

    /// Whether the settler of this number is the process's: not where it has forked.
    fn is_settler(&self, number: u32) -> bool {
        self.phase.load(Ordering::Relaxed) & !PHASE == number
    }

    /// Beats until told to stop.
    fn work<O: Counted>(&self, registry: &'static Registry<O>, host: &impl Host, number: u32) {
        // Nothing is cold yet. And in a forked child others are still at their hooks.
        self.pause(host, host.watch());
        while !self.stop.load(Ordering::SeqCst) {
            let beat = registry.beat();
            if beat.work {
                settle(registry, host, Scope::Cold);
            }
            let is_left = host.chores();
            if !self.is_settler(number) {
                return;
            }
            let (soon, watched) = (self.period() / LOOKS, host.watch());
            if host.is_alone() {
                self.stop.store(true, Ordering::SeqCst);
            } else if is_left | beat.work | beat.occupied | watched.is_some_and(|again| again <= soon) {
                self.pause(host, watched);
            } else if registry.fall_idle() {
                let nap = host.longest_nap().into_iter().chain(watched).min();
                nap.map_or_else(thread::park, thread::park_timeout);
            }
        }
    }

    /// Until the next look at the buffers, or somebody wakes the settler. What it watches may
    /// want to be looked at meanwhile.
    fn pause(&self, host: &impl Host, mut watched: Option<Duration>) {
        let began = Instant::now();
        loop {
            let now = Instant::now();
            // Asked each time: the wake that told of another period may have come with the end of a piece.
            let left = (self.period() / LOOKS).saturating_sub(now - began);
            let piece = watched.map_or(left, |again| again.min(left));
            thread::park_timeout(piece);
            if now.elapsed() < piece || piece == left || self.stop.load(Ordering::SeqCst) {
                return;
            }
            watched = host.watch();
        }
    }

    /// Everything, before the end.
    fn finish<O: Counted>(&self, registry: &'static Registry<O>, host: &impl Host) {
        let beat = registry.beat();
        if beat.work || beat.occupied {
            settle(registry, host, Scope::All);
        }
    }
}

fn settle<O: Counted>(registry: &'static Registry<O>, host: &impl Host, scope: Scope) {
    host.attached(&mut || {
        // SAFETY: attached, by the host; this thread has no buffer entered, and holds no lock.
        unsafe {
            registry.settle(scope);
            registry.release_leftovers(host.thread());
        }
    });
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        let mut settler = self.settler.load(Ordering::Acquire);
        while !settler.is_null() {
            // SAFETY: from a box, and on this list once; nobody else has `self` any more.
            settler = unsafe { Box::from_raw(settler) }.before;
        }
    }
}
