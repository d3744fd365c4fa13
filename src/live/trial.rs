//! Runs machine code in a machine state of choice, and says what state it leaves.
//!
//! ```text
//! host → harness: keeps the host's registers, sets all of them, jumps to the code
//!        code:    a trampoline, or the instruction that it stands for
//! host ← exit:    notes all of them, puts the host's back
//! ```
//!
//! The code finds a table of credits at the thread's word, which is lent to it, and in
//! place of the slow ways a stand-in that counts, notes its argument, and changes every
//! register and flag that a called function may change.

use std::io;
use std::mem::offset_of;
use std::ops::Range;
use std::ptr;

use iced_x86::code_asm::{
    eax, edx, ptr as at, qword_ptr, r10, r11, r12, r13, r14, r15, r8, r9, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp,
    AsmMemoryOperand, AsmRegister64, CodeAssembler,
};
use iced_x86::IcedError;

use super::memory::{page, Pages};
use super::plan::{ONE, SHARED};
use super::trampoline::{self, BufferLayout, Context, Purpose};

/// All general registers, by their numbers in instructions.
const REGISTERS: [AsmRegister64; 16] = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
/// The number of rsp.
pub const STACK_POINTER: usize = 4;
/// The vector registers that are looked at: said here again, and not asked of those who
/// have to keep them.
const VECTOR_STATE: u32 = 0xE7;
/// Bytes kept of the vector registers: more than any processor's for `VECTOR_STATE`.
const VECTOR_BYTES: usize = 4096;
/// Where in them the header is, which says what is in use.
const VECTOR_HEADER: usize = 512;
/// Where in them the status words of x87 and SSE are; behind them come the registers.
const VECTOR_CONTROL: usize = 32;
/// Pairs of slots, slots, and bytes of each.
const PAIRS: usize = 64;
const SLOT: usize = 16;
/// Words of the buffer's head.
const HEAD: usize = 16;
/// Bytes of the stack, below and above where the code finds its end.
const BELOW: usize = 16 * 1024;
const ABOVE: usize = 512;

/// What the registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// By their numbers in instructions; the stack pointer is the trial's own.
    pub registers: [u64; 16],
    /// rflags.
    pub flags: u64,
}

/// An area for `xsave`.
#[derive(Clone)]
#[repr(C, align(64))]
struct Vectors([u8; VECTOR_BYTES]);

/// What the code works on.
#[repr(C, align(64))]
struct Ground {
    target: u64,
    host_stack: u64,
    before: Machine,
    after: Machine,
    vectors: Vectors,
    left: Vectors,
    host: Vectors,
    junk: Vectors,
    calls: u64,
    arguments: [u64; 2],
    /// What the stand-in for taking in returns.
    answer: u64,
    call_flags: u64,
    call_stack: u64,
    head: [u64; HEAD],
    slots: [u8; PAIRS * 2 * SLOT],
    /// An object, and what surrounds it.
    object: [u64; 8],
    stack: Stack,
}

/// Aligned as stacks are where functions are called.
#[repr(C, align(64))]
struct Stack {
    below: [u8; BELOW],
    red_zone: [u8; 128],
    above: [u8; ABOVE],
}

/// What the code did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The registers behind it.
    pub machine: Machine,
    /// The object's shared count, with its flags.
    pub shared: u64,
    /// Calls of the stand-in for the slow way.
    pub calls: u64,
    /// The argument of the first, and of the next.
    pub arguments: [u64; 2],
    /// The words of the slot that the object hashes to first, and of the next.
    pub slots: [[u64; 2]; 2],
    /// The buffer's gate is as it was.
    pub gate_open: bool,
    /// Operations to stand aside that are left.
    pub skip: i64,
    /// What must not have changed and has.
    pub damage: Vec<&'static str>,
}

/// The table as the code finds it.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// For each slot of the object's pair: whether it is the object's, and its word.
    pub slots: [(bool, u64); 2],
    /// The gate is shut.
    pub shut: bool,
    /// Operations to stand aside.
    pub skip: i64,
}

