//! How much other work stands beside each pair, so that counting has a given part of the
//! time of one thread under `plain`.
//!
//! What counting costs within a program cannot be seen by leaving it out, since then nothing
//! is freed. So each reference is counted five times, and the difference divided by four.

use std::io;
use std::time::Duration;

use super::names::Workload;
use super::programs::Setting;
use super::run::{on, Maker, Plan};
use super::scheme::Options;
use super::schemes::plain::Plain;
use super::work::Work;

/// How often a reference is counted, to see what counting once costs.
const TIMES: u64 = 5;
/// Runs of each kind, in turn, of which the fastest counts: disturbed ones are slower.
const RUNS: usize = 9;
/// Of a run.
const LENGTH: Duration = Duration::from_millis(15);
/// What counting costs at the least, in nanoseconds, when work is sought for it.
const LEAST_COUNTING_NS: f64 = 0.05;
/// Units of work at the most: some microseconds.
const MOST_WORK: f64 = 10_000.0;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Calibration {
    /// Units of other work beside each pair.
    pub work: u32,
    /// Nanoseconds of a unit.
    pub unit_ns: f64,
    /// Nanoseconds of a pair with its work, under `plain` in one thread.
    pub pair_ns: f64,
    /// Nanoseconds of counting, in the program without other work.
    pub counting_ns: f64,
    /// The same with the work, of which a processor does some meanwhile.
    pub beside_work_ns: f64,
}

impl Calibration {
    /// The part that counting has of the time.
    pub fn share(&self) -> f64 {
        self.counting_ns / self.pair_ns
    }
}

/// Finds the work for which counting has the part `target` of the time; none where a program
/// does enough besides.
/// Fails as `run` does.
pub fn calibrate(workload: Workload, setting: &Setting, target: f64) -> io::Result<Calibration> {
    let unit_ns = Work::unit_ns();
    let bare = look(workload, setting, 0)?;
    // Noise must not make it vanish: what is reported is what was measured.
    let wanted = bare.counting_ns.max(LEAST_COUNTING_NS) / target;
    let missing = wanted - bare.pair_ns;
    let mut work = (missing / unit_ns).clamp(0.0, MOST_WORK).round() as u32;
    let mut with_work = look(workload, setting, work)?;
    if work > 0 {
        // Work and program overlap: what is still missing, added once.
        let missing = wanted - with_work.pair_ns;
        work = (f64::from(work) + missing / unit_ns).clamp(0.0, MOST_WORK).round() as u32;
        with_work = look(workload, setting, work)?;
    }
    Ok(Calibration {
        work,
        unit_ns,
        pair_ns: with_work.pair_ns,
        counting_ns: bare.counting_ns,
        beside_work_ns: with_work.counting_ns,
    })
}

/// One pair, in nanoseconds.
struct Look {
    pair_ns: f64,
    counting_ns: f64,
}

/// What a pair and counting cost with so much work.
fn look(workload: Workload, setting: &Setting, work: u32) -> io::Result<Look> {
    let setting = Setting { threads: 1, work, ..*setting };
    let plan = Plan { setting, options: Options::default(), maker: Maker::Worker, length: LENGTH };
    let (mut once, mut often) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        // Processor time: other processes would change what is looked for.
        once = once.min(on::<Plain>(workload, &plan)?.cpu_ns_per_pair);
        often = often.min(on::<Plain<TIMES>>(workload, &plan)?.cpu_ns_per_pair);
    }
    // Within the noise it may come out below nothing.
    let counting_ns = ((often - once) / (TIMES - 1) as f64).max(0.0);
    Ok(Look { pair_ns: once, counting_ns })
}
