//! Memory for trampolines, within reach of a jump from an image; and for copies of code.

use std::fs::File;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;
use std::slice;

/// How far from its end a jump reaches, with room to spare.
const REACH: usize = 0x7000_0000;
/// Distance between two tries.
const STEP: usize = 1 << 20;

/// Pages of our own.
#[derive(Debug)]
pub struct Pages {
    start: usize,
    length: usize,
}

/// The size of a page.
pub fn page() -> usize {
    // SAFETY: asks for a constant.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The pages that a range touches.
pub fn pages_of(range: Range<usize>) -> Range<usize> {
    let page = page();
    range.start / page * page..range.end.next_multiple_of(page)
}

/// Does to a private copy of a file's first page what patching does to its code.
///
/// # Errors
///
/// What the system says.
pub fn rehearse(path: &Path) -> io::Result<()> {
    let first = || Pages::of_file(path, 0, page());
    let (there, mut copy) = (first()?, first()?);
    copy.write(0, &[0xCC]);
    copy.seal()?;
    // SAFETY: pages of our own, which nobody uses.
    unsafe { copy.put_over(there.range()) }?;
    Ok(())
}

impl Pages {
    /// So many bytes near `image`: writable, not executable.
    ///
    /// # Errors
    ///
    /// Where nothing is free within reach.
    pub fn near(image: Range<usize>, length: usize) -> io::Result<Pages> {
        let length = length.max(1).next_multiple_of(page());
        let lowest = image.end.saturating_sub(REACH).max(1 << 16);
        let highest = (image.start + REACH).saturating_sub(length);
        let below = (1..).map_while(|step: usize| image.start.checked_sub(length + step * STEP));
        let above = (1..).map(|step: usize| image.end + step * STEP);
        let places = below.take_while(|&place| place > lowest).chain(above.take_while(|&place| place < highest));
        for place in places {
            let place = place / page() * page();
            // SAFETY: asks for new pages, and for no place that is in use.
            let got = unsafe {
                libc::mmap(
                    ptr::without_provenance_mut(place),
                    length,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            if got == libc::MAP_FAILED {
                continue;
            }
            let pages = Pages { start: got as usize, length };
            // Before Linux 4.17 the flag is only a hint.
            if pages.start == place {
                return Ok(pages);
            }
        }
        Err(io::Error::new(io::ErrorKind::OutOfMemory, "no memory is free within 2 GiB of it"))
    }

    /// So many bytes in the lowest 2 GiB, where code reaches them without a register.
    ///
    /// # Errors
    ///
    /// Where nothing is free there.
    pub fn low(length: usize) -> io::Result<Pages> {
        let length = length.max(1).next_multiple_of(page());
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        // SAFETY: asks for new pages.
        let got = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Pages { start: got as usize, length })
    }

    /// A private copy of so much of a file, from a multiple of the page's size on: writable,
    /// not executable.
    fn of_file(path: &Path, offset: u64, length: usize) -> io::Result<Pages> {
        let file = File::open(path)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let (length, rights) = (length.max(1).next_multiple_of(page()), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: asks for new pages.
        let got = unsafe { libc::mmap(ptr::null_mut(), length, rights, libc::MAP_PRIVATE, file.as_raw_fd(), offset) };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Pages { start: got as usize, length })
    }

    /// A copy of these pages: writable, not executable. Where they come from a file that still
    /// has what they hold, so does the copy, so that whoever looks finds the file's name.
    ///
    /// # Errors
    ///
    /// What the system says.
    ///
    /// # Safety
    ///
    /// The pages can be read, and nobody writes there.
    pub unsafe fn copy_of(pages: Range<usize>, path: &Path, offset: u64) -> io::Result<Pages> {
        // Behind the end of a file there is nothing to read.
        let reaches = |end: u64| path.metadata().is_ok_and(|file| file.is_file() && file.len() > end);
        let last_page = offset + (pages.len() - page()) as u64;
        let of_file = reaches(last_page).then(|| Pages::of_file(path, offset, pages.len()).ok()).flatten();
        let copy = of_file.map_or_else(|| Pages::anywhere(pages.len()), Ok)?;
        for at in (0..pages.len()).step_by(page()) {
            // SAFETY: the caller's promise, and pages of our own.
            let (from, to) = unsafe {
                let from = slice::from_raw_parts((pages.start + at) as *const u8, page());
                (from, slice::from_raw_parts_mut((copy.start + at) as *mut u8, page()))
            };
            if from != to {
                to.copy_from_slice(from);
            }
        }
        Ok(copy)
    }

    /// So many bytes: writable, not executable.
    fn anywhere(length: usize) -> io::Result<Pages> {
        let length = length.max(1).next_multiple_of(page());
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: asks for new pages.
        let got = unsafe { libc::mmap(ptr::null_mut(), length, rights, flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Pages { start: got as usize, length })
    }

    /// Puts them in the place of as many others, which are no more. Who runs what is there finds
    /// either, and both in one piece: the system lets nobody see what is between.
    ///
    /// # Errors
    ///
    /// What the system says.
    ///
    /// # Safety
    ///
    /// Whoever uses the others can do with these.
    pub unsafe fn put_over(self, others: Range<usize>) -> io::Result<()> {
        assert_eq!(others.len(), self.length, "as many");
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (from, to) = (self.start as *mut libc::c_void, others.start as *mut libc::c_void);
        // SAFETY: our own pages, and the caller's promise.
        if unsafe { libc::mremap(from, self.length, self.length, flags, to) } == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        mem::forget(self);
        Ok(())
    }

    /// Of the first byte.
    pub fn start(&self) -> usize {
        self.start
    }

    /// All of them.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.length
    }

    /// Writes at an offset, while the pages may be written.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length, "within the pages");
        // SAFETY: our own pages, and within them; nobody runs what is there yet.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), (self.start + offset) as *mut u8, bytes.len()) };
    }

    /// From now on they may be written, and no longer executed.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn open(&self) -> io::Result<()> {
        self.protect(libc::PROT_READ | libc::PROT_WRITE)
    }

    /// From now on they may be executed, and no longer written.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn seal(&self) -> io::Result<()> {
        self.protect(libc::PROT_READ | libc::PROT_EXEC)
    }

    fn protect(&self, rights: libc::c_int) -> io::Result<()> {
        // SAFETY: our own pages, which nobody runs while they are written.
        match unsafe { libc::mprotect(self.start as *mut libc::c_void, self.length, rights) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Pages {
    /// Nobody runs what is there.
    fn drop(&mut self) {
        // SAFETY: our own pages.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.length) };
    }
}
