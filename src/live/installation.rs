//! What is installed in this process: plan, verify, apply, revert, for the interpreter and
//! its extension modules together. All of them for one purpose: to count through the
//! buffers, or to have it recorded what CPython counts.
//!
//! Patches are kept once they are made, applied or not: installing again finds them, and
//! a trampoline stays where it is as long as anybody may know its address.
//!
//! What counts through the buffers may rest in lulls ([`super::lulls`]): then it is installed, and its sites
//! are as they were. The settler sees to that.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::time::{Duration, Instant};

use pyo3::ffi::PyObject;
use pyo3::prelude::*;

use super::gdb;
use super::image::{self, Image};
use super::interpreter::{context, entry, increment, quietly, refuse_others, to_buffer, to_record};
use super::lulls::{self, Lulls, Step};
use super::memory;
use super::patch::Patch;
use super::plan::{self, Form, Hook, Plan, Refusal};
use super::recorder;
use super::selftest::{self, Extent};
use super::trampoline::{Purpose, Shape};
use crate::core::sync::lock;
use crate::interp;
use crate::lab::trace;

pub(crate) use super::interpreter::obstacle;

/// What is or was installed in one image.
#[derive(Debug)]
struct Known {
    /// Of the image.
    start: usize,
    purpose: Purpose,
    hook: Hook,
    patch: Patch,
    report: ImageReport,
    state: State,
}

/// How the sites of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// As they were: nothing is installed.
    Left,
    /// As they were, in a lull.
    Resting,
    /// Jumps.
    Applied,
}

impl Known {
    fn is(&self, start: usize, purpose: Purpose, hook: Hook) -> bool {
        self.start == start && self.purpose == purpose && self.hook == hook
    }

    fn is_installed(&self) -> bool {
        self.state != State::Left
    }
}

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());
/// What is watched while there are lulls. Locked after `KNOWN`.
static LULLS: Mutex<Option<Lulls>> = Mutex::new(None);

