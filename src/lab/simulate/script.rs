//! Who plays what: simulated threads, and the recorded ones that they replay.
//!
//! Simulated thread i replays recorded thread i modulo R, of those R that have
//! recorded anything. All of them use the same shared objects. An object that
//! only one recorded thread touches is private: each replica has one of its own,
//! elsewhere in memory. Replicas start at different points of the recording, and
//! go round it.
//!
//! An object whose maker is not among the simulated threads (the main thread, in
//! a workload's trace) is foreign to all of them.

use std::collections::HashMap;
use std::sync::Arc;

use super::cache::{Line, LINE_SHIFT, MOST_THREADS};
use super::model::Thing;
use crate::lab::trace::{Event, Trace};

/// From an object's address to its count, which says which line it is on
/// (`ob_ref_shared` of a free-threaded object).
const COUNT_OFFSET: u64 = 16;
/// Between the addresses of an object and its next replica: nothing is so large.
const REPLICA_DISTANCE: u64 = 1 << 47;

/// One step of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// On an object: an increment if the second is true.
    Count(u32, bool),
    /// The object's memory is used for something else.
    Death(u32),
    /// Other work, in nanoseconds.
    Work(u32),
}

/// What a recorded thread does, with objects numbered for replaying.
#[derive(Debug)]
struct Script {
    steps: Vec<Recorded>,
    /// Points at which the thread has dropped all that it took.
    starts: Vec<usize>,
    start_ns: u64,
    privates: usize,
}

/// A step, with an object that is shared or private to the thread.
#[derive(Clone, Copy, Debug)]
struct Recorded {
    step: Step,
    is_private: bool,
}

/// A simulated thread's place in its script.
#[derive(Debug)]
pub struct Part {
    script: Arc<Script>,
    at: usize,
    /// Of its private objects: the number of the first.
    privates: u32,
    /// When it starts.
    pub start_ns: u64,
}

impl Part {
    /// The next step. Scripts have no end: they are gone round.
    #[inline]
    pub fn next_step(&mut self) -> Step {
        let Recorded { step, is_private } = self.script.steps[self.at];
        self.at = if self.at + 1 == self.script.steps.len() { 0 } else { self.at + 1 };
        let base = if is_private { self.privates } else { 0 };
        match step {
            Step::Count(object, up) => Step::Count(base + object, up),
            Step::Death(object) => Step::Death(base + object),
            Step::Work(nanoseconds) => Step::Work(nanoseconds),
        }
    }
}

/// All objects and all parts.
#[derive(Debug)]
pub struct Play {
    /// By number.
    pub things: Vec<Thing>,
    /// Lines that things lie on.
    pub lines: usize,
    /// By simulated thread.
    pub parts: Vec<Part>,
    /// Recorded threads that are replayed.
    pub recorded: usize,
}

/// What is known of a recorded object before it is numbered.
#[derive(Clone, Copy, Default)]
struct Known {
    /// Recorded threads that touch it: the first, and whether there are more.
    by: Option<u16>,
    by_more: bool,
    dies: bool,
    /// Among the shared, or among the private of its thread.
    number: u32,
}

impl Play {
    /// For so many simulated threads; none where the trace has no events.
    pub fn new(trace: &Trace, threads: usize) -> Option<Play> {
        assert!((1..=MOST_THREADS).contains(&threads));
        let active = |(_, thread): &(usize, &crate::lab::trace::Thread)| {
            thread.events.iter().any(|event| matches!(event, Event::Increment(_) | Event::Decrement(_)))
        };
        // No more than can be played: the others' objects are not needed.
        let roles: Vec<usize> =
            trace.threads.iter().enumerate().filter(active).map(|(number, _)| number).take(MOST_THREADS).collect();
        if roles.is_empty() {
            return None;
        }
        let (known, shared) = number_objects(trace, &roles);
        let mut builder = Builder { trace, roles: &roles, threads, things: Vec::new(), lines: HashMap::new() };
        for number in shared {
            let owner = builder.owner_of(number, None);
            builder.add(number, known[number as usize].dies, owner, 0);
        }
        let scripts: Vec<_> = (0..roles.len()).map(|role| Arc::new(Script::new(trace, &roles, role, &known))).collect();
        let mut parts = Vec::with_capacity(threads);
        for thread in 0..threads {
            parts.push(builder.part(thread, &scripts, &known));
        }
        let Builder { things, lines, .. } = builder;
        Some(Play { things, lines: lines.len(), parts, recorded: roles.len() })
    }
}

