//! CPython: when its code may be patched, and what the slow ways are.
//!
//! The caller is attached, no other thread has a thread state, and the settlers have
//! ended: so nobody else is in the interpreter's code or comes back to it. A thread
//! that was never Python's does not know it.

use std::ffi::CString;
use std::io;
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::image::{self, Image};
use super::memory;
use super::patch::Patch;
use super::plan::{self, Form, Plan, ONE, SHARED};
use super::selftest::{self, Extent};
use super::trampoline::{self, BufferLayout, Context, Shape};
use crate::core::sync::lock;
use crate::interp;
use crate::interp::attachment;
use crate::interp::bindings::{
    RefBuf_Buffer, RefBuf_Slot, REFBUF_CREDITS, REFBUF_CREDIT_LIMIT, REFBUF_HASH_SHIFT, REFBUF_MIX,
    REFBUF_OFFSET_SHARED, REFBUF_REFUND,
};

const _: () = assert!(REFBUF_OFFSET_SHARED as u64 == SHARED && ONE == 4, "sites count at that place");
const _: () =
    assert!(REFBUF_CREDIT_LIMIT.is_power_of_two() && REFBUF_CREDIT_LIMIT < REFBUF_CREDITS, "one bit says full");

const LAYOUT: BufferLayout = BufferLayout {
    busy: offset_of!(RefBuf_Buffer, busy) as i32,
    attention: offset_of!(RefBuf_Buffer, attention) as i32,
    byte_mask: offset_of!(RefBuf_Buffer, byte_mask) as i32,
    slots: offset_of!(RefBuf_Buffer, slots) as i32,
    skip: offset_of!(RefBuf_Buffer, skip) as i32,
    slot_size: size_of::<RefBuf_Slot>() as i32,
    slot_word: offset_of!(RefBuf_Slot, word) as i32,
    mix: REFBUF_MIX as u64,
    hash_shift: REFBUF_HASH_SHIFT,
    credits: REFBUF_CREDITS,
    credit_limit: REFBUF_CREDIT_LIMIT,
    refund: REFBUF_REFUND as i32,
};

/// What has been done to one image.
#[derive(Debug)]
struct Patched {
    path: PathBuf,
    start: usize,
    patch: Patch,
}

/// What is installed.
static PATCHED: Mutex<Vec<Patched>> = Mutex::new(Vec::new());

