//! The run-time compiler.

use std::ffi::{CString, c_char, c_int};

use cudarc::nvrtc::{result, sys};

use super::OpenError;

/// NVRTC as it is installed.
#[derive(Clone, Debug)]
pub(in super::super) struct Compiler {
    /// Major and minor.
    pub version: (i32, i32),
    /// Compute capabilities it compiles for, ascending: 90 for 9.0.
    pub architectures: Vec<i32>,
}

impl Compiler {
    /// # Errors
    /// When it is not installed, or too old to say what it compiles for.
    pub fn open() -> Result<Self, OpenError> {
        // SAFETY: looks for a library, and runs its initialisers if there is one.
        if !unsafe { sys::is_culib_present() } {
            return Err(OpenError::Unusable(
                "NVRTC (libnvrtc.so of CUDA 12 or 13) is not found and the kernels cannot be \
                 compiled; install CUDA's run-time libraries or the PyPI package nvidia-cuda-nvrtc \
                 and put their folder into LD_LIBRARY_PATH"
                    .into(),
            ));
        }
        let failed =
            |e: result::NvrtcError| OpenError::Unusable(format!("NVRTC failed: {:?}", e.0));
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: each call writes the ints it is given, the last one as many as it said.
        unsafe {
            sys::nvrtcVersion(&raw mut major, &raw mut minor).result().map_err(failed)?;
            sys::nvrtcGetNumSupportedArchs(&raw mut count).result().map_err(failed)?;
            let mut architectures = vec![0; count.max(0) as usize];
            sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()).result().map_err(failed)?;
            architectures.sort_unstable();
            Ok(Self { version: (major, minor), architectures })
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
        let failed = |e: result::NvrtcError| format!("{:?}", e.0);
        let mut program = std::ptr::null_mut();
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let bodies: Vec<_> = headers.iter().map(|(_, body)| body.as_ptr()).collect();
        // SAFETY: the strings outlive the call, which copies them.
        let made = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                bodies.as_ptr(),
                names.as_ptr(),
            )
        };
        made.result().map_err(failed)?;
        let program = Program(program);
        // SAFETY: the program lives.
        if let Err(e) = unsafe { result::compile_program(program.0, options) } {
            // SAFETY: as above.
            let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
            let log: Vec<u8> = log.iter().map(|&c| c as u8).filter(|&c| c != 0).collect();
            return Err(format!("{:?}\n{}", e.0, String::from_utf8_lossy(&log)));
        }
        type Size = unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult;
        type Get = unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult;
        let (size_of, get): (Size, Get) = if ptx {
            (sys::nvrtcGetPTXSize, sys::nvrtcGetPTX)
        } else {
            (sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN)
        };
        let mut size = 0;
        // SAFETY: the program is compiled; the second call fills what the first one said.
        unsafe {
            size_of(program.0, &raw mut size).result().map_err(failed)?;
            let mut image = vec![0u8; size];
            get(program.0, image.as_mut_ptr().cast()).result().map_err(failed)?;
            Ok(image)
        }
    }
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
