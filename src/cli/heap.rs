//! Memory that was freed goes back to the system.

#![allow(unsafe_code)]

/// Looks whether the C library keeps much that is free, and makes it give that back. Left to itself
/// it keeps up to 64 MiB for each of its arenas: after a few large bodies that was half a gigabyte.
/// Nothing is changed of how it gives out memory, which the engine's steps are made of.
///
/// # Errors
/// When there is no thread for it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back_what_is_freed() -> std::io::Result<()> {
    use std::time::Duration;

    /// As much may be kept.
    const KEPT_BYTES_MAX: usize = 48 << 20;
    const LOOK_AFTER: Duration = Duration::from_secs(5);
    /// `struct mallinfo2` of glibc's `malloc.h`.
    #[repr(C)]
    struct MallInfo {
        before: [usize; 8],
        free_bytes: usize,
        at_the_top: usize,
    }
    // SAFETY: the declarations are those of glibc's `malloc.h`; both may be called at any time, by
    // any thread.
    unsafe extern "C" {
        safe fn mallinfo2() -> MallInfo;
        safe fn malloc_trim(kept_at_the_top: usize) -> i32;
    }
    // What has been given back counts as free too: to give it back again costs little.
    let looking = || loop {
        std::thread::sleep(LOOK_AFTER);
        if mallinfo2().free_bytes > KEPT_BYTES_MAX {
            malloc_trim(0);
        }
    };
    std::thread::Builder::new().name("heap".to_owned()).spawn(looking).map(drop)
}

/// Other C libraries keep little.
///
/// # Errors
/// None.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back_what_is_freed() -> std::io::Result<()> {
    Ok(())
}
