//! What the core asks of an object that carries a count of its own.

/// An object's address. The core never looks behind it.
pub type Address = usize;

/// Operations on an object's own count, which other threads change as well.
///
/// # Safety
///
/// Implementors promise that [`add`](Counted::add), [`draw`](Counted::draw),
/// [`take`](Counted::take), [`has_others`](Counted::has_others) and
/// [`admits_credits`](Counted::admits_credits) run no foreign code, free nothing
/// and wait for no other thread (rule R2). `add` may
/// wait where the kind of object says so: it is never called inside a gate.
pub unsafe trait Counted: 'static {
    /// Counts `n` more references, with one atomic operation.
    ///
    /// # Safety
    ///
    /// The object is alive and the thread may touch objects (it is attached).
    unsafe fn add(object: Address, n: u32);

    /// Counts up to `n` more references, as many as can be had at once; says how
    /// many.
    ///
    /// # Safety
    ///
    /// As for `add`.
    unsafe fn draw(object: Address, n: u32) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { Self::add(object, n) };
        n
    }

    /// Takes back up to `n` references, in bulk, with one atomic operation at
    /// the most. Says how many are left, which
    /// [`release`](Counted::release) must drop one by one.
    ///
    /// # Safety
    ///
    /// As for `add`; the caller owns `n` references.
    unsafe fn take(object: Address, n: u32) -> u32;

    /// Whether references exist besides one that the caller holds. A hint:
    /// others may change the count meanwhile.
    ///
    /// # Safety
    ///
    /// As for `add`; the caller owns a reference.
    unsafe fn has_others(object: Address) -> bool;

    /// Whether a buffer may hold credits on it: not where they could come in while the
    /// object is being deallocated by code that will not see them.
    ///
    /// # Safety
    ///
    /// As for `add`.
    unsafe fn admits_credits(_object: Address) -> bool {
        true
    }

    /// Drops one reference as the interpreter does. May free the object and so
    /// run any foreign code: no lock is held and no buffer is entered here.
    ///
    /// # Safety
    ///
    /// As for `add`; the caller owns the reference, and loses it.
    unsafe fn release(object: Address);
}
