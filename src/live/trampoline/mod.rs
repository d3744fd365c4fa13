//! Machine code in the place of an instruction: looks into the thread's table first, and
//! does what the instruction did where that has nothing. Or it does what the instruction
//! did, and has it written down.
//!
//! | file | holds |
//! |---|---|
//! | `buffer` | those that count through the thread's buffer |
//! | `record` | those that record |
//! | `loan` | the registers they use: pushed where the code behind a site needs them |
//! | `slow_way` | what they call, which keeps vector registers too |

mod buffer;
mod loan;
mod record;
mod slow_way;

use iced_x86::code_asm::{get_gpr64, ptr, qword_ptr, AsmMemoryOperand, AsmRegister64, CodeAssembler};
use iced_x86::{BlockEncoderOptions, IcedError, OpKind, Register};

use self::loan::Loan;
pub use self::slow_way::{has_xsave, slow_way, vector_bytes, vector_parts, vectors_here};
use super::plan::{Entry, Form, Operand, Site};

/// A count that is merged, and of one.
pub const LAST: u64 = 7;

/// Most bytes of a trampoline.
pub const LARGEST: usize = 384;

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
        self.loan.pushes()
    }
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
            Form::Add { object } if records => record::add_and_tell(&mut a, &shape.loan, gpr(object), SLOW, BACK)?,
            Form::Add { object } => buffer::add(&mut a, &shape.loan, gpr(object), context, SLOW, BACK)?,
            Form::Swap { operand, new } | Form::Drop { operand, new } if records => {
                let is_drop = matches!(shape.form, Form::Drop { .. });
                record::swap_and_tell(&mut a, &shape.loan, operand, gpr(new), is_drop, SLOW, BACK)?;
            }
            Form::Swap { operand, new } => buffer::swap(&mut a, &shape.loan, operand, gpr(new), context, BACK)?,
            Form::Drop { operand, new } => buffer::take(&mut a, &shape.loan, operand, gpr(new), context, SLOW, BACK)?,
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

    /// Bytes of it.
    #[allow(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> usize {
        self.code.len()
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

/// The code for the entry of `_Py_DecRefShared`; its argument is in rdi, and all that a
/// called function may change is free. `slow` is where [`slow_way`] has been put.
///
/// # Errors
///
/// Where an instruction cannot be written: a bug.
pub fn for_entry(context: &Context, slow: usize, original: usize, at: usize) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    match context.purpose {
        Purpose::Buffer { decrement, .. } => buffer::take_in(&mut a, context, decrement, original)?,
        Purpose::Record { .. } => record::tell_and_go_on(&mut a, slow as u64, original as u64)?,
    }
    a.assemble(at as u64)
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

/// The operand of a swap.
pub(super) fn qword_ptr_of(operand: Operand) -> AsmMemoryOperand {
    qword_ptr(place(operand))
}
