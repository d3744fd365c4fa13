//! Plan and verify: which instructions of an image count references, and whether each may
//! be replaced by a jump.
//!
//! | form | instruction | what it is |
//! |---|---|---|
//! | add | `lock add qword [object+16], 4`; in other files than the interpreter, behind a comparison with the thread's id | an increment of another thread's object |
//! | swap | `lock cmpxchg qword [address], new` | perhaps one: its trampoline sees |
//! | drop | the same, in the middle of `_Py_DecRefShared` that is compiled into its caller | a decrement |
//! | entry | the first bytes of `_Py_DecRefShared`; or its swap alone, as a drop | a decrement of another thread's object |
//!
//! Every function is decoded from its first byte, so that sites lie on instruction
//! boundaries. A site may be replaced if it is long enough for a jump, no branch goes into
//! the middle of it, and nothing reads the flags that an add leaves.

use std::fmt;
use std::ops::Range;

use iced_x86::{
    Code as Opcode, Decoder, DecoderOptions, FlowControl, Instruction, MemorySize, Mnemonic, OpKind, Register,
};

use super::branches::{self, Addresses};
use super::flow::{Code, Needs, Registers};
use super::image::Image;

/// Bytes of a jump to anywhere within 2 GiB.
pub const JUMP: usize = 5;
/// Where an object's shared count is, and what one reference adds to it: checked at import.
pub const SHARED: u64 = 16;
/// One reference in it, above two flags.
pub const ONE: u64 = 4;

/// What a site does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Counts one more on the object in a register.
    Add {
        /// Which holds its address.
        object: Register,
    },
    /// Compares and swaps for one reference less, see [`is_drop`].
    Drop {
        /// The object's count.
        operand: Operand,
        /// Which holds the new value.
        new: Register,
    },
    /// Compares and swaps; rax has the old value.
    Swap {
        /// What it does.
        operand: Operand,
        /// Which holds the new value.
        new: Register,
    },
}

/// A place in memory, as an instruction has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Or none.
    pub base: Register,
    /// Or none.
    pub index: Register,
    /// Of the index.
    pub scale: u32,
    /// In bytes.
    pub displacement: i64,
}

/// An instruction to be replaced.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Of its first byte.
    pub address: usize,
    /// In bytes.
    pub length: usize,
    /// What it does.
    pub form: Form,
    /// What the code behind it needs.
    pub needs: Needs,
    /// Its function may keep something below the stack pointer.
    pub red_zone: bool,
}

/// The entry of a function to be replaced.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Of its first byte.
    pub address: usize,
    /// Its first instructions, long enough for a jump.
    pub head: Vec<Instruction>,
    /// It swaps by itself, and leaves that to no other function.
    pub swaps: bool,
}

/// What is replaced of `_Py_DecRefShared`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Its first instructions: no other thread may be there meanwhile.
    Entry,
    /// Its swap, one instruction: it makes no difference to other threads when they come by.
    Swap,
}

/// A site that is not replaced.
#[derive(Clone, Debug)]
pub struct LeftAlone {
    /// Of its first byte.
    pub address: usize,
    /// Why.
    pub reason: &'static str,
}

/// What is to be done to an image.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In order.
    pub sites: Vec<Site>,
    /// Only where the function that drops references is in this image, and is hooked there.
    pub entry: Option<Entry>,
    /// In order.
    pub left_alone: Vec<LeftAlone>,
}

/// Why nothing in an image may be touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// [`Hook::Swap`] is not possible in it; another hook may be.
    NoSwap,
    /// Anything else, as a sentence.
    Other(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSwap => to.write_str("_Py_DecRefShared has no swap that can be replaced"),
            Self::Other(why) => to.write_str(why),
        }
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Self {
        Self::Other(why.into())
    }
}

impl From<Refusal> for String {
    fn from(why: Refusal) -> Self {
        why.to_string()
    }
}

/// Makes the plan for an image. `entry` is the address of `_Py_DecRefShared`, wherever
/// that is, and `hook` what becomes of it.
///
/// # Errors
///
/// Says why nothing in this image may be touched.
///
/// # Safety
///
/// Nobody changes the image's code meanwhile.
pub unsafe fn plan(image: &Image, entry: usize, hook: Hook) -> Result<Plan, Refusal> {
    let functions = image.functions()?;
    // SAFETY: the caller's promise.
    unsafe { plan_functions(image, &functions, entry, hook) }
}

