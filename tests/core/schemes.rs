//! Every scheme of the laboratory against an exact model, then with many threads.
//!
//! Cells are really allocated and really freed: a reference too few is a use after free,
//! which sanitizers see, and a death that the model forbids; one too many is a cell that the
//! end of a test finds alive.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use refbuf::lab::cell::{At, EDGES};
use refbuf::lab::gil::Gil;
use refbuf::lab::names::{SchemeName, Workload};
use refbuf::lab::programs::Setting;
use refbuf::lab::run::{reclaim, run, Maker, Plan};
use refbuf::lab::scheme::{Common, Mutator, Options, Probes, Roots, Scheme, Tally};
use refbuf::lab::schemes::{atomic::Atomic, biased::Biased, credits::Credits, deltas::Deltas};
use refbuf::lab::schemes::{plain::Plain, thread_count::ThreadCount};

/// Threads of the model, which take turns in one.
const THREADS: usize = 3;

/// Small enough that tables collide, collections run, and the settler comes by.
fn options() -> Options {
    Options {
        switch_interval: Duration::from_micros(100),
        deltas: 2,
        collect_every: 4,
        slots: 2,
        heartbeat: Duration::from_micros(200),
    }
}

/// References in memory that threads share.
struct Memory<H>(Mutex<Vec<At<H>>>);

impl<H: Send + Sync> Roots<H> for Memory<H> {
    fn trace(&self, visit: &mut dyn FnMut(At<H>)) {
        self.0.lock().unwrap().iter().for_each(|&cell| visit(cell));
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Make,
    Copy(usize),
    Drop(usize),
    Publish(usize),
    Adopt(usize),
    CopyFromMemory(usize),
    /// From one cell to an older one.
    Link(usize, usize, usize),
    Unlink(usize, usize),
    SafePoint,
    /// The thread ends, and another takes its place.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let index = 0..usize::MAX;
    let step = prop_oneof![
        3 => Just(Step::Make),
        4 => index.clone().prop_map(Step::Copy),
        6 => index.clone().prop_map(Step::Drop),
        3 => index.clone().prop_map(Step::Publish),
        3 => index.clone().prop_map(Step::Adopt),
        4 => index.clone().prop_map(Step::CopyFromMemory),
        2 => (index.clone(), index.clone(), 0..EDGES).prop_map(|(from, to, edge)| Step::Link(from, to, edge)),
        1 => (index, 0..EDGES).prop_map(|(from, edge)| Step::Unlink(from, edge)),
        2 => Just(Step::SafePoint),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec((0..THREADS, step), 1..200)
}

/// What must be so: which references there are.
#[derive(Default)]
struct Model {
    /// By number, from 1. Of each cell, what its edges refer to.
    edges: HashMap<u32, [Option<u32>; EDGES]>,
    stacks: [Vec<u32>; THREADS],
    memory: Vec<u32>,
}

impl Model {
    fn reachable(&self) -> HashSet<u32> {
        let mut found = HashSet::new();
        let mut grey: Vec<u32> = self.stacks.iter().flatten().chain(&self.memory).copied().collect();
        while let Some(cell) = grey.pop() {
            if found.insert(cell) {
                grey.extend(self.edges[&cell].iter().flatten());
            }
        }
        found
    }
}

struct World<'s, S: Scheme> {
    scheme: &'s S,
    threads: Vec<Option<S::Mutator<'s>>>,
    memory: Arc<Memory<S::Head>>,
    cells: Vec<At<S::Head>>,
    tallies: Vec<Arc<Tally>>,
    probes: Arc<Probes>,
    model: Model,
}

impl<'s, S: Scheme> World<'s, S> {
    fn start(&mut self) -> S::Mutator<'s> {
        let tally = Arc::new(Tally::default());
        self.tallies.push(tally.clone());
        let mut thread = self.scheme.start(Common::new(tally, Some(self.probes.clone())));
        thread.suspend();
        thread
    }

