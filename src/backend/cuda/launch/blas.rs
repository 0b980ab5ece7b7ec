//! Dense products by cuBLASLt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cudarc::cublaslt::{result, sys};

use super::{Memory, OpenError, Stream};
use crate::backend::Fault;
use crate::backend::cuda::args::Address;
use crate::dtype::Dtype;

/// Ways to compute a product that are tried.
const WAYS: usize = 8;
/// Products of one way while it is timed.
const TUNING_REPEATS: u32 = 5;

/// `y [rows, outputs] = x [rows, inputs] · Wᵀ`, W `[outputs, inputs]`, all row-major.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Multiply {
    pub x: Address,
    pub weight: Address,
    pub y: Address,
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// Whether y is f32 whatever the width of x and W.
    pub y_f32: bool,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Shape {
    rows: usize,
    inputs: usize,
    outputs: usize,
    y_f32: bool,
}

/// One way to compute products of a shape.
#[derive(Debug)]
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library, and the ways it chose so far.
#[derive(Debug)]
pub(in super::super) struct Products {
    handle: sys::cublasLtHandle_t,
    dtype: Dtype,
    workspace: Memory,
    plans: Mutex<HashMap<Shape, Plan>>,
}

// SAFETY: cuBLASLt's handle may be used from any thread; plans change under the lock.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

fn fault(what: &str) -> impl Fn(result::CublasError) -> Fault + '_ {
    // What breaks the context shows in the next call to the driver.
    move |error| Fault { message: format!("the GPU failed: {what}: {error}"), lost: false }
}

