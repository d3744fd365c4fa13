//! What to run: a workload, a variant, on which objects, how long.

use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::work;
use crate::interp;
use crate::interp::bindings::{
    refbuf_kernels_bare, refbuf_kernels_call, refbuf_kernels_call_work, refbuf_kernels_inline,
    refbuf_kernels_inline_work, refbuf_kernels_stock, refbuf_kernels_stock_work, refbuf_kernels_traced, RefBuf_Kernels,
};

/// More threads than this are a mistake.
const MOST_THREADS: usize = 4096;

/// A millisecond of other work beside each pair is more than enough.
const MOST_WORK_NS: f64 = 1e6;

/// What the threads do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    Shared,
    Literals,
    Zipf,
    Wide,
    Private,
    Handoff,
    Container,
    Random,
}

/// How they count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// CPython's own macros.
    Stock,
    /// The inline path of refbuf.h.
    Inline,
    /// refbuf's exported functions.
    Call,
    /// Not attached: `refbuf::Ref`.
    Detached,
    /// Not attached: attaches for each clone and for each drop.
    AttachPerClone,
    /// Not attached: `Arc<Py<T>>`.
    Arc,
    /// Not attached: attaches for each clone, and drops into PyO3's pool.
    Pool,
    /// CPython's own macros, and each operation is recorded. Has no name.
    Traced,
    /// Counts nothing. Has no name.
    Bare,
}

impl Workload {
    pub(crate) const ALL: [(&'static str, Workload); 8] = [
        ("shared", Workload::Shared),
        ("literals", Workload::Literals),
        ("zipf", Workload::Zipf),
        ("wide", Workload::Wide),
        ("private", Workload::Private),
        ("handoff", Workload::Handoff),
        ("container", Workload::Container),
        ("random", Workload::Random),
    ];

    /// Atomic operations that CPython's own path does for a pair.
    pub(crate) fn stock_atomics_per_pair(self) -> u64 {
        match self {
            Workload::Private => 0,
            _ => 2,
        }
    }
}

impl Variant {
    pub(crate) const ALL: [(&'static str, Variant); 7] = [
        ("stock", Variant::Stock),
        ("refbuf", Variant::Inline),
        ("refbuf-call", Variant::Call),
        ("detached", Variant::Detached),
        ("attach-per-clone", Variant::AttachPerClone),
        ("arc", Variant::Arc),
        ("pool", Variant::Pool),
    ];

    /// By its name.
    pub(crate) fn named(name: &str) -> PyResult<Variant> {
        named("variant", name, &Variant::ALL)
    }

    /// The inner loops of threads that are attached; none for the others.
    pub(super) fn kernels(self, with_work: bool) -> Option<&'static RefBuf_Kernels> {
        // SAFETY: constant tables.
        unsafe {
            match (self, with_work) {
                (Variant::Stock, false) => Some(&refbuf_kernels_stock),
                (Variant::Stock, true) => Some(&refbuf_kernels_stock_work),
                (Variant::Inline, false) => Some(&refbuf_kernels_inline),
                (Variant::Inline, true) => Some(&refbuf_kernels_inline_work),
                (Variant::Call, false) => Some(&refbuf_kernels_call),
                (Variant::Call, true) => Some(&refbuf_kernels_call_work),
                (Variant::Traced, _) => Some(&refbuf_kernels_traced),
                (Variant::Bare, _) => Some(&refbuf_kernels_bare),
                _ => None,
            }
        }
    }

    /// Atomic operations on counts for a pair, where they are known and nobody
    /// counts them.
    pub(super) fn known_atomics_per_pair(self, workload: Workload) -> Option<u64> {
        match self {
            Variant::Inline | Variant::Call | Variant::Detached => None,
            Variant::Arc => Some(2),
            Variant::Bare => Some(0),
            // The interpreter's own, in the thread that attaches.
            Variant::Stock | Variant::Traced | Variant::AttachPerClone | Variant::Pool if interp::BUFFERED => {
                Some(workload.stock_atomics_per_pair())
            }
            Variant::Stock | Variant::Traced | Variant::AttachPerClone | Variant::Pool => Some(0),
        }
    }
}

/// Finds a name, or says which there are.
fn named<T: Copy>(what: &str, name: &str, all: &[(&'static str, T)]) -> PyResult<T> {
    let found = all.iter().find(|(candidate, _)| *candidate == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|(candidate, _)| *candidate).collect();
        PyValueError::new_err(format!("unknown {what} '{name}': there are {}", names.join(", ")))
    })
}

/// How long to run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    /// So many pairs in each thread.
    Pairs(u64),
    /// All threads until then.
    Time(Duration),
}

