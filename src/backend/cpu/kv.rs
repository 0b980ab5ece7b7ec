//! The paged keys and values.

use half::{bf16, f16};

use super::matrix::Matrix;
use super::simd::Element;
use super::threads::{Cpu, SERIAL_ELEMENTS_MAX};
use super::weight::{Elements, narrow};
use crate::backend::{Fault, KvShape, Rows, Span};
use crate::dtype::{Dtype, Values};

/// Keys and values of every layer, `[kv_heads, blocks, block_tokens, head_dim]` each: what one head
/// reads of one page is contiguous, and heads can be written in parallel.
#[derive(Debug)]
pub struct Kv {
    shape: KvShape,
    layers: Vec<[Values; 2]>,
}

/// Written one by one: the system then gives the memory now, and not when a request comes.
fn zeros<T: Copy>(len: usize, zero: T) -> Result<Vec<T>, Fault> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| Fault {
        message: format!("there is no memory for a KV cache of this size ({len} numbers a layer)"),
        lost: false,
    })?;
    values.resize(len, zero);
    Ok(values)
}

impl Kv {
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn new(shape: KvShape) -> Result<Self, Fault> {
        let widths = [shape.kv_heads, shape.blocks, shape.block_tokens, shape.head_dim];
        let len = widths.into_iter().fold(1usize, usize::saturating_mul);
        let values = || -> Result<Values, Fault> {
            Ok(match shape.dtype {
                Dtype::F32 => Values::F32(zeros(len, 0.0)?),
                Dtype::F16 => Values::F16(zeros(len, f16::ZERO)?),
                Dtype::BF16 => Values::BF16(zeros(len, bf16::ZERO)?),
            })
        };
        let layers = (0..shape.layers).map(|_| Ok([values()?, values()?]));
        Ok(Self { shape, layers: layers.collect::<Result<_, Fault>>()? })
    }

    /// The size it was made with.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> [Elements<'_>; 2] {
        let [keys, values] = &self.layers[layer];
        [Elements::of(keys), Elements::of(values)]
    }

    /// Where a head's part of a page starts.
    pub(super) fn page_start(&self, kv_head: usize, block: usize) -> usize {
        (kv_head * self.shape.blocks + block) * self.shape.block_tokens * self.shape.head_dim
    }

    /// Writes each row's key and value to its sequence's pages.
    pub(super) fn store(&mut self, cpu: &Cpu, layer: usize, k: &Matrix, v: &Matrix, rows: &Rows) {
        let cells = cells(&self.shape, rows);
        let shape = self.shape;
        for (values, x) in self.layers[layer].iter_mut().zip([k, v]) {
            let write = Write { shape: &shape, cells: &cells, x };
            match values {
                Values::F32(heads) => write.heads(cpu, heads),
                Values::F16(heads) => write.heads(cpu, heads),
                Values::BF16(heads) => write.heads(cpu, heads),
            }
        }
    }
}

/// For each row, its cell: block · block_tokens + place in the block.
fn cells(shape: &KvShape, rows: &Rows) -> Vec<usize> {
    // The spans cover all rows, in row order.
    let of_span = |span: &'_ Span| {
        let positions = &rows.positions[span.start..span.start + span.len];
        let cell = |&position: &u32| {
            let position = position as usize;
            let block = span.block_table[position / shape.block_tokens].0 as usize;
            block * shape.block_tokens + position % shape.block_tokens
        };
        positions.iter().map(cell).collect::<Vec<_>>()
    };
    rows.spans.iter().flat_map(of_span).collect()
}

struct Write<'a> {
    shape: &'a KvShape,
    cells: &'a [usize],
    x: &'a Matrix,
}

impl Write<'_> {
    fn heads<T: Element>(&self, cpu: &Cpu, data: &mut [T]) {
        let head_dim = self.shape.head_dim;
        let head_len = self.shape.blocks * self.shape.block_tokens * head_dim;
        let one = |(head, cells): (usize, &mut [T])| {
            for (row, cell) in self.cells.iter().enumerate() {
                let from = &self.x.row(row)[head * head_dim..][..head_dim];
                narrow(from, &mut cells[cell * head_dim..][..head_dim]);
            }
        };
        let heads = data.chunks_mut(head_len).enumerate();
        if self.x.data.len() <= SERIAL_ELEMENTS_MAX {
            heads.for_each(one);
        } else {
            cpu.each(heads.collect(), one);
        }
    }
}
