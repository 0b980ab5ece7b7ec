//! Dense products (GEMMs) by cuBLASLt, split-K among them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::{
    self, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t, cublasStatus_t,
};

use super::library::functions;
use super::{Memory, OpenError, Stream};
use crate::backend::Fault;
use crate::backend::cuda::args::Address;
use crate::dtype::Dtype;

/// Ways to compute a product that are tried.
const WAYS: usize = 8;
/// Products of one way while it is timed.
const TUNING_REPEATS: u32 = 5;

/// Split-K may add up its parts in f32 alone: not in place in y nor by way of y's width, whose sums
/// would be rounded at every part.
static REDUCTION_SCHEMES: u32 =
    sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

functions! {
    /// As `cublasLt.h` declares them.
    Functions: "cuBLASLt", "cublasLt", "nvidia-cublas";
    cublasLtCreate(*mut cublasLtHandle_t) -> cublasStatus_t;
    cublasLtDestroy(cublasLtHandle_t) -> cublasStatus_t;
    cublasLtMatrixLayoutCreate(
        *mut cublasLtMatrixLayout_t, sys::cudaDataType, u64, u64, i64,
    ) -> cublasStatus_t;
    cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t) -> cublasStatus_t;
    cublasLtMatmulDescCreate(
        *mut cublasLtMatmulDesc_t, sys::cublasComputeType_t, sys::cudaDataType,
    ) -> cublasStatus_t;
    cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t) -> cublasStatus_t;
    cublasLtMatmulDescSetAttribute(
        cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, *const c_void, usize,
    ) -> cublasStatus_t;
    cublasLtMatmulPreferenceCreate(*mut cublasLtMatmulPreference_t) -> cublasStatus_t;
    cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) -> cublasStatus_t;
    cublasLtMatmulPreferenceSetAttribute(
        cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, *const c_void, usize,
    ) -> cublasStatus_t;
    cublasLtMatmulAlgoGetHeuristic(
        cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, c_int,
        *mut cublasLtMatmulHeuristicResult_t, *mut c_int,
    ) -> cublasStatus_t;
    cublasLtMatmul(
        cublasLtHandle_t, cublasLtMatmulDesc_t, *const c_void, *const c_void,
        cublasLtMatrixLayout_t, *const c_void, cublasLtMatrixLayout_t, *const c_void,
        *const c_void, cublasLtMatrixLayout_t, *mut c_void, cublasLtMatrixLayout_t,
        *const cublasLtMatmulAlgo_t, *mut c_void, usize, sys::cudaStream_t,
    ) -> cublasStatus_t;
}

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
    functions: Functions,
    product: cublasLtMatmulDesc_t,
    weight: cublasLtMatrixLayout_t,
    x: cublasLtMatrixLayout_t,
    y: cublasLtMatrixLayout_t,
    algorithm: cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        let f = &self.functions;
        // SAFETY: what is not null was created once, and nothing uses it any more. Failures leave
        // nothing to mend.
        unsafe {
            if !self.product.is_null() {
                let _ = (f.cublasLtMatmulDescDestroy)(self.product);
            }
            for layout in [self.weight, self.x, self.y].into_iter().filter(|l| !l.is_null()) {
                let _ = (f.cublasLtMatrixLayoutDestroy)(layout);
            }
        }
    }
}

/// The library, and the ways it chose so far.
#[derive(Debug)]
pub(in super::super) struct Products {
    functions: Functions,
    handle: cublasLtHandle_t,
    dtype: Dtype,
    workspace: Memory,
    plans: Mutex<HashMap<Shape, Plan>>,
}

// SAFETY: cuBLASLt's handle may be used from any thread; plans change under the lock.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