/// A checked request.
pub(crate) struct Plan {
    pub(crate) workload: Workload,
    pub(crate) variant: Variant,
    pub(crate) threads: usize,
    pub(crate) length: Length,
    pub(crate) seed: u64,
    /// The shared objects; for private, how many each thread makes.
    pub(super) list: Py<PyList>,
    pub(super) dict: Py<PyDict>,
    pub(super) factory: Py<PyAny>,
    /// Hand the references that random still holds to the caller.
    pub(crate) keep: bool,
    /// Iterations of other work beside each pair.
    pub(super) work: u64,
    /// Events that each thread may record, for the variant that does.
    pub(super) room: usize,
}

/// What `refbuf.workloads.run` is called with.
pub(crate) struct Arguments<'py> {
    pub(crate) workload: &'py str,
    pub(crate) variant: &'py str,
    pub(crate) objects: Bound<'py, PyAny>,
    pub(crate) mapping: Option<Bound<'py, PyDict>>,
    pub(crate) threads: usize,
    pub(crate) pairs: Option<u64>,
    pub(crate) seconds: Option<f64>,
    pub(crate) seed: u64,
    pub(crate) keep: bool,
    pub(crate) factory: Bound<'py, PyAny>,
    pub(crate) work_ns: f64,
}

impl Plan {
    /// Pairs that each thread is to do.
    pub(super) fn wanted(&self) -> u64 {
        match self.length {
            Length::Pairs(pairs) => pairs,
            Length::Time(_) => u64::MAX,
        }
    }

    /// Checks everything; nothing has been started if this fails.
    pub(crate) fn new(py: Python<'_>, arguments: Arguments<'_>) -> PyResult<Plan> {
        let workload = named("workload", arguments.workload, &Workload::ALL)?;
        let variant = Variant::named(arguments.variant)?;
        if !(1..=MOST_THREADS).contains(&arguments.threads) {
            let threads = arguments.threads;
            return Err(PyValueError::new_err(format!("threads must be from 1 to {MOST_THREADS}, not {threads}")));
        }
        let length = match (arguments.pairs, arguments.seconds) {
            (Some(pairs), None) => Length::Pairs(pairs),
            (None, Some(seconds)) if seconds > 0.0 && seconds <= 3600.0 => {
                Length::Time(Duration::from_secs_f64(seconds))
            }
            (None, Some(seconds)) => {
                return Err(PyValueError::new_err(format!("seconds must be above 0 and at most 3600, not {seconds}")))
            }
            _ => return Err(PyValueError::new_err("give either pairs or seconds")),
        };
        if arguments.keep && workload != Workload::Random {
            return Err(PyValueError::new_err("keep=True is for the workload random"));
        }
        if !(0.0..=MOST_WORK_NS).contains(&arguments.work_ns) {
            let given = arguments.work_ns;
            return Err(PyValueError::new_err(format!("work_ns must be from 0 to {MOST_WORK_NS}, not {given}")));
        }
        if !arguments.factory.is_callable() {
            return Err(PyTypeError::new_err("factory must be callable"));
        }
        // A copy: nobody changes it while threads walk it.
        let list = PyList::new(py, arguments.objects.try_iter()?.collect::<PyResult<Vec<_>>>()?)?;
        if list.is_empty() {
            return Err(PyValueError::new_err("objects must not be empty"));
        }
        let dict = match arguments.mapping {
            Some(mapping) => mapping.copy()?,
            None => PyDict::new(py),
        };
        Ok(Plan {
            workload,
            variant,
            threads: arguments.threads,
            length,
            seed: arguments.seed,
            list: list.unbind(),
            dict: dict.unbind(),
            factory: arguments.factory.unbind(),
            keep: arguments.keep,
            work: work::iterations(arguments.work_ns),
            room: 0,
        })
    }
}
