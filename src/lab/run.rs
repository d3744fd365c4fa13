//! Runs a program on a scheme, with many threads, and measures it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::{Duration, Instant};

use super::cell::{At, Cell};
use super::names::{SchemeName, Workload};
use super::programs::calls::Calls;
use super::programs::churn::Churn;
use super::programs::graph::Graph;
use super::programs::pipeline::Pipeline;
use super::programs::private::Private;
use super::programs::zipf::Zipf;
use super::programs::{Program, Run, Setting};
use super::scheme::{Common, Mutator, Options, Probes, Scheme, Tally};
use super::schemes::atomic::Atomic;
use super::schemes::biased::Biased;
use super::schemes::credits::Credits;
use super::schemes::deltas::Deltas;
use super::schemes::plain::Plain;
use super::schemes::thread_count::ThreadCount;
use super::work::Work;
use crate::start::Start;

/// Between two looks at how many cells are alive.
const LOOK: Duration = Duration::from_millis(2);

/// Who makes the cells that threads share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The first of the threads that work, as in a program that has one thread.
    Worker,
    /// Another thread, which waits meanwhile, as a main thread with a pool.
    Waiter,
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// For the program.
    pub setting: Setting,
    /// For the scheme.
    pub options: Options,
    /// Who makes what is shared.
    pub maker: Maker,
    /// How long.
    pub length: Duration,
}

/// What it came to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Pairs of an increment and a decrement, of all threads.
    pub pairs: u64,
    /// Pairs in a second, the sum over the threads.
    pub pairs_per_second: f64,
    /// Nanoseconds that a thread takes for one, in the mean.
    pub ns_per_pair: f64,
    /// The same, of processor time: what other processes take is left out.
    pub cpu_ns_per_pair: f64,
    /// Atomic operations on cells' heads in 1,000 pairs.
    pub atomics_per_1000_pairs: f64,
    /// The most cells that were there at a time, dead ones that were not yet freed included.
    pub most_cells: u64,
    /// Bytes of a cell's header, of a whole cell, and of a thread's tables.
    pub bytes: [usize; 3],
    /// Cells made and never freed. Not 0: the scheme is broken.
    pub leaked: i64,
}

/// Runs a workload on a scheme. Fails where the system gives fewer threads than asked
/// for.
pub fn run(which: SchemeName, workload: Workload, plan: &Plan) -> io::Result<Outcome> {
    match which {
        SchemeName::Plain => on::<Plain>(workload, plan),
        SchemeName::Atomic => on::<Atomic>(workload, plan),
        SchemeName::ThreadCount => on::<ThreadCount>(workload, plan),
        SchemeName::Deltas => on::<Deltas>(workload, plan),
        SchemeName::Biased => on::<Biased>(workload, plan),
        SchemeName::Credits => on::<Credits>(workload, plan),
    }
}

/// Runs a workload on a scheme known by its type.
pub fn on<S: Scheme>(workload: Workload, plan: &Plan) -> io::Result<Outcome> {
    match workload {
        Workload::Calls => measure::<S, Calls<S>>(plan),
        Workload::Private => measure::<S, Private>(plan),
        Workload::Graph => measure::<S, Graph<S>>(plan),
        Workload::Pipeline => measure::<S, Pipeline<S>>(plan),
        Workload::Churn => measure::<S, Churn>(plan),
        Workload::Zipf => measure::<S, Zipf<S>>(plan),
    }
}

/// What threads of a run have in common.
struct Crowd<'c, S: Scheme> {
    scheme: &'c S,
    plan: &'c Plan,
    stop: AtomicBool,
    start: Start,
}

/// What one of them did.
struct Share {
    pairs: u64,
    elapsed: Duration,
    cpu: Duration,
}