/// A place to run code in.
#[derive(Debug)]
pub struct Trial {
    code: Pages,
    ground: Pages,
    harness: usize,
    exit: usize,
    slow: usize,
    slow_take_in: usize,
    stand_in: usize,
    used: usize,
    sealed: bool,
    context: Context,
}

fn broken(error: IcedError) -> io::Error {
    io::Error::other(format!("the code of a trial cannot be written: {error}"))
}

impl Trial {
    /// Of trampolines that go by `context`, but for whom they call. `near` is an address
    /// that the code may jump to.
    ///
    /// # Errors
    ///
    /// Where there is no memory.
    pub fn new(context: &Context, near: usize) -> io::Result<Trial> {
        let ground = Pages::low(size_of::<Ground>())?;
        let mut code = Pages::near(near..near + 1, 4 * page())?;
        let start = code.start();
        let (harness, exit) = (start, start + page());
        let [stand_in, taker, slow, slow_take_in] = [0, 512, 1024, 1536].map(|offset| start + 2 * page() + offset);
        let (purpose, counts) = match context.purpose {
            Purpose::Buffer { .. } => {
                (Purpose::Buffer { increment: stand_in, decrement: stand_in, take_in: taker }, true)
            }
            Purpose::Record { .. } => (Purpose::Record { note: stand_in }, false),
        };
        let context = Context { purpose, ..*context };
        let vectors = context.vector_bytes;
        let here = ground.start() as u64;
        for (place, bytes) in [
            (harness, write_harness(here, harness as u64)),
            (exit, write_exit(here, exit as u64)),
            (stand_in, write_stand_in(here, stand_in as u64, counts)),
            (taker, write_stand_in(here, taker as u64, false)),
            (slow, trampoline::slow_way(stand_in, vectors, slow)),
            (slow_take_in, trampoline::slow_way(taker, vectors, slow_take_in)),
        ] {
            code.write(place - start, &bytes.map_err(broken)?);
        }
        let mut trial = Trial {
            code,
            ground,
            harness,
            exit,
            slow,
            slow_take_in,
            stand_in,
            used: 3 * page(),
            sealed: false,
            context,
        };
        trial.ground().junk = Vectors::filled(0xB5);
        trial.ground().vectors = Vectors::filled(0x11);
        Ok(trial)
    }

    /// What trampolines of this trial go by.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Where the slow way of an add is.
    pub fn slow_way(&self) -> usize {
        self.slow
    }

    /// Where that of a drop is.
    pub fn slow_take_in(&self) -> usize {
        self.slow_take_in
    }

    /// What the stand-in for taking in does from now on: take in, or refuse.
    pub fn set_takes_in(&mut self, takes_in: bool) {
        // Only the lowest byte is a bool's.
        self.ground().answer = 0xDEAD_BEEF_DEAD_BE00 | u64::from(takes_in);
    }

    /// Where code has to go to in the end.
    pub fn exit(&self) -> usize {
        self.exit
    }

    /// A function that stands in for all that trampolines call, and spoils what it may.
    pub fn stand_in(&self) -> usize {
        self.stand_in
    }

    /// The address of the scratch object.
    pub fn object(&self) -> u64 {
        (self.ground.start() + offset_of!(Ground, object)) as u64
    }

    /// Where the next code goes.
    pub fn place(&self) -> usize {
        self.code.start() + self.used
    }

    /// Takes code that was written for `place()`; returns that.
    ///
    /// # Errors
    ///
    /// Where it is too large, or memory may not be executed.
    pub fn load(&mut self, code: &[u8]) -> io::Result<usize> {
        let place = self.place();
        if self.code.range().end - place < code.len() {
            return Err(io::Error::other("the code of a trial is too large"));
        }
        if self.sealed {
            self.code.open()?;
            self.sealed = false;
        }
        self.code.write(self.used, code);
        self.used = (self.used + code.len()).next_multiple_of(16);
        Ok(place)
    }

