//! What the code behind an instruction may still need: which registers it reads before
//! it writes them, and whether it reads the flags. And whether the code before it has asked
//! who owns an object.
//!
//! Only proof counts: whatever is not seen within a few dozen instructions, or lies behind
//! a call, a return or a computed jump, is taken to be needed. So no assumption on who
//! saves which registers is made; compilers bend those within a file (gcc's -fipa-ra).

use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, RflagsBits, UsedRegister,
};

/// Instructions looked at, on all ways together.
const HORIZON: usize = 64;
/// The same, on the ways that lead to an instruction.
const BACKWARD_HORIZON: usize = 256;
/// The same, between an increment and what it asks first.
const NEAR: usize = 24;

/// Branches within a function, as (where to, from where), in order.
type Branches = [(usize, usize)];

/// The registers that may be borrowed: all but the stack's.
pub const GENERAL: [Register; 15] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// A set of general registers, by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Registers(u16);

impl Registers {
    /// None.
    pub const NONE: Registers = Registers(0);

    fn bit(register: Register) -> u16 {
        let full = register.full_register();
        if full.is_gpr64() {
            1 << full.number()
        } else {
            0
        }
    }

    /// With one more.
    pub fn with(self, register: Register) -> Registers {
        Registers(self.0 | Self::bit(register))
    }

    /// Whether a register, or the one it is a part of, is in it.
    pub fn holds(self, register: Register) -> bool {
        self.0 & Self::bit(register) != 0
    }
}

const STATUS: u32 = RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// A function's instructions, in order of their addresses.
pub struct Code<'a> {
    instructions: &'a [Instruction],
    info: InstructionInfoFactory,
    /// [`Code::find_branches`], once it is asked for.
    branches: Option<Vec<(usize, usize)>>,
}

/// What is known of the code from some point on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Registers that nobody reads before they are written.
    pub free: Registers,
    /// Status flags may be read before they are written.
    pub flags: bool,
}

/// A way that has still to be followed.
struct Way {
    index: usize,
    undecided: u16,
    flags: u32,
}

/// Registers that a function leaves as they were.
const KEPT_BY_CALLS: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

fn is_call(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

/// Whether the next instruction may come after it.
fn falls_through(instruction: &Instruction) -> bool {
    is_call(instruction) || matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch)
}

/// Whether it loads the thread's id into this register: `mov register, fs:0`.
fn is_thread_id(instruction: &Instruction, register: Register) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_register() == register
        && instruction.op1_kind() == OpKind::Memory
        && instruction.segment_prefix() == Register::FS
        && instruction.memory_base() == Register::None
        && instruction.memory_index() == Register::None
        && instruction.memory_displacement64() == 0
}

/// What it compares the first word of what `object` points to with.
fn compared_with(instruction: &Instruction, object: Register) -> Option<Register> {
    let is_first_word = instruction.mnemonic() == Mnemonic::Cmp
        && instruction.memory_size().size() == 8
        && instruction.memory_base() == object
        && instruction.memory_index() == Register::None
        && instruction.memory_displacement64() == 0
        && instruction.segment_prefix() == Register::None;
    let register = match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Memory, OpKind::Register) => instruction.op1_register(),
        (OpKind::Register, OpKind::Memory) => instruction.op0_register(),
        _ => return None,
    };
    is_first_word.then_some(register)
}

