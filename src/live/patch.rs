//! Apply and revert.
//!
//! ```text
//! prepare   trampolines are written into pages of their own, and sealed
//! apply     in a copy of the image's code each site becomes a jump; the copy is made
//!           executable and no longer writable, and put in the code's place
//! revert    the same, with the bytes that were there
//! ```
//!
//! So the code can be run all the time, and is never writable. A site is one instruction,
//! and the jump does what it does: it makes no difference to other threads in the image's
//! code when they come by, or that are in a trampoline: trampolines stay where they are. The
//! first instructions of `_Py_DecRefShared` are several: where they are changed, nobody else
//! may be there, or come back, meanwhile.
//!
//! Source: mremap(2); move_page_tables in Linux's mm/mremap.c, which works under the lock
//! that page faults wait for.

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::slice;

use super::image::Image;
use super::memory::{page, pages_of, Pages};
use super::plan::{Form, Plan, JUMP};
use super::trampoline::{self, Context, Shape, Template};

/// Alignment of trampolines: that of cache lines, so that what a hit runs lies in two. With
/// 16 bytes, workloads of many counts were a tenth slower.
const ALIGN: usize = 64;

/// Bytes to be changed.
#[derive(Clone, Debug)]
struct Change {
    address: usize,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// What is to be done to an image, down to the bytes; done or not.
#[derive(Debug)]
pub struct Patch {
    changes: Vec<Change>,
    image: Image,
    /// Keeps the trampolines.
    pages: Pages,
    /// The function that drops references, as it was.
    original: Option<usize>,
    /// Bytes of trampolines.
    used: usize,
}

/// An executable segment, and where in its file it begins.
type Segment = (Range<usize>, u64);

fn broken(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("a trampoline cannot be written: {error}"))
}

impl Patch {
    /// Writes the trampolines of a plan. The image is not touched.
    ///
    /// # Errors
    ///
    /// Where there is no memory within reach, or code cannot be written.
    ///
    /// # Safety
    ///
    /// The image is loaded, and stays; nobody changes its code but through this.
    pub unsafe fn prepare(image: &Image, plan: &Plan, context: &Context) -> io::Result<Patch> {
        let mut pages = Pages::near(image.span(), plan.sites.len() * trampoline::LARGEST + 2 * page())?;
        let mut used = 0;
        let mut put = |pages: &mut Pages, write: &dyn Fn(usize) -> Result<Vec<u8>, iced_x86::IcedError>| {
            let at = pages.start() + used;
            let code = write(at).map_err(broken)?;
            pages.write(used, &code);
            used = (used + code.len()).next_multiple_of(ALIGN);
            io::Result::Ok(at)
        };
        let mut changes = Vec::with_capacity(plan.sites.len() + 1);
        let mut change = |address: usize, length: usize, to: usize| {
            let distance = (to as i64 - (address + JUMP) as i64) as i32;
            let mut after = vec![0xE9];
            after.extend(distance.to_le_bytes());
            // Never run: one-byte breakpoints show where somebody comes by a way that was not seen.
            after.resize(length, 0xCC);
            // SAFETY: the caller's promise.
            let before = unsafe { image.bytes(address..address + length) }.to_vec();
            changes.push(Change { address, before, after });
        };
        let vectors = context.vector_bytes;
        let [of_drops, of_others] = context.purpose.slow_ways();
        let of_drops = put(&mut pages, &|at| trampoline::slow_way(of_drops, vectors, at))?;
        let of_others = put(&mut pages, &|at| trampoline::slow_way(of_others, vectors, at))?;
        let mut templates = HashMap::new();
        for site in &plan.sites {
            let template = match templates.entry(Shape::of(site, context)) {
                Occupied(known) => known.into_mut(),
                Vacant(new) => {
                    let template = Template::new(new.key(), context).map_err(broken)?;
                    new.insert(template)
                }
            };
            let back = site.address + site.length;
            let slow = if matches!(site.form, Form::Drop { .. }) { of_drops } else { of_others };
            let at = put(&mut pages, &|at| Ok(template.place(at, slow, back)))?;
            change(site.address, site.length, at);
        }
        let mut original = None;
        if let Some(entry) = &plan.entry {
            let kept = put(&mut pages, &|at| trampoline::original(entry, at))?;
            let at = put(&mut pages, &|at| trampoline::for_entry(context, of_others, kept, at))?;
            change(entry.address, entry.range().len(), at);
            original = Some(kept);
        }
        pages.seal()?;
        Ok(Patch { changes, image: image.clone(), pages, original, used })
    }

