//! A step's rows as the kernels' tables: one block of words, uploaded at once.

use super::args::{ROW_TILE, RowParts, RowTile, SHRINK_RANKS, SHRINK_ROWS, Tile, Work};
use crate::backend::{Rows, Span};
use crate::ids::Slot;

/// Packed queries of one attention tile: decode, and prefill.
const DECODE_QUERIES: usize = 16;
const PREFILL_QUERIES: usize = 64;
/// Positions of one split of a context at least: what a block reads to be worth its start.
pub(super) const SPLIT_TOKENS_MIN: usize = 256;
/// Splits of one context at most: each costs memory in every step.
const SPLITS_MAX: usize = 32;
/// Longer than any context: prompts are not split.
const UNSPLIT: u32 = 1 << 30;

/// Positions of one split of a context, which must not depend on anything else: a row's result
/// would depend on its neighbours.
fn split_tokens(context: usize) -> usize {
    let mut tokens = SPLIT_TOKENS_MIN;
    while context.div_ceil(tokens) > SPLITS_MAX {
        tokens *= 2;
    }
    tokens
}

/// The most splits of any context up to this one.
pub(super) fn splits_max(context: usize) -> usize {
    context.div_ceil(SPLIT_TOKENS_MIN).min(SPLITS_MAX)
}

/// What tables depend on beside the rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Query heads of one key/value head.
    pub group: usize,
    /// Whether long spans have a kernel of their own.
    pub prefill_kernel: bool,
    /// Tables have room for as much as any step of as many rows needs: their places, and so a
    /// recorded graph, then stay valid.
    pub fixed: Option<Fixed>,
}

/// Room of a recorded step's tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    /// Pages of one sequence.
    pub pages: usize,
    /// Ranks of one adapter.
    pub ranks: usize,
}

/// Words, and where each table starts among them.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    pub words: Vec<u32>,
}

impl Block {
    /// Appends a table with room for `room` words; returns its start. Tables start at 16 bytes.
    fn put(&mut self, words: &[u32], room: usize) -> usize {
        let start = self.words.len();
        self.words.extend_from_slice(words);
        let end = start + words.len().max(room).max(1);
        self.words.resize(end.next_multiple_of(4), 0);
        start
    }
}

/// Where the tables that describe rows' adapters start.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct DeltaTables {
    pub entry_row: usize,
    pub entry_slot: usize,
    pub entry_weight: usize,
    pub rows: usize,
    pub order: usize,
    pub tiles: usize,
    /// All tiles.
    pub tile_count: usize,
    /// Tiles with adapters: the first of `tiles`.
    pub adapted_count: usize,
    pub work: usize,
    pub work_count: usize,
    /// Room for entries.
    pub entries: usize,
    /// The most work items there can be.
    pub works: usize,
    /// The most tiles there can be.
    pub tiles_max: usize,
}

/// Where one attention launch's tiles start.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tiles {
    pub tiles: usize,
    pub count: usize,
    /// The most tiles there can be.
    pub max: usize,
    /// Packed queries of all tiles.
    pub packed: usize,
}

/// Where a step's tables start, in words.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tables {
    pub tokens: usize,
    pub positions: usize,
    pub row_table: usize,
    pub block_tables: usize,
    pub logit_rows: usize,
    /// Rows, and rows with logits.
    pub n: usize,
    pub m: usize,
    /// Of all rows, and of the rows with logits.
    pub deltas: DeltaTables,
    pub logit_deltas: DeltaTables,
    pub decode: Option<Tiles>,
    pub prefill: Option<Tiles>,
    /// The largest position of a row in `decode` tiles, plus 1.
    pub context: usize,
}

