//! Machine code in the place of an instruction: looks into the thread's table first, and
//! does what the instruction did where that has nothing.
//!
//! ```text
//! add     buffer = fs:[word]; stands aside?     → the instruction itself
//!         slot for the object, gate, a credit?  → one credit less
//!         otherwise                             → the slow way, all registers kept
//! swap    not old + 4 nor old - 4?              → the instruction itself
//!         slot, gate, credits?                  → one less or more, "swapped" in the flags
//!         otherwise                             → the instruction itself
//! drop    old is 7?                             → the instruction itself
//!         slot, gate, credits?                  → one more, "swapped" in the flags
//!         otherwise                             → the slow way, which may take it in; or the
//!                                                 instruction itself
//! entry   as add, one credit more               → returns to the caller
//!         otherwise                             → the slow way is a tail call
//! ```
//!
//! A compare-and-swap of `old` to `old + 4` at an address is an increment if that
//! address is the count of an object in the table; otherwise it may be anything, as a
//! reader-writer lock that counts readers in fours. So a swap serves hits alone, and never
//! brings an object into the table.
//!
//! For recording, a second kind: CPython counts, and somebody is told of it.
//!
//! ```text
//! add     the instruction itself, then the slow way with the object
//! swap    the instruction itself; succeeded, by old + 4 or old - 4, at a place where
//!         an object's count may be? then the slow way with that object
//! drop    the instruction itself; succeeded? then the slow way with the object
//! entry   the slow way with the object, then the function itself
//! ```
//!
//! Registers that the code behind a site needs are pushed, below the red zone where
//! the function may have one. Vector registers are touched by the slow way alone, which
//! keeps them by `xsave`.

use std::ops::Range;
use std::sync::OnceLock;

use iced_x86::code_asm::{al, eax, edx};
use iced_x86::code_asm::{
    dword_ptr, get_gpr64, ptr, qword_ptr, r10, r11, r8, r9, rax, rbp, rcx, rdi, rdx, rsi, rsp, AsmMemoryOperand,
    AsmRegister64, CodeAssembler, CodeLabel,
};
use iced_x86::{BlockEncoderOptions, IcedError, OpKind, Register};

use super::flow::GENERAL;
use super::plan::{Entry, Form, Operand, Site, ONE, SHARED};

/// A leaf function may use so many bytes below the stack pointer (System V ABI).
const RED_ZONE: i32 = 128;
/// A count that is merged, and of one.
pub const LAST: u64 = 7;
/// Most bytes of a trampoline.
pub const LARGEST: usize = 320;
/// x87, SSE, AVX, and the three of AVX-512: what compilers use without being told.
const VECTOR_STATE: u32 = 0xE7;

/// What trampolines go by: the buffer's layout, and who helps.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// From the thread pointer to the word that says where the buffer is.
    pub word: isize,
    /// In a buffer's head: see include/refbuf_table.h.
    pub buffer: BufferLayout,
    /// What is done at a site, and whom the slow ways call.
    pub purpose: Purpose,
    /// What `xsave` needs: see [`vector_bytes`].
    pub vector_bytes: usize,
}

/// What trampolines are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To count through the buffers. All three count on the object in their argument, as C
    /// calls them.
    Buffer {
        /// One more.
        increment: usize,
        /// One less.
        decrement: usize,
        /// One less if the reference can be taken in; true if it has.
        take_in: usize,
    },
    /// To have what CPython counts written down.
    Record {
        /// Is told of a count, as C calls it: the object's address with a [`tag`] in it.
        note: usize,
    },
}

impl Purpose {
    /// What the slow ways call: that of a drop, and those of all others.
    pub fn slow_ways(self) -> [usize; 2] {
        match self {
            Purpose::Buffer { increment, take_in, .. } => [take_in, increment],
            Purpose::Record { note } => [note, note],
        }
    }
}

/// What has been counted, in the low bits of an object's address.
pub mod tag {
    /// All of them: where an object lies, they are clear.
    pub const BITS: usize = 7;
    /// One less; without it, one more.
    pub const DECREMENT: usize = 1;
    /// A swap: the address may be no object's, or that of one that is gone.
    pub const CANDIDATE: usize = 2;
    /// The object may be gone.
    pub const GONE: usize = 4;
}

