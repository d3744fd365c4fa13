//! One thread's share of a workload, attached: the loops are C, in kernel_body.h.

use std::ptr;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{TryRecvError, TrySendError};
use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::PyList;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::plan::{Plan, Variant, Workload};
use super::record::{Recorder, Recording};
use super::share::{chunk, goes_on, seed, zipf_order, Channels, Share, BATCH, HELD, ORDER};
use crate::interp::bindings::{RefBuf_Kernel, RefBuf_Kernels, RefBuf_Task};
use crate::interp::unwinding::detached;

/// Chunks between two detachments, which let the collector stop the world, and
/// on builds with a GIL let the others run.
const CHUNKS_ATTACHED: u64 = 16;

/// References on their way to the thread that drops them. A batch that is
/// dropped by Rust drops them too, so it must be where it is attached.
pub(super) struct Batch(Vec<*mut PyObject>);

// SAFETY: references may be dropped by any attached thread.
unsafe impl Send for Batch {}

/// A thread with all it needs, ready to start.
pub(super) struct Worker {
    kernel: unsafe extern "C" fn(*mut RefBuf_Task, u64) -> u64,
    drop_kernel: unsafe extern "C" fn(*mut RefBuf_Task, u64) -> u64,
    workload: Workload,
    wanted: u64,
    chunk: u64,
    task: RefBuf_Task,
    objects: Vec<*mut PyObject>,
    order: Vec<u32>,
    held: Vec<*mut PyObject>,
    channels: Option<Channels<Batch>>,
    keep: bool,
    recorder: Option<Box<Recorder>>,
    /// Keep the objects above alive.
    owned: Vec<Py<PyAny>>,
}

impl Worker {
    /// Sets up a thread's share, in that thread.
    pub(super) fn new(py: Python<'_>, plan: &Plan, thread: usize, channels: Channels<Batch>) -> PyResult<Worker> {
        let list = plan.list.bind(py);
        let mut owned = Vec::new();
        if plan.workload == Workload::Private {
            // Made here, so that this thread owns them.
            for _ in 0..list.len() {
                owned.push(plan.factory.call0(py)?);
            }
        }
        let objects: Vec<*mut PyObject> = if plan.workload == Workload::Private {
            owned.iter().map(Py::as_ptr).collect()
        } else {
            list.iter().map(|object| object.as_ptr()).collect()
        };
        let mut random = SmallRng::seed_from_u64(seed(plan, thread));
        let order = zipf_order(plan, objects.len(), &mut random);
        let held = match plan.workload {
            Workload::Random => vec![ptr::null_mut(); HELD],
            Workload::Handoff => vec![ptr::null_mut(); BATCH],
            _ => Vec::new(),
        };
        let kernels = attached_kernels(plan.variant, plan.work > 0);
        let mut worker = Worker {
            kernel: known(kernel(kernels, plan.workload)),
            drop_kernel: known(kernels.drop),
            workload: plan.workload,
            wanted: plan.wanted(),
            chunk: chunk(plan),
            task: RefBuf_Task {
                order_length: ORDER,
                cursor: random.random_range(0..objects.len()),
                random: random.random::<u64>() | 1,
                list: plan.list.as_ptr(),
                dict: plan.dict.as_ptr(),
                work: plan.work,
                ..empty_task()
            },
            objects,
            order,
            held,
            channels: Some(channels),
            keep: plan.keep,
            recorder: (plan.variant == Variant::Traced).then(|| Recorder::new(plan.room)),
            owned,
        };
        worker.task.objects = worker.objects.as_mut_ptr();
        worker.task.count = worker.objects.len();
        worker.task.held_room = worker.held.len();
        worker.task.order = worker.order.as_ptr();
        worker.task.held = worker.held.as_mut_ptr();
        if let Some(recorder) = &mut worker.recorder {
            worker.task.recorder = recorder.for_kernels();
        }
        Ok(worker)
    }

    /// Works until the length is reached or `stop` is set.
    pub(super) fn run(mut self, py: Python<'_>, started: Instant, stop: &AtomicBool) -> Share {
        let wanted = self.wanted;
        let (mut pairs, mut chunks) = (0, 0u64);
        while pairs < wanted && goes_on(stop) {
            pairs += match self.workload {
                Workload::Handoff => self.hand_over(py, self.chunk.min(wanted - pairs)),
                // SAFETY: attached; the task's pointers are to vectors of ours
                // and to objects that the plan keeps alive.
                _ => unsafe { (self.kernel)(&mut self.task, self.chunk.min(wanted - pairs)) },
            };
            chunks += 1;
            if chunks % CHUNKS_ATTACHED == 0 {
                detached(py, || ());
            }
        }
        let elapsed = started.elapsed();
        let kept = self.finish(py);
        Share { pairs, elapsed, kept, recording: self.take_recording(pairs) }
    }

