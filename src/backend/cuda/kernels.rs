//! Every kernel: its file, its block and its shared memory, in one table. Each stands in
//! `kernels/*.cu` under the same name, as the comment above it says.

use bytemuck::Pod;

use super::Cuda;
use super::args::{RANK_TILE_BYTES, ROW_TILE};
use super::launch::Stream;
use crate::backend::Fault;

/// One kernel, and the block that a launch gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kernel {
    /// As the source has it.
    pub name: &'static str,
    /// Of `kernels/`.
    pub file: &'static str,
    /// Threads of a block; in the table, the most there may be: the kernel's launch bound.
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes; `None` in the table where a shape decides.
    pub shared_bytes: Option<u32>,
}

impl Kernel {
    /// With fewer threads than the table has.
    ///
    /// # Panics
    /// More than its launch bound.
    #[must_use]
    pub fn with_threads(self, threads: u32) -> Self {
        let Self { name, threads: most, .. } = self;
        assert!((1..=most).contains(&threads), "This is a bug: {threads} threads of {name}.");
        Self { threads, ..self }
    }

    /// With the shared memory that a shape needs.
    ///
    /// # Panics
    /// When the table says how much it is.
    #[must_use]
    pub fn with_shared_bytes(self, bytes: u32) -> Self {
        let name = self.name;
        assert!(self.shared_bytes.is_none(), "This is a bug: {name} has its shared memory.");
        Self { shared_bytes: Some(bytes), ..self }
    }
}

macro_rules! kernels {
    ($($file:literal { $($constant:ident: $name:literal, $threads:literal, $shared:expr;)* })*) => {
        $($(
            #[doc = concat!("`", $name, "` of `", $file, "`.")]
            pub const $constant: Kernel =
                Kernel { name: $name, file: $file, threads: $threads, shared_bytes: $shared };
        )*)*
        /// The table.
        pub const ALL: &[Kernel] = &[$($($constant),*),*];
    };
}

/// Of one row's h in an expand, and of a tile of rows.
const ROW_H: u32 = RANK_TILE_BYTES as u32;
const TILE_H: u32 = ROW_H * ROW_TILE as u32;
/// Scratch of a block's reduction.
const REDUCE: u32 = 32 * 4;

kernels! {
    "attention.cu" {
        ATTENTION_DECODE_64: "attention_decode_64", 128, Some(39_168);
        ATTENTION_DECODE_128: "attention_decode_128", 128, Some(73_984);
        ATTENTION_DECODE_256: "attention_decode_256", 128, Some(76_032);
        ATTENTION_PREFILL_64: "attention_prefill_64", 128, Some(46_080);
        ATTENTION_PREFILL_128: "attention_prefill_128", 128, Some(87_040);
        ATTENTION_PREFILL_256: "attention_prefill_256", 128, Some(101_376);
        ATTENTION_ANY: "attention_any", 128, None;
        ATTENTION_COMBINE: "attention_combine", 128, Some(0);
    }
    "delta.cu" {
        DELTA_SHRINK: "delta_shrink", 128, Some(8192);
        DELTA_EXPAND: "delta_expand", 128, Some(TILE_H);
        DELTA_EXPAND_FLOAT: "delta_expand_float", 128, Some(TILE_H);
        DELTA_REPLACE: "delta_replace", 128, Some(0);
        DELTA_REPLACE_FLOAT: "delta_replace_float", 128, Some(0);
        DELTA_MIX: "delta_mix", 128, Some(0);
        DELTA_MIX_FLOAT: "delta_mix_float", 128, Some(0);
    }
    "fold.cu" {
        FOLD: "fold", 128, Some(ROW_H);
    }
    "gather.cu" {
        EMBED: "embed", 128, Some(ROW_H);
        GATHER_ROWS: "gather_rows", 128, Some(0);
    }
    "mlp.cu" {
        SILU_MUL: "silu_mul", 128, Some(0);
        SILU_MUL_TILES: "silu_mul_tiles", 128, Some(TILE_H);
        ADD: "add", 128, Some(0);
    }
    "norm.cu" {
        RMS_NORM: "rms_norm", 512, Some(REDUCE);
        ADD_RMS_NORM: "add_rms_norm", 512, Some(REDUCE);
        ADD_RMS_NORM_TILES: "add_rms_norm_tiles", 512, Some(TILE_H + REDUCE);
    }
    "rope.cu" {
        ROPE_STORE: "rope_store", 128, None;
        ROPE_STORE_TILES: "rope_store_tiles", 128, None;
    }
    "sample.cu" {
        SAMPLE: "sample", 1024, Some(24_856);
    }
}

/// Columns of one block of an elementwise kernel: 128 threads of 8.
pub const TILE_COLUMNS: usize = 1024;

/// A grid's blocks along `cols` columns of an elementwise kernel.
pub fn column_blocks(cols: usize) -> u32 {
    cols.div_ceil(TILE_COLUMNS) as u32
}

/// Threads that norm a row of `width`, 8 columns each.
pub fn norm_threads(width: usize) -> u32 {
    (width.div_ceil(8).next_multiple_of(32) as u32).min(RMS_NORM.threads)
}

/// Threads that draw from `vocabulary` tokens.
pub fn sample_threads(vocabulary: usize) -> u32 {
    (vocabulary.next_multiple_of(32) as u32).min(SAMPLE.threads)
}

/// [`ATTENTION_ANY`] for heads of `head_dim`: q, the result, 128 weights and a reduction's scratch.
pub fn attention_any(head_dim: usize) -> Kernel {
    ATTENTION_ANY.with_shared_bytes((2 * head_dim as u32 + 128) * 4 + REDUCE)
}

/// [`ROPE_STORE`] of `block_heads` heads a block.
pub fn rope_store(block_heads: usize, head_dim: usize) -> Kernel {
    ROPE_STORE.with_shared_bytes((block_heads * head_dim * 4) as u32)
}

/// [`ROPE_STORE_TILES`] of `block_heads` heads a block.
pub fn rope_store_tiles(block_heads: usize, head_dim: usize) -> Kernel {
    let heads = (block_heads * head_dim * 4) as u32;
    ROPE_STORE_TILES.with_shared_bytes((ROW_H + heads) * ROW_TILE as u32)
}

impl Cuda {
    /// Starts a kernel on the main stream; `args` is its one argument.
    pub(super) fn launch_kernel<A: Pod>(&self, kernel: Kernel, grid: [u32; 3], args: &A) {
        self.launch_kernel_on(&self.stream, kernel, grid, args);
    }

    /// Starts a kernel on a stream.
    pub(super) fn launch_kernel_on<A: Pod>(
        &self,
        stream: &Stream,
        kernel: Kernel,
        grid: [u32; 3],
        args: &A,
    ) {
        self.attempt(|| self.start_kernel(stream, kernel, grid, args));
    }

    /// The same where a failure is the caller's to tell.
    pub(super) fn start_kernel<A: Pod>(
        &self,
        stream: &Stream,
        kernel: Kernel,
        grid: [u32; 3],
        args: &A,
    ) -> Result<(), Fault> {
        let Kernel { name, threads, shared_bytes, .. } = kernel;
        let Some(bytes) = shared_bytes else {
            panic!("This is a bug: nobody says how much shared memory {name} needs.");
        };
        let function = self.kernels.get(name)?;
        let start = || stream.launch(function, grid, threads, bytes, args);
        self.timed(|| name.to_owned(), start)
    }
}