/// `rank(slot)`: the largest rank of the adapter there; 0 without factors.
pub(super) fn build(rows: &Rows, shape: &Shape, rank: &dyn Fn(Slot) -> usize) -> (Block, Tables) {
    let n = rows.tokens.len();
    let m = rows.logit_rows.len();
    let mut block = Block::default();
    let mut row_table = vec![0; n];
    let mut pages: Vec<u32> = Vec::new();
    for span in &rows.spans {
        row_table[span.start..span.start + span.len].fill(pages.len() as u32);
        pages.extend(span.block_table.iter().map(|page| page.0));
    }
    let pages_room = shape.fixed.map_or(0, |fixed| n * fixed.pages);
    let logit_slots: Vec<Slot> =
        rows.logit_rows.iter().map(|&row| rows.slots[row as usize]).collect();
    let tokens = block.put(&rows.tokens, n);
    let positions = block.put(&rows.positions, n);
    let row_table = block.put(&row_table, n);
    let logit_rows = block.put(&rows.logit_rows, m);
    let ranks = shape.fixed.map(|fixed| fixed.ranks);
    let deltas = deltas(&mut block, &rows.slots, ranks, rank);
    let logit_deltas = self::deltas(&mut block, &logit_slots, ranks, rank);
    let long = |len: usize| shape.prefill_kernel && len * shape.group > DECODE_QUERIES;
    let split = |context| split_tokens(context) as u32;
    let short = tiles(&mut block, rows, shape.group, DECODE_QUERIES, &|len| !long(len), &split);
    let prefill = tiles(&mut block, rows, shape.group, PREFILL_QUERIES, &long, &|_| UNSPLIT);
    let short_spans = rows.spans.iter().filter(|span| !long(span.len));
    let context = short_spans.map(|span| context(rows, span)).max().unwrap_or(1);
    // The longest last: a recorded step uploads its room too.
    let block_tables = block.put(&pages, pages_room);
    let tables = Tables {
        tokens,
        positions,
        row_table,
        block_tables,
        logit_rows,
        n,
        m,
        deltas,
        logit_deltas,
        decode: short,
        prefill,
        context,
    };
    (block, tables)
}

/// Positions that a span's last row may see.
fn context(rows: &Rows, span: &Span) -> usize {
    rows.positions[span.start + span.len - 1] as usize + 1
}

/// Of the spans whose length `takes` is true of; `split_tokens` is told a span's context.
fn tiles(
    block: &mut Block,
    rows: &Rows,
    group: usize,
    queries: usize,
    takes: &dyn Fn(usize) -> bool,
    split_tokens: &dyn Fn(usize) -> u32,
) -> Option<Tiles> {
    let (mut all, mut before) = (Vec::new(), 0);
    for span in rows.spans.iter().filter(|span| takes(span.len)) {
        let packed = span.len * group;
        let split_tokens = split_tokens(context(rows, span));
        all.extend((0..packed).step_by(queries).map(|first| Tile {
            row: span.start as u32,
            rows: span.len as u32,
            first: first as u32,
            before: (before + first) as u32,
            split_tokens,
        }));
        before += packed;
    }
    if all.is_empty() {
        return None;
    }
    let count = block.put(&[all.len() as u32], 1);
    let tiles = block.put(bytemuck::cast_slice(&all), 0);
    Some(Tiles { tiles, count, max: all.len(), packed: before })
}