/// What was done to an image, for people.
#[derive(Clone, Debug)]
pub(crate) struct ImageReport {
    pub(crate) path: PathBuf,
    pub(crate) adds: usize,
    pub(crate) swaps: usize,
    pub(crate) drops: usize,
    pub(crate) hooked: bool,
    pub(crate) left_alone: Vec<(usize, &'static str)>,
    pub(crate) trampoline_bytes: usize,
    pub(crate) pushes: usize,
    pub(crate) seconds: f64,
}

/// What the interpreter is patched for.
fn installed(known: &[Known]) -> Option<Purpose> {
    known.iter().find(|known| known.is_installed()).map(|known| known.purpose)
}

/// Whether the interpreter counts through the buffers.
pub(crate) fn is_installed() -> bool {
    installed(&lock(&KNOWN)) == Some(to_buffer())
}

/// An image, and what is to be done to it.
struct Planned {
    image: Image,
    hook: Hook,
    plan: Plan,
    seconds: f64,
}

fn planned(image: Image, hook: Hook) -> Result<Planned, Refusal> {
    let began = Instant::now();
    // SAFETY: only this module changes code, under its lock, and what it has patched it
    // does not plan again, nor while that is applied.
    let plan = unsafe { plan::plan(&image, entry(), hook) }.map_err(|refusal| match refusal {
        Refusal::Other(why) => Refusal::Other(format!("{}: {why}", image.path.display())),
        Refusal::NoSwap => refusal,
    })?;
    Ok(Planned { image, hook, plan, seconds: began.elapsed().as_secs_f64() })
}

fn try_out(planned: &[Planned], purpose: Purpose, extent: Extent) -> Result<usize, String> {
    let sites = planned.iter().flat_map(|planned| &planned.plan.sites);
    selftest::check(&context(purpose), entry(), sites, extent)
        .map_err(|what| format!("a trampoline does not do what it should on this machine ({what}): please report this"))
}

fn prepared(planned: &Planned, purpose: Purpose) -> Result<Known, String> {
    let context = context(purpose);
    let began = Instant::now();
    let Planned { image, hook, plan, seconds } = planned;
    // SAFETY: extension modules and the interpreter are never unloaded.
    let patch =
        unsafe { Patch::prepare(image, plan, &context) }.map_err(|why| format!("{}: {why}", image.path.display()))?;
    let of_form = |is: fn(&Form) -> bool| plan.sites.iter().filter(|site| is(&site.form)).count();
    let start = image.span().start;
    let report = ImageReport {
        path: image.path.clone(),
        adds: of_form(|form| matches!(form, Form::Add { .. })),
        swaps: of_form(|form| matches!(form, Form::Swap { .. })),
        drops: of_form(|form| matches!(form, Form::Drop { .. })),
        hooked: plan.entry.is_some(),
        left_alone: plan.left_alone.iter().map(|left| (left.address - start, left.reason)).collect(),
        trampoline_bytes: patch.bytes(),
        pushes: plan.sites.iter().map(|site| Shape::of(site, &context).pushes()).sum(),
        seconds: seconds + began.elapsed().as_secs_f64(),
    };
    Ok(Known { start, purpose, hook: *hook, patch, report, state: State::Left })
}

/// Images that are the interpreter's, or among `extensions`, without our own.
fn chosen(extensions: &[PathBuf]) -> Vec<Image> {
    let own = increment as unsafe extern "C" fn(*mut PyObject) as usize;
    let is_extension = |image: &Image| extensions.contains(&image.path) && !image.holds(own);
    image::loaded().into_iter().filter(|image| image.holds(entry()) || is_extension(image)).collect()
}

/// Patches the interpreter and those of `extensions` that are loaded, to count through the
/// buffers; all or nothing. `with_lulls`: whether there are lulls; if nobody says, where the
/// processor makes them worth it.
///
/// # Errors
///
/// One sentence.
pub(crate) fn install(
    py: Python<'_>,
    extensions: &[PathBuf],
    with_lulls: Option<bool>,
) -> Result<Vec<ImageReport>, String> {
    // A settler that is at work has a thread state: it is asked to end first.
    quietly(py, || with_hook(with_lulls, |hook| install_quietly(py, to_buffer(), extensions, hook)))
}

/// The same, to record up to `room` counts of each thread, from now on.
///
/// # Errors
///
/// As for `install`.
pub(crate) fn record(py: Python<'_>, extensions: &[PathBuf], room: usize) -> Result<Vec<ImageReport>, String> {
    quietly(py, || {
        let reports = install_quietly(py, to_record(), extensions, Hook::Entry)?;
        if !recorder::open(room) {
            return Err("a process is recorded once".into());
        }
        Ok(reports)
    })
}

/// Ends the recording; returns it as a trace's file, and how many counts are in no thread's.
///
/// # Errors
///
/// Where it does not fit into a trace.
pub(crate) fn recorded(py: Python<'_>, about: BTreeMap<String, String>) -> Result<(Vec<u8>, u64), trace::Error> {
    recorder::close();
    Ok((py.detach(|| recorder::write(&about))?, recorder::unseen()))
}

/// Does it as lulls want it, where all that changes are sites, or with the entry: where there are
/// to be none, or the interpreter is built so that there can be none.
fn with_hook<T>(with_lulls: Option<bool>, work: impl Fn(Hook) -> Result<T, Refusal>) -> Result<T, String> {
    let wanted = with_lulls.unwrap_or_else(|| lulls::price() < lulls::CHEAP);
    let mut done = work(if wanted { Hook::Swap } else { Hook::Entry });
    if matches!(done, Err(Refusal::NoSwap)) {
        done = work(Hook::Entry);
    }
    done.map_err(String::from)
}

fn install_quietly(
    py: Python<'_>,
    purpose: Purpose,
    extensions: &[PathBuf],
    hook: Hook,
) -> Result<Vec<ImageReport>, Refusal> {
    refuse_others(py, "installing")?;
    let images = chosen(extensions);
    let starts: Vec<usize> = images.iter().map(|image| image.span().start).collect();
    let mut known = lock(&KNOWN);
    match known.iter().find(|known| known.is_installed()) {
        Some(other) if other.purpose != purpose => return Err(in_use(other.purpose).into()),
        Some(other) if other.hook != hook => return Err(ANOTHER_WAY.into()),
        _ => {}
    }
    if !images.iter().any(|image| image.holds(entry())) {
        return Err(NOWHERE.into());
    }
    let is_new = |image: &Image| !known.iter().any(|known| known.is(image.span().start, purpose, hook));
    let new = images.into_iter().filter(is_new);
    let planned = new.map(|image| planned(image, hook)).collect::<Result<Vec<_>, _>>()?;
    if purpose == to_record() {
        planned.iter().try_for_each(recordable)?;
    }
    if !planned.is_empty() {
        try_out(&planned, purpose, Extent::Samples)?;
    }
    let new = planned.iter().map(|planned| prepared(planned, purpose)).collect::<Result<Vec<_>, _>>()?;
    known.extend(new);
    let is_wanted = |known: &&mut Known| starts.iter().any(|&start| known.is(start, purpose, hook));
    let mut wanted: Vec<&mut Known> = known.iter_mut().filter(is_wanted).collect();
    if let Some(original) = wanted.iter().find_map(|known| known.patch.original()) {
        // First: once a settler runs again, what it releases must not come back to the buffers.
        interp::set_original_release(original);
    }
    // What was installed before stays as it is.
    let mut new: Vec<&mut &mut Known> = wanted.iter_mut().filter(|known| !known.is_installed()).collect();
    for index in 0..new.len() {
        // SAFETY: no other thread has a state, and the settlers have ended.
        if let Err(error) = unsafe { new[index].patch.apply() } {
            let sentence = cannot(new[index], &error);
            for known in &mut new[..index] {
                // SAFETY: as above; nobody has run a trampoline.
                known.state = if unsafe { known.patch.revert() }.is_ok() { State::Left } else { State::Applied };
            }
            if !wanted.iter().any(|known| known.is_installed() && known.patch.original().is_some()) {
                interp::set_original_release(entry());
            }
            return Err(sentence.into());
        }
        new[index].state = State::Applied;
    }
    if hook == Hook::Swap && lock(&LULLS).is_none() {
        *lock(&LULLS) = Some(Lulls::new());
        interp::set_watch(&Watching);
    }
    Ok(wanted.iter().map(|known| known.report.clone()).collect())
}

/// The interpreter's function, without which nothing is what it seems.
const NOWHERE: &str = "_Py_DecRefShared is in no loaded file";

/// One of the two ways to hook it is in use.
const ANOTHER_WAY: &str =
    "live mode is installed, with lulls or without them as it was asked for then: uninstall it first";

fn in_use(by: Purpose) -> &'static str {
    match by {
        Purpose::Buffer { .. } => "the interpreter counts through the buffers: record a process without live mode",
        Purpose::Record { .. } => "the interpreter's counts are recorded: install live mode in another process",
    }
}

