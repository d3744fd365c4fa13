//! Whether trampolines do what they should: each is run on a scratch object, with the
//! table in every state that matters and registers full of chance, and compared with the
//! instruction that it stands for.
//!
//! What has to hold, for every site:
//!
//! ```text
//! references  the object's count less its credits has changed as by the instruction
//! registers   those that the code behind needs are as the instruction leaves them,
//!             vector registers and the stack as well, the red zone where there may be one
//! flags       as the instruction leaves them, where they may be read
//! table       hits and only hits change a slot; the gate is open again
//! recording   nobody looks at the table; who has to be told is, and nobody else
//! ```

use std::collections::HashSet;
use std::io;

use iced_x86::code_asm::{get_gpr64, qword_ptr, CodeAssembler};
use iced_x86::{IcedError, Register};

use super::patch::NoSignals;
use super::plan::{Form, Site, ONE, SHARED};
use super::trampoline::{self, tag, Context, Purpose, Shape, LAST};
use super::trial::{Machine, Outcome, Table, Trial, RED_ZONE, VECTORS};

/// The status flags: CF, PF, AF, ZF, SF, OF.
const STATUS: u64 = 0x8D5;
/// Flags that are always set: one that is reserved, and that interrupts are served.
const ALWAYS: u64 = 0x202;
/// The registers that a called function keeps, rsp apart.
const KEPT: [Register; 6] = [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];
/// The number of rdi, which holds the first argument.
const ARGUMENT: usize = 7;
const RAX: usize = 0;

/// What went wrong with which trampoline.
pub type Finding = String;

/// Numbers by chance; the same for the same seed (splitmix64).
#[derive(Clone, Copy, Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// The next.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ word >> 31
    }

    fn machine(&mut self) -> Machine {
        Machine { registers: std::array::from_fn(|_| self.draw()), flags: self.draw() & STATUS | ALWAYS }
    }
}

/// Machine states by chance for a trampoline that does not look at the table.
const TRIES: usize = 24;

/// Every state of the table that a trampoline may tell apart.
fn tables(context: &Context) -> Vec<Table> {
    if records(context) {
        return vec![Table { slots: [(true, 77), (false, 1)], shut: false, skip: -9 }; TRIES];
    }
    let (limit, refund) = (u64::from(context.buffer.credit_limit), context.buffer.refund as u64);
    let history = (refund - 1) * 3;
    let words = [0, 1, 77, limit - 1, limit, limit + 1].map(|credits| history | credits);
    let mut slots = vec![[(false, words[2]), (false, words[1])], [(true, words[0]), (true, words[2])]];
    for word in words {
        slots.extend([[(true, word), (false, words[1])], [(false, words[1]), (true, word)]]);
    }
    let mut tables = Vec::new();
    for slots in slots {
        for (shut, skip) in [(false, -9), (true, -9), (false, 0), (false, 1), (false, 5)] {
            tables.push(Table { slots, shut, skip });
        }
    }
    tables
}

fn records(context: &Context) -> bool {
    matches!(context.purpose, Purpose::Record { .. })
}

/// What has to come of an operation on the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The thread stands aside.
    Aside,
    /// Served by the slot of this number.
    Hit(usize),
    /// Not served.
    Missed,
}

fn way(context: &Context, table: &Table, takes: bool) -> Way {
    let layout = &context.buffer;
    if records(context) {
        return Way::Missed;
    }
    if table.skip > 0 {
        return Way::Aside;
    }
    let Some(number) = table.slots.iter().position(|slot| slot.0) else { return Way::Missed };
    let credits = table.slots[number].1 & u64::from(layout.credits);
    let full = credits & u64::from(layout.credit_limit) != 0;
    if table.shut || credits == 0 || !takes && full {
        return Way::Missed;
    }
    Way::Hit(number)
}

/// The words of both slots, with what an operation has changed.
fn words_after(context: &Context, table: &Table, way: Way, takes: bool) -> [u64; 2] {
    let mut words = table.slots.map(|slot| slot.1);
    if let Way::Hit(number) = way {
        let change = if takes { u64::MAX } else { context.buffer.refund as u64 };
        words[number] = words[number].wrapping_add(change);
    }
    words
}

/// The instruction of a site, and then the end.
fn plain(site: &Site, at: usize, back: usize) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let gpr = |register| get_gpr64(register).unwrap_or_else(|| unreachable!("a general register"));
    match site.form {
        Form::Add { object } => a.lock().add(qword_ptr(gpr(object) + SHARED as i32), ONE as i32)?,
        Form::Swap { operand, new } | Form::Drop { operand, new } => {
            a.lock().cmpxchg(trampoline::qword_ptr_of(operand), gpr(new))?
        }
    }
    a.jmp(back as u64)?;
    a.assemble(at as u64)
}