    /// What was loaded may be run from now on.
    ///
    /// # Errors
    ///
    /// Where memory may not be executed.
    pub fn seal(&mut self) -> io::Result<()> {
        if !self.sealed {
            self.code.seal()?;
            self.sealed = true;
        }
        Ok(())
    }

    /// Forgets what was loaded.
    pub fn clear(&mut self) {
        self.used = 3 * page();
    }

    fn ground(&mut self) -> &mut Ground {
        // SAFETY: our own pages, large enough and zero at first; any bytes are a Ground.
        unsafe { &mut *(self.ground.start() as *mut Ground) }
    }

    /// Runs code at `target` that ends at `exit()`, or returns where `returns`.
    ///
    /// # Safety
    ///
    /// The code does what a trampoline of this trial may do, and no more. It is sealed.
    /// Signals of this thread are blocked.
    pub unsafe fn run(&mut self, target: usize, before: Machine, shared: u64, table: Table, returns: bool) -> Outcome {
        const AROUND: u64 = 0x5EED_5EED_5EED_5EED;
        let (object, exit, layout) = (self.object(), self.exit as u64, self.context.buffer);
        let (harness, word) = (self.harness, self.context.word);
        let seed = before.registers[0] ^ before.flags;
        let ground = self.ground();
        ground.stack.red_zone = pattern(seed);
        ground.stack.above = pattern(!seed);
        // Functions are entered 8 bytes off a multiple of 16, where the way back is.
        if returns {
            ground.stack.above[8..16].copy_from_slice(&exit.to_le_bytes());
        }
        let stack = ground.stack.above.as_ptr() as u64 + if returns { 8 } else { 0 };
        ground.object = [AROUND; 8];
        ground.object[SHARED as usize / 8] = shared;
        ground.before = before;
        ground.before.registers[STACK_POINTER] = stack;
        ground.target = target as u64;
        (ground.calls, ground.arguments) = (0, [0; 2]);
        let first = ground.set_table(&layout, object, table);
        let buffer = ground.head.as_ptr() as usize;
        // SAFETY: the thread's own word, which is its again before anyone else looks: the caller
        // lets no signals in.
        let lent = unsafe { Lent::new(word, buffer) };
        // SAFETY: the harness keeps what a C function keeps; the caller's promise for the rest.
        unsafe {
            let harness: extern "C" fn() = std::mem::transmute(harness);
            harness();
        }
        drop(lent);
        let mut damage = Vec::new();
        let ground = self.ground();
        let stack_after = if returns { stack + 8 } else { stack };
        if ground.after.registers[STACK_POINTER] != stack_after {
            damage.push("the stack pointer");
        }
        if !ground.left.same_registers(&ground.vectors) {
            damage.push(VECTORS);
        }
        let above: [u8; ABOVE] = pattern(!seed);
        let caller = (stack_after - ground.stack.above.as_ptr() as u64) as usize;
        if ground.stack.above[caller..] != above[caller..] {
            damage.push("the stack above its end");
        }
        if ground.stack.red_zone != pattern(seed) {
            damage.push(RED_ZONE);
        }
        let around = |(index, &word): (usize, &u64)| index == SHARED as usize / 8 || word == AROUND;
        if !ground.object.iter().enumerate().all(around) {
            damage.push("what surrounds the count");
        }
        if ground.calls > 0 {
            // As the ABI has it: 8 less than a multiple of 16, once the way back is pushed.
            if ground.call_stack % 16 != 8 {
                damage.push("the stack's alignment at the call");
            }
            if ground.call_flags & DIRECTION != 0 {
                damage.push("the direction flag at the call");
            }
        }
        let word = |at: usize| u64::from_le_bytes(ground.slots[at..at + 8].try_into().unwrap_or_default());
        let slot = |number: usize| {
            let at = first + number * SLOT;
            [word(at), word(at + layout.slot_word as usize)]
        };
        Outcome {
            machine: ground.after,
            shared: ground.object[SHARED as usize / 8],
            calls: ground.calls,
            arguments: ground.arguments,
            slots: [slot(0), slot(1)],
            gate_open: ground.half(layout.busy) == 0,
            skip: ground.head[layout.skip as usize / 8] as i64,
            damage,
        }
    }
}