/// Offsets and masks of include/refbuf_table.h.
#[derive(Clone, Copy, Debug)]
pub struct BufferLayout {
    /// Of the word that keeps settlers out.
    pub busy: i32,
    /// Of the word by which they are heard.
    pub attention: i32,
    /// Of the mask of pairs.
    pub byte_mask: i32,
    /// Of the pointer to the slots.
    pub slots: i32,
    /// Of the count of operations that stand aside.
    pub skip: i32,
    /// Bytes of a slot, whose first word is the object.
    pub slot_size: i32,
    /// Of its second word.
    pub slot_word: i32,
    /// The hash multiplies by this.
    pub mix: u64,
    /// And shifts right by so many bits.
    pub hash_shift: u32,
    /// Mask of the credits in a word.
    pub credits: u32,
    /// A full slot has this bit.
    pub credit_limit: u32,
    /// What a credit that comes back adds.
    pub refund: i32,
}

/// Components of `mask` that this processor has and this system keeps.
pub fn vectors_here(mask: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register that every system with xsave lets programs read.
    unsafe { std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    (u64::from(high) << 32 | u64::from(low)) & u64::from(mask)
}

/// Where in the area of `xsave` the components of `mask` are, behind x87 and SSE.
pub fn vector_parts(mask: u32) -> impl Iterator<Item = Range<usize>> {
    // Kept: hypervisors make this instruction a slow one.
    static PARTS: OnceLock<[Range<usize>; 8]> = OnceLock::new();
    let parts = PARTS.get_or_init(|| {
        std::array::from_fn(|number| {
            #[allow(unused_unsafe)] // It has become a safe function.
            // SAFETY: every processor with xsave has this leaf.
            let leaf = unsafe { std::arch::x86_64::__cpuid_count(0xD, number as u32) };
            leaf.ebx as usize..(leaf.ebx + leaf.eax) as usize
        })
    });
    let here = vectors_here(mask);
    (2..8).filter(move |number| here >> number & 1 != 0).map(|number| parts[number].clone())
}

/// Bytes that `xsave` needs for [`VECTOR_STATE`] on this processor.
pub fn vector_bytes() -> usize {
    // The legacy part and the header come first.
    vector_parts(VECTOR_STATE).map(|part| part.end).max().unwrap_or(0).max(576)
}

/// Whether the processor and the system keep vector registers by `xsave`.
pub fn has_xsave() -> bool {
    #[allow(unused_unsafe)] // As above.
    // SAFETY: leaf 1 is everywhere.
    let leaf = unsafe { std::arch::x86_64::__cpuid(1) };
    leaf.ecx >> 27 & 1 != 0
}

fn gpr(register: Register) -> AsmRegister64 {
    get_gpr64(register).unwrap_or_else(|| unreachable!("a general register of 64 bits"))
}

fn place(operand: Operand) -> AsmMemoryOperand {
    let mut place = ptr(0);
    place = match (operand.base, operand.index) {
        (Register::None, Register::None) => place,
        (base, Register::None) => ptr(gpr(base)),
        (Register::None, index) => ptr(gpr(index) * operand.scale as i32),
        (base, index) => ptr(gpr(base) + gpr(index) * operand.scale as i32),
    };
    place + operand.displacement as i32
}

/// Registers for the way, and the code that keeps those that are needed behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Loan {
    scratch: Vec<Register>,
    saved: Vec<Register>,
    red_zone: bool,
}

impl Loan {
    fn new(site: &Site, count: usize) -> Loan {
        let operands = site.operands();
        let usable = || GENERAL.iter().copied().filter(|&register| !operands.holds(register));
        let free = usable().filter(|&register| site.needs.free.holds(register));
        let rest = usable().filter(|&register| !site.needs.free.holds(register));
        let chosen: Vec<Register> = free.chain(rest).take(count).collect();
        let saved = chosen.iter().copied().filter(|&register| !site.needs.free.holds(register));
        Loan { saved: saved.collect(), scratch: chosen, red_zone: site.red_zone }
    }

