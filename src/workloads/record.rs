//! What the threads of a run did to counts, as a trace for the laboratory.
//!
//! Each thread writes to memory of its own, of fixed size: an address and an
//! operation for each count. What finds no room is counted, not kept. Objects get
//! their numbers afterwards, in the order in which they appear.

use std::collections::HashMap;

use pyo3::ffi::PyObject;
use pyo3::prelude::*;

use super::driver::{self, Report};
use super::plan::{Arguments, Plan, Variant};
use crate::interp;
use crate::interp::bindings::RefBuf_Recorder;
use crate::lab::trace::{Event, Object, Thread, Trace};

/// Set in an event for a decrement; objects are aligned.
const IS_DECREMENT: usize = 1;
/// The caller's number in the trace; the workers' follow.
const CALLER: u32 = 0;
/// Seconds of the run that counts nothing.
const BARE_SECONDS: f64 = 0.05;

/// One thread's memory for what it does.
#[derive(Debug)]
pub(super) struct Recorder {
    events: Vec<usize>,
    for_kernels: RefBuf_Recorder,
}

/// What a thread has recorded.
#[derive(Debug)]
pub(crate) struct Recording {
    events: Vec<usize>,
    lost: u64,
    /// What the run says that the thread did.
    pub(crate) pairs: u64,
    /// Objects that it made: address, whether immortal.
    own: Vec<(usize, bool)>,
}

impl Recorder {
    /// For so many events.
    pub(super) fn new(room: usize) -> Box<Recorder> {
        let mut events = vec![0; room];
        let for_kernels = RefBuf_Recorder { events: events.as_mut_ptr(), count: 0, room, lost: 0 };
        Box::new(Recorder { events, for_kernels })
    }

    /// What kernels write to, for as long as the recorder is where it is.
    pub(super) fn for_kernels(&mut self) -> *mut RefBuf_Recorder {
        &mut self.for_kernels
    }

    /// No more is recorded; `owned` are the objects that the thread made.
    pub(super) fn finish(self, pairs: u64, owned: &[Py<PyAny>]) -> Recording {
        let Recorder { mut events, for_kernels } = self;
        events.truncate(for_kernels.count);
        let own = owned.iter().map(|object| (object.as_ptr() as usize, is_immortal(object.as_ptr())));
        Recording { events, lost: for_kernels.lost, pairs, own: own.collect() }
    }
}

/// A run, and its trace.
pub(crate) struct Recorded {
    pub(crate) trace: Trace,
    pub(crate) report: Report,
    /// What a thread takes for a pair that counts nothing, in nanoseconds.
    pub(crate) bare_ns: f64,
}

/// Runs a workload, with CPython's own counting, and records up to `room` events
/// of each thread.
///
/// # Errors
///
/// As for [`driver::run`], and where the arguments make no plan.
pub(crate) fn record(py: Python<'_>, arguments: Arguments<'_>, room: usize) -> PyResult<Recorded> {
    let Arguments { workload, objects, mapping, factory, .. } = &arguments;
    let alone = Arguments {
        workload,
        variant: "stock",
        objects: objects.clone(),
        mapping: mapping.clone(),
        threads: 1,
        pairs: None,
        seconds: Some(BARE_SECONDS),
        seed: arguments.seed,
        keep: false,
        factory: factory.clone(),
        work_ns: 0.0,
    };
    let bare = driver::run(py, Plan { variant: Variant::Bare, ..Plan::new(py, alone)? })?;
    let plan = Plan { variant: Variant::Traced, room, ..Plan::new(py, arguments)? };
    let shared: Vec<Py<PyAny>> = plan.list.bind(py).iter().map(Bound::unbind).collect();
    let report = driver::run(py, plan)?;
    let mut made = Makers::default();
    for object in &shared {
        let op = object.as_ptr();
        // SAFETY: attached, and the object is alive.
        let owner = unsafe { interp::is_made_here(op) }.then_some(CALLER);
        made.insert(op as usize, (owner, is_immortal(op)));
    }
    Ok(Recorded { trace: trace(&report.recordings, made), bare_ns: bare.ns_per_pair, report })
}

/// By address: who made an object, and whether it is immortal.
type Makers = HashMap<usize, (Option<u32>, bool)>;

fn trace(recordings: &[Recording], mut made: Makers) -> Trace {
    let mut trace = Trace::default();
    trace.threads.push(Thread { name: "caller".into(), ..Thread::default() });
    let mut numbers = HashMap::new();
    for (recording, thread) in recordings.iter().zip(CALLER + 1..) {
        made.extend(recording.own.iter().map(|(address, immortal)| (*address, (Some(thread), *immortal))));
        let mut events = Vec::with_capacity(recording.events.len());
        for event in &recording.events {
            let address = event & !IS_DECREMENT;
            let number = *numbers.entry(address).or_insert_with(|| {
                let (owner, immortal) = made.get(&address).copied().unwrap_or((None, false));
                trace.objects.push(Object { address: address as u64, owner, immortal });
                trace.objects.len() as u32 - 1
            });
            events.push(match event & IS_DECREMENT {
                0 => Event::Increment(number),
                _ => Event::Decrement(number),
            });
        }
        let name = format!("worker {thread}");
        trace.threads.push(Thread { name, start_ns: 0, events, lost: recording.lost });
    }
    trace
}

fn is_immortal(op: *mut PyObject) -> bool {
    // SAFETY: the callers have a reference, attached.
    unsafe { interp::is_immortal(op) }
}