    /// Makes a batch of references for the next thread, and drops one that
    /// another has made.
    fn hand_over(&mut self, py: Python<'_>, wanted: u64) -> u64 {
        // SAFETY: as in `run`.
        let made = unsafe { (self.kernel)(&mut self.task, wanted) };
        let mut batch = Batch(self.held[..self.task.held_count].to_vec());
        self.task.held_count = 0;
        loop {
            let sent = self.channels.as_ref().expect("handoff has channels").next.try_send(batch);
            match sent {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => {
                    batch = back;
                    if !self.drop_received() {
                        detached(py, std::thread::yield_now);
                    }
                }
                // The next thread is done: what it would have dropped is ours.
                Err(TrySendError::Disconnected(back)) => {
                    self.drop_batch(&back);
                    break;
                }
            }
        }
        self.drop_received();
        made
    }

    /// Drops a batch that is waiting; false if there is none.
    fn drop_received(&mut self) -> bool {
        match self.channels.as_ref().expect("handoff has channels").own.try_recv() {
            Ok(batch) => {
                self.drop_batch(&batch);
                true
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => false,
        }
    }

    fn drop_batch(&mut self, batch: &Batch) {
        self.held[..batch.0.len()].copy_from_slice(&batch.0);
        self.task.held_count = batch.0.len();
        // SAFETY: as in `run`; the references in the batch are ours.
        unsafe { (self.drop_kernel)(&mut self.task, u64::MAX) };
    }

    /// What has been recorded, when there is nothing more to do.
    fn take_recording(&mut self, pairs: u64) -> Option<Recording> {
        let owned = &self.owned;
        self.recorder.take().map(|recorder| recorder.finish(pairs, owned))
    }

    /// Gives up what this thread still holds, or hands it to the caller.
    fn finish(&mut self, py: Python<'_>) -> Vec<Py<PyAny>> {
        if let Some(Channels { next, own }) = self.channels.take() {
            // Only when the thread before us has dropped its end is there no
            // more to come.
            drop(next);
            loop {
                match own.try_recv() {
                    Ok(batch) => self.drop_batch(&batch),
                    Err(TryRecvError::Empty) => detached(py, std::thread::yield_now),
                    Err(TryRecvError::Disconnected) => break,
                }
            }
        }
        if self.keep {
            let held = &self.held[..self.task.held_count];
            // SAFETY: these references are ours, and become the caller's.
            return held.iter().map(|op| unsafe { Bound::from_owned_ptr(py, *op).unbind() }).collect();
        }
        // SAFETY: as in `run`.
        unsafe { (self.drop_kernel)(&mut self.task, u64::MAX) };
        Vec::new()
    }
}

/// A task on nothing.
fn empty_task() -> RefBuf_Task {
    RefBuf_Task {
        objects: ptr::null_mut(),
        count: 0,
        order: ptr::null(),
        order_length: 1,
        cursor: 0,
        random: 1,
        list: ptr::null_mut(),
        dict: ptr::null_mut(),
        list_at: 0,
        dict_at: 0,
        held: ptr::null_mut(),
        held_count: 0,
        held_room: 0,
        work: 0,
        recorder: ptr::null_mut(),
        sink: 0,
    }
}

/// Counts one object in the calling thread, whoever owns it.
///
/// # Errors
///
/// ValueError where the variant is none of attached threads.
pub(crate) fn touch(_py: Python<'_>, object: &Bound<'_, PyAny>, variant: &str, pairs: u64) -> PyResult<()> {
    let kernels = Variant::named(variant)?.kernels(false).ok_or_else(|| {
        PyValueError::new_err(format!("touch counts in this thread, which is attached: not for the variant {variant}"))
    })?;
    let mut objects = [object.as_ptr()];
    let mut task = RefBuf_Task { objects: objects.as_mut_ptr(), count: 1, ..empty_task() };
    // SAFETY: attached, and the caller holds the object.
    unsafe { known(kernels.shared)(&mut task, pairs) };
    Ok(())
}

/// Of the variants that are attached.
fn attached_kernels(variant: Variant, with_work: bool) -> &'static RefBuf_Kernels {
    variant.kernels(with_work).expect("the variant is one of attached threads")
}

/// The inner loop; for handoff, the half that makes references.
fn kernel(kernels: &RefBuf_Kernels, workload: Workload) -> RefBuf_Kernel {
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

fn known(kernel: RefBuf_Kernel) -> unsafe extern "C" fn(*mut RefBuf_Task, u64) -> u64 {
    kernel.expect("the tables of kernels are complete")
}

/// The references that threads have kept, as a list.
pub(super) fn gather<'py>(py: Python<'py>, shares: &mut [Share]) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, shares.iter_mut().flat_map(|share| share.kept.drain(..)).collect::<Vec<_>>())
}