    fn take(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.saved.is_empty() {
            return Ok(());
        }
        if self.red_zone {
            a.lea(rsp, ptr(rsp - RED_ZONE))?;
        }
        self.saved.iter().try_for_each(|&register| a.push(gpr(register)))
    }

    fn pop(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        self.saved.iter().rev().try_for_each(|&register| a.pop(gpr(register)))
    }

    /// Neither pop nor lea changes flags.
    fn give_back(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        self.pop(a)?;
        if !self.saved.is_empty() && self.red_zone {
            a.lea(rsp, ptr(rsp + RED_ZONE))?;
        }
        Ok(())
    }
}

/// `slot` becomes the one of the pair for `object`; goes to `missed` where neither is.
fn find_slot(
    a: &mut CodeAssembler,
    layout: &BufferLayout,
    object: AsmRegister64,
    buffer: AsmRegister64,
    slot: AsmRegister64,
    missed: CodeLabel,
) -> Result<(), IcedError> {
    let mut found = a.create_label();
    a.mov(slot, layout.mix)?;
    a.imul_2(slot, object)?;
    a.shr(slot, layout.hash_shift)?;
    a.and(slot, qword_ptr(buffer + layout.byte_mask))?;
    a.add(slot, qword_ptr(buffer + layout.slots))?;
    a.cmp(qword_ptr(slot), object)?;
    a.je(found)?;
    a.add(slot, layout.slot_size)?;
    a.cmp(qword_ptr(slot), object)?;
    a.jne(missed)?;
    a.set_label(&mut found)
}

/// Into the gate: see `refbuf_enter`.
fn enter(
    a: &mut CodeAssembler,
    layout: &BufferLayout,
    buffer: AsmRegister64,
    shut: CodeLabel,
) -> Result<(), IcedError> {
    a.mov(dword_ptr(buffer + layout.busy), 1)?;
    a.cmp(dword_ptr(buffer + layout.attention), 0)?;
    a.jne(shut)
}

fn leave(a: &mut CodeAssembler, layout: &BufferLayout, buffer: AsmRegister64) -> Result<(), IcedError> {
    a.mov(dword_ptr(buffer + layout.busy), 0)
}

/// A credit less, inside the gate.
fn spend(a: &mut CodeAssembler, layout: &BufferLayout, slot: AsmRegister64, none: CodeLabel) -> Result<(), IcedError> {
    a.test(dword_ptr(slot + layout.slot_word), layout.credits as i32)?;
    a.je(none)?;
    a.sub(qword_ptr(slot + layout.slot_word), 1)
}

/// A credit more, inside the gate, where there are some and room for more.
fn refund(a: &mut CodeAssembler, layout: &BufferLayout, slot: AsmRegister64, none: CodeLabel) -> Result<(), IcedError> {
    a.test(dword_ptr(slot + layout.slot_word), layout.credits as i32)?;
    a.je(none)?;
    // The limit is a power of two: full is whoever has its bit.
    a.test(dword_ptr(slot + layout.slot_word), layout.credit_limit as i32)?;
    a.jne(none)?;
    a.add(qword_ptr(slot + layout.slot_word), layout.refund)
}

/// The thread's buffer; goes to `aside` where it stands aside, which counts down there: see
/// [`stand_aside`]. Not as refbuf.h does, which counts in any case: operations that the table
/// serves would wait for each other's count.
fn find_buffer(
    a: &mut CodeAssembler,
    context: &Context,
    buffer: AsmRegister64,
    aside: CodeLabel,
) -> Result<(), IcedError> {
    a.mov(buffer, qword_ptr(context.word as u64).fs())?;
    a.cmp(qword_ptr(buffer + context.buffer.skip), 0)?;
    a.jg(aside)
}

/// One operation less to stand aside.
fn stand_aside(a: &mut CodeAssembler, layout: &BufferLayout, buffer: AsmRegister64) -> Result<(), IcedError> {
    a.sub(qword_ptr(buffer + layout.skip), 1)
}

/// The code for all sites of a shape: that of one, but for where it goes in the end.
#[derive(Clone, Debug)]
pub struct Template {
    code: Vec<u8>,
    /// Where in it distances of four bytes are, and to what.
    distances: Vec<(usize, Target)>,
}