    /// One step, with the thread awake.
    fn step(&mut self, thread: usize, step: Step) {
        let mut own = self.threads[thread].take().unwrap();
        own.resume();
        self.act(&mut own, thread, step);
        own.suspend();
        self.threads[thread] = Some(own);
        if let Step::Restart = step {
            self.restart(thread);
        }
    }

    fn restart(&mut self, thread: usize) {
        let mut own = self.threads[thread].take().unwrap();
        own.resume();
        while let Some(cell) = own.common().stack.pop() {
            self.model.stacks[thread].pop();
            // SAFETY: the stack's reference.
            unsafe { own.decrement(cell) };
        }
        drop(own);
        self.threads[thread] = Some(self.start());
    }

    fn act(&mut self, own: &mut S::Mutator<'s>, thread: usize, step: Step) {
        let held = self.model.stacks[thread].len();
        let in_memory = self.model.memory.len();
        match step {
            Step::Make => {
                let number = self.cells.len() as u32 + 1;
                let cell = own.make(number);
                own.common().stack.push(cell);
                self.cells.push(cell);
                self.model.edges.insert(number, [None; EDGES]);
                self.model.stacks[thread].push(number);
            }
            Step::Copy(index) if held > 0 => {
                let cell = own.common().stack.get(index % held);
                // SAFETY: the stack has a reference.
                unsafe { own.increment(cell) };
                own.common().stack.push(cell);
                let number = self.model.stacks[thread][index % held];
                self.model.stacks[thread].push(number);
            }
            Step::Drop(index) if held > 0 => {
                let cell = own.common().stack.swap_remove(index % held);
                self.model.stacks[thread].swap_remove(index % held);
                // SAFETY: it was the stack's.
                unsafe { own.decrement(cell) };
            }
            Step::Publish(index) if held > 0 => {
                let cell = own.common().stack.get(index % held);
                // SAFETY: the stack's reference goes to the memory.
                unsafe { own.publish(cell) };
                self.memory.0.lock().unwrap().push(cell);
                own.common().stack.swap_remove(index % held);
                let number = self.model.stacks[thread].swap_remove(index % held);
                self.model.memory.push(number);
            }
            Step::Adopt(index) if in_memory > 0 => {
                let cell = self.memory.0.lock().unwrap().swap_remove(index % in_memory);
                // SAFETY: it came out of memory.
                unsafe { own.adopt(cell) };
                own.common().stack.push(cell);
                let number = self.model.memory.swap_remove(index % in_memory);
                self.model.stacks[thread].push(number);
            }
            Step::CopyFromMemory(index) if in_memory > 0 => {
                let cell = self.memory.0.lock().unwrap()[index % in_memory];
                // SAFETY: the memory has a reference, and nobody else works.
                unsafe { own.increment(cell) };
                own.common().stack.push(cell);
                self.model.stacks[thread].push(self.model.memory[index % in_memory]);
            }
            Step::Link(from, to, edge) if held > 0 => {
                let (from, to) = (from % held, to % held);
                let (one, other) = (self.model.stacks[thread][from], self.model.stacks[thread][to]);
                // Older ones only, so that there is no cycle, which counting does not free.
                if other < one && self.model.edges[&one][edge].is_none() {
                    let (cell, older) = (own.common().stack.get(from), own.common().stack.get(to));
                    // SAFETY: the stack has references to both.
                    unsafe {
                        own.increment(older);
                        own.publish(older);
                        cell.get().set_edge(edge, Some(older));
                    }
                    self.model.edges.get_mut(&one).unwrap()[edge] = Some(other);
                }
            }
            Step::Unlink(from, edge) if held > 0 => {
                let cell = own.common().stack.get(from % held);
                let number = self.model.stacks[thread][from % held];
                self.model.edges.get_mut(&number).unwrap()[edge] = None;
                // SAFETY: the stack has a reference; what the edge had becomes ours.
                unsafe {
                    if let Some(older) = cell.get().edge(edge) {
                        cell.get().set_edge(edge, None);
                        own.adopt(older);
                        own.decrement(older);
                    }
                }
            }
            Step::SafePoint => own.safe_point(),
            _ => {}
        }
    }