/// The direction flag.
const DIRECTION: u64 = 1 << 10;
/// What is said of bytes below the stack's end that have changed.
pub const RED_ZONE: &str = "the red zone";
/// What is said of vector registers that have changed.
pub const VECTORS: &str = "vector registers";

impl Ground {
    /// Fills the table, and says where in it the object's pair is.
    fn set_table(&mut self, layout: &BufferLayout, object: u64, table: Table) -> usize {
        let byte_mask = (PAIRS * 2 - 2) * SLOT;
        let hash = object.wrapping_mul(layout.mix) >> layout.hash_shift;
        let first = hash as usize & byte_mask & !(2 * SLOT - 1);
        self.head = [0; HEAD];
        self.head[layout.byte_mask as usize / 8] = byte_mask as u64 & !(2 * SLOT as u64 - 1);
        self.head[layout.slots as usize / 8] = self.slots.as_ptr() as u64;
        self.head[layout.skip as usize / 8] = table.skip as u64;
        self.set_half(layout.attention, u32::from(table.shut));
        self.slots.fill(0);
        for (number, (is_objects, word)) in table.slots.into_iter().enumerate() {
            let at = first + number * SLOT;
            let other = object ^ 0x1000;
            let resident = if is_objects { object } else { other };
            self.slots[at..at + 8].copy_from_slice(&resident.to_le_bytes());
            let at = at + layout.slot_word as usize;
            self.slots[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        first
    }

    fn half(&self, offset: i32) -> u32 {
        (self.head[offset as usize / 8] >> (offset as usize % 8 * 8)) as u32
    }

    fn set_half(&mut self, offset: i32, value: u32) {
        let shift = offset as usize % 8 * 8;
        let word = &mut self.head[offset as usize / 8];
        *word = *word & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
    }
}

/// Bytes that are unlikely to be written by chance.
fn pattern<const N: usize>(seed: u64) -> [u8; N] {
    std::array::from_fn(|index| (seed >> (index % 8 * 8)) as u8 ^ (index as u8).wrapping_mul(31))
}

impl Vectors {
    /// Registers that are in use, all different.
    fn filled(seed: u8) -> Vectors {
        let mut vectors = Vectors([0; VECTOR_BYTES]);
        for (index, byte) in Vectors::parts().flatten().enumerate() {
            vectors.0[byte] = (index as u8).wrapping_mul(37).wrapping_add((index >> 8) as u8).wrapping_add(seed);
        }
        // An x87 register has ten bytes of sixteen.
        for register in 0..8 {
            vectors.0[VECTOR_CONTROL + register * 16 + 10..VECTOR_CONTROL + register * 16 + 16].fill(0);
        }
        // Control words as a program finds them; no exceptions are wanted.
        vectors.0[..2].copy_from_slice(&0x037F_u16.to_le_bytes());
        vectors.0[4] = 0xFF;
        vectors.0[24..28].copy_from_slice(&0x1F80_u32.to_le_bytes());
        vectors.0[VECTOR_HEADER..VECTOR_HEADER + 8]
            .copy_from_slice(&trampoline::vectors_here(VECTOR_STATE).to_le_bytes());
        vectors
    }

    /// Where registers are: x87 and SSE, and then the rest.
    fn parts() -> impl Iterator<Item = Range<usize>> {
        std::iter::once(VECTOR_CONTROL..416).chain(trampoline::vector_parts(VECTOR_STATE))
    }

    /// Whether they hold the same, control words included; what xsave says of itself apart.
    fn same_registers(&self, other: &Vectors) -> bool {
        [0..5, 24..28].into_iter().chain(Vectors::parts()).all(|part| self.0[part.clone()] == other.0[part])
    }
}

/// The thread's word, lent to a trial.
struct Lent {
    word: *mut usize,
    before: usize,
}

impl Lent {
    /// # Safety
    ///
    /// There is such a word of this thread's at that distance from its thread pointer.
    unsafe fn new(offset: isize, value: usize) -> Lent {
        let word = thread_pointer().wrapping_add_signed(offset) as *mut usize;
        // SAFETY: the caller's promise.
        unsafe { Lent { word, before: ptr::replace(word, value) } }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        unsafe { *self.word = self.before };
    }
}

/// By the ABI the first word there is its own address.
pub fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: reads that word.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, preserves_flags, readonly)) };
    pointer
}