/// Where a trampoline goes.
#[derive(Clone, Copy, Debug)]
enum Target {
    Back,
    Slow,
}

/// What two sites have in common if their code is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    form: Form,
    loan: Loan,
}

impl Shape {
    /// Of a site.
    pub fn of(site: &Site, context: &Context) -> Shape {
        let count = match (context.purpose, site.form) {
            (Purpose::Buffer { .. }, Form::Add { .. }) => 2,
            (Purpose::Buffer { .. }, Form::Swap { .. } | Form::Drop { .. }) => 3,
            (Purpose::Record { .. }, Form::Add { .. }) => 0,
            (Purpose::Record { .. }, Form::Swap { .. } | Form::Drop { .. }) => 1,
        };
        Shape { form: site.form, loan: Loan::new(site, count) }
    }

    /// Registers that its code pushes.
    pub fn pushes(&self) -> usize {
        self.loan.saved.len()
    }
}

impl Template {
    /// The code for a shape.
    ///
    /// # Errors
    ///
    /// Where an instruction cannot be written: a bug.
    pub fn new(shape: &Shape, context: &Context) -> Result<Template, IcedError> {
        // Anywhere, as long as jumps to the one and the other are long.
        const AT: u64 = 1 << 40;
        const BACK: u64 = AT + (1 << 30);
        const SLOW: u64 = AT + (1 << 29);
        let mut a = CodeAssembler::new(64)?;
        let records = matches!(context.purpose, Purpose::Record { .. });
        match shape.form {
            Form::Add { object } if records => add_and_tell(&mut a, &shape.loan, gpr(object), SLOW, BACK)?,
            Form::Add { object } => add(&mut a, &shape.loan, gpr(object), context, SLOW, BACK)?,
            Form::Swap { operand, new } | Form::Drop { operand, new } if records => {
                let is_drop = matches!(shape.form, Form::Drop { .. });
                swap_and_tell(&mut a, &shape.loan, operand, gpr(new), is_drop, SLOW, BACK)?;
            }
            Form::Swap { operand, new } => swap(&mut a, &shape.loan, operand, gpr(new), context, BACK)?,
            Form::Drop { operand, new } => take(&mut a, &shape.loan, operand, gpr(new), context, SLOW, BACK)?,
        }
        let mut written = a.assemble_options(AT, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let code = std::mem::take(&mut written.inner.code_buffer);
        let offsets = written.inner.new_instruction_offsets;
        let ends = offsets.iter().skip(1).map(|&offset| offset as usize).chain([code.len()]);
        let distances = a.instructions().iter().zip(ends).filter_map(|(instruction, end)| {
            let is_jump = matches!(instruction.op_kind(0), OpKind::NearBranch64);
            match instruction.near_branch_target() {
                BACK if is_jump => Some((end - 4, Target::Back)),
                SLOW if is_jump => Some((end - 4, Target::Slow)),
                _ => None,
            }
        });
        let distances = distances.collect();
        Ok(Template { code, distances })
    }

    /// Its bytes at an address, from where both others are within 2 GiB.
    pub fn place(&self, at: usize, slow: usize, back: usize) -> Vec<u8> {
        let mut code = self.code.clone();
        for &(offset, target) in &self.distances {
            let target = match target {
                Target::Back => back,
                Target::Slow => slow,
            };
            let distance = target.wrapping_sub(at + offset + 4) as i32;
            code[offset..offset + 4].copy_from_slice(&distance.to_le_bytes());
        }
        code
    }
}

/// The code for a site. `slow` is where its [`slow_way`] has been put, if it has one.
///
/// # Errors
///
/// Where an instruction cannot be written: a bug.
pub fn for_site(site: &Site, context: &Context, slow: usize, at: usize, back: usize) -> Result<Vec<u8>, IcedError> {
    Ok(Template::new(&Shape::of(site, context), context)?.place(at, slow, back))
}

fn add(
    a: &mut CodeAssembler,
    loan: &Loan,
    object: AsmRegister64,
    context: &Context,
    slow: u64,
    back: u64,
) -> Result<(), IcedError> {
    let layout = &context.buffer;
    let (buffer, slot) = (gpr(loan.scratch[0]), gpr(loan.scratch[1]));
    let (mut aside, mut shut, mut missed) = (a.create_label(), a.create_label(), a.create_label());
    loan.take(a)?;
    find_buffer(a, context, buffer, aside)?;
    find_slot(a, layout, object, buffer, slot, missed)?;
    enter(a, layout, buffer, shut)?;
    spend(a, layout, slot, shut)?;
    leave(a, layout, buffer)?;
    loan.give_back(a)?;
    a.jmp(back)?;

    a.set_label(&mut shut)?;
    leave(a, layout, buffer)?;
    a.set_label(&mut missed)?;
    loan.pop(a)?;
    if loan.saved.is_empty() && loan.red_zone {
        a.lea(rsp, ptr(rsp - RED_ZONE))?;
    }
    a.push(object)?;
    a.call(slow)?;
    a.lea(rsp, ptr(rsp + 8 + if loan.red_zone { RED_ZONE } else { 0 }))?;
    a.jmp(back)?;

    a.set_label(&mut aside)?;
    stand_aside(a, layout, buffer)?;
    loan.give_back(a)?;
    a.lock().add(qword_ptr(object + SHARED as i32), ONE as i32)?;
    a.jmp(back)
}

fn swap(
    a: &mut CodeAssembler,
    loan: &Loan,
    operand: Operand,
    new: AsmRegister64,
    context: &Context,
    back: u64,
) -> Result<(), IcedError> {
    let layout = &context.buffer;
    let [object, buffer, slot] = [0, 1, 2].map(|number| gpr(loan.scratch[number]));
    let (mut not_one_more, mut swapped) = (a.create_label(), a.create_label());
    let (mut shut, mut aside, mut itself) = (a.create_label(), a.create_label(), a.create_label());
    loan.take(a)?;
    a.lea(object, place(operand) - SHARED as i32)?;
    a.lea(buffer, ptr(new - ONE as i32))?;
    a.cmp(buffer, rax)?;
    a.jne(not_one_more)?;
    find_buffer(a, context, buffer, aside)?;
    find_slot(a, layout, object, buffer, slot, itself)?;
    enter(a, layout, buffer, shut)?;
    spend(a, layout, slot, shut)?;
    a.set_label(&mut swapped)?;
    leave(a, layout, buffer)?;
    loan.give_back(a)?;
    // Zero set, and the rest as a swap of equals leaves it.
    a.cmp(rax, rax)?;
    a.jmp(back)?;

    a.set_label(&mut not_one_more)?;
    a.lea(buffer, ptr(new + ONE as i32))?;
    a.cmp(buffer, rax)?;
    a.jne(itself)?;
    // Merged, with a count of one: the code behind takes the object for dead.
    a.cmp(rax, LAST as i32)?;
    a.je(itself)?;
    find_buffer(a, context, buffer, aside)?;
    find_slot(a, layout, object, buffer, slot, itself)?;
    enter(a, layout, buffer, shut)?;
    refund(a, layout, slot, shut)?;
    a.jmp(swapped)?;

    a.set_label(&mut aside)?;
    stand_aside(a, layout, buffer)?;
    a.jmp(itself)?;
    a.set_label(&mut shut)?;
    leave(a, layout, buffer)?;
    a.set_label(&mut itself)?;
    loan.give_back(a)?;
    a.lock().cmpxchg(qword_ptr_of(operand), new)?;
    a.jmp(back)
}

/// A swap that takes a reference off: see `Form::Drop`.
fn take(
    a: &mut CodeAssembler,
    loan: &Loan,
    operand: Operand,
    new: AsmRegister64,
    context: &Context,
    slow: u64,
    back: u64,
) -> Result<(), IcedError> {
    let layout = &context.buffer;
    let [object, buffer, slot] = [0, 1, 2].map(|number| gpr(loan.scratch[number]));
    let (mut shut, mut missed) = (a.create_label(), a.create_label());
    let (mut aside, mut itself) = (a.create_label(), a.create_label());
    // Merged, with a count of one: the code behind takes the object for dead.
    a.cmp(rax, LAST as i32)?;
    a.je(itself)?;
    loan.take(a)?;
    a.lea(object, place(operand) - SHARED as i32)?;
    find_buffer(a, context, buffer, aside)?;
    find_slot(a, layout, object, buffer, slot, missed)?;
    enter(a, layout, buffer, shut)?;
    refund(a, layout, slot, shut)?;
    leave(a, layout, buffer)?;
    loan.give_back(a)?;
    // Zero set, and the rest as a swap of equals leaves it.
    a.cmp(rax, rax)?;
    a.jmp(back)?;

    a.set_label(&mut shut)?;
    leave(a, layout, buffer)?;
    a.set_label(&mut missed)?;
    let steps_over = loan.saved.is_empty() && loan.red_zone;
    if steps_over {
        a.lea(rsp, ptr(rsp - RED_ZONE))?;
    }
    a.push(object)?;
    a.call(slow)?;
    a.lea(rsp, ptr(rsp + 8 + if steps_over { RED_ZONE } else { 0 }))?;
    loan.give_back(a)?;
    a.jne(itself)?;
    a.cmp(rax, rax)?;
    a.jmp(back)?;

    a.set_label(&mut aside)?;
    stand_aside(a, layout, buffer)?;
    loan.give_back(a)?;
    // An instruction has one label, and there may be none to give back.
    a.zero_bytes()?;
    a.set_label(&mut itself)?;
    a.lock().cmpxchg(qword_ptr_of(operand), new)?;
    a.jmp(back)
}

/// For recording: counts, and tells.
fn add_and_tell(
    a: &mut CodeAssembler,
    loan: &Loan,
    object: AsmRegister64,
    slow: u64,
    back: u64,
) -> Result<(), IcedError> {
    a.lock().add(qword_ptr(object + SHARED as i32), ONE as i32)?;
    if loan.red_zone {
        a.lea(rsp, ptr(rsp - RED_ZONE))?;
    }
    a.push(object)?;
    a.call(slow)?;
    a.lea(rsp, ptr(rsp + 8 + if loan.red_zone { RED_ZONE } else { 0 }))?;
    a.jmp(back)
}

/// For recording: swaps, and tells if that was a count or may have been one.
fn swap_and_tell(
    a: &mut CodeAssembler,
    loan: &Loan,
    operand: Operand,
    new: AsmRegister64,
    is_drop: bool,
    slow: u64,
    back: u64,
) -> Result<(), IcedError> {
    let object = gpr(loan.scratch[0]);
    let (mut one_more, mut counted, mut aside) = (a.create_label(), a.create_label(), a.create_label());
    a.lock().cmpxchg(qword_ptr_of(operand), new)?;
    a.jne(back)?;
    // From here on all registers are what they were before: rax had what was there.
    if loan.red_zone {
        a.lea(rsp, ptr(rsp - RED_ZONE))?;
    }
    loan.saved.iter().try_for_each(|&register| a.push(gpr(register)))?;
    if is_drop {
        a.lea(object, place(operand) - SHARED as i32)?;
        a.add(object, (tag::DECREMENT | tag::GONE) as i32)?;
    } else {
        a.lea(object, ptr(new - ONE as i32))?;
        a.cmp(object, rax)?;
        a.je(one_more)?;
        a.lea(object, ptr(new + ONE as i32))?;
        a.cmp(object, rax)?;
        a.jne(aside)?;
        a.lea(object, place(operand) - SHARED as i32)?;
        a.test(object, tag::BITS as i32)?;
        a.jne(aside)?;
        a.add(object, (tag::DECREMENT | tag::CANDIDATE) as i32)?;
        a.jmp(counted)?;
        a.set_label(&mut one_more)?;
        a.lea(object, place(operand) - SHARED as i32)?;
        a.test(object, tag::BITS as i32)?;
        a.jne(aside)?;
        a.add(object, tag::CANDIDATE as i32)?;
        a.set_label(&mut counted)?;
    }
    a.push(object)?;
    a.call(slow)?;
    a.lea(rsp, ptr(rsp + 8))?;
    if !is_drop {
        a.set_label(&mut aside)?;
    }
    loan.pop(a)?;
    if loan.red_zone {
        a.lea(rsp, ptr(rsp + RED_ZONE))?;
    }
    // Zero set, and the rest as a swap of equals leaves it.
    a.cmp(rax, rax)?;
    a.jmp(back)
}

/// The operand of a swap.
pub(super) fn qword_ptr_of(operand: Operand) -> AsmMemoryOperand {
    qword_ptr(place(operand))
}

/// The code for the entry of `_Py_DecRefShared`; its argument is in rdi, and all that a
/// called function may change is free. `slow` is where [`slow_way`] has been put.
///
/// # Errors
///
/// Where an instruction cannot be written: a bug.
pub fn for_entry(context: &Context, slow: usize, original: usize, at: usize) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    match context.purpose {
        Purpose::Buffer { decrement, .. } => take_in(&mut a, context, decrement, original)?,
        Purpose::Record { .. } => {
            // Before: once it has been dropped, the object may be gone.
            a.lea(rax, ptr(rdi + tag::DECREMENT as i32))?;
            a.push(rax)?;
            a.call(slow as u64)?;
            a.lea(rsp, ptr(rsp + 8))?;
            a.jmp(original as u64)?;
        }
    }
    a.assemble(at as u64)
}

