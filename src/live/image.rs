//! What is loaded in this process: executables and shared objects, their code, and
//! where each function begins and ends.
//!
//! All of it is read from memory. Functions' bounds are those of `.eh_frame`, which
//! stripped binaries have too: on x86-64 the ABI asks for it.
//!
//! Sources: System V ABI, AMD64 supplement; LSB core, `.eh_frame_hdr`; dl_iterate_phdr(3).

use std::ffi::{c_int, c_void, CStr};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::slice;

use gimli::{BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, NativeEndian, UnwindSection};

/// One loaded file.
#[derive(Clone, Debug)]
pub struct Image {
    /// Where it came from; the executable's own path for the main program.
    pub path: PathBuf,
    /// Its executable segments, as addresses.
    pub code: Vec<Range<usize>>,
    /// Where in the file each of them begins.
    offsets: Vec<u64>,
    /// All its segments.
    segments: Vec<Range<usize>>,
    /// `.eh_frame_hdr`.
    frames: Option<Range<usize>>,
}

impl Image {
    /// Code that no file holds.
    #[cfg(test)]
    pub(super) fn of_code(code: Range<usize>) -> Image {
        let segments = vec![code.clone()];
        Image { path: PathBuf::from("a test"), code: vec![code], offsets: vec![0], segments, frames: None }
    }

    /// Whether an address is in it.
    pub fn holds(&self, address: usize) -> bool {
        self.segments.iter().any(|segment| segment.contains(&address))
    }

    /// Its executable segments, and where in the file each of them begins.
    pub fn code_in_file(&self) -> impl Iterator<Item = (Range<usize>, u64)> + '_ {
        self.code.iter().cloned().zip(self.offsets.iter().copied())
    }

    /// Where all of it lies.
    pub fn span(&self) -> Range<usize> {
        let start = self.segments.iter().map(|segment| segment.start).min().unwrap_or(0);
        let end = self.segments.iter().map(|segment| segment.end).max().unwrap_or(0);
        start..end
    }

    /// Its code in memory.
    ///
    /// # Safety
    ///
    /// `range` lies in one of its executable segments, and nobody writes there.
    pub unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        debug_assert!(self.code.iter().any(|code| code.start <= range.start && range.end <= code.end));
        // SAFETY: the caller's promise; segments stay mapped while the file is loaded.
        unsafe { slice::from_raw_parts(range.start as *const u8, range.len()) }
    }

    /// The bounds of its functions, in order, without overlap.
    ///
    /// # Errors
    ///
    /// Says what is missing or cannot be read.
    pub fn functions(&self) -> Result<Vec<Range<usize>>, String> {
        let header = self.frames.clone().ok_or("it has no .eh_frame_hdr, which says where its functions are")?;
        let failed = |error: gimli::Error| format!("its .eh_frame cannot be read: {error}");
        // SAFETY: a segment that the loader has mapped to be read.
        let bytes = unsafe { slice::from_raw_parts(header.start as *const u8, header.len()) };
        let bases = BaseAddresses::default().set_eh_frame_hdr(header.start as u64);
        let parsed = EhFrameHdr::new(bytes, NativeEndian).parse(&bases, size_of::<usize>() as u8).map_err(failed)?;
        let start = match parsed.eh_frame_ptr() {
            gimli::Pointer::Direct(address) => address as usize,
            gimli::Pointer::Indirect(_) => return Err("its .eh_frame_hdr points elsewhere than to .eh_frame".into()),
        };
        let segment = self.segments.iter().find(|segment| segment.contains(&start));
        let end = segment.ok_or("its .eh_frame_hdr points out of it")?.end;
        // SAFETY: as above; the section ends by its own mark within the segment.
        let bytes = unsafe { slice::from_raw_parts(start as *const u8, end - start) };
        let frames = EhFrame::new(bytes, NativeEndian);
        let bases = bases.set_eh_frame(start as u64);
        let (mut functions, mut last) = (Vec::new(), None);
        let mut entries = frames.entries(&bases);
        while let Some(entry) = entries.next().map_err(failed)? {
            let CieOrFde::Fde(partial) = entry else { continue };
            let parse = |_: &_, bases: &_, offset| match last.take() {
                Some((at, cie)) if at == offset => Ok(cie),
                _ => frames.cie_from_offset(bases, offset),
            };
            let entry = partial.parse(parse).map_err(failed)?;
            let range = entry.initial_address() as usize..(entry.initial_address() + entry.len()) as usize;
            last = Some((gimli::EhFrameOffset(entry.cie().offset()), entry.cie().clone()));
            if self.code.iter().any(|code| code.start <= range.start && range.end <= code.end) && !range.is_empty() {
                functions.push(range);
            }
        }
        functions.sort_by_key(|function| function.start);
        if functions.windows(2).any(|pair| pair[1].start < pair[0].end) {
            return Err("by its .eh_frame, two of its functions overlap".into());
        }
        Ok(functions)
    }
}

/// All that is loaded now.
pub fn loaded() -> Vec<Image> {
    let mut images = Vec::new();
    // SAFETY: the callback gets the vector, and nobody else has it meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut images).cast()) };
    images
}

unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _size: usize, images: *mut c_void) -> c_int {
    // SAFETY: what dl_iterate_phdr promises; `images` is the vector of `loaded`.
    let (info, images, headers) = unsafe {
        let info = &*info;
        let images = &mut *images.cast::<Vec<Image>>();
        (info, images, slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    let place = |header: &libc::Elf64_Phdr| {
        let start = info.dlpi_addr as usize + header.p_vaddr as usize;
        start..start + header.p_memsz as usize
    };
    let loads = || headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let executable = || loads().filter(|header| header.p_flags & libc::PF_X != 0);
    let name = if info.dlpi_name.is_null() {
        &[]
    } else {
        // SAFETY: a string that the loader keeps.
        unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes()
    };
    // The program itself has no name there; nor has the kernel's page a path.
    let path = match name {
        b"" if images.is_empty() => std::fs::read_link("/proc/self/exe").unwrap_or_default(),
        name => Path::new(std::ffi::OsStr::from_bytes(name)).to_owned(),
    };
    images.push(Image {
        path,
        code: executable().map(place).collect(),
        offsets: executable().map(|header| header.p_offset).collect(),
        segments: loads().map(place).collect(),
        frames: headers.iter().find(|header| header.p_type == libc::PT_GNU_EH_FRAME).map(place),
    });
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_among_them_with_this_function() {
        let here = this_program_is_among_them_with_this_function as fn() as usize;
        let images = loaded();
        let image = images.iter().find(|image| image.holds(here)).expect("loaded");
        assert_eq!(image.path, std::env::current_exe().unwrap());
        let functions = image.functions().unwrap();
        assert!(functions.len() > 100);
        assert!(functions.iter().any(|function| function.start == here));
    }
}