fn measure<S: Scheme, P: Program<S>>(plan: &Plan) -> io::Result<Outcome> {
    let threads = plan.setting.threads;
    let tallies: Vec<Arc<Tally>> = (0..threads + 3).map(|_| Arc::default()).collect();
    let common = |index: usize| Common::new(tallies[index].clone(), None);
    let scheme = S::new(&plan.options, common(threads));
    let crowd = Crowd { scheme: &scheme, plan, stop: AtomicBool::new(false), start: Start::default() };
    // A maker that waits keeps its place, and with it what it owns.
    let mut waiter = (plan.maker == Maker::Waiter).then(|| scheme.start(common(threads + 1)));
    let mut shared = waiter.as_mut().map(|maker| {
        let shared = P::set_up(&scheme, maker, &plan.setting);
        maker.suspend();
        Arc::new(shared)
    });
    let mut most_cells = 0;
    let shares: io::Result<Vec<Share>> = thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel::<Arc<P>>();
        let (crowd, mut running) = (&crowd, Vec::new());
        for thread in 0..threads {
            let common = common(thread);
            let makes = (thread == 0 && shared.is_none()).then(|| sender.clone());
            let given = shared.clone();
            let work = move || one_thread::<S, P>(crowd, thread, common, makes, given);
            match thread::Builder::new().spawn_scoped(scope, work) {
                Ok(thread) => running.push(thread),
                Err(error) => {
                    crowd.start.decide(None);
                    let few = format!("the system gives {thread} of {threads} threads: {error}");
                    return Err(io::Error::new(error.kind(), few));
                }
            }
            if shared.is_none() {
                shared = Some(receiver.recv().unwrap_or_else(|_| panic!("the first thread failed")));
            }
        }
        crowd.start.await_ready(threads);
        crowd.start.decide(Some(Instant::now()));
        most_cells = watch(&tallies, plan.length);
        crowd.stop.store(true, Ordering::Relaxed);
        Ok(running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panic!("a thread failed"))).collect())
    });
    if let Some(maker) = waiter.as_mut() {
        maker.resume();
    }
    drop(waiter);
    if let Some(shared) = shared.and_then(Arc::into_inner) {
        shared.tear_down(&mut scheme.start(common(threads + 2)));
    }
    scheme.rest();
    let bytes = [S::header_bytes(), size_of::<Cell<S::Head>>(), scheme.thread_bytes()];
    let more_atomics = scheme.more_atomics();
    drop(scheme);
    Ok(sum_up(&shares?, &tallies, more_atomics, most_cells, bytes))
}

fn one_thread<S: Scheme, P: Program<S>>(
    crowd: &Crowd<'_, S>,
    thread: usize,
    common: Common<S::Head>,
    makes: Option<mpsc::Sender<Arc<P>>>,
    given: Option<Arc<P>>,
) -> Share {
    let setting = &crowd.plan.setting;
    let mut own = crowd.scheme.start(common);
    let shared = given.unwrap_or_else(|| Arc::new(P::set_up(crowd.scheme, &mut own, setting)));
    if let Some(sender) = makes {
        let _ = sender.send(shared.clone());
    }
    let mut mine = shared.begin(&mut own, setting, thread);
    let mut run = Run { thread, work: Work::new(setting.work), pairs: 0, stop: &crowd.stop };
    own.suspend();
    let go = crowd.start.ready();
    let cpu_before = cpu_time();
    own.resume();
    if go.is_some() {
        shared.work(&mut own, &mut mine, &mut run);
    }
    // From when all were sent off, so that waiting for a lock counts.
    let elapsed = go.map_or(Duration::ZERO, |go| go.elapsed());
    let cpu = cpu_time().saturating_sub(cpu_before);
    while let Some(cell) = own.common().stack.pop() {
        // SAFETY: the stack's reference.
        unsafe { own.decrement(cell) };
    }
    Share { pairs: run.pairs, elapsed, cpu }
}

/// What the calling thread has had of a processor.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is there to be written.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.max(0) as u32)
}

/// Waits; returns the most cells that were alive at a time.
fn watch(tallies: &[Arc<Tally>], length: Duration) -> u64 {
    let (began, mut most) = (Instant::now(), 0);
    loop {
        most = most.max(alive(tallies).max(0) as u64);
        let left = length.saturating_sub(began.elapsed());
        if left.is_zero() {
            return most;
        }
        thread::sleep(left.min(LOOK));
    }
}

fn alive(tallies: &[Arc<Tally>]) -> i64 {
    let sum = |what: fn(&Tally) -> u64| tallies.iter().map(|tally| what(tally)).sum::<u64>() as i64;
    // Freed first: what dies in between is alive for us.
    let freed = sum(|tally| tally.freed.load(Ordering::Relaxed));
    sum(|tally| tally.made.load(Ordering::Relaxed)) - freed
}

fn sum_up(shares: &[Share], tallies: &[Arc<Tally>], more_atomics: u64, most_cells: u64, bytes: [usize; 3]) -> Outcome {
    let pairs: u64 = shares.iter().map(|share| share.pairs).sum();
    let cpu: Duration = shares.iter().map(|share| share.cpu).sum();
    let pairs_per_second: f64 = shares.iter().map(|share| share.pairs as f64 / share.elapsed.as_secs_f64()).sum();
    let atomics = more_atomics + tallies.iter().map(|tally| tally.atomics.load(Ordering::Relaxed)).sum::<u64>();
    Outcome {
        pairs,
        pairs_per_second,
        ns_per_pair: shares.len() as f64 / pairs_per_second * 1e9,
        cpu_ns_per_pair: cpu.as_nanos() as f64 / pairs.max(1) as f64,
        atomics_per_1000_pairs: atomics as f64 * 1000.0 / pairs.max(1) as f64,
        most_cells,
        bytes,
        leaked: alive(tallies),
    }
}

