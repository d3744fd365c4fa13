//! Many threads on real atomics: each object freed once, none early, none late.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use refbuf::core::heartbeat::{Heartbeat, Host};
use refbuf::core::sync::prepare;
use refbuf::core::{Address, Registry, Scope, Shape};

use crate::driver::{settle, Cell, Freed, Thread};

/// Under valgrind and sanitizers: the same paths, fewer times.
fn scaled(n: usize) -> usize {
    match std::env::var("REFBUF_TEST_SCALE").ok().and_then(|scale| scale.parse::<usize>().ok()) {
        Some(scale) => (n / scale.max(1)).max(1),
        None => n,
    }
}

/// Small random numbers; xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Random increments and decrements; holds up to 64 references, drops all.
fn churn(registry: &Registry<Cell>, objects: &[Address], seed: u64, operations: usize) {
    let thread = Thread::start(registry);
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut held = Vec::new();
    for n in 0..operations {
        if held.is_empty() || (held.len() < 64 && random.below(2) == 0) {
            let object = objects[random.below(objects.len())];
            thread.inc(object);
            held.push(object);
        } else {
            let object = held.swap_remove(random.below(held.len()));
            thread.dec(object);
        }
        if n % 5000 == 4999 {
            thread.flush();
        }
    }
    for object in held {
        thread.dec(object);
    }
}

fn stress(shape: Shape) {
    prepare(true);
    let registry = Registry::<Cell>::new(shape);
    let freed = Arc::new(Freed::default());
    let objects: Vec<_> = (0..500).map(|_| Cell::make(1, &freed)).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // What the settler, GC starts and forks do, without pause.
        let settler = scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                registry.beat();
                settle(&registry, if n % 4 == 0 { Scope::All } else { Scope::Cold });
                if n % 16 == 0 {
                    let state = registry.before_fork();
                    registry.after_fork_in_parent(state);
                }
                n += 1;
                thread::yield_now();
            }
        });
        let workers: Vec<_> = (1..=8)
            .map(|seed| {
                let (registry, objects) = (&registry, &objects[..]);
                scope.spawn(move || {
                    for life in 0..4 {
                        churn(registry, objects, seed * 100 + life, scaled(50_000));
                    }
                })
            })
            .collect();
        // A worker that failed must not leave the settler running.
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        settler.join().unwrap();
        ended.into_iter().for_each(|end| end.unwrap());
    });
    settle(&registry, Scope::All);
    assert_eq!(freed.count(), 0, "all are held by this test");
    for object in &objects {
        assert_eq!(Cell::count(*object), 1, "R4");
    }
    let thread = Thread::start(&registry);
    for object in &objects {
        thread.dec(*object);
    }
    thread.flush();
    assert_eq!(freed.count(), objects.len(), "each freed once");
}

#[test]
fn eight_threads_and_a_busy_settler_leave_exact_counts() {
    stress(Shape::DEFAULT);
}

#[test]
fn eight_threads_leave_exact_counts_where_every_object_collides() {
    stress(Shape { slots: 2, parked: 2, ..Shape::DEFAULT });
}

#[test]
fn objects_that_threads_hand_on_and_drop_are_freed_once() {
    prepare(true);
    let registry = Registry::<Cell>::new(Shape { slots: 16, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    let made = scaled(20_000);
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Address>(64);
    thread::scope(|scope| {
        let (registry, freed) = (&registry, &freed);
        scope.spawn(move || {
            let thread = Thread::start(registry);
            for _ in 0..made {
                let object = Cell::make(1, freed);
                thread.inc(object);
                sender.send(object).unwrap();
                thread.dec(object);
            }
        });
        scope.spawn(move || {
            let thread = Thread::start(registry);
            for object in receiver {
                thread.dec(object);
            }
        });
    });
    settle(&registry, Scope::All);
    assert_eq!(freed.count(), made);
}

struct Always;

impl Host for Always {
    fn attached(&self, work: &mut dyn FnMut()) {
        work();
    }

    fn thread(&self) -> usize {
        1
    }
}

#[test]
fn the_settler_frees_what_idle_and_ended_threads_hold_and_then_sleeps() {
    prepare(true);
    static REGISTRY: Registry<Cell> = Registry::new(Shape::DEFAULT);
    static HEARTBEAT: Heartbeat = Heartbeat::new(2_000);
    let (registry, heartbeat) = (&REGISTRY, &HEARTBEAT);
    heartbeat.start(registry, Always);
    let freed = Arc::new(Freed::default());
    let idle = Thread::start(registry);
    let object = Cell::make(1, &freed);
    idle.inc(object);
    idle.dec(object);
    idle.dec(object);
    let other = Cell::make(1, &freed);
    thread::scope(|scope| {
        scope.spawn(|| {
            let ending = Thread::start(registry);
            ending.inc(other);
            ending.dec(other);
            ending.dec(other);
        });
    });
    if registry.must_wake() {
        heartbeat.wake();
    }
    await_that("both are freed", || freed.count() == 2);
    // Nothing is held: no more beats, until someone installs credits.
    let asleep = || {
        let before = registry.summary().beats;
        thread::sleep(Duration::from_millis(50));
        registry.summary().beats == before
    };
    await_that("it sleeps", asleep);
    assert!(heartbeat.stop(Duration::from_secs(10)));
}

#[test]
fn no_settler_is_started_while_a_fork_is_under_way() {
    static REGISTRY: Registry<Cell> = Registry::new(Shape::DEFAULT);
    static HEARTBEAT: Heartbeat = Heartbeat::new(2_000);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    HEARTBEAT.start(&REGISTRY, Always);
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            HEARTBEAT.hold();
            assert!(HEARTBEAT.stop(Duration::from_secs(10)));
            // Who is late in starting one may be anywhere.
            for _ in 0..20 {
                assert!(!HEARTBEAT.is_running());
                thread::yield_now();
            }
            HEARTBEAT.resume();
        }
        over.store(true, Ordering::Relaxed);
    });
    HEARTBEAT.start(&REGISTRY, Always);
    await_that("it runs again", || HEARTBEAT.is_running());
    assert!(HEARTBEAT.stop(Duration::from_secs(10)));
}

fn await_that(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}