/// The same for these functions of the image, in order.
///
/// # Errors
///
/// As for [`plan`].
///
/// # Safety
///
/// As for [`plan`].
pub unsafe fn plan_functions(
    image: &Image,
    functions: &[Range<usize>],
    entry: usize,
    hook: Hook,
) -> Result<Plan, Refusal> {
    let mut targets = Addresses::new(&image.code);
    let form_is_proof = image.holds(entry);
    let mut plan = Plan::default();
    let mut instructions: Vec<Instruction> = Vec::new();
    let mut decoded: Vec<Range<usize>> = Vec::new();
    for function in functions {
        // SAFETY: the caller's promise.
        let bytes = unsafe { image.bytes(function.clone()) };
        let is_entry = function.start == entry;
        if !is_entry && !may_hold_sites(bytes) {
            continue;
        }
        decode(bytes, function.start, &mut instructions);
        targets.add_branches(&instructions);
        decoded.push(function.clone());
        if is_entry && hook == Hook::Entry {
            let swaps = instructions.iter().any(|instruction| matches!(form(instruction), Some(Ok(Form::Swap { .. }))));
            plan.entry = Some(Entry { address: entry, head: head(&instructions)?, swaps });
        } else {
            note_sites(&instructions, form_is_proof, &mut plan);
        }
    }
    if image.holds(entry) && !functions.iter().any(|function| function.start == entry) {
        return Err("_Py_DecRefShared is not among its functions".into());
    }
    let replaced = plan.replaced(image);
    for code in gaps(&image.code, &decoded) {
        // SAFETY: the caller's promise.
        let bytes = unsafe { image.bytes(code.clone()) };
        for (suspect, target) in branches::suspects(bytes, code.start, &replaced) {
            let place = functions.partition_point(|function| function.end <= suspect);
            match functions.get(place).filter(|function| function.contains(&suspect)) {
                Some(function) => {
                    // SAFETY: the caller's promise.
                    let bytes = unsafe { image.bytes(function.clone()) };
                    decode(bytes, function.start, &mut instructions);
                    targets.add_branches(&instructions);
                }
                // Nobody says what this is: so it may be a branch.
                None => targets.add(target),
            }
        }
    }
    let into = |range: Range<usize>| (range.start + 1..range.end).any(|address| targets.holds(address));
    if plan.entry.as_ref().is_some_and(|entry| into(entry.range())) {
        return Err("a branch goes into the first bytes of _Py_DecRefShared".into());
    }
    let Plan { sites, left_alone, .. } = &mut plan;
    sites.retain(|site| {
        let fits = !into(site.address..site.address + site.length);
        if !fits {
            left_alone.push(LeftAlone { address: site.address, reason: "a branch goes into the middle of it" });
        }
        fits
    });
    if hook == Hook::Swap && image.holds(entry) && !plan.drops_in(functions, entry) {
        return Err(Refusal::NoSwap);
    }
    Ok(plan)
}

impl Plan {
    /// Whether the function at `entry` has a drop that is to be replaced.
    fn drops_in(&self, functions: &[Range<usize>], entry: usize) -> bool {
        let is_in = |site: &Site| functions.iter().any(|range| range.start == entry && range.contains(&site.address));
        self.sites.iter().any(|site| matches!(site.form, Form::Drop { .. }) && is_in(site))
    }

    /// Bytes that are to be replaced, but for the first of each site: there branches may go.
    fn replaced(&self, image: &Image) -> Addresses {
        let mut replaced = Addresses::new(&image.code);
        let sites = self.sites.iter().map(|site| site.address..site.address + site.length);
        for range in sites.chain(self.entry.iter().map(Entry::range)) {
            (range.start + 1..range.end).for_each(|address| replaced.add(address));
        }
        replaced
    }
}

impl Entry {
    /// What is replaced.
    pub fn range(&self) -> Range<usize> {
        self.address..self.address + self.head.iter().map(Instruction::len).sum::<usize>()
    }
}

/// What is left of `code` without `parts`, which are in order.
fn gaps(code: &[Range<usize>], parts: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut gaps = Vec::new();
    for segment in code {
        let mut from = segment.start;
        for part in parts.iter().filter(|part| segment.contains(&part.start)) {
            gaps.push(from..part.start);
            from = part.end;
        }
        gaps.push(from..segment.end);
    }
    gaps.retain(|gap| !gap.is_empty());
    gaps
}

/// Whether there is a locked instruction of 64 bits among these bytes, however they are
/// read: a lock prefix with a REX.W soon behind it.
fn may_hold_sites(bytes: &[u8]) -> bool {
    let is_lock =
        |(at, &byte): (usize, &u8)| byte == 0xF0 && bytes[at + 1..].iter().take(4).any(|byte| byte & 0xF8 == 0x48);
    bytes.iter().enumerate().any(is_lock)
}

fn decode(bytes: &[u8], start: usize, instructions: &mut Vec<Instruction>) {
    instructions.clear();
    instructions.extend(Decoder::with_ip(64, bytes, start as u64, DecoderOptions::NONE));
}

fn head(instructions: &[Instruction]) -> Result<Vec<Instruction>, String> {
    let (mut head, mut length) = (Vec::new(), 0);
    for instruction in instructions {
        if length >= JUMP {
            return Ok(head);
        }
        if instruction.flow_control() != FlowControl::Next || instruction.is_ip_rel_memory_operand() {
            break;
        }
        length += instruction.len();
        head.push(*instruction);
    }
    Err("the first instructions of _Py_DecRefShared cannot be moved".into())
}

