//! The Python module `refbuf._refbuf`. What users import is `python/refbuf`.

mod live;
mod programs;
mod traces;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::interp::barrier;
use crate::interp::config::{Config, ConfigError};
use crate::workloads::driver;
use crate::workloads::plan::{Arguments, Plan, Variant, Workload};
use crate::workloads::{attached, work};
use crate::{capi, detached, interp, process};

impl From<ConfigError> for PyErr {
    fn from(error: ConfigError) -> PyErr {
        match error {
            ConfigError::Nonsense(_) => PyValueError::new_err(error.to_string()),
            ConfigError::TooLate => PyRuntimeError::new_err(error.to_string()),
        }
    }
}

/// Settles this thread's buffer: its credits go back to their objects. An object whose
/// last reference that was is finalized now.
#[pyfunction]
fn flush(py: Python<'_>) {
    process::flush(py);
}

/// Settles every thread's buffer: all credits go back to their objects. An object whose
/// last reference that was is finalized now, in this thread.
#[pyfunction]
fn flush_all(py: Python<'_>) {
    process::flush_all(py);
}

/// The program's references to an object: sys.getrefcount's count, without the credits
/// that threads' buffers hold on it, and without what an account holds in reserve.
#[pyfunction]
fn refcount(object: &Bound<'_, PyAny>) -> isize {
    // SAFETY: attached, the object is alive.
    unsafe { process::ref_count(object.as_ptr()) }
}

/// The sums over all buffers, by name.
#[pyfunction]
fn stats(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let sums = capi::collect_stats();
    let dict = PyDict::new(py);
    let items: [(&str, u64); 17] = [
        ("hits", sums.hits),
        ("misses", sums.misses),
        ("acquires", sums.acquires),
        ("take_ins", sums.take_ins),
        ("evictions", sums.evictions),
        ("settles", sums.settles),
        ("parked", sums.parked),
        ("atomics", sums.atomics),
        ("credits", sums.credits),
        ("threads", sums.threads),
        ("orphans", sums.orphans),
        ("beats", sums.beats),
        ("slots", sums.slots),
        ("buffer_bytes", sums.buffer_bytes),
        ("accounts", sums.accounts),
        ("account_slots", sums.account_slots),
        ("account_buffer_bytes", sums.account_buffer_bytes),
    ];
    for (name, value) in items {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}

/// Changes what may be chosen.
#[pyfunction]
#[pyo3(signature = (*, slots=None, heartbeat_ms=None, first_batch=None, largest_batch=None, reserve=None,
                    account_slots=None))]
fn configure(
    slots: Option<usize>,
    heartbeat_ms: Option<f64>,
    first_batch: Option<u32>,
    largest_batch: Option<u32>,
    reserve: Option<u32>,
    account_slots: Option<usize>,
) -> PyResult<()> {
    Ok(process::configure(Config { slots, heartbeat_ms, first_batch, largest_batch, reserve, account_slots })?)
}

/// How this build counts, and how it is set.
#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("buffered", interp::BUFFERED)?;
    info.set_item("barrier", barrier::name())?;
    info.set_item("inline", interp::tls_offset() != 0)?;
    info.set_item("heartbeat_ms", detached::heartbeat().as_secs_f64() * 1000.0)?;
    Ok(info)
}

/// What a run of a workload came to.
#[pyclass(frozen, get_all, module = "refbuf._refbuf")]
struct Run {
    pairs: u64,
    ns_per_pair: f64,
    pairs_per_second: f64,
    atomics_per_1000_pairs: f64,
    kept: Py<PyList>,
}

#[pymethods]
impl Run {
    fn __repr__(&self) -> String {
        format!(
            "<Run: {} pairs, {:.2} ns a pair and thread, {:.1} million pairs a second, {:.2} atomics in 1000 pairs>",
            self.pairs,
            self.ns_per_pair,
            self.pairs_per_second / 1e6,
            self.atomics_per_1000_pairs
        )
    }
}

/// Runs one workload in one variant.
#[pyfunction]
#[pyo3(signature = (workload, variant, objects, *, mapping, threads, pairs, seconds, seed, keep, factory,
                    work_ns))]
#[allow(clippy::too_many_arguments)]
fn run_workload(
    py: Python<'_>,
    workload: &str,
    variant: &str,
    objects: Bound<'_, PyAny>,
    mapping: Option<Bound<'_, PyDict>>,
    threads: usize,
    pairs: Option<u64>,
    seconds: Option<f64>,
    seed: u64,
    keep: bool,
    factory: Bound<'_, PyAny>,
    work_ns: f64,
) -> PyResult<Run> {
    let arguments =
        Arguments { workload, variant, objects, mapping, threads, pairs, seconds, seed, keep, factory, work_ns };
    let report = driver::run(py, Plan::new(py, arguments)?)?;
    Ok(Run {
        pairs: report.pairs,
        ns_per_pair: report.ns_per_pair,
        pairs_per_second: report.pairs_per_second,
        atomics_per_1000_pairs: report.atomics_per_1000_pairs,
        kept: report.kept,
    })
}

/// Counts one object in the calling thread.
#[pyfunction]
fn touch(py: Python<'_>, object: Bound<'_, PyAny>, variant: &str, pairs: u64) -> PyResult<()> {
    attached::touch(py, &object, variant, pairs)
}

/// Nanoseconds of one iteration of a workload's other work, as measured.
#[pyfunction]
fn work_iteration_ns(py: Python<'_>) -> f64 {
    py.detach(work::nanoseconds_per_iteration)
}

/// At exit, before the buffers are closed.
#[pyfunction]
fn end_workloads(py: Python<'_>) {
    driver::close(py);
}

/// The module.
#[pymodule(gil_used = false)]
fn _refbuf(module: &Bound<'_, PyModule>) -> PyResult<()> {
    interp::refuse_subinterpreter()?;
    interp::refuse_exit(module.py())?;
    interp::start(module)?;
    detached::prepare(module.py());
    // After the interpreter's hooks, and so run before them.
    let at_exit = module.py().import("atexit")?;
    at_exit.call_method1("register", (wrap_pyfunction!(end_workloads, module)?,))?;
    capi::add_to(module)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("WORKLOADS", Workload::ALL.map(|(name, _)| name))?;
    module.add("VARIANTS", Variant::ALL.map(|(name, _)| name))?;
    module.add_class::<Run>()?;
    module.add_function(wrap_pyfunction!(flush, module)?)?;
    module.add_function(wrap_pyfunction!(flush_all, module)?)?;
    module.add_function(wrap_pyfunction!(refcount, module)?)?;
    module.add_function(wrap_pyfunction!(stats, module)?)?;
    module.add_function(wrap_pyfunction!(configure, module)?)?;
    module.add_function(wrap_pyfunction!(build_info, module)?)?;
    module.add_function(wrap_pyfunction!(run_workload, module)?)?;
    module.add_function(wrap_pyfunction!(touch, module)?)?;
    module.add_function(wrap_pyfunction!(work_iteration_ns, module)?)?;
    live::add_to(module)?;
    traces::add_to(module)?;
    programs::add_to(module)
}
