//! The C library's errno, which counting leaves as it was: code looks at it behind a
//! `Py_DECREF`.

/// What errno was; put back when this goes.
pub(crate) struct Errno(libc::c_int);

impl Errno {
    /// From here on.
    pub(crate) fn kept() -> Errno {
        // SAFETY: this thread's own.
        Errno(unsafe { place().read() })
    }
}

impl Drop for Errno {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { place().write(self.0) };
    }
}

/// Where this thread's is.
fn place() -> *mut libc::c_int {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: asks for an address.
    return unsafe { libc::__errno_location() };
    #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
    // SAFETY: as above.
    return unsafe { libc::__error() };
}