    /// What is referred to is alive; with `prompt`, all else is not.
    fn check(&self, prompt: bool) {
        let reachable = self.model.reachable();
        for number in 1..=self.cells.len() as u32 {
            let alive = self.probes.death(number).is_none();
            if reachable.contains(&number) {
                assert!(alive, "cell {number} is referred to, and dead");
            } else if prompt {
                assert!(!alive, "nobody refers to cell {number}, which lives");
            }
        }
    }
}

fn follows_the_model<S: Scheme>(steps: &[(usize, Step)], prompt: bool) {
    let (probes, chores) = (Arc::new(Probes::new(steps.len())), Arc::new(Tally::default()));
    let scheme = S::new(&options(), Common::new(chores.clone(), Some(probes.clone())));
    let memory = Arc::new(Memory(Mutex::new(Vec::new())));
    scheme.watch(memory.clone());
    let mut world = World::<S> {
        scheme: &scheme,
        threads: Vec::new(),
        memory,
        cells: Vec::new(),
        tallies: vec![chores],
        probes,
        model: Model::default(),
    };
    for _ in 0..THREADS {
        let thread = world.start();
        world.threads.push(Some(thread));
    }
    for &(thread, step) in steps {
        world.step(thread, step);
        world.check(prompt);
    }
    while !world.model.memory.is_empty() {
        world.step(0, Step::Adopt(0));
    }
    for thread in 0..THREADS {
        world.restart(thread);
    }
    for mut thread in world.threads.drain(..).flatten() {
        thread.resume();
        drop(thread);
    }
    scheme.rest();
    let sum = |what: fn(&Tally) -> u64| world.tallies.iter().map(|tally| what(tally)).sum::<u64>();
    assert_eq!(sum(made), world.cells.len() as u64);
    assert_eq!(sum(made), sum(freed), "a cell is left, or died twice");
    world.check(true);
}

fn made(tally: &Tally) -> u64 {
    tally.made.load(Ordering::Relaxed)
}

fn freed(tally: &Tally) -> u64 {
    tally.freed.load(Ordering::Relaxed)
}

proptest! {
    #![proptest_config(super::at_most(256))]

    #[test]
    fn plain_follows_the_model(steps in steps()) {
        follows_the_model::<Plain>(&steps, true);
    }

    #[test]
    fn atomic_follows_the_model(steps in steps()) {
        follows_the_model::<Atomic>(&steps, true);
    }

    #[test]
    fn thread_count_follows_the_model(steps in steps()) {
        follows_the_model::<ThreadCount>(&steps, true);
    }

    #[test]
    fn deltas_follow_the_model(steps in steps()) {
        follows_the_model::<Deltas>(&steps, false);
    }

    #[test]
    fn biased_follows_the_model(steps in steps()) {
        follows_the_model::<Biased>(&steps, false);
    }

    #[test]
    fn credits_follow_the_model(steps in steps()) {
        follows_the_model::<Credits>(&steps, false);
    }
}

/// A small, fast generator: what is random here needs no quality.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