/// What was done to an image, for people.
#[derive(Clone, Debug)]
pub(crate) struct ImageReport {
    pub(crate) path: PathBuf,
    pub(crate) adds: usize,
    pub(crate) swaps: usize,
    pub(crate) hooked: bool,
    pub(crate) left_alone: Vec<(usize, &'static str)>,
    pub(crate) trampoline_bytes: usize,
    pub(crate) pushes: usize,
    pub(crate) seconds: f64,
}

/// `_Py_DecRefShared`.
fn entry() -> usize {
    interp::release_address()
}

/// The slow way of an add. May be called wherever the interpreter counts: touches no
/// object's code, and leaves errno as it was.
unsafe extern "C" fn increment(op: *mut PyObject) {
    // SAFETY: this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { errno.read() };
    // SAFETY: the site counts a reference to a live object of another thread.
    unsafe {
        if attachment::current_state().is_null() {
            interp::count_many(op, 1);
        } else {
            interp::inc_ref_missed(op);
        }
        errno.write(before);
    }
}

/// The slow way of the entry.
unsafe extern "C" fn decrement(op: *mut PyObject) {
    // SAFETY: the caller's promises are those of _Py_DecRefShared.
    unsafe {
        if attachment::current_state().is_null() {
            interp::release_foreign(op);
        } else {
            interp::dec_ref_missed_anywhere(op);
        }
    }
}

fn context() -> Context {
    Context {
        word: interp::tls_offset(),
        buffer: LAYOUT,
        increment: increment as unsafe extern "C" fn(*mut PyObject) as usize,
        decrement: decrement as unsafe extern "C" fn(*mut PyObject) as usize,
        vector_bytes: trampoline::vector_bytes(),
    }
}

/// Why live mode cannot be used here; the interpreter's build apart.
pub(crate) fn obstacle() -> Option<String> {
    if interp::tls_offset() == 0 {
        return Some("live mode needs the membarrier system call, which this system does not have".into());
    }
    (!trampoline::has_xsave()).then(|| "live mode needs a processor and a system with xsave".into())
}

/// Whether the interpreter is patched.
pub(crate) fn is_installed() -> bool {
    !lock(&PATCHED).is_empty()
}

/// Threads besides the caller that have a state in any interpreter.
fn others(_py: Python<'_>) -> usize {
    extern "C" {
        fn PyInterpreterState_Head() -> *mut ffi::PyInterpreterState;
        fn PyInterpreterState_Next(state: *mut ffi::PyInterpreterState) -> *mut ffi::PyInterpreterState;
        fn PyInterpreterState_ThreadHead(state: *mut ffi::PyInterpreterState) -> *mut ffi::PyThreadState;
        fn PyThreadState_Next(state: *mut ffi::PyThreadState) -> *mut ffi::PyThreadState;
    }
    let mut count = 0;
    // SAFETY: attached; lists that the interpreter keeps.
    unsafe {
        let mut interpreter = PyInterpreterState_Head();
        while !interpreter.is_null() {
            let mut thread = PyInterpreterState_ThreadHead(interpreter);
            while !thread.is_null() {
                count += usize::from(thread != attachment::current_state());
                thread = PyThreadState_Next(thread);
            }
            interpreter = PyInterpreterState_Next(interpreter);
        }
    }
    count
}

fn refuse_others(py: Python<'_>, what: &str) -> Result<(), String> {
    match others(py) {
        0 => Ok(()),
        n => Err(format!(
            "{what} while {n} other Python thread{} run{} is not safe: do it before threads are started, \
             or after they have ended",
            if n == 1 { "" } else { "s" },
            if n == 1 { "s" } else { "" },
        )),
    }
}

/// An image, and what is to be done to it.
struct Planned {
    image: Image,
    plan: Plan,
    seconds: f64,
}

fn planned(image: Image) -> Result<Planned, String> {
    let began = Instant::now();
    // SAFETY: only this module changes code, under its lock.
    let plan = unsafe { plan::plan(&image, entry()) }.map_err(|why| format!("{}: {why}", image.path.display()))?;
    Ok(Planned { image, plan, seconds: began.elapsed().as_secs_f64() })
}

fn try_out(planned: &[Planned], extent: Extent) -> Result<usize, String> {
    let sites = planned.iter().flat_map(|planned| &planned.plan.sites);
    selftest::check(&context(), entry(), sites, extent)
        .map_err(|what| format!("a trampoline does not do what it should on this machine ({what}): please report this"))
}

fn prepared(planned: &Planned) -> Result<(ImageReport, Patched), String> {
    let began = Instant::now();
    let Planned { image, plan, seconds } = planned;
    // SAFETY: extension modules and the interpreter are never unloaded.
    let patch =
        unsafe { Patch::prepare(image, plan, &context()) }.map_err(|why| format!("{}: {why}", image.path.display()))?;
    let adds = plan.sites.iter().filter(|site| matches!(site.form, Form::Add { .. })).count();
    let report = ImageReport {
        path: image.path.clone(),
        adds,
        swaps: plan.sites.len() - adds,
        hooked: plan.entry.is_some(),
        left_alone: plan.left_alone.iter().map(|left| (left.address - image.span().start, left.reason)).collect(),
        trampoline_bytes: patch.bytes(),
        pushes: plan.sites.iter().map(|site| Shape::of(site).pushes()).sum(),
        seconds: seconds + began.elapsed().as_secs_f64(),
    };
    Ok((report, Patched { path: image.path.clone(), start: image.span().start, patch }))
}

/// Images that are the interpreter's, or among `extensions`, without our own.
fn chosen(extensions: &[PathBuf]) -> Vec<Image> {
    let own = increment as unsafe extern "C" fn(*mut PyObject) as usize;
    let is_extension = |image: &Image| extensions.contains(&image.path) && !image.holds(own);
    image::loaded().into_iter().filter(|image| image.holds(entry()) || is_extension(image)).collect()
}

/// Patches the interpreter and those of `extensions` that are loaded; all or nothing.
///
/// # Errors
///
/// One sentence.
pub(crate) fn install(py: Python<'_>, extensions: &[PathBuf]) -> Result<Vec<ImageReport>, String> {
    refuse_others(py, "installing")?;
    let planned = chosen(extensions).into_iter().map(planned).collect::<Result<Vec<_>, _>>()?;
    try_out(&planned, Extent::Samples)?;
    let prepared = planned.iter().map(prepared).collect::<Result<Vec<_>, _>>()?;
    let (reports, patches): (Vec<_>, Vec<_>) = prepared.into_iter().unzip();
    let Some(original) = patches.iter().find_map(|patched| patched.patch.original()) else {
        return Err("_Py_DecRefShared is in no loaded file".into());
    };
    quietly(py, || {
        refuse_others(py, "installing")?;
        // First: once a settler runs again, what it releases must not come back to the buffers.
        interp::set_original_release(original);
        for (index, patched) in patches.iter().enumerate() {
            // SAFETY: no other thread has a state, and the settlers have ended.
            if let Err(error) = unsafe { patched.patch.apply() } {
                for patched in &patches[..=index] {
                    // SAFETY: as above; nobody has run a trampoline.
                    let _ = unsafe { patched.patch.revert() };
                }
                interp::set_original_release(entry());
                return Err(cannot(patched, &error));
            }
        }
        Ok(())
    })?;
    lock(&PATCHED).extend(patches);
    Ok(reports)
}

fn cannot(patched: &Patched, error: &io::Error) -> String {
    format!("{}: its code cannot be changed: {error}", patched.path.display())
}

/// What was looked at, whether it is as it must be, and what was found.
pub(crate) type Check = (&'static str, bool, String);

/// Looks at everything that `install` needs, and changes nothing. Ends at the first check
/// that fails.
pub(crate) fn examine(py: Python<'_>, extensions: &[PathBuf]) -> (Vec<Check>, Vec<ImageReport>) {
    let (mut checks, mut reports) = (Vec::new(), Vec::new());
    if let Err((name, why)) = examine_all(py, extensions, &mut checks, &mut reports) {
        checks.push((name, false, why));
    }
    (checks, reports)
}

fn examine_all(
    py: Python<'_>,
    extensions: &[PathBuf],
    checks: &mut Vec<Check>,
    reports: &mut Vec<ImageReport>,
) -> Result<(), (&'static str, String)> {
    if let Some(obstacle) = obstacle() {
        return Err(("system", obstacle));
    }
    checks.push(("system", true, "membarrier and xsave are there".into()));
    let is_ready = !is_installed();
    if !is_ready {
        return Err(("code", "it is patched already: examine a process without live mode".into()));
    }
    let images = chosen(extensions);
    let memory = |error| ("memory", format!("code cannot be changed: {error}"));
    images.iter().try_for_each(|image| memory::rehearse(&image.path)).map_err(memory)?;
    checks.push(("memory", true, "a private copy of each file's code can be changed and then executed".into()));
    let planned = images.into_iter().map(planned).collect::<Result<Vec<_>, _>>().map_err(|why| ("code", why))?;
    if planned.iter().all(|planned| planned.plan.entry.is_none()) {
        return Err(("code", "_Py_DecRefShared is in no loaded file".into()));
    }
    let sites: usize = planned.iter().map(|planned| planned.plan.sites.len()).sum();
    let found = format!("{sites} sites in {} files, each decoded; no branch goes into one", planned.len());
    checks.push(("code", true, found));
    let tried = try_out(&planned, Extent::All).map_err(|what| ("trampolines", what))?;
    checks.push(("trampolines", true, format!("all {tried} that differ do on scratch objects what they should")));
    for planned in &planned {
        reports.push(prepared(planned).map_err(|what| ("room", what))?.0);
    }
    checks.push(("room", true, "there is room for them within reach of a jump".into()));
    if let Err(why) = refuse_others(py, "installing") {
        checks.push(("threads", false, why));
    } else {
        checks.push(("threads", true, "no other Python thread runs".into()));
    }
    Ok(())
}

/// Loads a file as the interpreter does, which then gets the same; it stays loaded.
///
/// # Errors
///
/// Where it cannot be loaded.
pub(crate) fn load(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: runs the file's constructors, as importing it would.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() {
        return Err(io::Error::other("it cannot be loaded"));
    }
    Ok(())
}

/// Patches an extension that has just been loaded, and that nobody has run yet.
///
/// # Errors
///
/// One sentence; the extension counts as it did.
pub(crate) fn install_extension(_py: Python<'_>, path: &Path) -> Result<Option<ImageReport>, String> {
    let mut patched = lock(&PATCHED);
    let Some(image) = chosen(&[path.to_owned()]).into_iter().find(|image| image.path == path) else {
        return Ok(None);
    };
    if patched.is_empty() || patched.iter().any(|known| known.start == image.span().start) {
        return Ok(None);
    }
    let (report, new) = prepared(&planned(image)?)?;
    // SAFETY: nobody has run it yet.
    unsafe { new.patch.apply() }.map_err(|error| cannot(&new, &error))?;
    patched.push(new);
    Ok(Some(report))
}

/// Puts everything back.
///
/// # Errors
///
/// One sentence; then it is as it was.
pub(crate) fn uninstall(py: Python<'_>) -> Result<(), String> {
    refuse_others(py, "uninstalling")?;
    quietly(py, || {
        refuse_others(py, "uninstalling")?;
        let mut patched = lock(&PATCHED);
        interp::set_original_release(entry());
        while let Some(last) = patched.pop() {
            // SAFETY: no other thread has a state, and the settlers have ended: nobody is in
            // a trampoline.
            if let Err(error) = unsafe { last.patch.revert() } {
                let sentence = cannot(&last, &error);
                if let Some(original) = last.patch.original() {
                    interp::set_original_release(original);
                }
                patched.push(last);
                return Err(sentence);
            }
        }
        Ok(())
    })
}

/// Does it while no settler runs.
fn quietly<T>(py: Python<'_>, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    interp::life::without_settlers(py, work)
}