/// Rows of one adapter together, bare rows last.
fn deltas(
    block: &mut Block,
    slots: &[Slot],
    ranks: Option<usize>,
    rank: &dyn Fn(Slot) -> usize,
) -> DeltaTables {
    let n = slots.len();
    // `BASE` sorts behind every slot.
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by_key(|&row| (slots[row as usize], row));
    let (mut tiles, mut adapted, mut first) = (Vec::new(), 0, 0);
    let mut row_parts = vec![RowParts::default(); n];
    let mut work = Vec::new();
    let (mut entry_slot, mut entries) = (Vec::new(), 0);
    for members in order.chunk_by(|&a, &b| slots[a as usize] == slots[b as usize]) {
        let slot = slots[members[0] as usize];
        let (len, parts) = (members.len() as u32, u32::from(slot != Slot::BASE));
        tiles.extend((0..len).step_by(ROW_TILE).map(|from| RowTile {
            first: first + from,
            rows: (len - from).min(ROW_TILE as u32),
            entry: entries + from,
            stride: len,
            parts,
        }));
        first += len;
        if slot == Slot::BASE {
            continue;
        }
        adapted = tiles.len();
        for (i, &row) in members.iter().enumerate() {
            row_parts[row as usize] = RowParts { entry: entries + i as u32, stride: len, parts };
        }
        for rank_first in (0..rank(slot)).step_by(SHRINK_RANKS) {
            for from in (0..members.len()).step_by(SHRINK_ROWS) {
                let rows = (members.len() - from).min(SHRINK_ROWS) as u32;
                let entry = entries + from as u32;
                work.push(Work { entry, rows, rank_first: rank_first as u32 });
            }
        }
        entry_slot.extend(std::iter::repeat_n(slot.0, members.len()));
        entries += len;
    }
    let room = |words: usize, used: usize| if ranks.is_some() { words } else { used };
    let tiles_max = room(n, tiles.len());
    let works = ranks.map_or(work.len(), |ranks| n * ranks.div_ceil(SHRINK_RANKS));
    let one = 1.0_f32.to_bits();
    // An entry's row is its place among the sorted rows: bare rows stand behind all entries.
    let entry_row = block.put(&order[..entries as usize], n);
    DeltaTables {
        entry_row,
        entry_slot: block.put(&entry_slot, n),
        entry_weight: block.put(&vec![one; n], n),
        rows: block.put(bytemuck::cast_slice(&row_parts), 3 * n),
        order: block.put(&order, n),
        tiles: block.put(bytemuck::cast_slice(&tiles), 5 * tiles_max),
        tile_count: block.put(&[tiles.len() as u32], 1),
        adapted_count: block.put(&[adapted as u32], 1),
        work: block.put(bytemuck::cast_slice(&work), 3 * works),
        work_count: block.put(&[work.len() as u32], 1),
        entries: room(n, entries as usize),
        works,
        tiles_max,
    }
}

