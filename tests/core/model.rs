//! Every sequence of operations by several threads in turn, against counts kept
//! by hand.

use std::sync::Arc;

use proptest::prelude::*;
use refbuf::core::{Address, Outcome, Registry, Scope, Shape};

use crate::driver::{settle, Cell, Freed, Thread};

const THREADS: usize = 3;
const OBJECTS: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    Inc { thread: usize, object: usize },
    Dec { thread: usize, object: usize },
    Flush { thread: usize },
    FlushAll,
    Beat,
    Restart { thread: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (thread, object) = (0..THREADS, 0..OBJECTS);
    prop_oneof![
        10 => (thread.clone(), object.clone()).prop_map(|(thread, object)| Step::Inc { thread, object }),
        10 => (thread.clone(), object).prop_map(|(thread, object)| Step::Dec { thread, object }),
        1 => thread.clone().prop_map(|thread| Step::Flush { thread }),
        1 => Just(Step::FlushAll),
        3 => Just(Step::Beat),
        1 => thread.prop_map(|thread| Step::Restart { thread }),
    ]
}

fn shapes() -> impl Strategy<Value = Shape> {
    (0u32..4, 0u32..3, 0u32..3, 1usize..4).prop_map(|(slots, first, more, parked)| Shape {
        slots: 1 << slots,
        first_batch: first,
        largest_batch: first + more,
        parked,
    })
}

/// The program's references, by hand.
struct Program {
    counts: [usize; OBJECTS],
    objects: [Option<Address>; OBJECTS],
}

impl Program {
    fn check(&self, registry: &Registry<Cell>, freed: &Freed) {
        let mut alive = 0;
        for (count, object) in self.counts.iter().zip(self.objects) {
            if *count > 0 {
                let object = object.expect("held");
                let credits = registry.credits_of(object) as usize;
                assert_eq!(Cell::count(object), count + credits, "the counting equation");
                alive += 1;
            }
        }
        assert!(freed.count() <= OBJECTS - alive, "R1: freed while held");
    }
}

fn run(shape: Shape, steps: Vec<Step>) {
    let registry = Registry::<Cell>::new(shape);
    let freed = Arc::new(Freed::default());
    let objects = std::array::from_fn(|_| Some(Cell::make(1, &freed)));
    let mut program = Program { counts: [1; OBJECTS], objects };
    let mut threads: Vec<_> = (0..THREADS).map(|_| Thread::start(&registry)).collect();
    let (mut operations, mut refunded) = (0u64, 0u64);
    for step in steps {
        match step {
            Step::Inc { thread, object } if program.counts[object] > 0 => {
                threads[thread].inc(program.objects[object].expect("held"));
                program.counts[object] += 1;
                operations += 1;
            }
            Step::Dec { thread, object } if program.counts[object] > 0 => {
                program.counts[object] -= 1;
                threads[thread].dec(program.objects[object].expect("held"));
                operations += 1;
                refunded += 1;
            }
            Step::Inc { .. } | Step::Dec { .. } => {}
            Step::Flush { thread } => threads[thread].flush(),
            Step::FlushAll => settle(&registry, Scope::All),
            Step::Beat => {
                registry.beat();
                settle(&registry, Scope::Cold);
            }
            Step::Restart { thread } => threads[thread] = Thread::start(&registry),
        }
        program.check(&registry, &freed);
    }
    // Accounting is exact: every operation was one of four things.
    let totals = registry.summary().totals;
    assert_eq!(totals.hits() + totals.misses + totals.acquires + totals.take_ins, operations);
    assert!(totals.refunds <= refunded);
    threads.clear();
    // Two looks after the last change, everything is cold; the third settles.
    for _ in 0..3 {
        registry.beat();
        settle(&registry, Scope::Cold);
    }
    let totals = registry.summary().totals;
    assert_eq!(totals.credits, 0, "R4");
    assert_eq!(totals.credits_in + totals.refunds, totals.credits_out + totals.spends());
    for (count, object) in program.counts.iter().zip(program.objects) {
        for left in (1..=*count).rev() {
            let object = object.expect("held");
            assert_eq!(Cell::count(object), left, "R4: as if nothing had been buffered");
            // SAFETY: the program's own.
            unsafe { <Cell as refbuf::core::Counted>::release(object) };
        }
    }
    assert_eq!(freed.count(), OBJECTS, "each freed once");
}

proptest! {
    // PROPTEST_CASES overrides the number, as the sanitizers do.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn counts_are_those_of_a_program_without_buffers(
        shape in shapes(),
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        run(shape, steps);
    }
}

