//! Small functions with sites, written for the purpose: planned, patched, run, reverted;
//! and such as must be left alone.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr;

use iced_x86::code_asm::{
    dword_ptr, eax, ptr as at, qword_ptr, r12, r8, r9b, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp, AsmRegister64,
    CodeAssembler,
};
use iced_x86::IcedError;

use super::{context, here, WORD};
use crate::lab::trace::{self, Event, Trace};
use crate::live::image::Image;
use crate::live::memory::Pages;
use crate::live::patch::Patch;
use crate::live::plan::{plan_functions, Form, Hook, Plan, Site, JUMP};
use crate::live::recorder;
use crate::live::trampoline::{Context, Purpose};
use crate::live::trial::thread_pointer;

/// An object: its shared count is the third word.
pub(super) type Object = [u64; 4];
pub(super) const SHARED: usize = 2;

/// A table of one pair of slots.
#[repr(C)]
pub(super) struct Buffer {
    pub(super) busy: u32,
    pub(super) attention: u32,
    pub(super) byte_mask: usize,
    pub(super) slots: *mut [u64; 2],
    pub(super) skip: i64,
}

thread_local! {
    static SLOW: Cell<usize> = const { Cell::new(0) };
    static TAKES_IN: Cell<usize> = const { Cell::new(0) };
}

unsafe extern "C" fn increment(object: *mut Object) {
    SLOW.set(SLOW.get() + 1);
    // SAFETY: the tests' own object.
    unsafe { (*object)[SHARED] += 4 };
}

unsafe extern "C" fn take_in(_object: *mut Object) -> bool {
    SLOW.set(SLOW.get() + 1);
    let left = TAKES_IN.get();
    TAKES_IN.set(left.saturating_sub(1));
    left > 0
}

unsafe extern "C" fn decrement(object: *mut Object) {
    SLOW.set(SLOW.get() + 1);
    // SAFETY: as above.
    unsafe { (*object)[SHARED] -= 4 };
}

pub(super) fn helped() -> Context {
    Context {
        purpose: Purpose::Buffer {
            increment: increment as unsafe extern "C" fn(*mut Object) as usize,
            decrement: decrement as unsafe extern "C" fn(*mut Object) as usize,
            take_in: take_in as unsafe extern "C" fn(*mut Object) -> bool as usize,
        },
        ..context()
    }
}

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Code in memory, as an image.
pub(super) struct Fixture {
    pages: Pages,
    pub(super) image: Image,
    pub(super) functions: Vec<Range<usize>>,
}

impl Fixture {
    /// One function.
    fn of_parts(writes: &[Write]) -> Fixture {
        let mut fixture = Fixture::new(writes);
        let whole = fixture.functions[0].start..fixture.functions.last().unwrap().end;
        fixture.functions = vec![whole];
        fixture
    }

    /// Functions one behind the other, without a gap.
    pub(super) fn new(writes: &[Write]) -> Fixture {
        let mut pages = Pages::near(here()..here() + 1, 4096).unwrap();
        let mut functions = Vec::new();
        let mut used = 0;
        for write in writes {
            let mut a = CodeAssembler::new(64).unwrap();
            write(&mut a).unwrap();
            let code = a.assemble((pages.start() + used) as u64).unwrap();
            pages.write(used, &code);
            functions.push(pages.start() + used..pages.start() + used + code.len());
            used += code.len();
        }
        pages.seal().unwrap();
        let image = Image::of_code(pages.start()..pages.start() + used);
        Fixture { pages, image, functions }
    }

    /// Without the interpreter's function; or with it at `entry`.
    pub(super) fn plan(&self, entry: usize) -> Result<Plan, String> {
        // SAFETY: nobody else knows this code.
        unsafe { plan_functions(&self.image, &self.functions, entry, Hook::Entry) }.map_err(String::from)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        // SAFETY: our own pages.
        unsafe { self.image.bytes(self.image.code[0].clone()) }.to_vec()
    }

