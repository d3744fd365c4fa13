//! A trace replayed through each scheme, on a model of private caches.
//!
//! docs/SIMULATION.md has the model, what it assumes and leaves out, and how far
//! it is from what real cores measure.
//!
//! | file | holds |
//! |---|---|
//! | [`cache`] | private caches and their protocol |
//! | [`costs`] | what things cost |
//! | [`mod@calibrate`] | measuring that on this machine |
//! | [`hash`] | hashes of the address |
//! | [`script`] | which simulated thread replays what |
//! | [`model`] | the schemes |
//! | [`engine`] | clocks, and lines that are waited for |

pub mod cache;
pub mod calibrate;
pub mod costs;
pub mod engine;
pub mod hash;
pub mod model;
pub mod script;

use std::fmt;

use self::cache::{Use, MOST_THREADS};
use self::costs::Costs;
use self::engine::{Engine, Prices, Stretch};
use self::hash::Hash;
use self::model::biased::Biased;
use self::model::credits::Credits;
use self::model::deltas::{Deltas, ENTRIES};
use self::model::plain::Single;
use self::model::thread_count::ThreadCount;
use self::model::{Cast, Model};
use self::script::Play;
pub use super::names::SchemeName;
use super::trace::Trace;
use crate::core::Shape;

impl SchemeName {
    /// Slots of a thread's table as the scheme has it; none without a table of
    /// fixed size.
    pub fn usual_slots(self) -> Option<usize> {
        match self {
            SchemeName::Deltas => Some(ENTRIES),
            SchemeName::Credits => Some(Shape::DEFAULT.slots),
            _ => None,
        }
    }

    /// The most slots that a table may have.
    pub fn most_slots(self) -> usize {
        match self {
            SchemeName::Credits => Shape::MOST_SLOTS,
            _ => ENTRIES,
        }
    }

    fn model<'a>(self, cast: Cast<'a>) -> Box<dyn Model + 'a> {
        match self {
            SchemeName::Plain => Box::new(Single::new(cast, Use::Write)),
            SchemeName::Atomic => Box::new(Single::new(cast, Use::Atomic)),
            SchemeName::ThreadCount => Box::new(ThreadCount::new(cast)),
            SchemeName::Deltas => Box::new(Deltas::new(cast)),
            SchemeName::Biased => Box::new(Biased::new(cast)),
            SchemeName::Credits => Box::new(Credits::new(cast)),
        }
    }
}

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// How to count.
    pub scheme: SchemeName,
    /// Simulated threads, each with a core of its own: 1 to 256.
    pub threads: usize,
    /// Slots of a thread's table, a power of two, for schemes with tables.
    pub slots: usize,
    /// Of the table.
    pub hash: Hash,
    /// Pairs of each thread, the first half of which is for warming up.
    pub pairs: u64,
    /// What things cost.
    pub costs: Costs,
    /// Other work beside each pair, in nanoseconds.
    pub work_ns: f64,
    /// Of each thread's private cache.
    pub cache_bytes: usize,
    /// How long a thread keeps the GIL that another wants, in nanoseconds.
    pub turn_ns: f64,
}

/// What a simulation came to, over its second half.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Nanoseconds of a thread for a pair.
    pub ns_per_pair: f64,
    /// Of all threads together.
    pub pairs_per_second: f64,
    /// Locked instructions on counts in 1,000 pairs.
    pub atomics_per_1000_pairs: f64,
    /// Lines that came from another private cache, or were taken from one.
    pub misses_per_1000_pairs: f64,
    /// Lines that were in no private cache.
    pub fills_per_1000_pairs: f64,
    /// Of the operations that wanted a table, the share that needed nothing else;
    /// none where no operation did.
    pub hit_rate: Option<f64>,
    /// References lost or invented over the whole simulation: 0.
    pub residue: u64,
    /// Recorded threads that were replayed.
    pub recorded_threads: usize,
}

