//! What sites do once they are replaced: what the code did, with the buffers between.

use std::collections::BTreeMap;
use std::ptr;

use iced_x86::code_asm::{ptr as at, qword_ptr, rax, rcx, rdi};

use super::context;
use super::fixtures::{
    adds, drop_reference, drops, helped, leaf, long_bases, swap, Fixture, Object, Write, SHARED, SLOW, TAKES_IN,
};
use crate::lab::trace::{self, Event, Trace};
use crate::live::patch::Patch;
use crate::live::plan::{Form, Site};
use crate::live::recorder;
use crate::live::trampoline::{Context, Purpose};
use crate::live::trial::thread_pointer;

#[test]
fn adds_take_credits_and_keep_the_red_zone() {
    let fixture = Fixture::new(&[leaf, long_bases]);
    let mut object = [0, 0, 4 << 2 | 3, 0];
    let address = ptr::from_mut(&mut object) as u64;
    let left = fixture.patched(0, &mut object, 3, |fixture| {
        assert_eq!(fixture.call(0, [address, 5, 70]), 75);
        assert_eq!(fixture.call(1, [address, 9, 0]), 9);
    });
    // Four more: three from the table, one by the slow way.
    assert_eq!((left, object[SHARED], SLOW.get()), (0, 5 << 2 | 3, 1));
}

#[test]
fn swaps_take_and_bring_credits_and_leave_flags_as_they_would() {
    const ZERO: u64 = 1 << 6;
    let fixture = Fixture::new(&[swap]);
    let mut object = [0, 0, 40, 0];
    let address = ptr::from_mut(&mut object) as u64;
    let left = fixture.patched(0, &mut object, 2, |fixture| {
        assert_ne!(fixture.call(0, [address, 40, 44]) & ZERO, 0, "one more, from the table");
        assert_ne!(fixture.call(0, [address, 40, 36]) & ZERO, 0, "one less, into the table");
        assert_ne!(fixture.call(0, [address, 40, 36]) & ZERO, 0, "and one more of these");
        assert_ne!(fixture.call(0, [address, 40, 48]) & ZERO, 0, "something else is done");
        assert_eq!(fixture.call(0, [address, 40, 47]) & ZERO, 0, "and fails where it must");
    });
    assert_eq!((left, object[SHARED], SLOW.get()), (3, 48, 0));
}

#[test]
fn the_last_reference_is_dropped_by_the_code_itself() {
    let fixture = Fixture::new(&[swap]);
    let mut object = [0, 0, 7, 0];
    let address = ptr::from_mut(&mut object) as u64;
    let left = fixture.patched(0, &mut object, 2, |fixture| {
        fixture.call(0, [address, 7, 3]);
    });
    assert_eq!((left, object[SHARED]), (2, 3));
}

#[test]
fn a_drop_brings_an_object_into_the_table_and_credits_back() {
    let fixture = Fixture::new(&[drops]);
    let plan = fixture.plan(0).unwrap();
    assert!(matches!(plan.sites[..], [Site { form: Form::Drop { .. }, .. }]), "{:?}", plan.sites);
    let mut object = [0, 0, 5 << 2 | 3, 0];
    let address = ptr::from_mut(&mut object) as u64;
    let left = fixture.patched(0, &mut object, 2, |fixture| {
        assert_eq!(fixture.call(0, [address, 0, 0]), 0);
    });
    assert_eq!((left, object[SHARED], SLOW.get()), (3, 5 << 2 | 3, 0), "from the table");
    // Without credits: the slow way takes one reference in, and then no more.
    TAKES_IN.set(1);
    let left = fixture.patched(0, &mut object, 0, |fixture| {
        assert_eq!(fixture.call(0, [address, 0, 0]), 0);
        assert_eq!(fixture.call(0, [address, 0, 0]), 0);
    });
    assert_eq!((left, object[SHARED], SLOW.get()), (0, 4 << 2 | 3, 2));
    // The last one, whatever the table has.
    object[SHARED] = 7;
    let left = fixture.patched(0, &mut object, 2, |fixture| {
        assert_eq!(fixture.call(0, [address, 0, 0]), u64::MAX);
    });
    assert_eq!((left, object[SHARED], SLOW.get()), (2, 3, 2));
    // Nothing to take off: to be queued, which is another swap.
    object[SHARED] = 1;
    fixture.patched(0, &mut object, 2, |fixture| assert_eq!(fixture.call(0, [address, 0, 0]), 1));
}

#[test]
fn what_is_not_all_of_a_drop_is_a_swap() {
    let nearly: [Write; 3] = [
        // Readers of a lock: more than one, four less, none left.
        |a| {
            let (mut again, mut end) = (a.create_label(), a.create_label());
            a.set_label(&mut again)?;
            a.cmp(rax, 1)?;
            a.jbe(end)?;
            a.lea(rcx, at(rax - 4))?;
            a.lock().cmpxchg(qword_ptr(rdi), rcx)?;
            a.jne(again)?;
            a.cmp(rcx, 3)?;
            a.jbe(again)?;
            a.set_label(&mut end)?;
            a.ret()
        },
        |a| {
            let (mut again, mut end) = (a.create_label(), a.create_label());
            a.set_label(&mut again)?;
            a.cmp(rax, 1)?;
            a.jbe(end)?;
            a.lea(rcx, at(rax - 8))?;
            a.lock().cmpxchg(qword_ptr(rdi), rcx)?;
            a.jne(again)?;
            a.cmp(rcx, 3)?;
            a.jne(again)?;
            a.set_label(&mut end)?;
            a.ret()
        },
        |a| {
            a.lea(rcx, at(rax - 4))?;
            a.lock().cmpxchg(qword_ptr(rdi), rcx)?;
            a.ret()
        },
    ];
    for write in nearly {
        let plan = Fixture::new(&[write]).plan(0).unwrap();
        assert!(matches!(plan.sites[..], [Site { form: Form::Swap { .. }, .. }]), "{:?}", plan.sites);
    }
}