    /// Of a function, once its first instructions have been passed.
    fn reasons(&self) -> Vec<&'static str> {
        self.plan(0).unwrap().left_alone.iter().map(|left| left.reason).collect()
    }

    pub(super) fn call(&self, function: usize, arguments: [u64; 3]) -> u64 {
        let [first, second, third] = arguments;
        // SAFETY: code of this test, of that type.
        unsafe {
            let function: extern "C" fn(u64, u64, u64) -> u64 = std::mem::transmute(self.functions[function].start);
            function(first, second, third)
        }
    }

    /// Calls functions while the sites are replaced.
    fn replaced(&self, context: &Context, entry: usize, work: impl FnOnce(&Fixture)) {
        let plan = self.plan(entry).unwrap();
        let before = self.bytes();
        // SAFETY: nobody else runs this code.
        let patch = unsafe { Patch::prepare(&self.image, &plan, context) }.unwrap();
        // SAFETY: as above.
        unsafe { patch.apply() }.unwrap();
        for site in &plan.sites {
            let offset = site.address - self.pages.start();
            let after = self.bytes();
            assert_eq!(after[offset], 0xE9, "a jump");
            assert!(after[offset + JUMP..offset + site.length].iter().all(|&byte| byte == 0xCC));
        }
        work(self);
        // SAFETY: as above.
        unsafe { patch.revert() }.unwrap();
        assert_eq!(self.bytes(), before, "as it was");
    }

    /// The same, counting through a table that has so many credits for the object.
    fn patched(&self, entry: usize, object: &mut Object, credits: u64, work: impl FnOnce(&Fixture)) -> u64 {
        let mut slots = [[ptr::from_mut(object) as u64, credits], [0, 0]];
        let mut buffer = Buffer { busy: 0, attention: 0, byte_mask: 0, slots: slots.as_mut_ptr(), skip: -1 };
        WORD.set(ptr::from_mut(&mut buffer) as usize);
        self.replaced(&helped(), entry, work);
        assert_eq!((buffer.busy, slots[0][0]), (0, ptr::from_mut(object) as u64));
        slots[0][1] & 0xFF_FFFF
    }
}

/// Looks at the owner, as `Py_INCREF` does.
fn look(a: &mut CodeAssembler, object: AsmRegister64) -> Result<(), IcedError> {
    a.mov(rax, qword_ptr(0).fs())?;
    a.cmp(rax, qword_ptr(object))
}

/// Counts one more, and keeps its arguments below the stack pointer meanwhile.
pub(super) fn leaf(a: &mut CodeAssembler) -> Result<(), IcedError> {
    look(a, rdi)?;
    a.mov(qword_ptr(rsp - 8), rsi)?;
    a.mov(qword_ptr(rsp - 120), rdx)?;
    a.lock().add(qword_ptr(rdi + 16), 4)?;
    a.mov(rax, qword_ptr(rsp - 8))?;
    a.add(rax, qword_ptr(rsp - 120))?;
    a.ret()
}

/// Counts one more.
pub(super) fn adds(a: &mut CodeAssembler) -> Result<(), IcedError> {
    look(a, rdi)?;
    a.lock().add(qword_ptr(rdi + 16), 4)?;
    a.mov(rax, rsi)?;
    a.ret()
}

/// Swaps rsi for rdx at an indexed place; returns the flags.
fn swap(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, rsi)?;
    a.mov(rcx, 2u64)?;
    a.lock().cmpxchg(qword_ptr(rdi + rcx * 8), rdx)?;
    a.pushfq()?;
    a.pop(rax)?;
    a.ret()
}