/// One thread's share of the stress: at most 16 references of its own, and 8 in memory.
fn churn<S: Scheme>(own: &mut S::Mutator<'_>, memory: &Memory<S::Head>, seed: u64, steps: usize) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    for _ in 0..steps {
        let held = own.common().stack.len();
        match random.below(8) {
            0 if held < 16 => {
                let cell = own.make(0);
                own.common().stack.push(cell);
            }
            1 | 2 if held > 0 && held < 16 => {
                let cell = own.common().stack.get(random.below(held));
                // SAFETY: the stack has a reference.
                unsafe { own.increment(cell) };
                own.common().stack.push(cell);
            }
            3 | 4 if held > 0 => {
                let cell = own.common().stack.swap_remove(random.below(held));
                // SAFETY: it was the stack's.
                unsafe { own.decrement(cell) };
            }
            5 if held > 0 => {
                let mut cells = memory.0.lock().unwrap();
                if cells.len() < 8 {
                    let index = random.below(held);
                    let cell = own.common().stack.get(index);
                    // SAFETY: the stack's reference goes to the memory.
                    unsafe { own.publish(cell) };
                    cells.push(cell);
                    own.common().stack.swap_remove(index);
                }
            }
            6 if held < 16 => {
                let mut cells = memory.0.lock().unwrap();
                if !cells.is_empty() {
                    let index = random.below(cells.len());
                    let cell = cells.swap_remove(index);
                    own.common().stack.push(cell);
                    drop(cells);
                    // SAFETY: it came out of memory.
                    unsafe { own.adopt(cell) };
                }
            }
            _ => own.safe_point(),
        }
    }
    while let Some(cell) = own.common().stack.pop() {
        // SAFETY: the stack's reference.
        unsafe { own.decrement(cell) };
    }
}

/// Under valgrind, which runs one thread at a time, and slowly; or another sanitizer.
fn is_watched() -> bool {
    std::env::var_os("PROPTEST_CASES").is_some()
}

fn many_threads_leave_nothing<S: Scheme>() {
    let steps = if is_watched() { 2_000 } else { 100_000 };
    let tallies: Vec<Arc<Tally>> = (0..6).map(|_| Arc::default()).collect();
    let scheme = S::new(&options(), Common::new(tallies[5].clone(), None));
    let memory = Arc::new(Memory(Mutex::new(Vec::new())));
    scheme.watch(memory.clone());
    let common = |thread: usize| Common::new(tallies[thread].clone(), None);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (scheme, memory) = (&scheme, &memory);
            let common = common(thread);
            scope.spawn(move || churn::<S>(&mut scheme.start(common), memory, thread as u64 + 1, steps));
        }
    });
    let mut last = scheme.start(common(4));
    let left = std::mem::take(&mut *memory.0.lock().unwrap());
    for cell in left {
        // SAFETY: it came out of memory.
        unsafe {
            last.adopt(cell);
            last.decrement(cell);
        }
    }
    drop(last);
    scheme.rest();
    let made: u64 = tallies.iter().map(|tally| made(tally)).sum();
    let freed: u64 = tallies.iter().map(|tally| freed(tally)).sum();
    assert!(made > 0);
    assert_eq!(made, freed, "a cell is left, or died twice");
}

#[test]
fn many_threads_leave_nothing_with_plain() {
    many_threads_leave_nothing::<Plain>();
}

#[test]
fn many_threads_leave_nothing_with_atomic() {
    many_threads_leave_nothing::<Atomic>();
}

#[test]
fn many_threads_leave_nothing_with_thread_count() {
    many_threads_leave_nothing::<ThreadCount>();
}

#[test]
fn many_threads_leave_nothing_with_deltas() {
    many_threads_leave_nothing::<Deltas>();
}

#[test]
fn many_threads_leave_nothing_with_biased() {
    many_threads_leave_nothing::<Biased>();
}

#[test]
fn many_threads_leave_nothing_with_credits() {
    many_threads_leave_nothing::<Credits>();
}

fn plan(threads: usize, maker: Maker, milliseconds: u64) -> Plan {
    let setting = Setting { threads, work: 1, share: 0.5, seed: 7 };
    Plan { setting, options: options(), maker, length: Duration::from_millis(milliseconds) }
}

