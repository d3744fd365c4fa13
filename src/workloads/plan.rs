//! What to run: a workload, a variant, on which objects, how long.

use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::interp::bindings::{
    refbuf_kernels_call, refbuf_kernels_inline, refbuf_kernels_stock, RefBuf_Kernel, RefBuf_Kernels,
};

/// More threads than this are a mistake.
const MOST_THREADS: usize = 4096;

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
    pub(crate) const ALL: [(&'static str, Variant); 3] =
        [("stock", Variant::Stock), ("refbuf", Variant::Inline), ("refbuf-call", Variant::Call)];

    /// By its name.
    pub(crate) fn named(name: &str) -> PyResult<Variant> {
        named("variant", name, &Variant::ALL)
    }

    fn kernels(self) -> &'static RefBuf_Kernels {
        // SAFETY: constant tables.
        unsafe {
            match self {
                Variant::Stock => &refbuf_kernels_stock,
                Variant::Inline => &refbuf_kernels_inline,
                Variant::Call => &refbuf_kernels_call,
            }
        }
    }

    /// The inner loop; for handoff, the half that makes references.
    pub(super) fn kernel(self, workload: Workload) -> RefBuf_Kernel {
        let kernels = self.kernels();
        match workload {
            Workload::Shared => kernels.shared,
            Workload::Literals => kernels.literals,
            Workload::Zipf => kernels.zipf,
            Workload::Wide => kernels.wide,
            Workload::Private => kernels.private_,
            Workload::Handoff => kernels.make,
            Workload::Container => kernels.container,
            Workload::Random => kernels.random,
        }
    }

    /// The inner loop that drops what a thread holds.
    pub(super) fn drop_kernel(self) -> RefBuf_Kernel {
        self.kernels().drop
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
}

impl Plan {
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
        })
    }
}