/// The rows of a decode step, filled up to `bucket` with rows that read and write `spare`, a page
/// of no sequence.
pub(super) fn padded(rows: &Rows, bucket: usize, spare: crate::ids::BlockId) -> Rows {
    let mut rows = rows.clone();
    for row in rows.tokens.len()..bucket {
        rows.tokens.push(0);
        rows.positions.push(0);
        rows.slots.push(Slot::BASE);
        let block_table = vec![spare];
        rows.spans.push(Span { start: row, len: 1, block_table });
        rows.logit_rows.push(row as u32);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BlockId;

    fn step(slots: &[u32]) -> Rows {
        let n = slots.len();
        let span = |start| Span { start, len: 1, block_table: vec![BlockId(start as u32)] };
        Rows {
            tokens: vec![7; n],
            positions: (0..n as u32).collect(),
            slots: slots.iter().map(|&slot| Slot(slot)).collect(),
            spans: (0..n).map(span).collect(),
            logit_rows: (0..n as u32).collect(),
        }
    }

    const BARE: u32 = Slot::BASE.0;
    const SHAPE: Shape = Shape { group: 4, prefill_kernel: true, fixed: None };

    #[test]
    fn rows_of_one_adapter_share_tiles_and_bare_rows_come_last() {
        let (block, t) = build(&step(&[3, BARE, 1, 3]), &SHAPE, &|_| 20);
        let words = |at: usize, len: usize| &block.words[at..at + len];
        assert_eq!(words(t.deltas.order, 4), [2, 0, 3, 1]);
        let tiles = [[0, 1, 0, 1, 1], [1, 2, 1, 2, 1], [3, 1, 3, 1, 0]];
        assert_eq!(words(t.deltas.tiles, 15), tiles.as_flattened());
        assert_eq!(words(t.deltas.tile_count, 1), [3]);
        assert_eq!(words(t.deltas.adapted_count, 1), [2]);
        assert_eq!(words(t.deltas.entry_slot, 3), [1, 3, 3]);
        assert_eq!(words(t.deltas.rows, 12), [1, 2, 1, 0, 0, 0, 0, 1, 1, 2, 2, 1]);
        // Two tiles of ranks each.
        assert_eq!(words(t.deltas.work, 12), [0, 1, 0, 0, 1, 16, 1, 2, 0, 1, 2, 16]);
        assert_eq!(words(t.deltas.work_count, 1), [4]);
    }

    #[test]
    fn many_rows_of_one_adapter_are_cut_into_tiles() {
        let (block, t) = build(&step(&[2; 9]), &SHAPE, &|_| 1);
        let tiles = [[0, 4, 0, 9, 1], [4, 4, 4, 9, 1], [8, 1, 8, 9, 1]];
        assert_eq!(&block.words[t.deltas.tiles..][..15], tiles.as_flattened());
        assert_eq!(block.words[t.deltas.tile_count], 3);
    }

    #[test]
    fn a_fixed_layout_does_not_depend_on_who_is_in_the_step() {
        let shape = Shape { fixed: Some(Fixed { pages: 9, ranks: 64 }), ..SHAPE };
        let (a, places) = build(&step(&[0, 1, 2, 3]), &shape, &|_| 64);
        let (b, others) = build(&step(&[5, 5, BARE, BARE]), &shape, &|_| 3);
        assert_eq!((places, a.words.len()), (Tables { context: 4, ..others }, b.words.len()));
    }

    #[test]
    fn padding_reads_and_writes_a_page_of_no_sequence() {
        let rows = padded(&step(&[0, 1]), 4, BlockId(99));
        assert_eq!((rows.tokens.len(), rows.logit_rows.len()), (4, 4));
        assert!(rows.spans[2..].iter().all(|span| span.block_table == [BlockId(99)]));
        assert!(rows.slots[2..].iter().all(|&slot| slot == Slot::BASE));
    }

    #[test]
    fn long_spans_go_to_the_kernel_for_prompts() {
        let mut rows = step(&[BARE; 9]);
        rows.spans = vec![
            Span { start: 0, len: 1, block_table: vec![BlockId(0)] },
            Span { start: 1, len: 8, block_table: vec![BlockId(1)] },
        ];
        let (block, t) = build(&rows, &SHAPE, &|_| 0);
        let tiles = |t: &Option<Tiles>| {
            let t = t.as_ref().unwrap();
            block.words[t.tiles..t.tiles + 5 * t.max].to_vec()
        };
        assert_eq!(tiles(&t.decode), [0, 1, 0, 0, 256]);
        assert_eq!(tiles(&t.prefill), [1, 8, 0, 0, UNSPLIT]);
        let (_, t) = build(&rows, &Shape { prefill_kernel: false, ..SHAPE }, &|_| 0);
        assert_eq!((t.prefill, t.decode.unwrap().max), (None, 3));
    }

    #[test]
    fn a_context_is_split_by_its_own_length_into_few_splits() {
        let lengths = [1, 256, 257, 8192, 8193, 16384, 16385, 131_072];
        assert_eq!(lengths.map(split_tokens), [256, 256, 256, 256, 512, 512, 1024, 4096]);
        let mut most = 0;
        for context in 1..40_000_usize {
            let splits = context.div_ceil(split_tokens(context));
            most = most.max(splits);
            assert_eq!(splits_max(context), most, "up to {context}");
        }
        assert_eq!(most, SPLITS_MAX);
    }

    #[test]
    fn a_rows_split_does_not_depend_on_its_neighbours() {
        let contexts = [9000, 100, 70_000, 300];
        let mut rows = step(&[BARE; 4]);
        rows.positions = contexts.iter().map(|context| context - 1).collect();
        let (block, t) = build(&rows, &SHAPE, &|_| 0);
        let tiles = t.decode.unwrap();
        let words = block.words[tiles.tiles..].chunks(5).take(4);
        assert_eq!(words.map(|tile| tile[4]).collect::<Vec<_>>(), [512, 256, 4096, 256]);
        assert_eq!(t.context, 70_000);
    }
}