#[test]
fn the_entry_brings_credits_and_the_function_can_still_be_called() {
    let fixture = Fixture::new(&[leaf, drop_reference]);
    let entry = fixture.functions[1].start;
    let mut object = [0, 0, 40, 0];
    let address = ptr::from_mut(&mut object) as u64;
    let left = fixture.patched(entry, &mut object, 1, |fixture| {
        fixture.call(1, [address, 0, 0]);
    });
    assert_eq!((left, object[SHARED], SLOW.get()), (2, 40, 0));
    let left = fixture.patched(entry, &mut object, 0, |fixture| {
        fixture.call(1, [address, 0, 0]);
    });
    assert_eq!((left, object[SHARED], SLOW.get()), (0, 36, 1));
    let plan = fixture.plan(entry).unwrap();
    // SAFETY: nobody else runs this code.
    let patch = unsafe { Patch::prepare(&fixture.image, &plan, &helped()) }.unwrap();
    // SAFETY: the function's first instructions, and the rest of it.
    let original: extern "C" fn(u64) -> u64 = unsafe { std::mem::transmute(patch.original().unwrap()) };
    assert_eq!(original(address), address);
    assert_eq!(object[SHARED], 32);
}

/// Within one line of the caches, so that no part of it is locked with another line.
#[repr(align(64))]
struct Line(Object);

#[test]
fn what_is_recorded_is_what_the_code_does() {
    const ZERO: u64 = 1 << 6;
    let fixture = Fixture::new(&[leaf, swap, drop_reference, drops]);
    let entry = fixture.functions[2].start;
    let context = Context { purpose: Purpose::Record { note: recorder::note as *const () as usize }, ..context() };
    // Of this thread's making; what is at the others' place is no object, as far as is known.
    let mut object: Object = [thread_pointer() as u64, 0, 40, 0];
    let mut lock = Line([1, 2, 40, 3]);
    let (address, other) = (ptr::from_mut(&mut object) as u64, ptr::from_mut(&mut lock) as u64);
    assert!(recorder::open(6) && !recorder::open(6));
    fixture.replaced(&context, entry, |fixture| {
        assert_eq!(fixture.call(0, [address, 5, 70]), 75, "the red zone is kept");
        assert_ne!(fixture.call(1, [address, 44, 48]) & ZERO, 0, "one more");
        assert_ne!(fixture.call(1, [address, 48, 44]) & ZERO, 0, "one less");
        assert_ne!(fixture.call(1, [address, 44, 52]) & ZERO, 0, "something else");
        assert_eq!(fixture.call(1, [address, 44, 48]) & ZERO, 0, "and one that fails");
        assert_ne!(fixture.call(1, [other, 40, 44]) & ZERO, 0, "a reader more");
        let bytes = 3 << 56;
        assert_ne!(fixture.call(1, [other + 1, bytes, bytes + 4]) & ZERO, 0, "where no object can be");
        assert_eq!(fixture.call(3, [address, 0, 0]), 0, "one less, and not the last");
        let turns = |fixture: &Fixture| {
            assert_eq!(fixture.call(2, [address, 0, 0]), address);
            (0..7).for_each(|_| _ = fixture.call(0, [address, 0, 0]));
        };
        std::thread::scope(|scope| scope.spawn(|| turns(fixture)).join()).unwrap();
        recorder::close();
        fixture.call(0, [address, 0, 0]);
    });
    assert_eq!((object[SHARED], lock.0[SHARED]), (52 - 2 * 4 + 7 * 4 + 4, 44 + (4 << 8)), "it was counted");
    let trace = Trace::read(&recorder::write(&BTreeMap::new()).unwrap()).unwrap();
    assert_eq!(trace.objects, [trace::Object { address, owner: Some(0), immortal: false }]);
    let [here, there] = &trace.threads[..] else { panic!("{} threads", trace.threads.len()) };
    let (more, less) = (Event::Increment(0), Event::Decrement(0));
    assert_eq!(here.events, [more, more, less, less]);
    assert_eq!(there.events[0], less);
    assert_eq!((there.counts(), there.lost), ((5, 1), 2));
    assert!(there.start_ns > here.start_ns && recorder::unseen() == 0);
}

#[test]
fn code_that_somebody_else_has_changed_is_not_touched() {
    let mut fixture = Fixture::new(&[adds, leaf]);
    let plan = fixture.plan(0).unwrap();
    // SAFETY: nobody else runs this code.
    let patch = unsafe { Patch::prepare(&fixture.image, &plan, &helped()) }.unwrap();
    // Of the last site; the first is as it was.
    let last = plan.sites[1].address - fixture.pages.start();
    fixture.pages.open().unwrap();
    fixture.pages.write(last, &[0x90]);
    fixture.pages.seal().unwrap();
    let before = fixture.bytes();
    // SAFETY: as above.
    let error = unsafe { patch.apply() }.unwrap_err();
    assert_eq!(error.to_string(), "somebody else has changed it");
    assert_eq!(fixture.bytes(), before);
}
