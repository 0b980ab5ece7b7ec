//! NVRTC, CUDA's run-time compiler.

use std::ffi::{CString, c_char, c_int};
use std::ptr;

use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};

use super::OpenError;
use super::library::functions;

functions! {
    /// As `nvrtc.h` declares them.
    Functions: "NVRTC", "nvrtc", "nvidia-cuda-nvrtc";
    nvrtcVersion(*mut c_int, *mut c_int) -> nvrtcResult;
    nvrtcGetNumSupportedArchs(*mut c_int) -> nvrtcResult;
    nvrtcGetSupportedArchs(*mut c_int) -> nvrtcResult;
    nvrtcCreateProgram(
        *mut nvrtcProgram,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> nvrtcResult;
    nvrtcDestroyProgram(*mut nvrtcProgram) -> nvrtcResult;
    nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char) -> nvrtcResult;
    nvrtcGetProgramLogSize(nvrtcProgram, *mut usize) -> nvrtcResult;
    nvrtcGetProgramLog(nvrtcProgram, *mut c_char) -> nvrtcResult;
    nvrtcGetCUBINSize(nvrtcProgram, *mut usize) -> nvrtcResult;
    nvrtcGetCUBIN(nvrtcProgram, *mut c_char) -> nvrtcResult;
    nvrtcGetPTXSize(nvrtcProgram, *mut usize) -> nvrtcResult;
    nvrtcGetPTX(nvrtcProgram, *mut c_char) -> nvrtcResult;
}

type SizeOf = unsafe extern "C" fn(nvrtcProgram, *mut usize) -> nvrtcResult;
type Get = unsafe extern "C" fn(nvrtcProgram, *mut c_char) -> nvrtcResult;

/// NVRTC as it is installed.
#[derive(Clone, Debug)]
pub(in super::super) struct Compiler {
    functions: Functions,
    /// Major and minor.
    pub version: (i32, i32),
    /// Compute capabilities it compiles for, ascending: 90 for 9.0.
    pub architectures: Vec<i32>,
}

fn checked(status: nvrtcResult) -> Result<(), String> {
    if status == nvrtcResult::NVRTC_SUCCESS { Ok(()) } else { Err(format!("{status:?}")) }
}

impl Compiler {
    /// The one for this driver's version of CUDA.
    ///
    /// # Errors
    /// When it is not installed, or too old to say what it compiles for.
    pub fn open(driver_version: i32) -> Result<Self, OpenError> {
        let functions = Functions::open(driver_version)?;
        let failed = |e: String| OpenError::Unusable(format!("NVRTC failed: {e}"));
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: each call writes the ints it is given, the last one as many as it said.
        unsafe {
            checked((functions.nvrtcVersion)(&raw mut major, &raw mut minor)).map_err(failed)?;
            checked((functions.nvrtcGetNumSupportedArchs)(&raw mut count)).map_err(failed)?;
            let mut architectures = vec![0; count.max(0) as usize];
            let get = functions.nvrtcGetSupportedArchs;
            checked(get(architectures.as_mut_ptr())).map_err(failed)?;
            architectures.sort_unstable();
            Ok(Self { functions, version: (major, minor), architectures })
        }
    }

    /// A CUBIN, or PTX where the options name a virtual architecture.
    ///
    /// # Errors
    /// The compiler's log.
    pub fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(&str, &str)],
        options: &[String],
        ptx: bool,
    ) -> Result<Vec<u8>, String> {
        let text = |s: &str| CString::new(s).map_err(|e| e.to_string());
        let (name, source) = (text(name)?, text(source)?);
        let header = |(name, body): &(&str, &str)| Ok((text(name)?, text(body)?));
        let headers = headers.iter().map(header).collect::<Result<Vec<_>, String>>()?;
        let options = options.iter().map(|o| text(o)).collect::<Result<Vec<_>, String>>()?;
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let bodies: Vec<_> = headers.iter().map(|(_, body)| body.as_ptr()).collect();
        let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        let f = &self.functions;
        let mut program = Program { functions: f, program: ptr::null_mut() };
        // SAFETY: the strings outlive the call, which copies them.
        let made = unsafe {
            (f.nvrtcCreateProgram)(
                &raw mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                bodies.as_ptr(),
                names.as_ptr(),
            )
        };
        checked(made)?;
        // SAFETY: the program lives, and so do the options.
        let compiled = unsafe {
            (f.nvrtcCompileProgram)(program.program, options.len() as c_int, options.as_ptr())
        };
        if let Err(error) = checked(compiled) {
            let log = program.read(f.nvrtcGetProgramLogSize, f.nvrtcGetProgramLog);
            let log = log.unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            return Err(format!("{error}\n{}", log.trim_end_matches('\0')));
        }
        if ptx {
            program.read(f.nvrtcGetPTXSize, f.nvrtcGetPTX)
        } else {
            program.read(f.nvrtcGetCUBINSize, f.nvrtcGetCUBIN)
        }
    }
}

struct Program<'a> {
    functions: &'a Functions,
    /// Null before it is made.
    program: nvrtcProgram,
}

impl Program<'_> {
    /// What one of the compiler's pairs of functions has to give.
    fn read(&self, size_of: SizeOf, get: Get) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: the program lives; the second call fills what the first one said.
        unsafe {
            checked(size_of(self.program, &raw mut size))?;
            let mut bytes = vec![0u8; size];
            checked(get(self.program, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created once.
            let _ = unsafe { (self.functions.nvrtcDestroyProgram)(&raw mut self.program) };
        }
    }
}
