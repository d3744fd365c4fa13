//! Sites that change while other threads run them, as lulls need it.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::fixtures::{adds, drop_reference, drops, helped, leaf, Buffer, Fixture, Object, SHARED};
use super::WORD;
use crate::live::patch::Patch;
use crate::live::plan::{plan_functions, Form, Hook, Refusal};

#[test]
fn of_the_function_that_drops_references_the_swap_can_do() {
    let fixture = Fixture::new(&[leaf, drops, drop_reference]);
    let hooked = |function: usize| {
        let entry = fixture.functions[function].start;
        // SAFETY: nobody else knows this code.
        unsafe { plan_functions(&fixture.image, &fixture.functions, entry, Hook::Swap) }
    };
    let plan = hooked(1).unwrap();
    assert!(plan.entry.is_none() && plan.sites.iter().any(|site| matches!(site.form, Form::Drop { .. })));
    // SAFETY: nobody else runs this code.
    let patch = unsafe { Patch::prepare(&fixture.image, &plan, &helped()) }.unwrap();
    assert!(patch.is_of_sites() && patch.original().is_none());
    assert_eq!(hooked(2).unwrap_err(), Refusal::NoSwap, "it swaps in another way");
    let entry = fixture.plan(fixture.functions[1].start).unwrap();
    // SAFETY: as above.
    assert!(!unsafe { Patch::prepare(&fixture.image, &entry, &helped()) }.unwrap().is_of_sites());
}

#[test]
fn sites_change_while_other_threads_run_them() {
    let fixture = Fixture::new(&[adds, drops]);
    let plan = fixture.plan(0).unwrap();
    // SAFETY: only sites are changed, and the pages stay.
    let patch = unsafe { Patch::prepare(&fixture.image, &plan, &helped()) }.unwrap();
    let before = fixture.bytes();
    let stop = AtomicBool::new(false);
    let seen: [AtomicU32; 2] = Default::default();
    let (fixture, stop) = (&fixture, &stop);
    let counted = std::thread::scope(|scope| {
        let run = |seen: &AtomicU32| {
            let mut object: Object = [0, 0, 4 << 20, 0];
            let address = ptr::from_mut(&mut object) as u64;
            let mut slots = [[address, 1000], [0, 0]];
            let mut buffer = Buffer { busy: 0, attention: 0, byte_mask: 0, slots: slots.as_mut_ptr(), skip: -1 };
            WORD.set(ptr::from_mut(&mut buffer) as usize);
            // SAFETY: the slots of this thread, which its code has changed.
            let word = || unsafe { buffer.slots.read_volatile() }[1];
            let mut refunds = 0;
            while !stop.load(Ordering::Relaxed) {
                fixture.call(0, [address, 0, 0]);
                assert_eq!(fixture.call(1, [address, 0, 0]), 0);
                let before = std::mem::replace(&mut refunds, word() >> 24);
                seen.fetch_or(if refunds == before { 1 } else { 2 }, Ordering::Relaxed);
            }
            (object[SHARED] / 4) as i64 - (word() & 0xFF_FFFF) as i64
        };
        let [one, other] = &seen;
        let workers = [scope.spawn(move || run(one)), scope.spawn(move || run(other))];
        let began = Instant::now();
        let mut changes = 0;
        while changes < 1000 || seen.iter().any(|seen| seen.load(Ordering::Relaxed) != 3) {
            assert!(began.elapsed() < Duration::from_secs(60), "a worker that has not seen both");
            // SAFETY: a site is one instruction, and trampolines stay.
            unsafe { patch.apply() }.unwrap();
            // SAFETY: as above.
            unsafe { patch.revert() }.unwrap();
            changes += 2;
        }
        stop.store(true, Ordering::Relaxed);
        workers.map(|worker| worker.join().unwrap())
    });
    assert_eq!(fixture.bytes(), before);
    assert_eq!(counted, [(1 << 20) - 1000; 2]);
}