    /// Whether other threads may run the code while it is changed.
    pub fn is_of_sites(&self) -> bool {
        self.original.is_none()
    }

    /// Where the function that drops references can still be called as it was.
    pub fn original(&self) -> Option<usize> {
        self.original
    }

    /// Bytes of trampolines.
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// Where each trampoline is, and the address of what it stands for.
    pub fn trampolines(&self) -> Vec<(Range<usize>, usize)> {
        let mut starts: Vec<(usize, usize)> = Vec::with_capacity(self.changes.len());
        for change in &self.changes {
            let distance: [u8; 4] = change.after[1..JUMP].try_into().unwrap_or_default();
            let behind = change.address + JUMP;
            starts.push((behind.wrapping_add_signed(i32::from_le_bytes(distance) as isize), change.address));
        }
        starts.sort_unstable();
        let end = self.pages.start() + self.used;
        let ends = starts.iter().skip(1).map(|&(start, _)| start).chain([end]);
        starts.iter().zip(ends).map(|(&(start, address), end)| (start..end, address)).collect()
    }

    /// Replaces the sites.
    ///
    /// # Errors
    ///
    /// What the system says; what it denies leaves everything as it was.
    ///
    /// # Safety
    ///
    /// Where there is a function to be replaced, no other thread is in its first instructions,
    /// or comes back to them meanwhile.
    pub unsafe fn apply(&self) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.write(|change| &change.before, |change| &change.after) }
    }

    /// Puts back what was there.
    ///
    /// # Errors
    ///
    /// As for `apply`.
    ///
    /// # Safety
    ///
    /// As for `apply`; where there is a function to be put back, nobody is in its trampoline.
    pub unsafe fn revert(&self) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.write(|change| &change.after, |change| &change.before) }
    }

    /// Changes everything, if all of it is as it is expected.
    unsafe fn write<'a>(
        &'a self,
        from: impl Fn(&'a Change) -> &'a [u8],
        to: impl Fn(&'a Change) -> &'a [u8],
    ) -> io::Result<()> {
        let is_there = |change: &'a Change| {
            let from = from(change);
            // SAFETY: within the image's code, which may be read.
            from == unsafe { slice::from_raw_parts(change.address as *const u8, from.len()) }
        };
        if !self.changes.iter().all(is_there) {
            return Err(io::Error::other("somebody else has changed it"));
        }
        let is_changed = |(code, _): &Segment| self.changes.iter().any(|change| code.contains(&change.address));
        let segments = self.image.code_in_file().filter(is_changed);
        let copies =
            segments.map(|segment| Ok((self.copy(&segment, &to)?, segment))).collect::<io::Result<Vec<_>>>()?;
        let mut changed: Vec<Segment> = Vec::new();
        for (copy, segment) in copies {
            // SAFETY: the caller's promise: whoever is there finds the same instructions, or jumps
            // that do the same.
            if let Err(error) = unsafe { copy.put_over(pages_of(segment.0.clone())) } {
                for segment in changed {
                    if let Ok(copy) = self.copy(&segment, &from) {
                        // SAFETY: as above. Where it fails, too, these sites stay as they are.
                        let _ = unsafe { copy.put_over(pages_of(segment.0)) };
                    }
                }
                return Err(error);
            }
            changed.push(segment);
        }
        Ok(())
    }

    /// A copy of a segment with these bytes where sites are, sealed.
    fn copy<'a>(&'a self, (code, offset): &Segment, bytes: impl Fn(&'a Change) -> &'a [u8]) -> io::Result<Pages> {
        let pages = pages_of(code.clone());
        let offset = offset - (code.start - pages.start) as u64;
        // SAFETY: code of the image; only patches write there, under one lock.
        let mut copy = unsafe { Pages::copy_of(pages.clone(), &self.image.path, offset) }?;
        for change in self.changes.iter().filter(|change| code.contains(&change.address)) {
            copy.write(change.address - pages.start, bytes(change));
        }
        copy.seal()?;
        Ok(copy)
    }
}

/// Blocks all signals of the calling thread.
pub(super) struct NoSignals(libc::sigset_t);

impl NoSignals {
    pub(super) fn new() -> NoSignals {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both are filled in by the calls.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            NoSignals(before.assume_init())
        }
    }
}

impl Drop for NoSignals {
    fn drop(&mut self) {
        // SAFETY: what it was before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}
