//! What a settler's thread has that no program has given it.
//!
//! The first thread that misses starts it, whichever that is; but what the settler does is
//! done for all.
//!
//! | of a thread | a settler's |
//! |---|---|
//! | signals | all are blocked but those of faults: a signal to the process is for the program's threads, which may block it, too |
//! | stack | as large as that of a thread of Python's: finalizers run here |
//! | processors, priority, policy | those of the process's first thread |
//!
//! Nor does it keep a process alive. CPython ends one with its main thread; but in the child of a
//! fork, where that was another thread, the thread that is left may just end, and with it, the
//! last one, the process. Settlers look whether it has.
//!
//! Sources: pthread_sigmask(3), sched(7), getrlimit(2), proc_pid_stat(5).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// The least, in bytes: what Linux gives by default, and what CPython's limit of recursion is for.
const LEAST_STACK: u64 = 8 << 20;
/// The most: more is address space that nobody uses.
const MOST_STACK: u64 = 1 << 30;

/// Settlers that run.
static SETTLERS: AtomicU32 = AtomicU32::new(0);
/// The thread that forks is the process's first; so for the one fork that is under way.
static BY_THE_FIRST: AtomicBool = AtomicBool::new(true);
/// The process comes from a fork in another thread than the first, or from such a process.
static MAY_END_QUIETLY: AtomicBool = AtomicBool::new(false);

/// With the locks that are held across a fork, or before.
pub(crate) fn before_fork() {
    BY_THE_FIRST.store(is_the_first(), Ordering::Relaxed);
}

/// Nobody else is here.
pub(crate) fn after_fork_in_child() {
    SETTLERS.store(0, Ordering::Relaxed);
    if !BY_THE_FIRST.load(Ordering::Relaxed) {
        MAY_END_QUIETLY.store(true, Ordering::Relaxed);
    }
}

/// Where it matters, how often to look.
pub(crate) fn longest_nap() -> Option<Duration> {
    MAY_END_QUIETLY.load(Ordering::Relaxed).then_some(Duration::from_millis(100))
}

/// Whether only settlers are left, for one of them.
pub(crate) fn are_alone() -> bool {
    MAY_END_QUIETLY.load(Ordering::Relaxed) && threads_but_the_first_ended() == Some(SETTLERS.load(Ordering::Relaxed))
}

/// How many threads there are besides the first, if that has ended.
fn threads_but_the_first_ended() -> Option<u32> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, which may hold anything: the state is the first, the number of threads the 18th.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let is_over = fields.next()? == "Z";
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    is_over.then(|| threads.saturating_sub(1))
}

#[cfg(target_os = "linux")]
fn is_the_first() -> bool {
    // SAFETY: ask for numbers.
    unsafe { libc::gettid() == libc::getpid() }
}

#[cfg(not(target_os = "linux"))]
fn is_the_first() -> bool {
    true
}

/// Runs `life` in a new thread.
///
/// # Errors
///
/// What the system says.
pub(crate) fn spawn(life: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // Blocked from the first instruction on: the new thread inherits it.
    let _blocked = Blocked::new();
    let life = || {
        as_the_first_thread();
        let process = std::process::id();
        SETTLERS.fetch_add(1, Ordering::Relaxed);
        life();
        // It may have forked in a finalizer.
        if std::process::id() == process {
            SETTLERS.fetch_sub(1, Ordering::Relaxed);
        }
    };
    thread::Builder::new().name("refbuf-settler".into()).stack_size(stack_size()).spawn(life).map(drop)
}

fn stack_size() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills in the structure.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) };
    let size = if asked == 0 && limit.rlim_cur != libc::RLIM_INFINITY { limit.rlim_cur } else { 0 };
    usize::try_from(size.clamp(LEAST_STACK, MOST_STACK)).unwrap_or(LEAST_STACK as usize)
}

/// While it lives, the calling thread has all signals blocked that are not its own faults'.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn new() -> Blocked {
        // SAFETY: a set of signals is plain data, and filled in by the calls.
        unsafe {
            let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            for fault in
                [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS]
            {
                libc::sigdelset(&raw mut all, fault);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            Blocked(before)
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: what it was before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Takes over how the system schedules the process's first thread, as far as it lets us.
#[cfg(target_os = "linux")]
fn as_the_first_thread() {
    // SAFETY: fill in plain data of the right size, or change this thread alone. What fails is
    // left as it was inherited.
    unsafe {
        let first = libc::getpid();
        let mut processors: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(first, size_of_val(&processors), &raw mut processors) == 0 {
            libc::sched_setaffinity(0, size_of_val(&processors), &raw const processors);
        }
        let (policy, own) = (libc::sched_getscheduler(first), libc::sched_getscheduler(0));
        let mut parameters: libc::sched_param = std::mem::zeroed();
        if policy >= 0 && policy != own && libc::sched_getparam(first, &raw mut parameters) == 0 {
            libc::sched_setscheduler(0, policy, &raw const parameters);
        }
        let who = first as libc::id_t;
        libc::setpriority(libc::PRIO_PROCESS, 0, libc::getpriority(libc::PRIO_PROCESS, who));
    }
}

#[cfg(not(target_os = "linux"))]
fn as_the_first_thread() {}
