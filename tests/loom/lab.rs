//! The laboratory's schemes that share counts between threads: one death, whoever drops last.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;
use refbuf::core::sync::{lock, Mutex, Ordering};
use refbuf::lab::cell::At;
use refbuf::lab::scheme::{Common, Mutator, Options, Roots, Scheme, Tally};
use refbuf::lab::schemes::{atomic::Atomic, biased::Biased, deltas::Deltas, thread_count::ThreadCount};

/// More cells than any model makes: the end collects.
const NEVER: u64 = 1_000;

fn options(collect_every: u64) -> Options {
    Options {
        switch_interval: Duration::ZERO,
        deltas: 1,
        collect_every,
        slots: 1,
        heartbeat: Duration::from_millis(10),
    }
}

/// With more preemptions than the core's models, which are larger.
fn deeply(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(6);
    builder.check(model);
}

/// References in memory that threads share.
struct Memory<H>(Mutex<Vec<At<H>>>);

impl<H: Send + Sync> Roots<H> for Memory<H> {
    fn trace(&self, visit: &mut dyn FnMut(At<H>)) {
        lock(&self.0).iter().for_each(|&cell| visit(cell));
    }
}

/// What the threads of a model share.
struct Shared<S: Scheme> {
    scheme: S,
    memory: Arc<Memory<S::Head>>,
    tally: [Arc<Tally>; 3],
}

impl<S: Scheme> Shared<S> {
    fn new() -> Arc<Shared<S>> {
        Shared::collecting(NEVER)
    }

    fn collecting(collect_every: u64) -> Arc<Shared<S>> {
        let tally: [Arc<Tally>; 3] = Default::default();
        let scheme = S::new(&options(collect_every), Common::new(tally[2].clone(), None));
        let memory = Arc::new(Memory(Mutex::new(Vec::new())));
        scheme.watch(memory.clone());
        Arc::new(Shared { scheme, memory, tally })
    }

    fn start(&self, thread: usize) -> S::Mutator<'_> {
        self.scheme.start(Common::new(self.tally[thread].clone(), None))
    }

    /// Puts a copy of a reference into memory.
    fn share(&self, own: &mut S::Mutator<'_>, cell: At<S::Head>) {
        // SAFETY: the caller has a reference.
        unsafe {
            own.increment(cell);
            own.publish(cell);
        }
        lock(&self.memory.0).push(cell);
    }

    /// Takes a reference out of memory, and drops it.
    fn take_and_drop(&self, own: &mut S::Mutator<'_>) {
        let cell = lock(&self.memory.0).pop().expect("put there");
        own.common().stack.push(cell);
        // SAFETY: it came out of memory.
        unsafe { own.adopt(cell) };
        own.common().stack.pop();
        // SAFETY: it is ours.
        unsafe { own.decrement(cell) };
    }

    /// Copies a reference that lies in memory, if there still is one, and drops the copy.
    fn copy_and_drop(&self, own: &mut S::Mutator<'_>) {
        let memory = lock(&self.memory.0);
        let Some(&cell) = memory.first() else { return };
        // SAFETY: the memory has a reference, and keeps it while it is locked.
        unsafe { own.increment(cell) };
        drop(memory);
        // SAFETY: the copy is ours.
        unsafe { own.decrement(cell) };
    }

    fn freed(&self) -> u64 {
        self.tally.iter().map(|tally| tally.freed.load(Ordering::Relaxed)).sum()
    }
}

/// The owner drops its reference while another thread drops one that the owner has made.
fn last_of_two_frees<S: Scheme>() {
    deeply(|| {
        let shared = Shared::<S>::new();
        let mut own = shared.start(0);
        let cell = own.make(0);
        own.common().stack.push(cell);
        shared.share(&mut own, cell);
        let other = thread::spawn({
            let shared = shared.clone();
            move || shared.take_and_drop(&mut shared.start(1))
        });
        own.safe_point();
        own.common().stack.pop();
        // SAFETY: the stack's reference.
        unsafe { own.decrement(cell) };
        drop(own);
        other.join().unwrap();
        shared.scheme.rest();
        assert_eq!(shared.freed(), 1);
    });
}

/// Both drop one that lay in memory, after the owner has ended.
fn last_of_two_from_memory_frees<S: Scheme>() {
    deeply(|| {
        let shared = Shared::<S>::new();
        let mut own = shared.start(0);
        let cell = own.make(0);
        shared.share(&mut own, cell);
        // SAFETY: the reference that `make` gave.
        unsafe { own.publish(cell) };
        lock(&shared.memory.0).push(cell);
        drop(own);
        let other = thread::spawn({
            let shared = shared.clone();
            move || shared.take_and_drop(&mut shared.start(1))
        });
        shared.take_and_drop(&mut shared.start(0));
        other.join().unwrap();
        shared.scheme.rest();
        assert_eq!(shared.freed(), 1);
    });
}

/// The owner drops all its references, also the one that lay in memory, while another thread
/// drops a copy.
fn owner_or_copier_frees<S: Scheme>() {
    deeply(|| {
        let shared = Shared::<S>::new();
        let mut own = shared.start(0);
        let cell = own.make(0);
        // SAFETY: the reference that `make` gave.
        unsafe { own.publish(cell) };
        lock(&shared.memory.0).push(cell);
        let other = thread::spawn({
            let shared = shared.clone();
            move || shared.copy_and_drop(&mut shared.start(1))
        });
        shared.take_and_drop(&mut own);
        drop(own);
        other.join().unwrap();
        shared.scheme.rest();
        assert_eq!(shared.freed(), 1);
    });
}

/// The owner stops the world for a collection, which finds a cell that two threads refer to, while
/// the other one promotes it, drops its reference, and may want to collect as well.
fn a_collection_meets_who_counts() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(|| {
        let shared = Shared::<Deltas>::collecting(1);
        let mut own = shared.start(0);
        let cell = own.make(0);
        own.common().stack.push(cell);
        shared.share(&mut own, cell);
        let other = thread::spawn({
            let shared = shared.clone();
            move || {
                let mut own = shared.start(1);
                shared.take_and_drop(&mut own);
                own.safe_point();
            }
        });
        own.safe_point();
        assert_eq!(shared.freed(), 0, "the stack refers to it");
        own.common().stack.pop();
        // SAFETY: the stack's reference.
        unsafe { own.decrement(cell) };
        own.safe_point();
        drop(own);
        other.join().unwrap();
        shared.scheme.rest();
        assert_eq!(shared.freed(), 1);
    });
}

#[test]
fn atomic_frees_once() {
    owner_or_copier_frees::<Atomic>();
    last_of_two_frees::<Atomic>();
    last_of_two_from_memory_frees::<Atomic>();
}

#[test]
fn thread_count_frees_once() {
    owner_or_copier_frees::<ThreadCount>();
    last_of_two_frees::<ThreadCount>();
    last_of_two_from_memory_frees::<ThreadCount>();
}

#[test]
fn biased_frees_once() {
    owner_or_copier_frees::<Biased>();
    last_of_two_frees::<Biased>();
    last_of_two_from_memory_frees::<Biased>();
}

#[test]
fn deltas_free_once() {
    last_of_two_frees::<Deltas>();
    last_of_two_from_memory_frees::<Deltas>();
}

#[test]
fn deltas_collect_while_others_count() {
    a_collection_meets_who_counts();
}
