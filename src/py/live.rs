//! Live mode, as `python/refbuf/_live.py` uses it. On other builds and systems the same
//! functions say why there is none.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCFunction, PyDict};

#[cfg(all(buffered, target_os = "linux", target_arch = "x86_64"))]
use crate::live::installation as here;

pyo3::create_exception!(
    refbuf,
    UnsupportedError,
    PyRuntimeError,
    "Live mode cannot be used here, or now: the message says why. Nothing has been changed."
);

/// Elsewhere.
#[cfg(not(all(buffered, target_os = "linux", target_arch = "x86_64")))]
mod here {
    use std::collections::BTreeMap;
    use std::ops::Range;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use pyo3::prelude::*;

    use crate::lab::trace;

    /// Nothing is ever patched.
    pub(super) struct ImageReport {
        pub(super) path: PathBuf,
        pub(super) adds: usize,
        pub(super) swaps: usize,
        pub(super) drops: usize,
        pub(super) hooked: bool,
        pub(super) left_alone: Vec<(usize, &'static str)>,
        pub(super) trampoline_bytes: usize,
        pub(super) pushes: usize,
        pub(super) seconds: f64,
    }

    pub(super) type Check = (&'static str, bool, String);

    pub(super) fn obstacle() -> Option<String> {
        Some(if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
            "live mode is for Linux on x86-64 only".into()
        } else if cfg!(Py_GIL_DISABLED) {
            "live mode does not know the objects of a debug build: use a release build of free-threaded CPython".into()
        } else {
            "live mode needs a free-threaded build of CPython, and this one has a GIL: run it with one, such as python3.13t".into()
        })
    }

    pub(super) fn examine(
        _py: Python<'_>,
        _extensions: &[PathBuf],
        _with_lulls: Option<bool>,
    ) -> (Vec<Check>, Vec<ImageReport>) {
        (vec![("system", false, obstacle().unwrap_or_default())], Vec::new())
    }

    pub(super) fn is_installed() -> bool {
        false
    }

    pub(super) fn install(
        _py: Python<'_>,
        _extensions: &[PathBuf],
        _with_lulls: Option<bool>,
    ) -> Result<Vec<ImageReport>, String> {
        Err(obstacle().unwrap_or_default())
    }

    pub(super) fn record(_py: Python<'_>, _extensions: &[PathBuf], _room: usize) -> Result<Vec<ImageReport>, String> {
        Err(obstacle().unwrap_or_default())
    }

    pub(super) fn recorded(_py: Python<'_>, about: BTreeMap<String, String>) -> Result<(Vec<u8>, u64), trace::Error> {
        Ok((trace::Trace { about, ..Default::default() }.write()?, 0))
    }

    pub(super) fn load(_path: &Path, _flags: i32) -> std::io::Result<()> {
        Ok(())
    }

    pub(super) fn install_extension(_py: Python<'_>, _path: &Path) -> Result<Option<ImageReport>, String> {
        Ok(None)
    }

    pub(super) fn uninstall(_py: Python<'_>) -> Result<(), String> {
        Ok(())
    }

    pub(super) fn lulls() -> Option<(bool, u64, Duration)> {
        None
    }

    pub(super) fn hold_lull(_is_lull: bool) -> bool {
        false
    }

    pub(super) fn trampolines() -> Vec<(Range<usize>, String)> {
        Vec::new()
    }

    pub(super) fn tell_gdb(_named: &[(Range<usize>, String)]) -> Result<(), String> {
        Ok(())
    }
}

fn describe<'py>(py: Python<'py>, report: &here::ImageReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    // As a str: a pathlib.Path would import pathlib before the program starts.
    dict.set_item("path", report.path.as_os_str())?;
    dict.set_item("adds", report.adds)?;
    dict.set_item("swaps", report.swaps)?;
    dict.set_item("drops", report.drops)?;
    dict.set_item("hooked", report.hooked)?;
    dict.set_item("left_alone", &report.left_alone)?;
    dict.set_item("trampoline_bytes", report.trampoline_bytes)?;
    dict.set_item("registers_saved", report.pushes)?;
    dict.set_item("seconds", report.seconds)?;
    Ok(dict)
}

/// Why live mode cannot be used here, or None.
#[pyfunction]
fn live_obstacle() -> Option<String> {
    here::obstacle()
}

/// Whether the interpreter is patched.
#[pyfunction]
fn live_installed() -> bool {
    here::is_installed()
}

/// Looks at all that `live_install` needs, and changes nothing: `obstacle` as above, `checks`
/// of (name, whether it is as it must be, what was found) that end at the first that fails,
/// and `images` as `live_install` gives them, as far as it came.
#[pyfunction]
#[pyo3(signature = (extensions, lulls = None))]
fn live_examine(py: Python<'_>, extensions: Vec<PathBuf>, lulls: Option<bool>) -> PyResult<Bound<'_, PyDict>> {
    let (checks, reports) = here::examine(py, &extensions, lulls);
    let images: PyResult<Vec<_>> = reports.iter().map(|report| describe(py, report)).collect();
    let dict = PyDict::new(py);
    dict.set_item("obstacle", here::obstacle())?;
    dict.set_item("checks", checks)?;
    dict.set_item("images", images?)?;
    Ok(dict)
}

/// Patches the interpreter and these extensions; says what was done to each. `lulls`: whether
/// there are any; None for where the processor makes them worth it.
#[pyfunction]
#[pyo3(signature = (extensions, lulls = None))]
fn live_install(py: Python<'_>, extensions: Vec<PathBuf>, lulls: Option<bool>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    if let Some(obstacle) = here::obstacle() {
        return Err(UnsupportedError::new_err(obstacle));
    }
    let reports = here::install(py, &extensions, lulls).map_err(UnsupportedError::new_err)?;
    reports.iter().map(|report| describe(py, report)).collect()
}

