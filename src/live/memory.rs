//! Memory for trampolines, within reach of a jump from an image.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

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

/// mprotect(2).
///
/// # Errors
///
/// What the system says.
///
/// # Safety
///
/// Whoever uses these pages can do with what is allowed then.
pub unsafe fn protect(pages: Range<usize>, protection: libc::c_int) -> io::Result<()> {
    // SAFETY: the caller's promise.
    match unsafe { libc::mprotect(pages.start as *mut libc::c_void, pages.len(), protection) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Does to a private copy of a file's first page what patching does to its code.
///
/// # Errors
///
/// What the system says.
pub fn rehearse(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: asks for new pages.
    let got = unsafe { libc::mmap(ptr::null_mut(), page(), protection, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    if got == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let pages = Pages { start: got as usize, length: page() };
    pages.open()?;
    // SAFETY: a page of our own, which may be written.
    unsafe { got.cast::<u8>().write_volatile(0xCC) };
    pages.seal()
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
        // SAFETY: our own pages, which nobody runs while they are written.
        unsafe { protect(self.range(), libc::PROT_READ | libc::PROT_WRITE) }
    }

    /// From now on they may be executed, and no longer written.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn seal(&self) -> io::Result<()> {
        // SAFETY: our own pages.
        unsafe { protect(self.range(), libc::PROT_READ | libc::PROT_EXEC) }
    }
}

impl Drop for Pages {
    /// Nobody runs what is there.
    fn drop(&mut self) {
        // SAFETY: our own pages.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.length) };
    }
}
