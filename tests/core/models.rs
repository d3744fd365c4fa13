//! What each scheme does to counts, against atomics and lines counted by hand.

use proptest::prelude::*;
use refbuf::lab::simulate::cache::Use;
use refbuf::lab::simulate::hash::Hash;
use refbuf::lab::simulate::model::biased::Biased;
use refbuf::lab::simulate::model::credits::Credits;
use refbuf::lab::simulate::model::deltas::Deltas;
use refbuf::lab::simulate::model::plain::Single;
use refbuf::lab::simulate::model::thread_count::ThreadCount;
use refbuf::lab::simulate::model::{Cast, Model, Plan, Thing};

const THREADS: usize = 3;

/// Objects one line apart, 16 in number: those with even numbers are thread 0's,
/// those with odd ones nobody's.
fn things(mortal: bool) -> Vec<Thing> {
    let thing = |number: u32| Thing {
        address: 0x7F00_0000_0000 + u64::from(number) * 64,
        line: number,
        owner: (number % 2 == 0).then_some(0),
        immortal: false,
        mortal,
    };
    (0..16).map(thing).collect()
}

fn cast(things: &[Thing], slots: usize) -> Cast<'_> {
    Cast { things, threads: THREADS, slots, hash: Hash::Multiply }
}

/// Lines and their uses by one operation.
fn count(model: &mut dyn Model, thread: usize, object: u32, up: bool) -> Vec<(u32, Use)> {
    let mut plan = Plan::default();
    model.count(thread, object, up, &mut plan);
    plan.touches
}

fn atomics(model: &mut dyn Model, operations: &[(usize, u32, bool)]) -> usize {
    let touches = operations.iter().flat_map(|(thread, object, up)| count(model, *thread, *object, *up));
    touches.filter(|(_, how)| how.is_atomic()).count()
}

const UP: bool = true;
const DOWN: bool = false;

#[test]
fn plain_and_atomic_touch_the_object_each_time() {
    let things = things(false);
    for how in [Use::Write, Use::Atomic] {
        let mut model = Single::new(cast(&things, 1), how);
        assert_eq!(count(&mut model, 0, 3, UP), [(3, how)]);
        assert_eq!(count(&mut model, 1, 3, DOWN), [(3, how)]);
        assert_eq!(model.references(3), things[3].references());
    }
}

#[test]
fn a_thread_count_is_touched_when_a_counter_leaves_zero_and_when_it_comes_back() {
    let things = things(false);
    let mut model = ThreadCount::new(cast(&things, 1));
    // Nested: the outer pair alone is seen by others.
    assert_eq!(count(&mut model, 0, 0, UP), [(0, Use::Atomic)]);
    assert_eq!(count(&mut model, 0, 0, UP), []);
    assert_eq!(count(&mut model, 0, 0, DOWN), []);
    assert_eq!(model.threads(0), 1);
    assert_eq!(count(&mut model, 1, 0, UP), [(0, Use::Atomic)]);
    assert_eq!(model.threads(0), 2);
    assert_eq!(count(&mut model, 0, 0, DOWN), [(0, Use::Atomic)]);
    // Dropped by a thread that never took it.
    assert_eq!(count(&mut model, 2, 0, DOWN), [(0, Use::Atomic)]);
    assert_eq!(model.threads(0), 2);
    model.flush();
    assert_eq!(model.references(0), things[0].references());
    assert_eq!(model.threads(0), 0);
}

#[test]
fn deltas_are_plain_for_the_owner_until_another_thread_comes() {
    let things = things(false);
    let mut model = Deltas::new(cast(&things, 2048));
    assert_eq!(count(&mut model, 0, 2, UP), [(2, Use::Write)]);
    // Promoted by one atomic operation, and buffered from then on by both.
    assert_eq!(count(&mut model, 1, 2, UP), [(2, Use::Atomic)]);
    assert_eq!(count(&mut model, 0, 2, DOWN), []);
    assert_eq!(count(&mut model, 1, 2, DOWN), []);
    model.flush();
    assert_eq!(model.references(2), things[2].references());
}

#[test]
fn a_delta_that_is_not_zero_is_flushed_by_whoever_wants_its_place() {
    let things = things(false);
    // One place for all.
    let mut model = Deltas::new(cast(&things, 1));
    assert_eq!(count(&mut model, 1, 1, UP), [(1, Use::Atomic)]);
    assert_eq!(count(&mut model, 1, 3, UP), [(3, Use::Atomic), (1, Use::Atomic)], "promoted, and 1 flushed");
    assert_eq!(count(&mut model, 1, 3, DOWN), []);
    assert_eq!(count(&mut model, 1, 1, DOWN), [], "the place is vacant");
    assert_eq!(count(&mut model, 1, 3, UP), [(1, Use::Atomic)]);
    model.flush();
    assert_eq!(model.references(1), things[1].references());
    assert_eq!(model.references(3), things[3].references() + 1);
}

