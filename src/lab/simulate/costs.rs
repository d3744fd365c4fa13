//! What things cost, in nanoseconds.

/// In nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// A look at an object's header that is in the cache.
    pub hit: f64,
    /// A plain count on a line of one's own.
    pub plain: f64,
    /// A count in the thread's own table.
    pub table: f64,
    /// On top, where a look in the table ends otherwise than the one before: the
    /// processor has not foreseen it.
    pub surprise: f64,
    /// An atomic count on a line of one's own, by one locked instruction.
    pub atomic: f64,
    /// The same by a load and a compare-and-swap that needs what was loaded, as
    /// CPython's decrement does it; right after another count on the line.
    pub swap: f64,
    /// The same, after uses of other lines.
    pub swap_apart: f64,
    /// On top of an atomic count: the line comes from another cache, and the thread
    /// has used no other line since.
    pub transfer: f64,
    /// The same, after uses of other lines, if nobody has used this one for as long
    /// as a transfer takes: the processor has asked for it ahead, so that less of the
    /// time is waited for. If somebody has, what was asked for is gone again.
    pub transfer_ahead: f64,
    /// On top of a read: the line comes from another cache. Reads overlap, too.
    pub read_transfer: f64,
    /// How long a thread that counts on one line again and again keeps it when
    /// others want it, with one locked instruction after the other.
    pub hold: f64,
    /// The same, where each count looks at the line first, as CPython's does.
    pub hold_looked: f64,
    /// On top of an atomic count: no private cache has the line.
    pub fill: f64,
    /// On top of a read: the same.
    pub read_fill: f64,
    /// From one thread that lets go of the GIL to the next one that runs.
    pub handover: f64,
}

impl Costs {
    /// Those that a machine with one CPU cannot measure, for one as servers had in
    /// 2024; the rest is measured anyhow.
    pub const ASSUMED: Costs = Costs {
        hit: 0.4,
        plain: 0.6,
        table: 1.5,
        surprise: 5.0,
        atomic: 5.0,
        swap: 7.0,
        swap_apart: 5.0,
        transfer: 60.0,
        transfer_ahead: 30.0,
        read_transfer: 15.0,
        hold: 20.0,
        hold_looked: 15.0,
        fill: 40.0,
        read_fill: 8.0,
        handover: 10_000.0,
    };

    /// The fields, by name, in the order of the struct.
    pub fn named(&mut self) -> [(&'static str, &mut f64); 15] {
        [
            ("hit", &mut self.hit),
            ("plain", &mut self.plain),
            ("table", &mut self.table),
            ("surprise", &mut self.surprise),
            ("atomic", &mut self.atomic),
            ("swap", &mut self.swap),
            ("swap_apart", &mut self.swap_apart),
            ("transfer", &mut self.transfer),
            ("transfer_ahead", &mut self.transfer_ahead),
            ("read_transfer", &mut self.read_transfer),
            ("hold", &mut self.hold),
            ("hold_looked", &mut self.hold_looked),
            ("fill", &mut self.fill),
            ("read_fill", &mut self.read_fill),
            ("handover", &mut self.handover),
        ]
    }
}