fn unwritten(error: IcedError) -> io::Error {
    io::Error::other(error.to_string())
}

/// Tries a site's trampoline in all states of the table, each with one or two machine
/// states by chance.
///
/// # Errors
///
/// Where memory is refused; inside, what is wrong with the trampoline.
pub fn check_site(trial: &mut Trial, site: &Site, chance: &mut Chance) -> io::Result<Result<(), Finding>> {
    trial.clear();
    let (context, exit) = (*trial.context(), trial.exit());
    let slow = match site.form {
        Form::Drop { .. } => trial.slow_take_in(),
        Form::Add { .. } | Form::Swap { .. } => trial.slow_way(),
    };
    let reference = plain(site, trial.place(), exit).map_err(unwritten)?;
    let reference = trial.load(&reference)?;
    let code = trampoline::for_site(site, &context, slow, trial.place(), exit).map_err(unwritten)?;
    if code.len() > trampoline::LARGEST {
        return Ok(Err(format!("it has {} bytes", code.len())));
    }
    let code = trial.load(&code)?;
    trial.seal()?;
    let _quiet = NoSignals::new();
    let try_one = Try { site, context, reference, code };
    for table in tables(&context) {
        let found = match site.form {
            Form::Add { object } => try_one.add(trial, object, table, chance),
            Form::Swap { new, .. } => [ONE, ONE.wrapping_neg()]
                .into_iter()
                .try_for_each(|delta| try_one.swap(trial, new, delta, table, chance)),
            Form::Drop { new, .. } => {
                [false, true].into_iter().try_for_each(|takes_in| try_one.take(trial, new, takes_in, table, chance))
            }
        };
        if let Err(what) = found {
            return Ok(Err(format!("{what}; {:?}, {table:?}", site.form)));
        }
    }
    Ok(Ok(()))
}

/// How thoroughly the trampolines of a plan are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// One of each form, with each number of registers to be kept, in leaf functions and others.
    Samples,
    /// All that differ.
    All,
}

/// Tries the trampolines of these sites, and that of the entry; returns how many.
///
/// # Errors
///
/// What is wrong with one of them.
pub fn check<'a>(
    context: &Context,
    near: usize,
    sites: impl Iterator<Item = &'a Site>,
    extent: Extent,
) -> Result<usize, Finding> {
    let failed = |error: io::Error| format!("they cannot be tried: {error}");
    let mut trial = Trial::new(context, near).map_err(failed)?;
    let (mut chance, mut known, mut kinds) = (Chance(1), HashSet::new(), HashSet::new());
    check_entry(&mut trial, &mut chance).map_err(failed)??;
    for site in sites {
        let shape = Shape::of(site, context);
        let kind = (std::mem::discriminant(&site.form), shape.pushes(), site.red_zone);
        let is_new = match extent {
            Extent::Samples => kinds.insert(kind),
            Extent::All => known.insert(shape),
        };
        if is_new {
            check_site(&mut trial, site, &mut chance).map_err(failed)??;
        }
    }
    Ok(1 + kinds.len() + known.len())
}

/// One site's two codes.
struct Try<'a> {
    site: &'a Site,
    context: Context,
    reference: usize,
    code: usize,
}