/// Adds with all the bases that make the instruction longer.
fn long_bases(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(r12)?;
    a.push(rbp)?;
    a.mov(r12, rdi)?;
    look(a, r12)?;
    a.lock().add(qword_ptr(r12 + 16), 4)?;
    a.mov(rbp, rdi)?;
    look(a, rbp)?;
    a.lock().add(qword_ptr(rbp + 16), 4)?;
    a.mov(r8, rdi)?;
    look(a, r8)?;
    a.lock().add(qword_ptr(r8 + 16), 4)?;
    a.pop(rbp)?;
    a.pop(r12)?;
    a.mov(rax, rsi)?;
    a.ret()
}

/// Counts one less, as `_Py_DecRefShared`.
pub(super) fn drop_reference(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rbx)?;
    a.mov(rbx, rdi)?;
    a.lock().sub(qword_ptr(rbx + 16), 4)?;
    a.mov(rax, rbx)?;
    a.pop(rbx)?;
    a.ret()
}

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

/// As gcc has the middle of `_Py_DecRefShared`; rdi is the object, and what is returned
/// says whether it is dead.
pub(super) fn drops(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut queue, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.lea(rdx, at(rdi + 16))?;
    a.mov(rax, qword_ptr(rdi + 16))?;
    a.set_label(&mut again)?;
    a.cmp(rax, 1)?;
    a.jbe(queue)?;
    a.lea(rcx, at(rax - 4))?;
    a.lock().cmpxchg(qword_ptr(rdx), rcx)?;
    a.jne(again)?;
    a.cmp(rcx, 3)?;
    a.jne(end)?;
    a.mov(rax, u64::MAX)?;
    a.ret()?;
    a.set_label(&mut queue)?;
    a.mov(rax, 1u64)?;
    a.ret()?;
    a.set_label(&mut end)?;
    a.xor(eax, eax)?;
    a.ret()
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

#[test]
fn an_add_whose_flags_are_read_is_left_alone() {
    let fixture = Fixture::new(&[|a| {
        let mut end = a.create_label();
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.je(end)?;
        a.mov(rax, rsi)?;
        a.set_label(&mut end)?;
        a.ret()
    }]);
    assert_eq!(fixture.reasons(), ["its flags are read"]);
}

#[test]
fn an_add_to_what_may_be_no_object_is_left_alone() {
    const WHY: &str = "nothing before it shows that it counts an object";
    let count: Write = |a| {
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.ret()
    };
    assert_eq!(Fixture::new(&[count]).reasons(), [WHY]);
    let writes: [Write; 9] = [
        // Something else, or only once; another word; another object's; a call, or another value, in
        // between; on one way of two; a nop, and nothing.
        |a| a.nop(),
        |a| look(a, rsi),
        |a| {
            look(a, rdi)?;
            a.mov(rdi, rsi)
        },
        |a| a.cmp(rax, qword_ptr(rdi)),
        |a| {
            a.mov(rax, qword_ptr(0).fs())?;
            a.cmp(rax, qword_ptr(rdi + 8))
        },
        |a| {
            look(a, rdi)?;
            a.call(rsi)
        },
        |a| {
            a.mov(rax, qword_ptr(0).fs())?;
            a.call(rsi)?;
            a.cmp(rax, qword_ptr(rdi))
        },
        |a| {
            a.mov(rax, qword_ptr(0).fs())?;
            a.inc(eax)?;
            a.cmp(qword_ptr(rdi), rax)
        },
        |a| {
            let mut there = a.create_label();
            a.test(rsi, rsi)?;
            a.je(there)?;
            look(a, rdi)?;
            a.set_label(&mut there)?;
            a.nop()
        },
    ];
    for write in writes {
        // One function: its parts are written one after the other.
        let fixture = Fixture::of_parts(&[write, count]);
        assert_eq!(fixture.reasons(), [WHY]);
    }
    // A loop into which a computed jump goes: its ways are its own.
    let loops: Write = |a| {
        let (mut out, mut again) = (a.create_label(), a.create_label());
        a.mov(rbx, qword_ptr(0).fs())?;
        a.cmp(qword_ptr(rdi), rbx)?;
        a.je(out)?;
        a.jmp(rsi)?;
        a.nop()?;
        a.set_label(&mut again)?;
        a.lock().add(qword_ptr(rax + 16), 4)?;
        a.mov(rax, qword_ptr(rax))?;
        a.test(rax, rax)?;
        a.jne(again)?;
        a.set_label(&mut out)?;
        a.ret()
    };
    assert_eq!(Fixture::new(&[loops]).reasons(), [WHY]);
    // The way comes from behind; by a register that a call keeps.
    let both: Write = |a| {
        let (mut here, mut there, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rbx, qword_ptr(0).fs())?;
        a.jmp(there)?;
        // Fills up a line.
        a.nop()?;
        a.set_label(&mut here)?;
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.jmp(end)?;
        a.set_label(&mut there)?;
        a.call(rsi)?;
        a.mov(rdi, rcx)?;
        a.cmp(qword_ptr(rdi), rbx)?;
        a.jne(here)?;
        a.set_label(&mut end)?;
        a.ret()
    };
    let plan = Fixture::new(&[both]).plan(0).unwrap();
    assert_eq!((plan.sites.len(), plan.left_alone.len()), (1, 0));
}

#[test]
fn in_the_interpreter_the_form_of_an_add_is_proof() {
    let count: Write = |a| {
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.ret()
    };
    let fixture = Fixture::new(&[count, drop_reference]);
    let plan = fixture.plan(fixture.functions[1].start).unwrap();
    assert_eq!((plan.sites.len(), plan.left_alone.len()), (1, 0));
}

#[test]
fn a_site_with_a_branch_into_it_is_left_alone() {
    /// Into the middle of the instruction, which is 6 bytes long: there is `add [rdi+16], 4`.
    fn inside(a: &mut CodeAssembler) -> Result<(), IcedError> {
        look(a, rdi)?;
        let mut site = a.create_label();
        a.je(site)?;
        a.db(&[0xF0])?;
        a.set_label(&mut site)?;
        a.add(qword_ptr(rdi + 16), 4)?;
        a.ret()
    }
    let fixture = Fixture::new(&[inside]);
    assert_eq!(fixture.reasons(), ["a branch goes into the middle of it"]);

    // From a function without any site: that one is not decoded at first.
    let branches: [Write; 2] = [|a| a.db(&[0xEB, 16]), |a| a.db(&[0xE9, 16, 0, 0, 0])];
    for branch in branches {
        let fixture = Fixture::new(&[branch, adds]);
        assert_eq!(fixture.reasons(), ["a branch goes into the middle of it"]);
    }
}

#[test]
fn what_looks_like_a_branch_and_is_none_does_no_harm() {
    // The same bytes as those of the far branch, within an instruction's constant.
    let fixture = Fixture::new(&[|a| a.db(&[0x48, 0xB8, 0, 0, 0, 0xE9, 16, 0, 0, 0]), adds]);
    let plan = fixture.plan(0).unwrap();
    assert_eq!((plan.sites.len(), plan.left_alone.len()), (1, 0));
}

#[test]
fn bytes_that_are_no_function_and_may_branch_into_a_site_count_as_a_branch() {
    let mut fixture = Fixture::new(&[|a| a.db(&[0xE9, 16, 0, 0, 0]), adds]);
    fixture.functions.remove(0);
    assert_eq!(fixture.reasons(), ["a branch goes into the middle of it"]);
}

#[test]
fn other_forms_are_left_alone() {
    let on_stack = Fixture::new(&[|a| {
        a.lock().add(qword_ptr(rsp + 16), 4)?;
        a.ret()
    }]);
    assert_eq!(on_stack.reasons(), ["its object is in the stack"]);
    let broken = Fixture::new(&[|a| {
        a.db(&[0x06])?;
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.ret()
    }]);
    assert_eq!(broken.reasons(), ["the function holds what is not an instruction"]);
    let stack_value = Fixture::new(&[|a| {
        a.lock().cmpxchg(qword_ptr(rdi), rsp)?;
        a.ret()
    }]);
    assert_eq!(stack_value.reasons(), ["its operands are of another form"]);
}

#[test]
fn what_does_not_count_an_object_is_no_site() {
    let fixture = Fixture::new(&[|a| {
        a.lock().add(qword_ptr(rdi + 16), 8)?;
        a.lock().add(qword_ptr(rdi + 24), 4)?;
        a.lock().add(dword_ptr(rdi + 16), 4)?;
        a.lock().add(qword_ptr(rdi + rsi * 8 + 16), 4)?;
        a.lock().sub(qword_ptr(rdi + 16), 4)?;
        a.lock().add(qword_ptr(16).fs(), 4)?;
        a.lock().cmpxchg(dword_ptr(rdi + 16), iced_x86::code_asm::edx)?;
        a.lock().cmpxchg(qword_ptr(rsp + 16), rdx)?;
        a.lock().cmpxchg(qword_ptr(16).fs(), rdx)?;
        a.add(qword_ptr(rdi + 16), 4)?;
        a.mov(rax, rsi)?;
        a.ret()
    }]);
    let plan = fixture.plan(0).unwrap();
    assert_eq!((plan.sites.len(), plan.left_alone.len()), (0, 0));
}

#[test]
fn an_entry_that_cannot_be_moved_is_refused() {
    let heads: [Write; 3] = [
        // A branch, what is relative to itself, and too few bytes.
        |a| {
            a.db(&[0xEB, 0])?;
            a.mov(rax, rdi)?;
            a.ret()
        },
        |a| {
            a.db(&[0x48, 0x8B, 0x05, 0, 0, 0, 0])?;
            a.ret()
        },
        |a| a.ret(),
    ];
    for head in heads {
        let fixture = Fixture::new(&[head]);
        let error = fixture.plan(fixture.functions[0].start).unwrap_err();
        assert_eq!(error, "the first instructions of _Py_DecRefShared cannot be moved");
    }
    let looped = Fixture::new(&[|a| {
        // Back to its second instruction.
        let mut inside = a.create_label();
        a.mov(rbx, rdi)?;
        a.set_label(&mut inside)?;
        a.mov(rax, rsi)?;
        a.dec(rsi)?;
        a.jne(inside)?;
        a.ret()
    }]);
    let error = looped.plan(looped.functions[0].start).unwrap_err();
    assert_eq!(error, "a branch goes into the first bytes of _Py_DecRefShared");
    let elsewhere = Fixture::new(&[leaf]);
    let error = elsewhere.plan(elsewhere.functions[0].start + 1).unwrap_err();
    assert_eq!(error, "_Py_DecRefShared is not among its functions");
}

#[test]
fn registers_that_are_written_before_they_are_read_are_free() {
    let fixture = Fixture::new(&[|a| {
        look(a, rdi)?;
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.mov(rax, rsi)?;
        a.xor(rcx, rcx)?;
        a.lea(rdx, at(rax + 8))?;
        a.mov(r8, rdx)?;
        // A part: the rest is still what it was.
        a.mov(r9b, 1)?;
        a.ret()
    }]);
    let plan = fixture.plan(0).unwrap();
    let free = plan.sites[0].needs.free;
    use iced_x86::Register;
    // xor reads what it clears, as far as the decoder knows; a return may need the rest.
    for register in [Register::RAX, Register::RDX, Register::R8] {
        assert!(free.holds(register), "{register:?}");
    }
    for register in [Register::RSI, Register::RDI, Register::RBX, Register::R9, Register::RSP] {
        assert!(!free.holds(register), "{register:?}");
    }
    assert!(!plan.sites[0].needs.flags && plan.sites[0].red_zone);
}
