//! Small functions with sites, written for the purpose, to be planned, patched, run, reverted.

use std::cell::Cell;
use std::ops::Range;
use std::ptr;

use iced_x86::code_asm::{
    eax, ptr as at, qword_ptr, r12, r8, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp, AsmRegister64, CodeAssembler,
};
use iced_x86::IcedError;

use super::{context, here, WORD};
use crate::live::image::Image;
use crate::live::memory::Pages;
use crate::live::patch::Patch;
use crate::live::plan::{plan_functions, Hook, Plan, JUMP};
use crate::live::trampoline::{Context, Purpose};

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
    pub(super) static SLOW: Cell<usize> = const { Cell::new(0) };
    pub(super) static TAKES_IN: Cell<usize> = const { Cell::new(0) };
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

pub(super) type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Code in memory, as an image.
pub(super) struct Fixture {
    pub(super) pages: Pages,
    pub(super) image: Image,
    pub(super) functions: Vec<Range<usize>>,
}

impl Fixture {
    /// One function.
    pub(super) fn of_parts(writes: &[Write]) -> Fixture {
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
    pub(super) fn reasons(&self) -> Vec<&'static str> {
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
    pub(super) fn replaced(&self, context: &Context, entry: usize, work: impl FnOnce(&Fixture)) {
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
    pub(super) fn patched(&self, entry: usize, object: &mut Object, credits: u64, work: impl FnOnce(&Fixture)) -> u64 {
        let mut slots = [[ptr::from_mut(object) as u64, credits], [0, 0]];
        let mut buffer = Buffer { busy: 0, attention: 0, byte_mask: 0, slots: slots.as_mut_ptr(), skip: -1 };
        WORD.set(ptr::from_mut(&mut buffer) as usize);
        self.replaced(&helped(), entry, work);
        assert_eq!((buffer.busy, slots[0][0]), (0, ptr::from_mut(object) as u64));
        slots[0][1] & 0xFF_FFFF
    }
}

/// Looks at the owner, as `Py_INCREF` does.
pub(super) fn look(a: &mut CodeAssembler, object: AsmRegister64) -> Result<(), IcedError> {
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
pub(super) fn swap(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, rsi)?;
    a.mov(rcx, 2u64)?;
    a.lock().cmpxchg(qword_ptr(rdi + rcx * 8), rdx)?;
    a.pushfq()?;
    a.pop(rax)?;
    a.ret()
}

/// Adds with all the bases that make the instruction longer.
pub(super) fn long_bases(a: &mut CodeAssembler) -> Result<(), IcedError> {
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
