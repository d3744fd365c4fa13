//! The laboratory's part of the module: programs on schemes.

use std::io;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::lab::calibrate::calibrate;
use crate::lab::names::{SchemeName, Unknown, Workload};
use crate::lab::programs::Setting;
use crate::lab::run::{self, Maker, Plan};
use crate::lab::scheme::Options;

/// More threads than this are a mistake.
const MOST_THREADS: usize = 1024;
/// A program that runs longer was not meant to.
const MOST_SECONDS: f64 = 3600.0;
/// The largest heartbeat, in milliseconds.
const MOST_HEARTBEAT_MS: f64 = 60_000.0;
/// The largest number of samples: some minutes of them.
const MOST_SAMPLES: u32 = 10_000;

impl From<Unknown> for PyErr {
    fn from(error: Unknown) -> PyErr {
        PyValueError::new_err(error.to_string())
    }
}

/// Fewer threads than asked for.
fn few_threads(error: io::Error) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

fn within(what: &str, value: f64, least: f64, most: f64) -> PyResult<f64> {
    if value >= least && value <= most {
        return Ok(value);
    }
    Err(PyValueError::new_err(format!("{what} must be from {least} to {most}, not {value}")))
}

fn options(heartbeat_ms: f64, slots: usize) -> PyResult<Options> {
    let heartbeat_ms = within("heartbeat_ms", heartbeat_ms, 0.1, MOST_HEARTBEAT_MS)?;
    if !slots.is_power_of_two() || slots > crate::core::Shape::MOST_SLOTS {
        return Err(PyValueError::new_err(format!(
            "slots must be a power of two up to {}, not {slots}",
            crate::core::Shape::MOST_SLOTS
        )));
    }
    Ok(Options { heartbeat: Duration::from_secs_f64(heartbeat_ms / 1000.0), slots, ..Options::default() })
}

fn setting(threads: usize, work: u32, share: f64, seed: u64) -> PyResult<Setting> {
    within("threads", threads as f64, 1.0, MOST_THREADS as f64)?;
    Ok(Setting { threads, work, share: within("share", share, 0.0, 1.0)?, seed })
}

/// Runs a program with a scheme's counts; says what it came to, by name.
#[pyfunction]
#[pyo3(signature = (scheme, workload, *, threads, seconds, work, share, made_by_worker, seed, heartbeat_ms, slots))]
#[allow(clippy::too_many_arguments)]
fn run_program<'py>(
    py: Python<'py>,
    scheme: &str,
    workload: &str,
    threads: usize,
    seconds: f64,
    work: u32,
    share: f64,
    made_by_worker: bool,
    seed: u64,
    heartbeat_ms: f64,
    slots: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let (scheme, workload): (SchemeName, Workload) = (scheme.parse()?, workload.parse()?);
    let plan = Plan {
        setting: setting(threads, work, share, seed)?,
        options: options(heartbeat_ms, slots)?,
        maker: if made_by_worker { Maker::Worker } else { Maker::Waiter },
        length: Duration::from_secs_f64(within("seconds", seconds, 0.001, MOST_SECONDS)?),
    };
    let outcome = py.detach(|| run::run(scheme, workload, &plan)).map_err(few_threads)?;
    if outcome.leaked != 0 {
        return Err(PyRuntimeError::new_err(format!(
            "{}, {}: {} cells were not freed: please report this",
            scheme.name(),
            workload.name(),
            outcome.leaked
        )));
    }
    let dict = PyDict::new(py);
    dict.set_item("pairs", outcome.pairs)?;
    dict.set_item("pairs_per_second", outcome.pairs_per_second)?;
    dict.set_item("ns_per_pair", outcome.ns_per_pair)?;
    dict.set_item("cpu_ns_per_pair", outcome.cpu_ns_per_pair)?;
    dict.set_item("atomics_per_1000_pairs", outcome.atomics_per_1000_pairs)?;
    dict.set_item("most_cells", outcome.most_cells)?;
    let [header_bytes, cell_bytes, thread_bytes] = outcome.bytes;
    dict.set_item("header_bytes", header_bytes)?;
    dict.set_item("cell_bytes", cell_bytes)?;
    dict.set_item("thread_bytes", thread_bytes)?;
    Ok(dict)
}

/// How much other work gives counting a part `target` of the time under `plain`.
#[pyfunction]
#[pyo3(signature = (workload, *, share, target, seed))]
fn calibrate_program<'py>(
    py: Python<'py>,
    workload: &str,
    share: f64,
    target: f64,
    seed: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let workload: Workload = workload.parse()?;
    let setting = setting(1, 0, share, seed)?;
    let target = within("target", target, 0.001, 1.0)?;
    let found = py.detach(|| calibrate(workload, &setting, target)).map_err(few_threads)?;
    let dict = PyDict::new(py);
    dict.set_item("work", found.work)?;
    dict.set_item("unit_ns", found.unit_ns)?;
    dict.set_item("pair_ns", found.pair_ns)?;
    dict.set_item("counting_ns", found.counting_ns)?;
    dict.set_item("beside_work_ns", found.beside_work_ns)?;
    dict.set_item("share", found.share())?;
    Ok(dict)
}

/// Nanoseconds from a cell's last reference to its end, for each sample; None where it
/// was not freed.
#[pyfunction]
#[pyo3(signature = (scheme, *, samples, heartbeat_ms, slots))]
fn reclaim_delays(
    py: Python<'_>,
    scheme: &str,
    samples: u32,
    heartbeat_ms: f64,
    slots: usize,
) -> PyResult<Vec<Option<u64>>> {
    let scheme: SchemeName = scheme.parse()?;
    within("samples", samples.into(), 1.0, MOST_SAMPLES.into())?;
    let options = options(heartbeat_ms, slots)?;
    py.detach(|| run::reclaim(scheme, &options, samples)).map_err(few_threads)
}

/// Adds all of it to the module.
pub(super) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let programs: Vec<&str> = Workload::ALL.iter().map(|workload| workload.name()).collect();
    module.add("PROGRAMS", programs)?;
    module.add_function(wrap_pyfunction!(run_program, module)?)?;
    module.add_function(wrap_pyfunction!(calibrate_program, module)?)?;
    module.add_function(wrap_pyfunction!(reclaim_delays, module)?)?;
    Ok(())
}