#[test]
fn every_program_leaves_nothing_with_any_scheme() {
    for &scheme in SchemeName::ALL {
        for &workload in Workload::ALL {
            let crowds = [(2, Maker::Waiter), (1, Maker::Worker), (3, Maker::Worker)];
            let (crowds, length) = if is_watched() { (&crowds[..1], 150) } else { (&crowds[..], 10) };
            for &(threads, maker) in crowds {
                // Also where the end comes before its threads have had their turn.
                for length in [0, length] {
                    let outcome = run(scheme, workload, &plan(threads, maker, length)).unwrap();
                    let what = format!("{} {} {threads}", scheme.name(), workload.name());
                    assert_eq!(outcome.leaked, 0, "{what}");
                    assert!(outcome.pairs > 0 && outcome.pairs_per_second > 0.0, "{what}");
                }
            }
        }
    }
}

#[test]
fn cells_die_when_their_scheme_says() {
    for &scheme in SchemeName::ALL {
        let heartbeat = Duration::from_millis(if is_watched() { 400 } else { 4 });
        // Nothing is collected, or cells of deltas would die by that.
        let settings = Options { heartbeat, collect_every: u64::MAX, ..options() };
        let delays = reclaim(scheme, &settings, 6).unwrap();
        assert!(!delays.is_empty());
        if scheme == SchemeName::Deltas {
            assert!(delays.iter().all(Option::is_none), "nothing collects");
        } else {
            assert!(delays.iter().all(Option::is_some), "{}: {delays:?}", scheme.name());
        }
    }
}

#[test]
fn unknown_names_are_said() {
    let error = "gil".parse::<SchemeName>().unwrap_err();
    assert!(error.to_string().contains("unknown scheme \"gil\": there are plain, atomic"));
    assert!("wide".parse::<Workload>().is_err());
    assert_eq!("thread-count".parse(), Ok(SchemeName::ThreadCount));
}

#[test]
fn threads_take_turns_under_the_lock() {
    let gil = Gil::new(Duration::from_millis(1));
    let (inside, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let turns: Vec<usize> = thread::scope(|scope| {
        let life = || {
            let (me, mut turns) = (gil.holder(), 0);
            while !stop.load(Ordering::Relaxed) {
                gil.take(&me);
                assert!(!inside.swap(true, Ordering::SeqCst), "two hold the lock");
                turns += 1;
                // Gives way only where it is asked: a turn lasts about an interval.
                let began = Instant::now();
                while began.elapsed() < Duration::from_millis(3) {
                    inside.store(false, Ordering::SeqCst);
                    gil.safe_point(&me);
                    assert!(!inside.swap(true, Ordering::SeqCst), "two hold the lock");
                }
                inside.store(false, Ordering::SeqCst);
                gil.leave();
            }
            turns
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(life)).collect();
        thread::sleep(Duration::from_millis(if is_watched() { 1_000 } else { 200 }));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let enough = if is_watched() { 1 } else { 4 };
    assert!(turns.iter().all(|&turns| turns >= enough), "{turns:?}");
}

#[test]
fn a_thread_that_nobody_waits_for_keeps_the_lock() {
    let gil = Gil::new(Duration::from_millis(1));
    let me = gil.holder();
    gil.take(&me);
    for _ in 0..1_000 {
        // It would wait for another to take it.
        gil.safe_point(&me);
    }
    gil.give_up(&me);
    gil.take(&me);
}

#[test]
fn who_gives_the_lock_up_for_a_moment_hands_it_to_who_has_asked() {
    let gil = Gil::new(Duration::from_millis(1));
    let me = gil.holder();
    gil.take(&me);
    let served = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let other = gil.holder();
            gil.take(&other);
            served.store(true, Ordering::SeqCst);
            gil.leave();
        });
        while !gil.is_asked_for() {
            thread::yield_now();
        }
        // As if to sleep, for no time at all, and at no safe point.
        let before = gil.switches();
        gil.give_up(&me);
        assert!(gil.switches() > before, "nobody has had it");
        gil.take(&me);
        assert!(served.load(Ordering::SeqCst), "it has the lock again before who had asked for it");
    });
}
