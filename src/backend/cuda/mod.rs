//! NVIDIA GPUs: kernels of our own beside cuBLASLt's products, decode steps replayed from
//! recordings. All memory is taken at start.
//!
//! The driver, cuBLASLt and NVRTC are opened at run time: the same program runs without them.
//! Nothing waits for the card but the read of the drawn tokens. So an error shows there: ops after
//! the first that failed do nothing, and `sample` or `download` tells it.

mod arena;
pub mod args;
mod attention;
mod bring_up;
mod compile;
mod fold;
pub mod kernels;
mod launch;
mod layout;
mod measure;
mod memory;
mod ops;
mod probe;
mod profile;
mod recordings;
mod sample;
mod slots;
mod step;
mod tables;
mod tensor;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use self::arena::Arena;
use self::args::Address;
pub use self::bring_up::{Loaded, Opened};
use self::compile::Kernels;
pub use self::compile::{Widths, compile};
pub use self::launch::OpenError;
use self::launch::{Card, Memory, Products, Side, Stream};
pub use self::measure::Ceilings;
use self::memory::{Bump, Taken, Vectors};
pub use self::memory::{DeviceMemory, Kv, StepLimits, kv_bytes};
pub use self::probe::{FoundCard, Probe, probe};
pub use self::profile::Timed;
pub use self::recordings::RECORDED_ROWS_MAX;
use self::recordings::Recordings;
use self::sample::SampleMemory;
pub use self::slots::{Slots, room};
pub use self::step::Step;
pub use self::tensor::Tensor;
use super::{Device, Fault, HostMatrix, KvShape, Outputs, RopeTable, Rows, SlotError};
use crate::delta::Delta;
use crate::dtype::Dtype;
use crate::ids::Slot;

/// For products whose sums are split: what cuBLASLt recommends for recent cards.
const WORKSPACE_BYTES: u64 = 32 << 20;

/// What a process needs to know before it opens a card.
#[derive(Clone, Copy)]
pub struct CudaSettings<'a> {
    /// Which card, as `CUDA_VISIBLE_DEVICES` counts them.
    pub ordinal: usize,
    /// Width of weights, activations, adapters and KV.
    pub dtype: Dtype,
    /// Bytes of the model's matrices.
    pub weight_bytes: u64,
    /// How many there are.
    pub matrices: usize,
    /// Query heads of one key/value head.
    pub group: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Widest x of a linear.
    pub width_max: usize,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Tokens of one KV page.
    pub block_tokens: usize,
    /// Folder of compiled kernels; `None` compiles at every start.
    pub kernel_cache: Option<&'a Path>,
    /// Told what takes time.
    pub heard: &'a dyn Fn(&str),
}

/// What is fixed about the model.
#[derive(Clone, Copy, Debug)]
struct ModelShape {
    group: usize,
    head_dim: usize,
    width_max: usize,
    vocabulary: usize,
    block_tokens: usize,
}

/// One card.
#[derive(Debug)]
pub struct Cuda {
    card: Card,
    dtype: Dtype,
    model: ModelShape,
    kernels: Kernels,
    products: Products,
    stream: Stream,
    side: Side,
    /// Shrinks run beside the products that share their x.
    beside: AtomicBool,
    weights: Mutex<Bump>,
    vectors: Mutex<Vectors>,
    /// The first error since the last one was told.
    fault: Mutex<Option<Fault>>,
    /// Steps only take their places: nothing runs.
    dry: AtomicBool,
    arena: Mutex<Arena>,
    tables: Mutex<memory::StepTables>,
    sampling: Mutex<Option<SampleMemory>>,
    recordings: Mutex<Recordings>,
    /// Where launches are timed: for [`Cuda::profile`].
    profile: Mutex<Option<profile::Launches>>,
    step_memory: OnceLock<Memory>,
    taken: OnceLock<Taken>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frozen matrix on the card.
#[derive(Debug)]
pub struct Weight {
    address: Address,
    bytes: u64,
    memory: Memory,
}

/// A frozen f32 vector on the card, and on the host to be merged with others.
#[derive(Debug)]
pub struct Vector {
    address: Address,
    values: Vec<f32>,
}

/// Rotary cosines and sines on the card.
#[derive(Debug)]
pub struct Rope {
    cos: Vector,
    sin: Vector,
    half: usize,
}

impl Cuda {
    /// Opens a card, compiles the kernels or finds them compiled, and takes the weights' memory.
    ///
    /// # Errors
    /// [`OpenError`].
    fn open(settings: &CudaSettings<'_>) -> Result<Self, OpenError> {
        sample::check_vocabulary(settings.vocabulary)?;
        let card = Card::open(settings.ordinal)?;
        let kernels = Kernels::load(&card, settings.dtype, settings.kernel_cache, settings.heard)?;
        let mend = "a smaller model or a larger card is needed";
        let workspace = card.allocate(WORKSPACE_BYTES, "cuBLASLt's workspace", mend)?;
        let products = Products::open(settings.dtype, workspace)?;
        let room = settings.matrices as u64 * arena::ALIGNMENT_BYTES;
        let weights = card.allocate(settings.weight_bytes + room, "the model's weights", mend)?;
        let model = ModelShape {
            group: settings.group,
            head_dim: settings.head_dim,
            width_max: settings.width_max,
            vocabulary: settings.vocabulary,
            block_tokens: settings.block_tokens,
        };
        Ok(Self {
            stream: card.stream()?,
            side: card.side()?,
            beside: AtomicBool::new(false),
            card,
            dtype: settings.dtype,
            model,
            kernels,
            products,
            weights: Mutex::new(Bump::new(weights)),
            vectors: Mutex::default(),
            fault: Mutex::default(),
            dry: AtomicBool::new(false),
            arena: Mutex::new(Arena::at(0, 0)),
            tables: Mutex::default(),
            sampling: Mutex::default(),
            recordings: Mutex::default(),
            profile: Mutex::default(),
            step_memory: OnceLock::new(),
            taken: OnceLock::new(),
        })
    }