#[test]
fn a_last_reference_that_is_not_in_the_table_is_released_at_once() {
    let registry = Registry::<Cell>::new(Shape::DEFAULT);
    let freed = Arc::new(Freed::default());
    let object = Cell::make(1, &freed);
    let thread = Thread::start(&registry);
    thread.dec(object);
    assert_eq!(freed.count(), 1, "R7");
}

#[test]
fn a_slot_that_runs_dry_acquires_twice_as_many_up_to_the_bound() {
    let shape = Shape { first_batch: 1, largest_batch: 4, ..Shape::DEFAULT };
    let registry = Registry::<Cell>::new(shape);
    let freed = Arc::new(Freed::default());
    let object = Cell::make(1, &freed);
    let thread = Thread::start(&registry);
    let mut acquires = Vec::new();
    for n in 1..=78 {
        let before = registry.summary().totals.acquires;
        thread.inc(object);
        if registry.summary().totals.acquires > before {
            acquires.push(n);
        }
    }
    // 2, 4, 8, 16, 16, ... references each.
    assert_eq!(acquires, [1, 3, 7, 15, 31, 47, 63]);
    for _ in 0..79 {
        thread.dec(object);
    }
    thread.flush();
    assert_eq!(freed.count(), 1);
}

#[test]
fn a_full_slot_is_settled_in_part() {
    use refbuf::core::buffer::CREDIT_LIMIT;
    let registry = Registry::<Cell>::new(Shape { slots: 2, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    let more = CREDIT_LIMIT as usize + 1000;
    let thread = Thread::start(&registry);
    // One for each place.
    let objects = [Cell::make(more + 1, &freed), Cell::make(more + 1, &freed)];
    for object in objects {
        for _ in 0..more {
            thread.dec(object);
        }
    }
    for object in objects {
        let credits = registry.credits_of(object);
        assert!(credits > CREDIT_LIMIT / 2 && credits < CREDIT_LIMIT, "{credits} credits in one slot");
        assert_eq!(Cell::count(object), 1 + credits as usize);
        thread.dec(object);
    }
    assert_eq!(registry.summary().totals.evictions, 0);
    thread.flush();
    assert_eq!(freed.count(), 2);
}

#[test]
fn a_miss_of_an_object_that_is_there_after_all_is_a_hit() {
    // As after a table that was revoked when the thread looked first.
    let registry = Registry::<Cell>::new(Shape { slots: 2, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    let objects = [Cell::make(1, &freed), Cell::make(1, &freed)];
    let thread = Thread::start(&registry);
    for object in objects {
        thread.inc(object);
    }
    // SAFETY: this thread's buffer.
    let buffer = unsafe { thread.handle.as_ref() };
    // The second place first, while the other is used as little.
    for object in objects.into_iter().rev() {
        // SAFETY: this thread's buffer, and the program has the references.
        unsafe {
            assert_eq!(buffer.increment_missed::<Cell>(object, || true), Outcome::Hit);
            assert_eq!(buffer.decrement_missed::<Cell>(object, || true), Outcome::Hit);
        }
        for _ in 0..2 {
            thread.dec(object);
        }
    }
    assert_eq!(registry.summary().totals.acquires, 2);
    thread.flush();
    assert_eq!(freed.count(), 2);
}

#[test]
fn two_hot_objects_with_one_slot_do_not_evict_each_other_for_ever() {
    let registry = Registry::<Cell>::new(Shape { slots: 1, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    let objects = [Cell::make(1, &freed), Cell::make(1, &freed)];
    let thread = Thread::start(&registry);
    for _ in 0..1000 {
        for object in objects {
            thread.inc(object);
            thread.dec(object);
        }
    }
    let totals = registry.summary().totals;
    assert_eq!(totals.evictions, 0);
    assert!(totals.hits() > 1900, "the first keeps its place: {totals:?}");
    assert!(totals.atomics <= 2010, "the second costs what it costs without a buffer: {totals:?}");
    for object in objects {
        thread.dec(object);
    }
    thread.flush();
    assert_eq!(freed.count(), 2);
}

#[test]
fn an_object_that_is_wanted_moves_in_where_the_resident_is_idle() {
    let registry = Registry::<Cell>::new(Shape { slots: 1, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    let [idle, wanted] = [Cell::make(1, &freed), Cell::make(1, &freed)];
    let thread = Thread::start(&registry);
    thread.inc(idle);
    thread.dec(idle);
    for _ in 0..100 {
        thread.inc(wanted);
        thread.dec(wanted);
    }
    let totals = registry.summary().totals;
    assert_eq!(totals.evictions, 1);
    assert!(totals.hits() > 140, "{totals:?}");
    assert_eq!(Cell::count(idle), 1, "settled when it was evicted");
    for object in [idle, wanted] {
        thread.dec(object);
    }
    thread.flush();
    assert_eq!(freed.count(), 2);
}

#[test]
fn two_objects_have_a_pair_of_slots_and_a_third_has_none() {
    let registry = Registry::<Cell>::new(Shape { slots: 2, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    let objects = [Cell::make(1, &freed), Cell::make(1, &freed), Cell::make(1, &freed)];
    let thread = Thread::start(&registry);
    for _ in 0..1000 {
        for object in objects {
            thread.inc(object);
            thread.dec(object);
        }
    }
    let totals = registry.summary().totals;
    assert_eq!(totals.evictions, 0);
    assert!(totals.hits() >= 3998, "the first two keep their places: {totals:?}");
    assert_eq!(totals.misses, 2000, "the third costs what it costs without a buffer");
    for object in objects {
        thread.dec(object);
    }
    thread.flush();
    assert_eq!(freed.count(), 3);
}

#[test]
fn the_less_used_of_a_pair_makes_room() {
    let registry = Registry::<Cell>::new(Shape { slots: 2, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    let [used, idle, wanted] = [Cell::make(1, &freed), Cell::make(1, &freed), Cell::make(1, &freed)];
    for order in [[used, idle], [idle, used]] {
        let thread = Thread::start(&registry);
        for object in order {
            thread.inc(object);
            thread.dec(object);
        }
        for _ in 0..100 {
            for object in [used, wanted] {
                thread.inc(object);
                thread.dec(object);
            }
        }
        assert_ne!(registry.credits_of(used), 0);
        assert_ne!(registry.credits_of(wanted), 0);
        assert_eq!(registry.credits_of(idle), 0);
        thread.flush();
    }
    let thread = Thread::start(&registry);
    for object in [used, idle, wanted] {
        thread.dec(object);
    }
    thread.flush();
    assert_eq!(freed.count(), 3);
}

#[test]
fn an_object_that_only_decrements_brought_in_acquires_when_it_runs_dry() {
    let registry = Registry::<Cell>::new(Shape::DEFAULT);
    let freed = Arc::new(Freed::default());
    let object = Cell::make(3, &freed);
    let thread = Thread::start(&registry);
    thread.dec(object);
    for _ in 0..100 {
        thread.inc(object);
        thread.dec(object);
    }
    let totals = registry.summary().totals;
    assert_eq!((totals.take_ins, totals.acquires, totals.misses), (1, 1, 0));
    for _ in 0..2 {
        thread.dec(object);
    }
    thread.flush();
    assert_eq!(freed.count(), 1);
}

#[test]
fn a_thread_whose_gate_is_shut_does_not_stand_aside() {
    let registry = Registry::<Cell>::new(Shape::DEFAULT);
    let freed = Arc::new(Freed::default());
    let object = Cell::make(1, &freed);
    let thread = Thread::start(&registry);
    thread.inc(object);
    thread.dec(object);
    // SAFETY: this thread's buffer.
    let buffer = unsafe { thread.handle.as_ref() };
    // As a settler does that then gets no processor for long.
    buffer.gate().revoke();
    buffer.gate().await_owner();
    for _ in 0..20_000 {
        thread.inc(object);
        thread.dec(object);
    }
    assert!(!buffer.skips(), "nothing says that the table does not pay");
    buffer.gate().restore();
    let before = registry.summary().totals;
    thread.inc(object);
    thread.dec(object);
    let after = registry.summary().totals;
    assert_eq!((after.hits() - before.hits(), after.misses - before.misses), (2, 0));
    thread.flush();
    thread.dec(object);
    assert_eq!(freed.count(), 1);
}

#[test]
fn a_settling_says_nothing_about_whether_the_table_pays() {
    let registry = Registry::<Cell>::new(Shape { slots: 1, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    let [object, other] = [Cell::make(1, &freed), Cell::make(1, &freed)];
    let thread = Thread::start(&registry);
    // SAFETY: this thread's buffer.
    let buffer = unsafe { thread.handle.as_ref() };
    let misses = || registry.summary().totals.misses;
    // One hit for each miss, about: it pays.
    let mixed = || {
        let before = misses();
        while misses() < before + 3000 {
            for object in [object, other] {
                thread.inc(object);
                thread.dec(object);
            }
            assert!(!buffer.stands_aside());
        }
    };
    for _ in 0..100_000 {
        thread.inc(object);
        thread.dec(object);
    }
    mixed();
    // Hits of long ago go to the registry's totals.
    thread.flush();
    mixed();
    for object in [object, other] {
        thread.flush();
        thread.dec(object);
    }
    thread.flush();
    assert_eq!(freed.count(), 2);
}

#[test]
fn a_thread_with_a_parked_release_does_not_stand_aside_before_it_is_done() {
    let registry = Registry::<Cell>::new(Shape { slots: 1, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    let [last, other] = [Cell::make(1, &freed), Cell::make(1, &freed)];
    let thread = Thread::start(&registry);
    // Its last reference goes into the slot, and from there to the list.
    thread.inc(last);
    thread.dec(last);
    thread.dec(last);
    while registry.summary().totals.parked == 0 {
        thread.inc(other);
    }
    // SAFETY: this thread's buffer.
    let buffer = unsafe { thread.handle.as_ref() };
    let misses = |objects: &[Address]| {
        for object in objects {
            thread.inc(*object);
        }
        buffer.skips()
    };
    let many: Vec<_> = (0..5000).map(|_| Cell::make(1, &freed)).collect();
    assert!(!misses(&many), "stands aside");
    assert_eq!(freed.count(), 0);
    thread.dec(many[0]);
    assert_eq!(freed.count(), 1, "the next decrement releases it");
    assert!(misses(&many), "nothing keeps it from standing aside now");
    thread.flush();
    for object in many.into_iter().chain([other]) {
        (0..Cell::count(object)).for_each(|_| thread.dec(object));
    }
    thread.flush();
    assert_eq!(freed.count(), 5002);
}

#[test]
fn hot_slots_stay_and_cold_ones_are_settled_within_three_looks() {
    let registry = Registry::<Cell>::new(Shape::DEFAULT);
    let freed = Arc::new(Freed::default());
    let [hot, cold] = [Cell::make(1, &freed), Cell::make(1, &freed)];
    let thread = Thread::start(&registry);
    for object in [hot, cold] {
        thread.inc(object);
        thread.dec(object);
    }
    for look in 1..=3 {
        // Used, though its credits are the same afterwards.
        thread.inc(hot);
        thread.dec(hot);
        assert_eq!(registry.beat().work, look == 3);
        settle(&registry, Scope::Cold);
    }
    assert_ne!(registry.credits_of(hot), 0);
    assert_eq!(registry.credits_of(cold), 0);
    for object in [hot, cold] {
        thread.dec(object);
    }
    thread.flush();
    assert_eq!(freed.count(), 2);
}

#[test]
fn a_slot_that_comes_back_as_it_was_is_not_cold_for_that() {
    let freed = Arc::new(Freed::default());
    // Acquires that are all alike.
    let registry = Registry::<Cell>::new(Shape { first_batch: 2, largest_batch: 2, ..Shape::DEFAULT });
    let object = Cell::make(1, &freed);
    let thread = Thread::start(&registry);
    for _ in 0..3 {
        thread.inc(object);
        thread.dec(object);
        for look in 1..=3 {
            assert_eq!(registry.beat().work, look == 3);
            settle(&registry, Scope::Cold);
        }
    }
    thread.dec(object);
    thread.flush();
    assert_eq!(freed.count(), 1);
}

#[test]
fn a_buffer_with_all_that_belongs_to_it_fits_in_32_kib() {
    assert!(Shape { slots: Shape::MOST_SLOTS, ..Shape::DEFAULT }.bytes() <= 32 * 1024, "R5");
}

#[test]
fn a_hot_slot_that_gathers_credits_is_settled_at_each_beat() {
    let registry = Registry::<Cell>::new(Shape { slots: 4, ..Shape::DEFAULT });
    let freed = Arc::new(Freed::default());
    const MANY: usize = 1 << 20;
    let object = Cell::make(2 * MANY, &freed);
    let thread = Thread::start(&registry);
    let gather = |times: usize| (0..times).for_each(|_| thread.dec(object));
    gather(1_000);
    registry.beat();
    gather(1_000);
    assert!(!registry.beat().work, "it is hot");
    gather(MANY);
    assert!(registry.beat().work);
    settle(&registry, Scope::Cold);
    assert_eq!(registry.credits_of(object), 0);
    assert_eq!(Cell::count(object), MANY - 2_000);
    (0..MANY - 2_000).for_each(|_| thread.dec(object));
    thread.flush();
    assert_eq!(freed.count(), 1);
}
