//! NVRTC and cuBLASLt, opened by the major version of CUDA that the driver runs.
//!
//! cudarc 0.19 looks for `libnvrtc.so`, then `libnvrtc.so.13`, then `libnvrtc.so.12`, whatever the
//! driver is. To have opened the right one before does not help: the loader hands out a library
//! that is there already only for the name it has itself (its SONAME, `libnvrtc.so.12`), and
//! cudarc asks for the others first. So these two are opened here by their full names and called
//! through tables of their functions; types and the driver's calls are cudarc's.

use super::OpenError;

/// Major versions of CUDA whose libraries have the functions called here as they are declared.
const MAJORS: [i32; 2] = [13, 12];

/// Names to look for beside a driver of this version (13000 for CUDA 13.0), best first: a driver
/// runs what was made for its own major version of CUDA, or an older one.
fn names(stem: &str, driver_version: i32) -> Vec<String> {
    let runs = MAJORS.into_iter().filter(|major| *major <= driver_version / 1000);
    runs.map(|major| format!("lib{stem}.so.{major}")).collect()
}

/// The library that a driver of this version runs, and the name that it was found under.
///
/// # Errors
/// It is not there: the names that were tried.
pub(in super::super) fn find(
    stem: &str,
    driver_version: i32,
) -> Result<(String, libloading::Library), Vec<String>> {
    let names = names(stem, driver_version);
    for name in &names {
        // SAFETY: CUDA's own library, whose initialisers may run at any time.
        if let Ok(library) = unsafe { libloading::Library::new(name) } {
            return Ok((name.clone(), library));
        }
    }
    Err(names)
}

/// Opens a library for good: nothing gives it back, and so its functions stay.
///
/// # Errors
/// It is not there: says what to install.
pub(super) fn open(
    what: &str,
    stem: &str,
    package: &str,
    driver_version: i32,
) -> Result<libloading::Library, OpenError> {
    let found = find(stem, driver_version).map(|(_, library)| library);
    found.map_err(|names| {
        OpenError::Unusable(format!(
            "{what} ({}) is not found beside a driver for CUDA {}.{}; install CUDA's run-time \
             libraries or the PyPI package {package} of that version and put their folder into \
             LD_LIBRARY_PATH",
            names.join(" or "),
            driver_version / 1000,
            driver_version % 1000 / 10
        ))
    })
}

/// Declares a table of a library's functions, which says how each is called.
macro_rules! functions {
    (
        $(#[$meta:meta])*
        $table:ident: $what:literal, $stem:literal, $package:literal;
        $($name:ident($($argument:ty),* $(,)?) -> $status:ty;)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        #[allow(non_snake_case)]
        pub(super) struct $table { $($name: unsafe extern "C" fn($($argument),*) -> $status,)* }

        impl $table {
            /// The table of the library that this driver runs.
            fn open(driver_version: i32) -> Result<Self, OpenError> {
                let library = super::library::open($what, $stem, $package, driver_version)?;
                let missing = |e| OpenError::Unusable(format!("{} cannot be used: {e}", $what));
                // SAFETY: each is declared as the headers of CUDA 12 and 13 have it.
                let table = unsafe {
                    Self { $($name: *library.get(stringify!($name)).map_err(missing)?,)* }
                };
                // The functions stay as long as the library does: to the end.
                std::mem::forget(library);
                Ok(table)
            }
        }
    };
}
pub(super) use functions;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_gets_libraries_of_its_own_major_version_or_an_older_one() {
        for (driver, expected) in [
            (12040, &["libnvrtc.so.12"][..]),
            (12090, &["libnvrtc.so.12"]),
            (13000, &["libnvrtc.so.13", "libnvrtc.so.12"]),
            (14020, &["libnvrtc.so.13", "libnvrtc.so.12"]),
        ] {
            assert_eq!(names("nvrtc", driver), expected, "{driver}");
        }
    }
}