impl Try<'_> {
    fn add(&self, trial: &mut Trial, object: Register, table: Table, chance: &mut Chance) -> Result<(), Finding> {
        let mut before = chance.machine();
        before.registers[object.number()] = trial.object();
        let shared = chance.draw() << 2;
        let way = way(&self.context, &table, true);
        let (expected, got) = self.both(trial, before, shared, shared, table);
        let counted = if matches!(way, Way::Hit(_)) { shared } else { shared.wrapping_add(ONE) };
        if got.shared != counted {
            return Err(format!("the count is {:#x} where {counted:#x} is right", got.shared));
        }
        let told: &[u64] = if way == Way::Missed { &[trial.object()] } else { &[] };
        called(&got, told)?;
        self.same(&expected, &got, self.site.needs.flags, &words_after(&self.context, &table, way, true))?;
        skipped(&got, self.counted_down(&table))
    }

    fn swap(
        &self,
        trial: &mut Trial,
        new: Register,
        delta: u64,
        table: Table,
        chance: &mut Chance,
    ) -> Result<(), Finding> {
        let often = chance.draw();
        let old = [chance.draw() << 2 | 3, chance.draw() << 2, LAST][(often % 3) as usize];
        let lost = often >> 8 & 1 != 0;
        let delta = if often >> 16 & 3 != 0 { delta } else { [0, 1, 2 * ONE, often][(often >> 24 & 3) as usize] };
        let mut before = chance.machine();
        before.registers[RAX] = old;
        before.registers[new.number()] = old.wrapping_add(delta);
        if !self.aim(trial, &mut before) {
            return Ok(());
        }
        // An operand may be both: then it is what its address makes of it.
        let (old, new) = (before.registers[RAX], before.registers[new.number()]);
        let shared = if lost { old.wrapping_add(ONE * 5) } else { old };
        let takes = new == old.wrapping_add(ONE);
        let counts = takes || new == old.wrapping_sub(ONE) && old != LAST;
        let way = if counts { way(&self.context, &table, takes) } else { Way::Missed };
        let hit = matches!(way, Way::Hit(_));
        // A hit is a swap that succeeds, and touches nothing.
        let (expected, got) = self.both(trial, before, if hit { old } else { shared }, shared, table);
        let counted = if hit { shared } else { expected.shared };
        if got.shared != counted {
            return Err(format!("the count is {:#x} where {counted:#x} is right", got.shared));
        }
        let told = trial.object() | (tag::CANDIDATE | if takes { 0 } else { tag::DECREMENT }) as u64;
        let drops = new == old.wrapping_sub(ONE);
        let is_told = records(&self.context) && shared == old && (takes || drops);
        called(&got, if is_told { std::slice::from_ref(&told) } else { &[] })?;
        self.same(&expected, &got, true, &words_after(&self.context, &table, way, takes))?;
        skipped(&got, if counts { self.counted_down(&table) } else { table.skip })
    }

    fn take(
        &self,
        trial: &mut Trial,
        new: Register,
        takes_in: bool,
        table: Table,
        chance: &mut Chance,
    ) -> Result<(), Finding> {
        let often = chance.draw();
        let old = [chance.draw() << 2 | 3, chance.draw() << 2, LAST][(often % 3) as usize];
        let mut before = chance.machine();
        before.registers[RAX] = old;
        before.registers[new.number()] = old.wrapping_sub(ONE);
        if !self.aim(trial, &mut before) {
            return Ok(());
        }
        // The plan takes none whose operands are the same.
        if before.registers[RAX] != old || before.registers[new.number()] != old.wrapping_sub(ONE) {
            return Ok(());
        }
        let shared = if often >> 8 & 1 != 0 { old.wrapping_add(ONE * 5) } else { old };
        trial.set_takes_in(takes_in);
        let way = if old == LAST { Way::Aside } else { way(&self.context, &table, false) };
        let records = records(&self.context);
        let absorbed = matches!(way, Way::Hit(_)) || way == Way::Missed && takes_in && !records;
        let (expected, got) = self.both(trial, before, if absorbed { old } else { shared }, shared, table);
        let counted = if absorbed { shared } else { expected.shared };
        if got.shared != counted {
            return Err(format!("the count is {:#x} where {counted:#x} is right", got.shared));
        }
        let (object, dropped) = (trial.object(), (tag::DECREMENT | tag::GONE) as u64);
        let told = match way {
            _ if records => (shared == old).then_some(object | dropped),
            way => (way == Way::Missed).then_some(object),
        };
        called(&got, told.as_slice())?;
        self.same(&expected, &got, true, &words_after(&self.context, &table, way, false))?;
        skipped(&got, if old == LAST { table.skip } else { self.counted_down(&table) })
    }

    /// Operations to stand aside that are left after one that does.
    fn counted_down(&self, table: &Table) -> i64 {
        counted_down(&self.context, table)
    }

    /// Sets the registers of the address so that it is the object's count; says whether
    /// that can be.
    fn aim(&self, trial: &Trial, machine: &mut Machine) -> bool {
        let (Form::Swap { operand, .. } | Form::Drop { operand, .. }) = self.site.form else { return false };
        let wanted = (trial.object() + SHARED).wrapping_sub(operand.displacement as u64);
        let scale = u64::from(operand.scale);
        let share = |of: u64, by: u64| (of % by == 0).then_some(of / by);
        let (base, index) = (operand.base, operand.index);
        let (register, value) = match (base, index) {
            (Register::None, Register::None) => return false,
            (Register::None, index) => (index, share(wanted, scale)),
            (base, index) if base == index => (base, share(wanted, scale + 1)),
            (base, Register::None) => (base, Some(wanted)),
            (base, index) => (base, Some(wanted.wrapping_sub(machine.registers[index.number()].wrapping_mul(scale)))),
        };
        value.map(|value| machine.registers[register.number()] = value).is_some()
    }

    fn both(
        &self,
        trial: &mut Trial,
        before: Machine,
        reference_shared: u64,
        shared: u64,
        table: Table,
    ) -> (Outcome, Outcome) {
        // SAFETY: the site's own instruction, which works on the scratch object.
        let expected = unsafe { trial.run(self.reference, before, reference_shared, table, false) };
        // SAFETY: its trampoline, of this trial.
        let got = unsafe { trial.run(self.code, before, shared, table, false) };
        (expected, got)
    }

    fn same(&self, expected: &Outcome, got: &Outcome, flags: bool, words: &[u64; 2]) -> Result<(), Finding> {
        if let Some(damage) = expected.damage.first() {
            return Err(format!("the trial itself is wrong: the instruction changes {damage}"));
        }
        for number in 0..16 {
            let register = Register::RAX + number as u32;
            let needed = !self.site.needs.free.holds(register);
            if needed && expected.machine.registers[number] != got.machine.registers[number] {
                return Err(format!("{register:?} has changed"));
            }
        }
        common(got, words, self.site.red_zone)?;
        let mask = if flags { u64::MAX } else { !STATUS };
        if (expected.machine.flags ^ got.machine.flags) & mask != 0 {
            return Err(format!("flags are {:#x} where {:#x} is right", got.machine.flags, expected.machine.flags));
        }
        Ok(())
    }
}