#[test]
fn biased_counts_are_plain_for_the_owner_and_atomic_for_others() {
    let things = things(false);
    let mut model = Biased::new(cast(&things, 1));
    assert_eq!(count(&mut model, 0, 0, UP), [(0, Use::Write)]);
    assert_eq!(count(&mut model, 1, 0, UP), [(0, Use::Atomic)]);
    assert_eq!(count(&mut model, 1, 0, DOWN), [(0, Use::Swap)]);
    assert_eq!(count(&mut model, 1, 0, DOWN), [(0, Use::Swap), (0, Use::Atomic)], "queued for its owner, once");
    assert_eq!(count(&mut model, 1, 0, DOWN), [(0, Use::Swap)]);
    assert_eq!(model.references(0), things[0].references() - 1);
}

#[test]
fn credits_touch_the_object_when_they_are_acquired_and_when_they_go_back() {
    let things = things(false);
    let mut model = Credits::new(cast(&things, 1024));
    assert_eq!(count(&mut model, 0, 0, UP), [(0, Use::Write)], "the owner's own");
    assert_eq!(count(&mut model, 1, 1, UP), [(1, Use::Atomic)], "acquires 8");
    for _ in 0..7 {
        assert_eq!(count(&mut model, 1, 1, UP), []);
    }
    assert_eq!(count(&mut model, 1, 1, UP), [(1, Use::Atomic)], "dry: acquires 16");
    for _ in 0..9 {
        assert_eq!(count(&mut model, 1, 1, DOWN), []);
    }
    // Taken in: a look whether there are other references.
    assert_eq!(count(&mut model, 2, 3, DOWN), [(3, Use::Read)]);
    let totals = model.totals(1);
    assert_eq!((totals.acquires, totals.misses, totals.atomics), (2, 0, 2));
    model.flush();
    assert_eq!(model.references(0), things[0].references() + 1);
    assert_eq!(model.references(1), things[1].references());
    assert_eq!(model.references(3), things[3].references() - 1);
}

#[test]
fn the_core_decides_who_has_a_place() {
    let things = things(false);
    // One pair of slots, three objects: the third costs an atomic each time.
    let mut model = Credits::new(cast(&things, 2));
    let pairs: Vec<_> =
        (0..100).flat_map(|_| [1, 3, 5]).flat_map(|object| [(1, object, UP), (1, object, DOWN)]).collect();
    assert_eq!(atomics(&mut model, &pairs), 2 + 200);
    assert_eq!(model.totals(1).misses, 200);
}

#[test]
fn what_an_increment_has_parked_the_next_decrement_releases() {
    let things = things(true);
    let mut model = Credits::new(cast(&things, 1));
    // The last references to object 1 are in the one slot; then object 3 wins it.
    count(&mut model, 1, 1, UP);
    count(&mut model, 1, 1, DOWN);
    while model.totals(1).parked == 0 {
        count(&mut model, 1, 3, UP);
    }
    assert_eq!(model.references(1), 1);
    assert_eq!(count(&mut model, 1, 3, DOWN), [(1, Use::Swap)], "a hit, and a safe point");
    assert_eq!(model.references(1), 0);
}

#[test]
fn another_hash_gives_other_places() {
    let mut things = things(false);
    // A multiple of the table's reach apart: the shift sends both to one pair, and a
    // third as well; the core's hash does not.
    for (number, thing) in things.iter_mut().enumerate() {
        thing.address = 0x7F00_0000_0000 + number as u64 * 16 * 512;
    }
    let pairs: Vec<_> =
        (0..100).flat_map(|_| [1, 3, 5]).flat_map(|object| [(1, object, UP), (1, object, DOWN)]).collect();
    let atomics_with = |hash| atomics(&mut Credits::new(Cast { hash, ..cast(&things, 1024) }), &pairs);
    assert_eq!(atomics_with(Hash::Multiply), 3);
    assert_eq!(atomics_with(Hash::Shift), 2 + 200);
}

/// Operations by three threads of references that exist: each thread drops only
/// what it or an earlier one took.
fn operations() -> impl Strategy<Value = Vec<(usize, u32, bool)>> {
    proptest::collection::vec((0..THREADS, 0..16u32, any::<bool>()), 1..400)
}

proptest! {
    #![proptest_config(crate::at_most(256))]

    /// After all references are dropped and all tables flushed, each count is 0.
    #[test]
    fn no_scheme_loses_or_invents_a_reference(
        operations in operations(),
        slots in 0..6u32,
        droppers in proptest::collection::vec(0..THREADS, 16),
    ) {
        let things = things(true);
        for index in 0..6 {
            let cast = cast(&things, 1 << slots);
            let mut model: Box<dyn Model> = match index {
                0 => Box::new(Single::new(cast, Use::Write)),
                1 => Box::new(Single::new(cast, Use::Atomic)),
                2 => Box::new(ThreadCount::new(cast)),
                3 => Box::new(Deltas::new(cast)),
                4 => Box::new(Biased::new(cast)),
                _ => Box::new(Credits::new(cast)),
            };
            let mut held = [0u32; 16];
            for (thread, object, up) in &operations {
                let held = &mut held[*object as usize];
                if !up && *held == 0 {
                    continue;
                }
                *held = if *up { *held + 1 } else { *held - 1 };
                count(&mut *model, *thread, *object, *up);
            }
            for (object, left) in held.iter().enumerate() {
                for _ in 0..*left {
                    count(&mut *model, droppers[object], object as u32, DOWN);
                }
            }
            model.flush();
            for object in 0..16 {
                prop_assert_eq!(model.references(object), 0);
            }
        }
    }
}