/// How long cells live without any reference: in nanoseconds, for each sample; none where it
/// was not freed before a collection, or the end. Fails as `run` does.
///
/// The cell's maker drops the last reference, while two other threads that have just
/// counted it sleep.
pub fn reclaim(which: SchemeName, options: &Options, samples: u32) -> io::Result<Vec<Option<u64>>> {
    match which {
        SchemeName::Plain => reclaim_on::<Plain>(options, samples),
        SchemeName::Atomic => reclaim_on::<Atomic>(options, samples),
        SchemeName::ThreadCount => reclaim_on::<ThreadCount>(options, samples),
        SchemeName::Deltas => reclaim_on::<Deltas>(options, samples),
        SchemeName::Biased => reclaim_on::<Biased>(options, samples),
        SchemeName::Credits => reclaim_on::<Credits>(options, samples),
    }
}

/// Threads that have counted, and sleep.
const TOUCHERS: usize = 2;
/// Pairs of each.
const TOUCHES: usize = 100;
/// Heartbeats after which a cell counts as not freed.
const LOST: u32 = 5;
/// With so many lost one after the other, all will be.
const ALL_LOST: u32 = 5;

fn reclaim_on<S: Scheme>(options: &Options, samples: u32) -> io::Result<Vec<Option<u64>>> {
    let probes = Arc::new(Probes::new(samples as usize));
    let common = || Common::new(Arc::default(), Some(probes.clone()));
    let scheme = S::new(options, common());
    let delays = thread::scope(|scope| {
        let (done, all_done) = mpsc::channel();
        let mut touchers: Vec<mpsc::Sender<At<S::Head>>> = Vec::new();
        for _ in 0..TOUCHERS {
            let ((sender, cells), done, common, scheme) = (mpsc::channel(), done.clone(), common(), &scheme);
            let life = move || touch::<S>(&mut scheme.start(common), &cells, &done);
            // Where it fails, those that are there end with their channels.
            thread::Builder::new().spawn_scoped(scope, life)?;
            touchers.push(sender);
        }
        let mut maker = scheme.start(common());
        let (mut delays, mut lost) = (Vec::new(), 0);
        for sample in 0..samples {
            if lost == ALL_LOST {
                break;
            }
            let cell = maker.make(sample + 1);
            maker.common().stack.push(cell);
            maker.suspend();
            for toucher in &touchers {
                let _ = toucher.send(cell);
                let _ = all_done.recv();
            }
            // At all phases of a heartbeat.
            thread::sleep(options.heartbeat * sample / samples);
            maker.resume();
            let dropped = probes.now();
            maker.common().stack.pop();
            // SAFETY: the stack's reference.
            unsafe { maker.decrement(cell) };
            let death = await_death(&mut maker, &probes, sample + 1, options.heartbeat * LOST);
            lost = if death.is_some() { 0 } else { lost + 1 };
            delays.push(death.map(|death| death.saturating_sub(dropped)));
        }
        drop(touchers);
        drop(maker);
        Ok(delays)
    });
    scheme.rest();
    delays
}

/// Counts what it is given, and sleeps until the next.
fn touch<S: Scheme>(own: &mut S::Mutator<'_>, cells: &mpsc::Receiver<At<S::Head>>, done: &mpsc::Sender<()>) {
    loop {
        own.suspend();
        let cell = cells.recv();
        own.resume();
        let Ok(cell) = cell else { return };
        for _ in 0..TOUCHES {
            // SAFETY: its maker has a reference, and waits for us.
            unsafe {
                own.increment(cell);
                own.common().stack.push(cell);
                own.common().stack.pop();
                own.decrement(cell);
            }
            own.safe_point();
        }
        own.suspend();
        let _ = done.send(());
        own.resume();
    }
}

fn await_death(maker: &mut impl Mutator, probes: &Probes, probe: u32, patience: Duration) -> Option<u64> {
    let deadline = Instant::now() + patience;
    loop {
        maker.safe_point();
        let death = probes.death(probe);
        if death.is_some() || Instant::now() > deadline {
            return death;
        }
        maker.suspend();
        thread::sleep(Duration::from_micros(50));
        maker.resume();
    }
}