/// A field of the ground, by its address, which has 31 bits: no register is needed for it.
fn field(ground: u64, offset: usize) -> AsmMemoryOperand {
    qword_ptr(ground + offset as u64)
}

fn register_of(ground: u64, machine: usize, number: usize) -> AsmMemoryOperand {
    field(ground, machine + offset_of!(Machine, registers) + number * 8)
}

fn write_harness(ground: u64, place: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in [rbx, rbp, r12, r13, r14, r15] {
        a.push(register)?;
    }
    a.pushfq()?;
    a.mov(field(ground, offset_of!(Ground, host_stack)), rsp)?;
    a.mov(eax, VECTOR_STATE)?;
    a.xor(edx, edx)?;
    a.xsave(at(ground + offset_of!(Ground, host) as u64))?;
    a.xrstor(at(ground + offset_of!(Ground, vectors) as u64))?;
    let before = offset_of!(Ground, before);
    a.push(field(ground, before + offset_of!(Machine, flags)))?;
    a.popfq()?;
    for (number, register) in REGISTERS.into_iter().enumerate() {
        a.mov(register, register_of(ground, before, number))?;
    }
    a.jmp(field(ground, offset_of!(Ground, target)))?;
    a.assemble(place)
}

fn write_exit(ground: u64, place: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let after = offset_of!(Ground, after);
    for (number, register) in REGISTERS.into_iter().enumerate() {
        a.mov(register_of(ground, after, number), register)?;
    }
    a.mov(rsp, field(ground, offset_of!(Ground, host_stack)))?;
    a.pushfq()?;
    a.pop(field(ground, after + offset_of!(Machine, flags)))?;
    a.mov(eax, VECTOR_STATE)?;
    a.xor(edx, edx)?;
    a.xsave(at(ground + offset_of!(Ground, left) as u64))?;
    a.xrstor(at(ground + offset_of!(Ground, host) as u64))?;
    a.popfq()?;
    for register in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(register)?;
    }
    a.ret()?;
    a.assemble(place)
}

/// Counts one more on the object in rdi or leaves it, notes the call, spoils all it may;
/// returns the answer.
fn write_stand_in(ground: u64, place: u64, counts: bool) -> Result<Vec<u8>, IcedError> {
    const JUNK: u64 = 0xDEAD_BEEF_DEAD_BEEF;
    let mut a = CodeAssembler::new(64)?;
    a.mov(field(ground, offset_of!(Ground, call_stack)), rsp)?;
    a.pushfq()?;
    a.pop(field(ground, offset_of!(Ground, call_flags)))?;
    a.mov(rax, field(ground, offset_of!(Ground, calls)))?;
    a.and(rax, 1)?;
    a.mov(qword_ptr(rax * 8 + ground + offset_of!(Ground, arguments) as u64), rdi)?;
    if counts {
        a.lock().add(qword_ptr(rdi + SHARED as i32), ONE as i32)?;
    }
    a.mov(eax, VECTOR_STATE)?;
    a.xor(edx, edx)?;
    a.xrstor(at(ground + offset_of!(Ground, junk) as u64))?;
    for register in [rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11] {
        a.mov(register, JUNK)?;
    }
    a.add(field(ground, offset_of!(Ground, calls)), 1)?;
    a.mov(rax, field(ground, offset_of!(Ground, answer)))?;
    a.cmp(rsp, 1)?;
    a.ret()?;
    a.assemble(place)
}