fn take_in(a: &mut CodeAssembler, context: &Context, decrement: usize, original: usize) -> Result<(), IcedError> {
    let layout = &context.buffer;
    let (mut shut, mut missed, mut aside) = (a.create_label(), a.create_label(), a.create_label());
    find_buffer(a, context, rax, aside)?;
    find_slot(a, layout, rdi, rax, rcx, missed)?;
    enter(a, layout, rax, shut)?;
    refund(a, layout, rcx, shut)?;
    leave(a, layout, rax)?;
    a.ret()?;
    a.set_label(&mut shut)?;
    leave(a, layout, rax)?;
    a.set_label(&mut missed)?;
    a.mov(rax, decrement as u64)?;
    a.jmp(rax)?;
    a.set_label(&mut aside)?;
    stand_aside(a, layout, rax)?;
    a.jmp(original as u64)
}

/// The function as it was: its first instructions, then the rest of it.
///
/// # Errors
///
/// Where an instruction cannot be moved.
pub fn original(entry: &Entry, at: usize) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for instruction in &entry.head {
        a.add_instruction(*instruction)?;
    }
    a.jmp(entry.range().end as u64)?;
    a.assemble(at as u64)
}

/// A slow way: calls `function` with what was pushed before the call, and keeps everything,
/// vector registers included. The zero flag says whether the function returned true.
///
/// # Errors
///
/// Where an instruction cannot be written: a bug.
pub fn slow_way(function: usize, vector_bytes: usize, at: usize) -> Result<Vec<u8>, IcedError> {
    const KEPT: [AsmRegister64; 9] = [rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11];
    let mut a = CodeAssembler::new(64)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    KEPT.iter().try_for_each(|&register| a.push(register))?;
    a.mov(rdi, qword_ptr(rbp + 16))?;
    a.sub(rsp, vector_bytes as i32)?;
    a.and(rsp, -64)?;
    // xsave adds to the header, xrstor wants the rest of it to be zero.
    a.xor(eax, eax)?;
    (512..576).step_by(8).try_for_each(|offset| a.mov(qword_ptr(rsp + offset), rax))?;
    a.mov(eax, VECTOR_STATE)?;
    a.xor(edx, edx)?;
    a.xsave(ptr(rsp))?;
    a.cld()?;
    a.mov(rax, function as u64)?;
    a.call(rax)?;
    // Nothing from here on changes flags.
    a.cmp(al, 1)?;
    a.mov(eax, VECTOR_STATE)?;
    a.mov(edx, 0)?;
    a.xrstor(ptr(rsp))?;
    a.lea(rsp, ptr(rbp - 8 * KEPT.len() as i32))?;
    KEPT.iter().rev().try_for_each(|&register| a.pop(register))?;
    a.pop(rbp)?;
    a.ret()?;
    a.assemble(at as u64)
}
