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
//! Sources: pthread_sigmask(3), sched(7), getrlimit(2).

use std::io;
use std::thread;

/// The least, in bytes: what Linux gives by default, and what CPython's limit of recursion is for.
const LEAST_STACK: u64 = 8 << 20;
/// The most: more is address space that nobody uses.
const MOST_STACK: u64 = 1 << 30;

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
        life();
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