/// Patches the interpreter and these extensions, to record up to `room` counts of each thread.
#[pyfunction]
fn live_record(py: Python<'_>, extensions: Vec<PathBuf>, room: usize) -> PyResult<()> {
    if let Some(obstacle) = here::obstacle() {
        return Err(UnsupportedError::new_err(obstacle));
    }
    here::record(py, &extensions, room).map(|_| ()).map_err(UnsupportedError::new_err)
}

/// Ends the recording; returns the trace, and how many counts found no thread's memory.
#[pyfunction]
fn live_recorded(py: Python<'_>, about: BTreeMap<String, String>) -> PyResult<(Bound<'_, PyBytes>, u64)> {
    let (content, unseen) = here::recorded(py, about)?;
    Ok((PyBytes::new(py, &content), unseen))
}

/// Loads an extension, by these flags of dlopen(3), and patches it before the interpreter runs
/// it; None where there is nothing to do.
#[pyfunction]
fn live_load_extension(py: Python<'_>, path: PathBuf, flags: i32) -> PyResult<Option<Bound<'_, PyDict>>> {
    here::load(&path, flags)?;
    let report = here::install_extension(py, &path).map_err(UnsupportedError::new_err)?;
    report.as_ref().map(|report| describe(py, report)).transpose()
}

/// In the place of `_imp.create_dynamic`, which is `create`: a function (spec, *rest) that calls
/// `prepare(spec)` before it, and `audit`, which is `sys.audit`, before that. It has no frame of its own: none of ours is in a traceback.
#[pyfunction]
fn live_creator(
    py: Python<'_>,
    audit: Py<PyAny>,
    prepare: Py<PyAny>,
    create: Py<PyAny>,
) -> PyResult<Bound<'_, PyCFunction>> {
    let about = c"Create an extension module, whose code refbuf has patched (see refbuf.install).";
    PyCFunction::new_closure(py, Some(c"create_dynamic"), Some(about), move |arguments, keywords| {
        let py = arguments.py();
        let Ok(spec) = arguments.get_item(0) else { return create.call(py, arguments, keywords) };
        let path = spec.getattr("origin")?;
        if !path.is_none() {
            // The interpreter says so as well, but only later: whoever forbids an import is to be
            // asked before the file is loaded.
            let none = py.None();
            audit.call1(py, ("import", spec.getattr("name")?, path, &none, &none, &none))?;
            prepare.call1(py, (&spec,))?;
        }
        create.call(py, arguments, keywords)
    })
}

/// Puts everything back.
#[pyfunction]
fn live_uninstall(py: Python<'_>) -> PyResult<()> {
    here::uninstall(py).map_err(UnsupportedError::new_err)
}

/// Whether there is a lull at the moment, how many have begun, and how many seconds all have
/// lasted; None where there are none.
#[pyfunction]
fn live_lulls() -> Option<(bool, u64, f64)> {
    here::lulls().map(|(is_lull, begun, total)| (is_lull, begun, total.as_secs_f64()))
}

/// For tests: begins or ends a lull now, and none begins or ends by itself any more. False where
/// there are none, or the code could not be changed.
#[pyfunction]
fn live_hold_lull(py: Python<'_>, lull: bool) -> bool {
    py.detach(|| here::hold_lull(lull))
}

/// Of all that is installed: (address, bytes, what it stands for) of each trampoline.
#[pyfunction]
fn live_trampolines() -> Vec<(usize, usize, String)> {
    here::trampolines().into_iter().map(|(range, name)| (range.start, range.len(), name)).collect()
}

/// Has gdb know these trampolines, given as [`live_trampolines`] does.
#[pyfunction]
fn live_tell_gdb(trampolines: Vec<(usize, usize, String)>) -> PyResult<()> {
    let named: Vec<_> = trampolines.into_iter().map(|(start, size, name)| (start..start + size, name)).collect();
    here::tell_gdb(&named).map_err(PyRuntimeError::new_err)
}

/// Adds all this to the module.
pub(super) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("UnsupportedError", module.py().get_type::<UnsupportedError>())?;
    module.add_function(wrap_pyfunction!(live_obstacle, module)?)?;
    module.add_function(wrap_pyfunction!(live_installed, module)?)?;
    module.add_function(wrap_pyfunction!(live_examine, module)?)?;
    module.add_function(wrap_pyfunction!(live_install, module)?)?;
    module.add_function(wrap_pyfunction!(live_record, module)?)?;
    module.add_function(wrap_pyfunction!(live_recorded, module)?)?;
    module.add_function(wrap_pyfunction!(live_load_extension, module)?)?;
    module.add_function(wrap_pyfunction!(live_creator, module)?)?;
    module.add_function(wrap_pyfunction!(live_uninstall, module)?)?;
    module.add_function(wrap_pyfunction!(live_lulls, module)?)?;
    module.add_function(wrap_pyfunction!(live_hold_lull, module)?)?;
    module.add_function(wrap_pyfunction!(live_trampolines, module)?)?;
    module.add_function(wrap_pyfunction!(live_tell_gdb, module)?)
}