/// Sees which objects are shared, and numbers both kinds.
fn number_objects(trace: &Trace, roles: &[usize]) -> (Vec<Known>, Vec<u32>) {
    let mut known = vec![Known::default(); trace.objects.len()];
    for (role, number) in roles.iter().enumerate() {
        for event in &trace.threads[*number].events {
            let (Event::Increment(object) | Event::Decrement(object) | Event::Death(object)) = *event else { continue };
            let it = &mut known[object as usize];
            it.dies |= matches!(event, Event::Death(_));
            it.by_more |= it.by.is_some_and(|by| by != role as u16);
            it.by = it.by.or(Some(role as u16));
        }
    }
    let mut shared = Vec::new();
    let mut privates = vec![0; roles.len()];
    for (number, it) in known.iter_mut().enumerate() {
        let Some(by) = it.by else { continue };
        if it.by_more {
            it.number = shared.len() as u32;
            shared.push(number as u32);
        } else {
            it.number = privates[usize::from(by)];
            privates[usize::from(by)] += 1;
        }
    }
    (known, shared)
}

impl Script {
    fn new(trace: &Trace, roles: &[usize], role: usize, known: &[Known]) -> Script {
        let thread = &trace.threads[roles[role]];
        let (mut steps, mut starts) = (Vec::with_capacity(thread.events.len()), Vec::new());
        let mut held = 0i64;
        for event in &thread.events {
            if held == 0 {
                starts.push(steps.len());
            }
            let (step, object) = match *event {
                Event::Increment(object) => (Step::Count(known[object as usize].number, true), Some(object)),
                Event::Decrement(object) => (Step::Count(known[object as usize].number, false), Some(object)),
                Event::Death(object) => (Step::Death(known[object as usize].number), Some(object)),
                Event::Work(nanoseconds) => (Step::Work(nanoseconds), None),
            };
            held += match event {
                Event::Increment(_) => 1,
                Event::Decrement(_) => -1,
                _ => 0,
            };
            let is_private = object.is_some_and(|object| !known[object as usize].by_more);
            steps.push(Recorded { step, is_private });
        }
        let privates = known.iter().filter(|it| it.by == Some(role as u16) && !it.by_more).count();
        Script { steps, starts, start_ns: thread.start_ns, privates }
    }

    /// Where a replica starts that is to start so far into the script: at the
    /// nearest point before at which the thread held nothing.
    fn start(&self, wanted: usize) -> usize {
        let later = self.starts.partition_point(|start| *start <= wanted);
        later.checked_sub(1).map_or(0, |before| self.starts[before])
    }
}

/// Adds things.
struct Builder<'a> {
    trace: &'a Trace,
    roles: &'a [usize],
    threads: usize,
    things: Vec<Thing>,
    lines: HashMap<u64, Line>,
}