/// A function that has another one swap is counted there.
fn recordable(planned: &Planned) -> Result<(), String> {
    match &planned.plan.entry {
        Some(entry) if !entry.swaps => Err(format!(
            "{}: _Py_DecRefShared does not count by itself: what it counts cannot be recorded",
            planned.image.path.display()
        )),
        _ => Ok(()),
    }
}

fn cannot(known: &Known, error: &io::Error) -> String {
    format!("{}: its code cannot be changed: {error}", known.report.path.display())
}

/// What was looked at, whether it is as it must be, and what was found.
pub(crate) type Check = (&'static str, bool, String);

/// Looks at everything that `install` needs, and changes nothing. Ends at the first check
/// that fails.
pub(crate) fn examine(
    py: Python<'_>,
    extensions: &[PathBuf],
    with_lulls: Option<bool>,
) -> (Vec<Check>, Vec<ImageReport>) {
    let (mut checks, mut reports) = (Vec::new(), Vec::new());
    if let Err((name, why)) = examine_all(py, extensions, with_lulls, &mut checks, &mut reports) {
        checks.push((name, false, why));
    }
    (checks, reports)
}

fn examine_all(
    py: Python<'_>,
    extensions: &[PathBuf],
    with_lulls: Option<bool>,
    checks: &mut Vec<Check>,
    reports: &mut Vec<ImageReport>,
) -> Result<(), (&'static str, String)> {
    if let Some(obstacle) = obstacle() {
        return Err(("system", obstacle));
    }
    checks.push(("system", true, "membarrier and xsave are there".into()));
    if installed(&lock(&KNOWN)).is_some() {
        return Err(("code", "it is patched already: examine a process without live mode".into()));
    }
    let images = chosen(extensions);
    let memory = |error| ("memory", format!("code cannot be changed: {error}"));
    images.iter().try_for_each(|image| memory::rehearse(&image.path)).map_err(memory)?;
    checks.push(("memory", true, "a private copy of each file's code can be changed and then executed".into()));
    if !images.iter().any(|image| image.holds(entry())) {
        return Err(("code", NOWHERE.into()));
    }
    let planned = with_hook(with_lulls, |hook| {
        images.iter().cloned().map(|image| planned(image, hook)).collect::<Result<Vec<_>, _>>()
    });
    let planned = planned.map_err(|why| ("code", why))?;
    let sites: usize = planned.iter().map(|planned| planned.plan.sites.len()).sum();
    let found = format!("{sites} sites in {} files, each decoded; no branch goes into one", planned.len());
    checks.push(("code", true, found));
    let has_lulls = planned.iter().all(|planned| planned.hook == Hook::Swap);
    let lulls = if has_lulls { "in lulls, sites are as they were" } else { "sites are jumps all the time" };
    let found = format!("a locked addition takes as long as {:.0} others: {lulls}", lulls::price());
    checks.push(("atomics", true, found));
    let tried = try_out(&planned, to_buffer(), Extent::All).map_err(|what| ("trampolines", what))?;
    checks.push(("trampolines", true, format!("all {tried} that differ do on scratch objects what they should")));
    for planned in &planned {
        reports.push(prepared(planned, to_buffer()).map_err(|what| ("room", what))?.report);
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
/// `flags`: of dlopen(3).
///
/// # Errors
///
/// Where it cannot be loaded.
pub(crate) fn load(path: &Path, flags: i32) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: runs the file's constructors, as importing it would.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if handle.is_null() {
        return Err(io::Error::other("it cannot be loaded"));
    }
    Ok(())
}

/// Patches an extension that has just been loaded. Others may run it: one that loads a file
/// for the second time, say, or in another interpreter.
///
/// # Errors
///
/// One sentence; the extension counts as it did.
pub(crate) fn install_extension(_py: Python<'_>, path: &Path) -> Result<Option<ImageReport>, String> {
    let mut known = lock(&KNOWN);
    let Some(image) = chosen(&[path.to_owned()]).into_iter().find(|image| image.path == path) else {
        return Ok(None);
    };
    let Some(of_all) = known.iter().find(|known| known.is_installed()) else { return Ok(None) };
    let (purpose, hook) = (of_all.purpose, of_all.hook);
    let start = image.span().start;
    if known.iter().any(|known| known.is(start, purpose, hook) && known.is_installed()) {
        return Ok(None);
    }
    if !known.iter().any(|known| known.is(start, purpose, hook)) {
        known.push(prepared(&planned(image, hook)?, purpose)?);
    }
    let is_lull = lock(&LULLS).as_ref().is_some_and(Lulls::is_lull);
    let Some(new) = known.iter_mut().find(|known| known.is(start, purpose, hook)) else { return Ok(None) };
    if is_lull {
        new.state = State::Resting;
    } else {
        // SAFETY: only sites are replaced, and no function.
        unsafe { new.patch.apply() }.map_err(|error| cannot(new, &error))?;
        new.state = State::Applied;
    }
    Ok(Some(new.report.clone()))
}

/// Puts everything back.
///
/// # Errors
///
/// One sentence; then what is named is as it was, and so is all that came before it.
pub(crate) fn uninstall(py: Python<'_>) -> Result<(), String> {
    quietly(py, || {
        refuse_others(py, "uninstalling")?;
        let mut known = lock(&KNOWN);
        // The interpreter last: as long as it is patched, so is the function that drops references.
        for known in known.iter_mut().rev().filter(|known| known.is_installed()) {
            if known.state == State::Applied {
                // SAFETY: no other thread has a state, and the settlers have ended: nobody is in
                // a trampoline.
                unsafe { known.patch.revert() }.map_err(|error| cannot(known, &error))?;
            }
            known.state = State::Left;
            if known.patch.original().is_some() {
                interp::set_original_release(entry());
            }
        }
        *lock(&LULLS) = None;
        Ok(())
    })
}

/// Looks after lulls, in the settler's thread.
struct Watching;

impl interp::Watch for Watching {
    fn look(&self) -> Option<Duration> {
        let mut known = match KNOWN.try_lock() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Somebody installs at this moment.
            Err(TryLockError::WouldBlock) => return Some(lulls::SOON),
        };
        let mut watched = lock(&LULLS);
        let (lulls, used) = (watched.as_mut()?, lulls::used()?);
        let step = lulls.look(BEGAN.get_or_init(Instant::now).elapsed(), used);
        let succeeded = match step {
            Step::None => true,
            Step::Begin => begin(&mut known),
            Step::End => change(&mut known, State::Resting, State::Applied),
        };
        lulls.done(step, succeeded);
        Some(lulls.wait())
    }

    fn is_wanted(&self) -> bool {
        lock(&LULLS).is_some()
    }

    fn hold(&self) -> Box<dyn Any> {
        let known = lock(&KNOWN);
        Box::new((lock(&LULLS), known))
    }
}