impl<'a> Code<'a> {
    /// Of one function.
    pub fn new(instructions: &'a [Instruction]) -> Code<'a> {
        Code { instructions, info: InstructionInfoFactory::new(), branches: None }
    }

    fn find(&self, address: u64) -> Option<usize> {
        self.instructions.binary_search_by_key(&address, Instruction::ip).ok()
    }

    /// Whether the function calls another: then nothing of its own lies below the stack
    /// pointer (only leaf functions use the red zone).
    pub fn calls(&self) -> bool {
        self.instructions.iter().any(is_call)
    }

    /// Branches within the function, as (where to, from where), in order.
    fn find_branches(&self) -> Vec<(usize, usize)> {
        let is_branch = |instruction: &Instruction| {
            matches!(instruction.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
        };
        let of = self.instructions.iter().enumerate().filter(|(_, instruction)| is_branch(instruction));
        let mut branches: Vec<_> =
            of.filter_map(|(from, branch)| Some((self.find(branch.near_branch_target())?, from))).collect();
        branches.sort_unstable();
        branches
    }

    /// Whether all ways to the instruction with this index, which counts on what `object`
    /// points to, have just compared the first word of that with this thread's id, as CPython
    /// does before it counts what another thread owns.
    ///
    /// Only proof counts here, too: a way that comes from nowhere known, or round a loop, has
    /// compared nothing. Computed jumps and those from other functions' parts are not seen. They
    /// can only go to where a way begins for compilers: between the comparison and the count
    /// there is no such place, but the target of the comparison's own branch.
    pub fn has_asked_for_the_owner(&mut self, index: usize, object: Register) -> bool {
        let branches = self.branches.take().unwrap_or_else(|| self.find_branches());
        let asked = self.comparisons(index, object, &branches);
        let has = asked.is_some_and(|asked| {
            !asked.is_empty() && asked.into_iter().all(|(index, id)| self.holds_the_thread_id(index, id, &branches))
        });
        self.branches = Some(branches);
        has
    }

    /// The comparisons of what `object` points to that all ways to this instruction come from,
    /// each with the register that it is compared with; none if there is a way without.
    fn comparisons(&mut self, index: usize, object: Register, branches: &Branches) -> Option<Vec<(usize, Register)>> {
        let mut found = Vec::new();
        let (mut ways, mut visited) = (vec![index], vec![index]);
        while let Some(index) = ways.pop() {
            for before in self.before(index, branches)? {
                let instruction = &self.instructions[before];
                if let Some(id) = compared_with(instruction, object) {
                    found.push((before, id));
                } else if is_call(instruction) || self.may_write(instruction, object) || visited.contains(&before) {
                    return None;
                } else {
                    visited.push(before);
                    ways.push(before);
                }
                if visited.len() + found.len() > NEAR {
                    return None;
                }
            }
        }
        Some(found)
    }

    /// Whether a register has the thread's id before this instruction, whatever way leads there.
    fn holds_the_thread_id(&mut self, index: usize, id: Register, branches: &Branches) -> bool {
        let mut loaded = false;
        let (mut ways, mut visited) = (vec![index], vec![index]);
        while let Some(index) = ways.pop() {
            let Some(before) = self.before(index, branches) else { return false };
            for before in before {
                let instruction = &self.instructions[before];
                if is_thread_id(instruction, id) {
                    loaded = true;
                } else if self.may_write(instruction, id) || visited.len() > BACKWARD_HORIZON {
                    return false;
                } else if !visited.contains(&before) {
                    visited.push(before);
                    ways.push(before);
                }
            }
        }
        loaded
    }

    /// The instructions that this one may come after; none where that is not known.
    fn before(&self, index: usize, branches: &Branches) -> Option<Vec<usize>> {
        let first = branches.partition_point(|&(to, _)| to < index);
        let mut before: Vec<usize> =
            branches[first..].iter().take_while(|&&(to, _)| to == index).map(|&(_, from)| from).collect();
        let last = index.checked_sub(1)?;
        if falls_through(&self.instructions[last]) && !self.fills_up(last, branches) {
            before.push(last);
        }
        (!before.is_empty()).then_some(before)
    }

    /// Whether nobody comes by this instruction, which fills up a line behind a jump.
    fn fills_up(&self, mut index: usize, branches: &Branches) -> bool {
        loop {
            let is_target = branches.binary_search_by_key(&index, |&(to, _)| to).is_ok();
            if is_target || self.instructions[index].mnemonic() != Mnemonic::Nop {
                return false;
            }
            match index.checked_sub(1) {
                Some(last) if falls_through(&self.instructions[last]) => index = last,
                Some(_) => return true,
                // At a function's entry: its callers do.
                None => return false,
            }
        }
    }

    fn may_write(&mut self, instruction: &Instruction, register: Register) -> bool {
        if is_call(instruction) {
            return !KEPT_BY_CALLS.contains(&register);
        }
        let writes = |used: &UsedRegister| {
            let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            writes && used.register().full_register() == register
        };
        self.info.info(instruction).used_registers().iter().any(writes)
    }

    /// What is needed from the instruction at `address` on.
    pub fn needs(&mut self, address: u64) -> Needs {
        let (mut live, mut flags_read, mut seen) = (0u16, false, 0);
        let mut ways = Vec::new();
        let mut visited: Vec<(usize, u16, u32)> = Vec::new();
        let follow = |code: &Self, ways: &mut Vec<Way>, address: u64, undecided: u16, flags: u32| {
            code.find(address).map(|index| ways.push(Way { index, undecided, flags })).is_some()
        };
        // Flags are nobody's business across a call or a return: the ABI has no others.
        if !follow(self, &mut ways, address, u16::MAX, STATUS) {
            return Needs { free: Registers::NONE, flags: true };
        }
        while let Some(Way { mut index, mut undecided, mut flags }) = ways.pop() {
            loop {
                undecided &= !live;
                if flags_read {
                    flags = 0;
                }
                if undecided == 0 && flags == 0 {
                    break;
                }
                let known = |&(at, registers, status): &(usize, u16, u32)| {
                    at == index && registers & undecided == undecided && status & flags == flags
                };
                if visited.iter().any(known) {
                    break;
                }
                visited.push((index, undecided, flags));
                seen += 1;
                let Some(&instruction) = self.instructions.get(index).filter(|_| seen <= HORIZON) else {
                    (live, flags_read) = (live | undecided, flags_read || flags != 0);
                    break;
                };
                if instruction.rflags_read() & flags != 0 {
                    flags_read = true;
                }
                flags &= !instruction.rflags_modified();
                let used = self.info.info(&instruction);
                let mut written = 0;
                for register in used.used_registers() {
                    let bit = Registers::bit(register.register());
                    match register.access() {
                        OpAccess::None | OpAccess::NoMemAccess => {}
                        // A write to 32 bits clears the rest; to fewer, it keeps it.
                        OpAccess::Write if register.register().size() >= 4 => written |= bit,
                        _ => live |= bit & undecided,
                    }
                }
                undecided &= !written;
                match instruction.flow_control() {
                    FlowControl::Next => index += 1,
                    FlowControl::UnconditionalBranch => {
                        if !follow(self, &mut ways, instruction.near_branch_target(), undecided, flags) {
                            (live, flags_read) = (live | undecided, flags_read || flags != 0);
                        }
                        break;
                    }
                    FlowControl::ConditionalBranch => {
                        if !follow(self, &mut ways, instruction.near_branch_target(), undecided, flags) {
                            (live, flags_read) = (live | undecided, flags_read || flags != 0);
                            break;
                        }
                        index += 1;
                    }
                    FlowControl::Call | FlowControl::IndirectCall | FlowControl::Return => {
                        live |= undecided;
                        break;
                    }
                    _ => {
                        (live, flags_read) = (live | undecided, flags_read || flags != 0);
                        break;
                    }
                }
            }
        }
        Needs { free: Registers(!live & !Registers::bit(Register::RSP)), flags: flags_read }
    }
}