fn of_dtype(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
        Dtype::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

impl Products {
    /// Products of `dtype`, with `workspace` for sums that are split.
    ///
    /// # Errors
    /// When cuBLASLt is not installed.
    pub fn open(dtype: Dtype, workspace: Memory) -> Result<Self, OpenError> {
        // SAFETY: looks for a library, and runs its initialisers if there is one.
        if !unsafe { sys::is_culib_present() } {
            return Err(OpenError::Unusable(
                "cuBLASLt (libcublasLt.so of CUDA 12 or 13) is not found; install CUDA's run-time \
                 libraries or the PyPI package nvidia-cublas and put their folder into \
                 LD_LIBRARY_PATH"
                    .into(),
            ));
        }
        let handle = result::create_handle().map_err(fault("cublasLtCreate"))?;
        Ok(Self { handle, dtype, workspace, plans: Mutex::default() })
    }

    /// Starts one product. `tune`: at the first of its shape, tries what the library recommends and
    /// keeps the fastest; the stream must not be recording then.
    ///
    /// # Errors
    /// When the library has no way to compute it, or the launch fails.
    pub fn multiply(&self, stream: &Stream, call: &Multiply, tune: bool) -> Result<(), Fault> {
        if call.rows == 0 {
            return Ok(());
        }
        let Multiply { rows, inputs, outputs, y_f32, .. } = *call;
        let shape = Shape { rows, inputs, outputs, y_f32 };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let (mut plan, ways) = self.plan(shape)?;
                if tune && ways.len() > 1 {
                    plan.algorithm = self.fastest(stream, call, &mut plan, ways)?;
                }
                new.insert(plan)
            }
        };
        self.start(stream, call, plan)
    }

    /// The way that takes the least time, by the clock of this host: a product is long beside it.
    fn fastest(
        &self,
        stream: &Stream,
        call: &Multiply,
        plan: &mut Plan,
        ways: Vec<sys::cublasLtMatmulAlgo_t>,
    ) -> Result<sys::cublasLtMatmulAlgo_t, Fault> {
        let mut best = (f64::INFINITY, plan.algorithm);
        for algorithm in ways {
            plan.algorithm = algorithm;
            // Recommended is not promised: one that does not start is left out.
            if self.start(stream, call, plan).is_err() {
                continue;
            }
            stream.synchronize()?;
            let start = Instant::now();
            for _ in 0..TUNING_REPEATS {
                self.start(stream, call, plan)?;
            }
            stream.synchronize()?;
            let seconds = start.elapsed().as_secs_f64();
            if seconds < best.0 {
                best = (seconds, algorithm);
            }
        }
        Ok(best.1)
    }

    fn start(&self, stream: &Stream, call: &Multiply, plan: &Plan) -> Result<(), Fault> {
        let (one, zero) = (1.0f32, 0.0f32);
        let pointer = |address: Address| address as *mut c_void;
        // SAFETY: the layouts describe these addresses (the callers hold the tensors), and the
        // workspace is as long as it says. Products run one after another on one stream.
        unsafe {
            result::matmul(
                self.handle,
                plan.product,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                pointer(call.weight),
                plan.weight,
                pointer(call.x),
                plan.x,
                pointer(call.y),
                plan.y,
                pointer(call.y),
                plan.y,
                &raw const plan.algorithm,
                pointer(self.workspace.address()),
                self.workspace.bytes() as usize,
                stream.raw().cast(),
            )
        }
        .map_err(fault("cublasLtMatmul"))
    }

    /// To a library that counts columns first, row-major x is xᵀ: yᵀ = W · xᵀ.
    /// With the ways that the library recommends, its favourite first.
    fn plan(&self, shape: Shape) -> Result<(Plan, Vec<sys::cublasLtMatmulAlgo_t>), Fault> {
        let Shape { rows, inputs, outputs, y_f32 } = shape;
        let width = of_dtype(self.dtype);
        let y_width = if y_f32 { of_dtype(Dtype::F32) } else { width };
        let layout = |width, rows: usize, cols: usize| {
            result::create_matrix_layout(width, rows as u64, cols as u64, rows as i64)
                .map_err(fault("cublasLtMatrixLayoutCreate"))
        };
        let float = of_dtype(Dtype::F32);
        let product =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, float)
                .map_err(fault("cublasLtMatmulDescCreate"))?;
        let (weight, x) = (layout(width, inputs, outputs)?, layout(width, inputs, rows)?);
        let y = layout(y_width, outputs, rows)?;
        // CUBLAS_OP_T, which cudarc has in another module.
        let transposed = 1i32;
        let bytes = self.workspace.bytes() as usize;
        // SAFETY: each attribute is a plain number of the size given, and all handles live.
        let ways = unsafe {
            result::set_matmul_desc_attribute(
                product,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of::<i32>(),
            )
            .map_err(fault("cublasLtMatmulDescSetAttribute"))?;
            let preference =
                result::create_matmul_pref().map_err(fault("cublasLtMatmulPreferenceCreate"))?;
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of::<usize>(),
            )
            .map_err(fault("cublasLtMatmulPreferenceSetAttribute"))?;
            let mut found: [sys::cublasLtMatmulHeuristicResult_t; WAYS] = std::mem::zeroed();
            let mut count = 0;
            let asked = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                product,
                weight,
                x,
                y,
                y,
                preference,
                WAYS as i32,
                found.as_mut_ptr(),
                &raw mut count,
            );
            let _ = result::destroy_matmul_pref(preference);
            asked.result().map(|()| found.into_iter().take(count.max(0) as usize))
        };
        let what = format!("cuBLASLt has no product of {rows}×{inputs} by {inputs}×{outputs}");
        let ways = ways.map_err(fault(&what))?.filter(|way| way.state.result().is_ok());
        let ways: Vec<_> = ways.map(|way| way.algo).collect();
        let Some(&algorithm) = ways.first() else {
            return Err(Fault { message: what, lost: false });
        };
        Ok((Plan { product, weight, x, y, algorithm }, ways))
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: all were created once, and nothing uses them any more. Failures leave nothing to
        // mend.
        unsafe {
            for (_, plan) in plans.drain() {
                let _ = result::destroy_matmul_desc(plan.product);
                for layout in [plan.weight, plan.x, plan.y] {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}
