//! Threads that start together, run a share each, and are summed up.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::plan::{Length, Plan, Variant};
use super::worker::{gather, Batch, Channels, Share, Worker};
use crate::interp;
use crate::interp::unwinding::detached;

/// Batches on their way, for each thread of handoff.
const BATCHES_UNDER_WAY: usize = 16;

/// How often a run for a time looks whether a thread has failed.
const LOOK_AT_STOP: Duration = Duration::from_millis(20);

/// What all threads of a run share.
struct Run {
    plan: Plan,
    start: Start,
    stop: AtomicBool,
}

/// Holds threads back until all are ready, or sends them home.
#[derive(Default)]
struct Start {
    state: Mutex<StartState>,
    changed: Condvar,
}

#[derive(Default)]
struct StartState {
    ready: usize,
    /// Go, since then; or do not.
    decision: Option<Option<Instant>>,
}

impl Start {
    /// A worker is set up, or has failed: waits for the decision.
    fn ready(&self) -> Option<Instant> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ready += 1;
        self.changed.notify_all();
        loop {
            if let Some(go) = state.decision {
                return go;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn await_ready(&self, threads: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.ready < threads {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn decide(&self, go: Option<Instant>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).decision = Some(go);
        self.changed.notify_all();
    }
}

/// Worker threads of all runs.
static WORKERS: AtomicUsize = AtomicUsize::new(0);
/// The interpreter is about to go away.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// How long the exit waits for workers, each of which looks after every chunk.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);

/// At exit: ends all runs, refuses new ones, and waits for the workers. They
/// must not attach or detach while the interpreter frees what that needs.
pub(crate) fn close(py: Python<'_>) {
    CLOSED.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + EXIT_PATIENCE;
    detached(py, || {
        while WORKERS.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Whether workers should end.
pub(super) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// A daemon thread that is still here when all is closed hangs, as the
/// interpreter would have it, rather than print a traceback to nobody. The main
/// thread, in another exit hook, gets its error.
fn hang_if_daemon(py: Python<'_>) {
    if is_closed() && !is_main_thread() {
        detached(py, || loop {
            thread::park();
        });
    }
}

#[cfg(target_os = "linux")]
fn is_main_thread() -> bool {
    // SAFETY: plain system calls.
    unsafe { libc::getpid() == libc::gettid() }
}

/// Where it is not known: nobody hangs who should not.
#[cfg(not(target_os = "linux"))]
fn is_main_thread() -> bool {
    true
}

/// Counts a worker for as long as its thread may be attached.
struct Working;

impl Working {
    /// None once closed. Counted first, then looked: `close` does the reverse.
    fn start() -> Option<Working> {
        WORKERS.fetch_add(1, Ordering::SeqCst);
        let working = Working;
        (!CLOSED.load(Ordering::SeqCst)).then_some(working)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        WORKERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a run has come to.
pub(crate) struct Report {
    /// Done by all threads together.
    pub(crate) pairs: u64,
    /// Nanoseconds for a pair, in the mean of the threads.
    pub(crate) ns_per_pair: f64,
    /// Of all threads together.
    pub(crate) pairs_per_second: f64,
    /// On objects' counts; for stock, by what CPython's path is known to do.
    pub(crate) atomics_per_1000_pairs: f64,
    /// References handed to the caller.
    pub(crate) kept: Py<PyList>,
}

/// Runs a plan.
///
/// # Errors
///
/// RuntimeError where the system gives fewer threads than asked for; whatever
/// the factory raises. No thread is left behind.
pub(crate) fn run(py: Python<'_>, plan: Plan) -> PyResult<Report> {
    let before = atomics();
    let run = Arc::new(Run { plan, start: Start::default(), stop: AtomicBool::new(false) });
    let shares = detached(py, || start_and_join(&run));
    hang_if_daemon(py);
    let mut shares = shares?;
    let mut report = sum_up(py, &run.plan, &mut shares)?;
    if run.plan.variant != Variant::Stock {
        report.atomics_per_1000_pairs = (atomics() - before) as f64 * 1000.0 / report.pairs.max(1) as f64;
    }
    Ok(report)
}

fn atomics() -> u64 {
    interp::summary().totals.atomics
}

fn start_and_join(run: &Arc<Run>) -> PyResult<Vec<Share>> {
    let threads = run.plan.threads;
    let mut workers = Vec::with_capacity(threads);
    let mut refused = None;
    for (thread, channels) in ring(threads).into_iter().enumerate() {
        match spawn(run, thread, channels) {
            Ok(worker) => workers.push(worker),
            Err(error) => {
                refused = Some(PyRuntimeError::new_err(format!(
                    "the system gave {thread} of the {threads} threads asked for: {error}"
                )));
                break;
            }
        }
    }
    run.start.await_ready(workers.len());
    run.start.decide(refused.is_none().then(Instant::now));
    if let (Length::Time(time), None) = (run.plan.length, &refused) {
        let end = Instant::now() + time;
        // A thread that has failed sets it too.
        while !run.stop.load(Ordering::Relaxed) && Instant::now() < end {
            thread::sleep(LOOK_AT_STOP.min(end.saturating_duration_since(Instant::now())));
        }
        run.stop.store(true, Ordering::Relaxed);
    }
    // All are joined before any error goes up.
    let results: Vec<_> = workers.into_iter().map(JoinHandle::join).collect();
    if let Some(refused) = refused {
        return Err(refused);
    }
    let shares = results.into_iter().map(|result| {
        result.unwrap_or_else(|_| Err(PyRuntimeError::new_err("a worker thread panicked: this is a bug in refbuf")))
    });
    shares.collect()
}

/// Each thread's channels: to the next one, from the one before.
fn ring(threads: usize) -> Vec<Channels> {
    let (mut senders, receivers): (Vec<SyncSender<Batch>>, Vec<Receiver<Batch>>) =
        (0..threads).map(|_| sync_channel(BATCHES_UNDER_WAY)).unzip();
    senders.rotate_left(1);
    senders.into_iter().zip(receivers).map(|(next, own)| Channels { next, own }).collect()
}

fn spawn(run: &Arc<Run>, thread: usize, channels: Channels) -> std::io::Result<JoinHandle<PyResult<Share>>> {
    let run = Arc::clone(run);
    check_headroom()?;
    let working = Working::start().ok_or_else(|| std::io::Error::other("the interpreter is shutting down"))?;
    thread::Builder::new().name(format!("refbuf-worker-{thread}")).spawn(move || {
        let _working = working;
        Python::attach(|py| {
            let worker = Worker::new(py, &run.plan, thread, Some(channels));
            if worker.is_err() {
                // Those that run for a time would wait for nobody.
                run.stop.store(true, Ordering::Relaxed);
            }
            let go = detached(py, || run.start.ready());
            let worker = worker?;
            match go {
                Some(started) => Ok(worker.run(py, started, &run.stop)),
                None => Err(PyRuntimeError::new_err("not started")),
            }
        })
    })
}

/// Address space that must be left before another thread is asked for.
#[cfg(unix)]
const HEADROOM: usize = 256 << 20;

/// A thread whose stack just fits may find no memory for its state, and then the
/// interpreter ends the process; this leaves room for those under way.
#[cfg(unix)]
fn check_headroom() -> std::io::Result<()> {
    // SAFETY: a fresh mapping that nobody uses, and its end.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let room = libc::mmap(std::ptr::null_mut(), HEADROOM, libc::PROT_NONE, flags, -1, 0);
        if room == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        libc::munmap(room, HEADROOM);
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_headroom() -> std::io::Result<()> {
    Ok(())
}

fn sum_up(py: Python<'_>, plan: &Plan, shares: &mut [Share]) -> PyResult<Report> {
    let pairs: u64 = shares.iter().map(|share| share.pairs).sum();
    let nanoseconds: f64 = shares.iter().map(|share| share.elapsed.as_nanos() as f64).sum();
    let longest = shares.iter().map(|share| share.elapsed.as_secs_f64()).fold(1e-9, f64::max);
    let stock_atomics = if interp::BUFFERED { plan.workload.stock_atomics_per_pair() } else { 0 };
    Ok(Report {
        pairs,
        ns_per_pair: nanoseconds / pairs.max(1) as f64,
        pairs_per_second: pairs as f64 / longest,
        atomics_per_1000_pairs: stock_atomics as f64 * 1000.0,
        kept: gather(py, shares)?.unbind(),
    })
}