fn common(got: &Outcome, words: &[u64; 2], red_zone: bool) -> Result<(), Finding> {
    let matters = |damage: &str| red_zone || damage != RED_ZONE;
    if let Some(damage) = got.damage.iter().find(|damage| matters(damage)) {
        return Err(format!("it changes {damage}"));
    }
    if got.slots.map(|slot| slot[1]) != *words {
        return Err(format!("the slots' words are {:x?} where {words:x?} is right", got.slots));
    }
    if !got.gate_open {
        return Err("the gate is still taken".into());
    }
    Ok(())
}

fn counted_down(context: &Context, table: &Table) -> i64 {
    table.skip - i64::from(table.skip > 0 && !records(context))
}

/// Whether the slow way was called with these, one after the other.
fn called(got: &Outcome, arguments: &[u64]) -> Result<(), Finding> {
    let (calls, right) = (got.calls, arguments.len());
    if calls != right as u64 {
        return Err(format!("other functions were called {calls} times where {right} is right"));
    }
    if got.arguments[..right] != *arguments {
        return Err(format!("they were called with {:x?} where {arguments:x?} is right", got.arguments));
    }
    Ok(())
}

fn skipped(got: &Outcome, right: i64) -> Result<(), Finding> {
    if got.skip != right {
        return Err(format!("{} operations are left to stand aside where {right} are right", got.skip));
    }
    Ok(())
}

/// Tries the code for the entry of the function that drops references.
///
/// # Errors
///
/// As for [`check_site`].
pub fn check_entry(trial: &mut Trial, chance: &mut Chance) -> io::Result<Result<(), Finding>> {
    trial.clear();
    let (context, slow, stand_in) = (*trial.context(), trial.slow_way(), trial.stand_in());
    let code = trampoline::for_entry(&context, slow, stand_in, trial.place()).map_err(unwritten)?;
    let code = trial.load(&code)?;
    trial.seal()?;
    let _quiet = NoSignals::new();
    for table in tables(&context) {
        let mut before = chance.machine();
        before.registers[ARGUMENT] = trial.object();
        let shared = chance.draw() << 2;
        // SAFETY: the code for the entry, of this trial, which returns.
        let mut got = unsafe { trial.run(code, before, shared, table, true) };
        // A function that is called need not keep them.
        got.damage.retain(|&damage| got.calls == 0 || damage != VECTORS);
        let way = way(&context, &table, false);
        let found = (|| {
            let object = trial.object();
            match way {
                Way::Hit(_) => called(&got, &[])?,
                _ if records(&context) => called(&got, &[object | tag::DECREMENT as u64, object])?,
                _ => called(&got, &[object])?,
            }
            if let Some(register) = KEPT
                .into_iter()
                .find(|register| got.machine.registers[register.number()] != before.registers[register.number()])
            {
                return Err(format!("{register:?} has changed"));
            }
            common(&got, &words_after(&context, &table, way, false), false)?;
            skipped(&got, counted_down(&context, &table))
        })();
        if let Err(what) = found {
            return Ok(Err(format!("{what}; _Py_DecRefShared, {table:?}")));
        }
    }
    Ok(Ok(()))
}