/// Why something cannot be simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The trace has no increment and no decrement.
    NoEvents,
    /// Not 1 to [`MOST_THREADS`].
    Threads(usize),
    /// Not a power of two, or too many.
    Slots(usize, usize),
}

impl fmt::Display for Refusal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoEvents => write!(to, "the trace has no increments and no decrements"),
            Refusal::Threads(threads) => write!(to, "threads must be from 1 to {MOST_THREADS}, not {threads}"),
            Refusal::Slots(slots, most) => write!(to, "slots must be a power of two up to {most}, not {slots}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Replays a trace.
///
/// # Errors
///
/// Where the request makes no sense, or there is nothing to replay.
pub fn simulate(trace: &Trace, request: &Request) -> Result<Outcome, Refusal> {
    let Request { scheme, threads, slots, .. } = *request;
    if !(1..=MOST_THREADS).contains(&threads) {
        return Err(Refusal::Threads(threads));
    }
    if !slots.is_power_of_two() || slots > scheme.most_slots() {
        return Err(Refusal::Slots(slots, scheme.most_slots()));
    }
    let operations = request.pairs.max(1) * 2;
    let play = Play::new(trace, threads, usize::try_from(operations).unwrap_or(usize::MAX));
    let Play { things, lines, parts, recorded } = play.ok_or(Refusal::NoEvents)?;
    let model = scheme.model(Cast { things: &things, threads, slots, hash: request.hash });
    let prices = Prices::new(&request.costs, request.work_ns);
    let mut engine = Engine::new(&things, lines, parts, model, prices, request.cache_bytes);
    let outcome = if scheme == SchemeName::Plain {
        in_turns(&engine.take_turns(operations), request)
    } else {
        at_once(&engine.run(operations * threads as u64), threads)
    };
    Ok(Outcome { residue: engine.residue(), recorded_threads: recorded, ..outcome })
}

/// All threads run at the same time.
fn at_once(stretch: &Stretch, threads: usize) -> Outcome {
    let pairs = pairs_of(stretch);
    outcome(stretch, stretch.ns * threads as f64 / pairs, pairs / stretch.ns.max(1e-9) * 1e9)
}

/// Threads take turns of `turn_ns`, far longer than what is replayed of each. So
/// what a turn brings in from other caches is simulated, and spread over the
/// pairs that a whole turn has room for.
fn in_turns(stretch: &Stretch, request: &Request) -> Outcome {
    let threads = request.threads as f64;
    let pairs = pairs_of(stretch);
    let pair_ns = (stretch.ns - stretch.transfer_ns) / pairs;
    if request.threads == 1 {
        return outcome(stretch, pair_ns, 1e9 / pair_ns.max(1e-9));
    }
    let pairs_in_turn = (request.turn_ns / pair_ns.max(1e-9)).max(pairs / threads);
    let arriving_ns = stretch.transfer_ns / threads;
    let turn = pairs_in_turn * pair_ns + request.costs.handover + arriving_ns;
    let misses = stretch.tally.transfers as f64 / threads / pairs_in_turn * 1000.0;
    let whole = outcome(stretch, turn * threads / pairs_in_turn, pairs_in_turn / turn * 1e9);
    Outcome { misses_per_1000_pairs: misses, ..whole }
}

fn pairs_of(stretch: &Stretch) -> f64 {
    stretch.tally.operations.max(1) as f64 / 2.0
}

fn outcome(stretch: &Stretch, ns_per_pair: f64, pairs_per_second: f64) -> Outcome {
    let tally = stretch.tally;
    let in_1000 = |count: u64| count as f64 * 1000.0 / pairs_of(stretch);
    Outcome {
        ns_per_pair,
        pairs_per_second,
        atomics_per_1000_pairs: in_1000(tally.atomics),
        misses_per_1000_pairs: in_1000(tally.transfers),
        fills_per_1000_pairs: in_1000(tally.fills),
        hit_rate: (tally.wanted > 0).then(|| tally.hits as f64 / tally.wanted as f64),
        residue: 0,
        recorded_threads: 0,
    }
}