/// `form_is_proof`: the interpreter has no other adds of this form than of increments. Other
/// files may, on words of their own.
fn note_sites(instructions: &[Instruction], form_is_proof: bool, plan: &mut Plan) {
    let mut code = Code::new(instructions);
    let red_zone = !code.calls();
    for (index, instruction) in instructions.iter().enumerate() {
        if instruction.code() == Opcode::INVALID {
            // What follows may be anything.
            let reason = "the function holds what is not an instruction";
            plan.left_alone.push(LeftAlone { address: instruction.ip() as usize, reason });
            return;
        }
        let Some(form) = form(instruction) else { continue };
        let (address, length) = (instruction.ip() as usize, instruction.len());
        let (form, reason) = match form {
            Ok(Form::Swap { operand, new }) if is_drop(instructions, index, new) => (Form::Drop { operand, new }, None),
            Ok(form) => (form, None),
            Err(reason) => (Form::Add { object: Register::None }, Some(reason)),
        };
        let needs = code.needs(instruction.next_ip());
        let reason = reason.or(match form {
            _ if length < JUMP => Some("it is shorter than a jump"),
            Form::Add { .. } if needs.flags => Some("its flags are read"),
            Form::Add { object } if !form_is_proof && !code.has_asked_for_the_owner(index, object) => {
                Some("nothing before it shows that it counts an object")
            }
            _ => None,
        });
        match reason {
            Some(reason) => plan.left_alone.push(LeftAlone { address, reason }),
            None => plan.sites.push(Site { address, length, form, needs, red_zone }),
        }
    }
}

/// Whether a compare-and-swap is that of CPython's `_Py_DecRefSharedIsDead` (Objects/object.c),
/// by all that is around it: nothing else asks of a word whether it is more than 1, takes 4
/// off, and then whether that is 3, which is a merged count of none.
///
/// ```text
/// again:  cmp rax, 1
///         jbe queue
///         lea new, [rax-4]
///         lock cmpxchg [object+16], new
///         jne again
///         cmp new, 3
///         je or jne
/// ```
fn is_drop(instructions: &[Instruction], index: usize, new: Register) -> bool {
    let Some([compare, few, take, _, retry, last, dead]) = index.checked_sub(3).and_then(|first| {
        instructions.get(first..first + 7).and_then(|around| <&[Instruction; 7]>::try_from(around).ok())
    }) else {
        return false;
    };
    let compares = |instruction: &Instruction, register, value| {
        instruction.mnemonic() == Mnemonic::Cmp
            && instruction.op0_register() == register
            && matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64)
            && instruction.immediate(1) == value
    };
    compares(compare, Register::RAX, 1)
        && few.mnemonic() == Mnemonic::Jbe
        && take.mnemonic() == Mnemonic::Lea
        && take.op0_register() == new
        && take.memory_base() == Register::RAX
        && take.memory_index() == Register::None
        && take.memory_displacement64() == ONE.wrapping_neg()
        && retry.mnemonic() == Mnemonic::Jne
        && retry.near_branch_target() == compare.ip()
        && compares(last, new, 3)
        && matches!(dead.mnemonic(), Mnemonic::Je | Mnemonic::Jne)
}

/// What kind of site an instruction is, if it is one; or why it cannot be replaced.
fn form(instruction: &Instruction) -> Option<Result<Form, &'static str>> {
    if !instruction.has_lock_prefix()
        || instruction.memory_size().size() != 8
        || instruction.op0_kind() != OpKind::Memory
    {
        return None;
    }
    let operand = Operand {
        base: instruction.memory_base(),
        index: instruction.memory_index(),
        scale: instruction.memory_index_scale(),
        displacement: instruction.memory_displacement64() as i64,
    };
    let plain = |register: Register| register == Register::None || register.is_gpr64() && register != Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Add => {
            let by_one = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64)
                && instruction.immediate(1) == ONE;
            if !by_one || operand.displacement != SHARED as i64 || operand.index != Register::None {
                return None;
            }
            let in_thread = instruction.segment_prefix() != Register::None;
            if in_thread || instruction.is_ip_rel_memory_operand() || !operand.base.is_gpr64() {
                return None;
            }
            Some(if plain(operand.base) {
                Ok(Form::Add { object: operand.base })
            } else {
                Err("its object is in the stack")
            })
        }
        Mnemonic::Cmpxchg => {
            let new = instruction.op1_register();
            if instruction.memory_size() != MemorySize::UInt64 || instruction.segment_prefix() != Register::None {
                return None;
            }
            if instruction.is_ip_rel_memory_operand() || operand.base == Register::RSP {
                // A variable of the program's or of the function's: not an object's count.
                return None;
            }
            let usable = plain(operand.base) && plain(operand.index) && new.is_gpr64() && new != Register::RSP;
            Some(if usable { Ok(Form::Swap { operand, new }) } else { Err("its operands are of another form") })
        }
        _ => None,
    }
}

impl Site {
    /// Registers that a trampoline must leave alone on its way.
    pub fn operands(&self) -> Registers {
        match self.form {
            Form::Add { object } => Registers::NONE.with(object),
            Form::Swap { operand, new } | Form::Drop { operand, new } => {
                Registers::NONE.with(Register::RAX).with(new).with(operand.base).with(operand.index)
            }
        }
    }
}