    /// The card and its driver, for people.
    pub fn describe(&self) -> String {
        let ((major, minor), driver) = (self.card.capability(), self.card.driver_version());
        format!(
            "{} (compute capability {major}.{minor}, driver for CUDA {}.{})",
            self.card.name(),
            driver / 1000,
            driver % 1000 / 10
        )
    }

    /// Steps that are recorded now.
    pub fn recorded(&self) -> usize {
        lock(&self.recordings).ready()
    }

    /// The first error since the last call, if any: for what returns none of its own.
    ///
    /// # Errors
    /// That error.
    pub fn settled(&self) -> Result<(), Fault> {
        let mut fault = lock(&self.fault);
        match &*fault {
            None => Ok(()),
            Some(lost) if lost.lost => Err(lost.clone()),
            Some(_) => Err(fault.take().expect("This is a bug: it was there.")),
        }
    }

    fn is_well(&self) -> bool {
        lock(&self.fault).is_none()
    }

    fn is_dry(&self) -> bool {
        self.dry.load(Ordering::Relaxed)
    }

    /// Calls the card, unless something went wrong before. Whether all is well.
    fn attempt(&self, call: impl FnOnce() -> Result<(), Fault>) -> bool {
        if self.is_dry() || !self.is_well() {
            return false;
        }
        match self.card.bind().and_then(|()| call()) {
            Ok(()) => true,
            Err(fault) => {
                tracing::error!("{fault}");
                *lock(&self.fault) = Some(fault);
                false
            }
        }
    }

    fn fail(&self, message: &str) {
        self.attempt(|| Err(Fault { message: message.to_owned(), lost: false }));
    }

    fn vector(&self, values: &[f32]) -> Vector {
        self.changed();
        let mut address = 0;
        self.attempt(|| {
            let bytes: &[u8] = bytemuck::cast_slice(values);
            let place = lock(&self.vectors).take(&self.card, bytes.len() as u64)?;
            address = place.address();
            self.stream.upload_now(bytes, &place)
        });
        Vector { address, values: values.to_vec() }
    }

    fn arena(&self) -> Arena {
        lock(&self.arena).clone()
    }

    fn model_group(&self) -> usize {
        self.model.group
    }

    fn has_prefill_kernel(&self) -> bool {
        attention::has_tensor_cores(self.dtype, self.model.head_dim)
    }

    fn block_tokens(&self) -> usize {
        self.model.block_tokens
    }

    fn weight_bytes(&self) -> u64 {
        lock(&self.weights).memory().bytes()
    }

    fn width_max(&self) -> usize {
        self.model.width_max
    }
}

impl Device for Cuda {
    type Tensor = Tensor;
    type Weight = Weight;
    type Vector = Vector;
    type Kv = Kv;
    type Slots = Slots;
    type Step<'a> = Step;
    type Rope = Rope;

    fn upload(&self, matrix: HostMatrix) -> Weight {
        let values = matrix.values.cast(self.dtype);
        let bytes = values.bytes() as u64;
        let mut weights = lock(&self.weights);
        let region = weights.take(bytes);
        let address = region.as_ref().map_or(0, launch::Region::address);
        self.attempt(|| match &region {
            Some(region) => self.stream.upload_now(values.as_bytes(), region),
            None => Err(Fault {
                message: "the model has more weights than its configuration says".into(),
                lost: false,
            }),
        });
        Weight { address, bytes, memory: weights.memory() }
    }

    fn upload_vector(&self, vector: &[f32]) -> Vector {
        self.vector(vector)
    }

    fn upload_rope(&self, rope: RopeTable) -> Rope {
        let [cos, sin] = [rope.cos, rope.sin].map(|v| Vector { values: vec![], ..self.vector(&v) });
        Rope { cos, sin, half: rope.half }
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, Fault> {
        Ok(self.taken_kv(shape))
    }

    fn slots(&self, count: usize) -> Slots {
        Slots::new(count, self.taken.get().map(|taken| taken.adapters.clone()))
    }

    fn write_slot(
        &self,
        slots: &mut Slots,
        slot: Slot,
        delta: Arc<Delta>,
    ) -> Result<(), SlotError> {
        slots.write(slot, delta)
    }

    fn slot_ready(&self, slots: &Slots, slot: Slot) -> Result<bool, SlotError> {
        slots.ready(slot)
    }

    fn clear_slot(&self, slots: &mut Slots, slot: Slot) {
        slots.clear(slot);
    }

    fn run(
        &self,
        rows: &Rows,
        slots: &Slots,
        ops: impl FnMut(&Step) -> Outputs<Tensor>,
    ) -> Outputs<Tensor> {
        self.run_rows(rows, slots, ops)
    }

    fn finish(&self) -> Result<(), Fault> {
        self.attempt(|| self.stream.synchronize());
        self.settled()?;
        self.step_is_over();
        Ok(())
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>, Fault> {
        let values = self.read(x)?;
        self.step_is_over();
        Ok(values)
    }
}
