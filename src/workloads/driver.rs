//! Threads that start together, run a share each, and are summed up.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::attached::{self, gather};
use super::detached::{self, Crowd};
use super::handle::{Attached, Handle, Pooled};
use super::plan::{Length, Plan, Variant};
use super::record::Recording;
use super::share::{ring, Channels, Share};
use crate::detached::Ref;
use crate::interp::unwinding::detached as without_interpreter;
use crate::process;
use crate::start::Start;

/// How often a run for a time looks whether a thread has failed.
const LOOK_AT_STOP: Duration = Duration::from_millis(20);

/// What all threads of a run share.
struct Run {
    plan: Plan,
    start: Start,
    stop: AtomicBool,
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
    without_interpreter(py, || {
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
        without_interpreter(py, || loop {
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
    /// Of each thread, for the variant that records.
    pub(crate) recordings: Vec<Recording>,
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
    let shares = match run.plan.variant {
        Variant::Stock | Variant::Inline | Variant::Call | Variant::Traced | Variant::Bare => {
            without_interpreter(py, || start_and_join(&run, Arc::new(work_attached)))
        }
        Variant::Detached => run_detached::<Ref<PyAny>>(py, &run),
        Variant::AttachPerClone => run_detached::<Attached>(py, &run),
        Variant::Arc => run_detached::<Arc<Py<PyAny>>>(py, &run),
        Variant::Pool => run_detached::<Pooled>(py, &run),
    };
    hang_if_daemon(py);
    let mut shares = shares?;
    let mut report = sum_up(py, &mut shares)?;
    let pairs = report.pairs.max(1) as f64;
    report.atomics_per_1000_pairs = match run.plan.variant.known_atomics_per_pair(run.plan.workload) {
        Some(known) => known as f64 * 1000.0,
        None => (atomics() - before) as f64 * 1000.0 / pairs,
    };
    Ok(report)
}

fn atomics() -> u64 {
    process::summary().totals.atomics
}

/// Threads that have handles of one kind.
fn run_detached<H: Handle>(py: Python<'_>, run: &Arc<Run>) -> PyResult<Vec<Share>> {
    let crowd = Arc::new(Crowd::<H>::new(py, &run.plan));
    let shared = crowd.clone();
    let work = move |run: &Run, thread, channels| work_detached(run, &shared, thread, channels);
    // The last handles are dropped here, attached.
    let shares = without_interpreter(py, || start_and_join(run, Arc::new(work)));
    drop(crowd);
    shares
}

/// A thread's life, attached.
fn work_attached(run: &Run, thread: usize, channels: Channels<attached::Batch>) -> PyResult<Share> {
    Python::attach(|py| {
        let worker = attached::Worker::new(py, &run.plan, thread, channels);
        let go = run.await_start(py, worker.is_err());
        let worker = worker?;
        Ok(worker.run(py, go?, &run.stop))
    })
}

/// A thread's life, attached only before and after.
fn work_detached<H: Handle>(
    run: &Run,
    crowd: &Arc<Crowd<H>>,
    thread: usize,
    channels: Channels<Vec<H>>,
) -> PyResult<Share> {
    Python::attach(|py| {
        let worker = detached::Worker::new(py, &run.plan, crowd, thread, channels);
        let go = run.await_start(py, worker.is_err());
        let mut worker = worker?;
        let go = go?;
        let mut share = without_interpreter(py, || worker.run(&run.plan, go, &run.stop));
        share.kept = worker.into_kept(py);
        Ok(share)
    })
}

impl Run {
    /// A worker is set up, or has failed: waits until all are, and says since when
    /// they run.
    fn await_start(&self, py: Python<'_>, failed: bool) -> PyResult<Instant> {
        if failed {
            // Those that run for a time would wait for nobody.
            self.stop.store(true, Ordering::Relaxed);
        }
        without_interpreter(py, || self.start.ready()).ok_or_else(|| PyRuntimeError::new_err("not started"))
    }
}

/// What a thread does, given its number and its channels.
type Work<B> = dyn Fn(&Run, usize, Channels<B>) -> PyResult<Share> + Send + Sync;

fn start_and_join<B: Send + 'static>(run: &Arc<Run>, work: Arc<Work<B>>) -> PyResult<Vec<Share>> {
    let threads = run.plan.threads;
    let mut workers = Vec::with_capacity(threads);
    let mut refused = None;
    for (thread, channels) in ring(threads).into_iter().enumerate() {
        match spawn(run, &work, thread, channels) {
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

fn spawn<B: Send + 'static>(
    run: &Arc<Run>,
    work: &Arc<Work<B>>,
    thread: usize,
    channels: Channels<B>,
) -> std::io::Result<JoinHandle<PyResult<Share>>> {
    let (run, work) = (Arc::clone(run), Arc::clone(work));
    check_headroom()?;
    let working = Working::start().ok_or_else(|| std::io::Error::other("the interpreter is shutting down"))?;
    thread::Builder::new().name(format!("refbuf-worker-{thread}")).spawn(move || {
        let _working = working;
        work(&run, thread, channels)
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

fn sum_up(py: Python<'_>, shares: &mut [Share]) -> PyResult<Report> {
    let pairs: u64 = shares.iter().map(|share| share.pairs).sum();
    let nanoseconds: f64 = shares.iter().map(|share| share.elapsed.as_nanos() as f64).sum();
    let longest = shares.iter().map(|share| share.elapsed.as_secs_f64()).fold(1e-9, f64::max);
    Ok(Report {
        pairs,
        ns_per_pair: nanoseconds / pairs.max(1) as f64,
        pairs_per_second: pairs as f64 / longest,
        atomics_per_1000_pairs: 0.0,
        kept: gather(py, shares)?.unbind(),
        recordings: shares.iter_mut().filter_map(|share| share.recording.take()).collect(),
    })
}