fn fault(what: &str) -> impl Fn(CublasError) -> Fault + '_ {
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
    /// Products of `dtype`, with `workspace` for split-K.
    ///
    /// # Errors
    /// When cuBLASLt is not installed for the driver's version of CUDA.
    pub fn open(dtype: Dtype, workspace: Memory) -> Result<Self, OpenError> {
        let functions = Functions::open(workspace.0.card.driver_version())?;
        let mut handle = ptr::null_mut();
        // SAFETY: writes the handle.
        let made = unsafe { (functions.cublasLtCreate)(&raw mut handle) };
        made.result().map_err(fault("cublasLtCreate"))?;
        Ok(Self { functions, handle, dtype, workspace, plans: Mutex::default() })
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
        ways: Vec<cublasLtMatmulAlgo_t>,
    ) -> Result<cublasLtMatmulAlgo_t, Fault> {
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
            (self.functions.cublasLtMatmul)(
                self.handle,
                plan.product,
                (&raw const one).cast(),
                pointer(call.weight),
                plan.weight,
                pointer(call.x),
                plan.x,
                (&raw const zero).cast(),
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
        .result()
        .map_err(fault("cublasLtMatmul"))
    }

    /// To a library that counts columns first, row-major x is xᵀ: yᵀ = W · xᵀ.
    /// With the ways that the library recommends, its favourite first.
    fn plan(&self, shape: Shape) -> Result<(Plan, Vec<cublasLtMatmulAlgo_t>), Fault> {
        let Shape { rows, inputs, outputs, y_f32 } = shape;
        let width = of_dtype(self.dtype);
        let float = of_dtype(Dtype::F32);
        let y_width = if y_f32 { float } else { width };
        let f = &self.functions;
        let layout = |width, rows: usize, cols: usize| {
            let mut layout = ptr::null_mut();
            let create = f.cublasLtMatrixLayoutCreate;
            // SAFETY: writes the layout.
            let made =
                unsafe { create(&raw mut layout, width, rows as u64, cols as u64, rows as i64) };
            made.result().map(|()| layout).map_err(fault("cublasLtMatrixLayoutCreate"))
        };
        let null = ptr::null_mut();
        let mut plan = Plan {
            functions: *f,
            product: ptr::null_mut(),
            weight: null,
            x: null,
            y: null,
            algorithm: cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        plan.weight = layout(width, inputs, outputs)?;
        plan.x = layout(width, inputs, rows)?;
        plan.y = layout(y_width, outputs, rows)?;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // CUBLAS_OP_T, which cudarc has in another module.
        let transposed = 1i32;
        // SAFETY: writes the description, then takes a plain number of the size given.
        unsafe {
            (f.cublasLtMatmulDescCreate)(&raw mut plan.product, compute, float)
                .result()
                .map_err(fault("cublasLtMatmulDescCreate"))?;
            (f.cublasLtMatmulDescSetAttribute)(
                plan.product,
                cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of::<i32>(),
            )
            .result()
            .map_err(fault("cublasLtMatmulDescSetAttribute"))?;
        }
        let what = format!("cuBLASLt has no product of {rows}×{inputs} by {inputs}×{outputs}");
        let ways = self.recommended(&plan, &what)?;
        let Some(&algorithm) = ways.first() else {
            return Err(Fault { message: what, lost: false });
        };
        plan.algorithm = algorithm;
        Ok((plan, ways))
    }

    /// The algorithms that the library's heuristic names, best first.
    fn recommended(&self, plan: &Plan, what: &str) -> Result<Vec<cublasLtMatmulAlgo_t>, Fault> {
        use cublasLtMatmulPreferenceAttributes_t as A;
        let f = &self.functions;
        let mut preference = ptr::null_mut();
        // SAFETY: writes the preference.
        let made = unsafe { (f.cublasLtMatmulPreferenceCreate)(&raw mut preference) };
        made.result().map_err(fault("cublasLtMatmulPreferenceCreate"))?;
        let bytes = self.workspace.bytes() as usize;
        // SAFETY: an array of plain numbers and pointers, all of which may be 0.
        let mut found: [cublasLtMatmulHeuristicResult_t; WAYS] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: each attribute is a plain number of the size given, all handles live, and `found`
        // has as much room as is said. The preference is destroyed once.
        let asked = unsafe {
            let set = |attribute, value: *const c_void, bytes| {
                (f.cublasLtMatmulPreferenceSetAttribute)(preference, attribute, value, bytes)
                    .result()
            };
            let limited = set(
                A::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of::<usize>(),
            )
            .and_then(|()| {
                set(
                    A::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                    (&raw const REDUCTION_SCHEMES).cast(),
                    size_of::<u32>(),
                )
            });
            let asked = (f.cublasLtMatmulAlgoGetHeuristic)(
                self.handle,
                plan.product,
                plan.weight,
                plan.x,
                plan.y,
                plan.y,
                preference,
                WAYS as c_int,
                found.as_mut_ptr(),
                &raw mut count,
            );
            let _ = (f.cublasLtMatmulPreferenceDestroy)(preference);
            limited.map_err(fault("cublasLtMatmulPreferenceSetAttribute"))?;
            asked
        };
        asked.result().map_err(fault(what))?;
        let found = found.into_iter().take(count.max(0) as usize);
        Ok(found.filter(|way| way.state.result().is_ok()).map(|way| way.algo).collect())
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: created once, and no plan is left. A failure leaves nothing to mend.
        let _ = unsafe { (self.functions.cublasLtDestroy)(self.handle) };
    }
}
