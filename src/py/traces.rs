//! The laboratory's part of the module: recording, reading, simulating.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::lab::simulate::cache::MOST_THREADS;
use crate::lab::simulate::calibrate;
use crate::lab::simulate::costs::Costs;
use crate::lab::simulate::hash::Hash;
use crate::lab::simulate::script::roles;
use crate::lab::simulate::{simulate, Outcome, Request, SchemeName};
use crate::lab::trace::{self, Trace as Recording};
use crate::workloads::plan::Arguments;
use crate::workloads::record;

impl From<trace::Error> for PyErr {
    fn from(error: trace::Error) -> PyErr {
        PyValueError::new_err(error.to_string())
    }
}

/// A trace that has been read.
#[pyclass(frozen, module = "refbuf._refbuf")]
struct Trace {
    trace: Recording,
}

#[pymethods]
impl Trace {
    /// From a file's content.
    #[new]
    fn new(py: Python<'_>, content: &[u8]) -> PyResult<Trace> {
        Ok(Trace { trace: py.detach(|| Recording::read(content))? })
    }

    /// What the recorder says of it.
    #[getter]
    fn about(&self) -> std::collections::BTreeMap<String, String> {
        self.trace.about.clone()
    }

    /// How many objects it has.
    #[getter]
    fn objects(&self) -> usize {
        self.trace.objects.len()
    }

    /// How many of them are immortal.
    #[getter]
    fn immortal(&self) -> usize {
        self.trace.objects.iter().filter(|object| object.immortal).count()
    }

    /// For each thread: name, increments, decrements, events lost, objects made.
    #[getter]
    fn threads(&self) -> Vec<(String, u64, u64, u64, usize)> {
        let made = |number: usize| self.trace.objects.iter().filter(|o| o.owner == Some(number as u32)).count();
        let summary = |(number, thread): (usize, &trace::Thread)| {
            let (increments, decrements) = thread.counts();
            (thread.name.clone(), increments, decrements, thread.lost, made(number))
        };
        self.trace.threads.iter().enumerate().map(summary).collect()
    }

    /// The numbers of the threads that are replayed.
    #[getter]
    fn replayed(&self) -> Vec<usize> {
        roles(&self.trace)
    }

    /// Replays it.
    #[pyo3(signature = (scheme, *, threads, slots, hash, pairs, costs, work_ns, cache_bytes, turn_ns))]
    #[allow(clippy::too_many_arguments)]
    fn simulate<'py>(
        &self,
        py: Python<'py>,
        scheme: &str,
        threads: usize,
        slots: usize,
        hash: &str,
        pairs: u64,
        costs: &Bound<'py, PyDict>,
        work_ns: f64,
        cache_bytes: usize,
        turn_ns: f64,
    ) -> PyResult<Bound<'py, PyDict>> {
        let request = Request {
            scheme: scheme.parse()?,
            threads,
            slots,
            hash: Hash::named(hash).ok_or_else(|| unknown("hash", hash))?,
            pairs,
            costs: costs_from(costs)?,
            work_ns,
            cache_bytes,
            turn_ns,
        };
        let outcome = py.detach(|| simulate(&self.trace, &request));
        as_dict(py, &outcome.map_err(|refusal| PyValueError::new_err(refusal.to_string()))?)
    }
}

fn unknown(what: &str, name: &str) -> PyErr {
    PyValueError::new_err(format!("unknown {what} '{name}'"))
}

fn as_dict<'py>(py: Python<'py>, outcome: &Outcome) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("ns_per_pair", outcome.ns_per_pair)?;
    dict.set_item("pairs_per_second", outcome.pairs_per_second)?;
    dict.set_item("atomics_per_1000_pairs", outcome.atomics_per_1000_pairs)?;
    dict.set_item("misses_per_1000_pairs", outcome.misses_per_1000_pairs)?;
    dict.set_item("fills_per_1000_pairs", outcome.fills_per_1000_pairs)?;
    dict.set_item("hit_rate", outcome.hit_rate)?;
    dict.set_item("residue", outcome.residue)?;
    dict.set_item("recorded_threads", outcome.recorded_threads)?;
    Ok(dict)
}

/// All costs must be there: a name that is missing would go unseen.
fn costs_from(dict: &Bound<'_, PyDict>) -> PyResult<Costs> {
    let mut costs = Costs::ASSUMED;
    for (name, cost) in costs.named() {
        let value = dict.get_item(name)?.ok_or_else(|| PyValueError::new_err(format!("no cost of {name}")))?;
        *cost = value.extract()?;
        if !(0.0..=1e9).contains(cost) {
            return Err(PyValueError::new_err(format!("the cost of {name} must be from 0 to 1e9 ns, not {cost}")));
        }
    }
    Ok(costs)
}

/// What things cost here, in nanoseconds, by name; and whether other work let it be
/// measured.
#[pyfunction]
fn calibrate_costs(py: Python<'_>, cpus: usize) -> PyResult<(Bound<'_, PyDict>, bool)> {
    let (mut costs, undisturbed) = py.detach(|| calibrate::calibrate(cpus));
    let dict = PyDict::new(py);
    for (name, cost) in costs.named() {
        dict.set_item(name, *cost)?;
    }
    Ok((dict, undisturbed))
}

/// Runs a workload and returns its trace, and how many pairs each thread did.
#[pyfunction]
#[pyo3(signature = (workload, objects, *, mapping, threads, pairs, seed, factory, room, about))]
#[allow(clippy::too_many_arguments)]
fn record_trace<'py>(
    py: Python<'py>,
    workload: &str,
    objects: Bound<'py, PyAny>,
    mapping: Option<Bound<'py, PyDict>>,
    threads: usize,
    pairs: u64,
    seed: u64,
    factory: Bound<'py, PyAny>,
    room: usize,
    about: Vec<(String, String)>,
) -> PyResult<(Bound<'py, PyBytes>, Vec<u64>)> {
    let arguments = Arguments {
        workload,
        variant: "stock",
        objects,
        mapping,
        threads,
        pairs: Some(pairs),
        seconds: None,
        seed,
        keep: false,
        factory,
        work_ns: 0.0,
    };
    let mut recorded = record::record(py, arguments, room)?;
    let trace = &mut recorded.trace;
    trace.about.extend(about);
    trace.about.insert("bare_ns_per_pair".into(), format!("{:.3}", recorded.bare_ns));
    let bytes = py.detach(|| recorded.trace.write())?;
    let done = recorded.report.recordings.iter().map(|recording| recording.pairs).collect();
    Ok((PyBytes::new(py, &bytes), done))
}

/// Adds all of it to the module.
pub(super) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let schemes: Vec<&str> = SchemeName::ALL.iter().map(|scheme| scheme.name()).collect();
    module.add("SCHEMES", schemes)?;
    module.add("HASHES", Hash::ALL.map(|(name, _)| name))?;
    module.add("MOST_SIMULATED_THREADS", MOST_THREADS)?;
    let tables = PyDict::new(module.py());
    for scheme in SchemeName::ALL {
        if let Some(usual) = scheme.usual_slots() {
            tables.set_item(scheme.name(), (usual, scheme.most_slots()))?;
        }
    }
    module.add("TABLES", tables)?;
    module.add_class::<Trace>()?;
    module.add_function(wrap_pyfunction!(calibrate_costs, module)?)?;
    module.add_function(wrap_pyfunction!(record_trace, module)?)?;
    Ok(())
}