impl Builder<'_> {
    /// The simulated thread that owns an object, which is private to `thread`, or
    /// shared.
    fn owner_of(&self, object: u32, private_to: Option<usize>) -> Option<u16> {
        let maker = self.trace.objects[object as usize].owner?;
        let role = self.roles.iter().position(|role| *role == maker as usize)?;
        match private_to {
            Some(thread) if thread % self.roles.len() == role => Some(thread as u16),
            _ => (role < self.threads).then_some(role as u16),
        }
    }

    fn add(&mut self, object: u32, dies: bool, owner: Option<u16>, replica: usize) {
        let recorded = &self.trace.objects[object as usize];
        let address = recorded.address.wrapping_add((replica as u64).wrapping_mul(REPLICA_DISTANCE));
        // The whole product would wrap round to the same lines.
        let key = (address.wrapping_add(COUNT_OFFSET) >> LINE_SHIFT) ^ (replica as u64).rotate_right(8);
        let next = self.lines.len() as Line;
        let line = *self.lines.entry(key).or_insert(next);
        self.things.push(Thing { address, line, owner, immortal: recorded.immortal, mortal: dies });
    }

    /// A simulated thread, with its private objects.
    fn part(&mut self, thread: usize, scripts: &[Arc<Script>], known: &[Known]) -> Part {
        let (role, replica) = (thread % self.roles.len(), thread / self.roles.len());
        let script = Arc::clone(&scripts[role]);
        let privates = self.things.len() as u32;
        if script.privates > 0 {
            for (object, it) in known.iter().enumerate() {
                if it.by == Some(role as u16) && !it.by_more {
                    let owner = self.owner_of(object as u32, Some(thread));
                    self.add(object as u32, it.dies, owner, replica);
                }
            }
        }
        let replicas = (self.threads - role).div_ceil(self.roles.len());
        let at = script.start(script.steps.len() * replica / replicas);
        Part { at, privates, start_ns: script.start_ns, script }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::trace::{Object, Thread};

    fn trace() -> Trace {
        let object = |address, owner| Object { address, owner, immortal: false };
        let pairs = |objects: &[u32]| {
            objects.iter().flat_map(|object| [Event::Increment(*object), Event::Decrement(*object)]).collect()
        };
        Trace {
            about: Default::default(),
            threads: vec![
                Thread { name: "main".into(), ..Thread::default() },
                Thread { name: "a".into(), events: pairs(&[0, 1]), ..Thread::default() },
                Thread { name: "b".into(), events: pairs(&[0, 2]), ..Thread::default() },
            ],
            objects: vec![object(0x1000, Some(0)), object(0x2000, Some(1)), object(0x3000, None)],
        }
    }

    #[test]
    fn what_one_thread_touches_is_each_replicas_own() {
        let mut play = Play::new(&trace(), 4).expect("events");
        assert_eq!(play.recorded, 2);
        // One shared, and one for each thread.
        assert_eq!(play.things.len(), 5);
        let owners: Vec<_> = play.things.iter().map(|thing| thing.owner).collect();
        // Main is not replayed; object 1 is its thread's own, in each replica.
        assert_eq!(owners, [None, Some(0), None, Some(2), None]);
        assert_eq!(play.lines, 5);
        let steps: Vec<_> = (0..4).map(|_| play.parts[0].next_step()).collect();
        let expected = [(0, true), (0, false), (1, true), (1, false)].map(|(object, up)| Step::Count(object, up));
        assert_eq!(steps, expected);
        // The second replica starts half-way.
        assert_eq!(play.parts[2].next_step(), Step::Count(3, true));
        assert_eq!(play.parts[3].next_step(), Step::Count(4, true));
    }

    #[test]
    fn a_replica_starts_where_its_thread_holds_nothing() {
        let events = vec![Event::Increment(0), Event::Increment(0), Event::Decrement(0), Event::Decrement(0)];
        let mut trace = trace();
        trace.threads.truncate(2);
        trace.threads[1].events = events;
        let mut play = Play::new(&trace, 2).expect("events");
        assert_eq!(play.parts[1].next_step(), Step::Count(play.parts[1].privates, true));
    }

    #[test]
    fn a_trace_without_counts_has_nothing_to_play() {
        let mut trace = trace();
        for thread in &mut trace.threads {
            thread.events = vec![Event::Work(5)];
        }
        assert!(Play::new(&trace, 1).is_none());
    }
}