/// Begins a lull everywhere, or nowhere. True also where some that rest cannot be brought back: then there is
/// one, and its end will be tried again.
fn begin(known: &mut [Known]) -> bool {
    change(known, State::Applied, State::Resting) || !change(known, State::Resting, State::Applied)
}

/// For tests: begins or ends a lull now; none begins or ends by itself any more. False where it could not be done.
pub(crate) fn hold_lull(is_lull: bool) -> bool {
    let mut known = lock(&KNOWN);
    let mut watched = lock(&LULLS);
    let Some(lulls) = watched.as_mut() else { return false };
    lulls.hold();
    let (step, succeeded) = match (lulls.is_lull(), is_lull) {
        (false, true) => (Step::Begin, begin(&mut known)),
        (true, false) => (Step::End, change(&mut known, State::Resting, State::Applied)),
        _ => (Step::None, true),
    };
    lulls.done(step, succeeded);
    succeeded
}

/// A clock's zero.
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Brings all that are in one state to the other, while other threads run; false where one of them
/// has stayed as it was.
fn change(known: &mut [Known], from: State, to: State) -> bool {
    let mut all = true;
    for known in known.iter_mut().filter(|known| known.state == from && known.patch.is_of_sites()) {
        // SAFETY: only sites are changed, and no function.
        let done = unsafe {
            if to == State::Applied {
                known.patch.apply()
            } else {
                known.patch.revert()
            }
        };
        match done {
            Ok(()) => known.state = to,
            Err(_) => all = false,
        }
    }
    all
}

/// Whether there are lulls, whether there is one now, how many there were, and how long they lasted.
pub(crate) fn lulls() -> Option<(bool, u64, Duration)> {
    lock(&LULLS).as_ref().map(|lulls| {
        let (begun, total) = lulls.sums();
        (lulls.is_lull(), begun, total)
    })
}

/// The trampolines of all that is installed: where, and what they stand for.
pub(crate) fn trampolines() -> Vec<(Range<usize>, String)> {
    let mut named = Vec::new();
    for known in lock(&KNOWN).iter().filter(|known| known.is_installed()) {
        let file = known.report.path.file_name().unwrap_or_default().to_string_lossy();
        let name = |address: usize| format!("refbuf:{file}+{:#x}", address - known.start);
        named.extend(known.patch.trampolines().into_iter().map(|(range, address)| (range, name(address))));
    }
    named
}

/// Has gdb know these trampolines.
///
/// # Errors
///
/// What cannot be said.
pub(crate) fn tell_gdb(named: &[(Range<usize>, String)]) -> Result<(), String> {
    gdb::tell(named).map_err(|error| error.to_string())
}
