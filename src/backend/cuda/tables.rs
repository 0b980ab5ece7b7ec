//! A step's rows as the kernels' tables: one block of words, uploaded at once.

use super::args::{ROW_TILE, RowParts, RowTile, SHRINK_RANKS, SHRINK_ROWS, Tile, Work};
use crate::backend::{Rows, Span};
use crate::ids::{BlockId, Slot};
use crate::recipe::Recipe;

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

/// Room of a captured step's tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    /// Pages of one sequence.
    pub pages: usize,
    /// Ranks of one adapter.
    pub ranks: usize,
    /// Adapters of one row.
    pub parts: usize,
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
    pub hidden_rows: usize,
    /// Rows, rows with logits, and rows whose hidden state is wanted.
    pub n: usize,
    pub m: usize,
    pub k: usize,
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
    let all: Vec<usize> = (0..n).map(|row| rows.carried(row)).collect();
    let of_logits: Vec<usize> =
        rows.logit_rows.iter().map(|&row| rows.carried(row as usize)).collect();
    let tokens = block.put(&rows.tokens, n);
    let positions = block.put(&rows.positions, n);
    let row_table = block.put(&row_table, n);
    let logit_rows = block.put(&rows.logit_rows, m);
    let hidden_rows = block.put(&rows.hidden_rows, 0);
    let deltas = deltas(&mut block, &all, rows.recipes(), shape.fixed, rank);
    let logit_deltas = self::deltas(&mut block, &of_logits, rows.recipes(), shape.fixed, rank);
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
        hidden_rows,
        n,
        m,
        k: rows.hidden_rows.len(),
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

/// Rows that carry the same together, bare rows last. `carried`: by row, its index in `recipes`.
fn deltas(
    block: &mut Block,
    carried: &[usize],
    recipes: &[Recipe<Slot>],
    fixed: Option<Fixed>,
    rank: &dyn Fn(Slot) -> usize,
) -> DeltaTables {
    let n = carried.len();
    let mut order: Vec<u32> = (0..n as u32).collect();
    let recipe = |row: u32| carried[row as usize];
    order.sort_by_key(|&row| (recipes[recipe(row)].is_base(), recipe(row), row));
    let mut lists = Lists { row_parts: vec![RowParts::default(); n], ..Lists::default() };
    let mut first = 0;
    for members in order.chunk_by(|&a, &b| recipe(a) == recipe(b)) {
        lists.add(first, members, &recipes[recipe(members[0])], rank);
        first += members.len() as u32;
    }
    let Lists { row_parts, tiles, adapted, work, entry_row, entry_slot, entry_weight } = &lists;
    let room = |words: usize, used: usize| if fixed.is_some() { words } else { used };
    let parts_max = fixed.map_or(0, |fixed| fixed.parts);
    let tiles_max = room(n, tiles.len());
    let works =
        fixed.map_or(work.len(), |fixed| n * fixed.parts * fixed.ranks.div_ceil(SHRINK_RANKS));
    let entries = room(n * parts_max, entry_row.len());
    DeltaTables {
        entry_row: block.put(entry_row, entries),
        entry_slot: block.put(entry_slot, entries),
        entry_weight: block.put(entry_weight, entries),
        rows: block.put(bytemuck::cast_slice(row_parts), 3 * n),
        order: block.put(&order, n),
        tiles: block.put(bytemuck::cast_slice(tiles), 5 * tiles_max),
        tile_count: block.put(&[tiles.len() as u32], 1),
        adapted_count: block.put(&[*adapted as u32], 1),
        work: block.put(bytemuck::cast_slice(work), 3 * works),
        work_count: block.put(&[work.len() as u32], 1),
        entries,
        works,
        tiles_max,
    }
}

/// The tables of [`deltas`] while they are filled.
#[derive(Default)]
struct Lists {
    row_parts: Vec<RowParts>,
    tiles: Vec<RowTile>,
    /// Tiles with adapters.
    adapted: usize,
    work: Vec<Work>,
    entry_row: Vec<u32>,
    entry_slot: Vec<u32>,
    /// Bits of the weights.
    entry_weight: Vec<u32>,
}

impl Lists {
    /// The rows `members`, which stand from `first` on in the order and carry `recipe`: part j of
    /// the i-th of n rows is entry j · n + i after those there are.
    fn add(
        &mut self,
        first: u32,
        members: &[u32],
        recipe: &Recipe<Slot>,
        rank: &dyn Fn(Slot) -> usize,
    ) {
        let (len, parts) = (members.len() as u32, recipe.parts().len() as u32);
        let entry = self.entry_row.len() as u32;
        // A row of several adapters has a tile of its own.
        let tile_rows = if parts > 1 { 1 } else { ROW_TILE };
        self.tiles.extend((0..len).step_by(tile_rows).map(|from| RowTile {
            first: first + from,
            rows: (len - from).min(tile_rows as u32),
            entry: entry + from,
            stride: len,
            parts,
        }));
        if recipe.is_base() {
            return;
        }
        self.adapted = self.tiles.len();
        for (i, &row) in (entry..).zip(members) {
            self.row_parts[row as usize] = RowParts { entry: i, stride: len, parts };
        }
        for part in recipe.parts() {
            let entry = self.entry_row.len() as u32;
            for rank_first in (0..rank(part.adapter)).step_by(SHRINK_RANKS) {
                self.work.extend((0..len).step_by(SHRINK_ROWS).map(|from| Work {
                    entry: entry + from,
                    rows: (len - from).min(SHRINK_ROWS as u32),
                    rank_first: rank_first as u32,
                }));
            }
            self.entry_row.extend_from_slice(members);
            self.entry_slot.extend(std::iter::repeat_n(part.adapter.0, members.len()));
            let weight = part.weight.get().to_bits();
            self.entry_weight.extend(std::iter::repeat_n(weight, members.len()));
        }
    }
}

/// The rows of a decode step, filled up to `bucket` with rows that read and write `spare`, a page
/// of no sequence.
pub(super) fn padded(rows: &Rows, bucket: usize, spare: BlockId) -> Rows {
    let mut rows = rows.clone();
    for row in rows.len()..bucket {
        rows.push(&[0], 0, &Recipe::base(), vec![spare]);
        rows.logit_rows.push(row as u32);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Part, Weight};

    fn recipe(parts: &[(u32, f32)]) -> Recipe<Slot> {
        let part = |&(slot, weight): &(u32, f32)| Part {
            adapter: Slot(slot),
            weight: Weight::new(weight).unwrap(),
        };
        Recipe::new(parts.iter().map(part).collect())
    }

    fn carrying(recipes: &[Recipe<Slot>]) -> Rows {
        let mut rows = Rows::default();
        for (row, recipe) in (0..).zip(recipes) {
            rows.push(&[7], row, recipe, vec![BlockId(row)]);
            rows.logit_rows.push(row);
        }
        rows
    }

    const BARE: u32 = u32::MAX;

    fn step(slots: &[u32]) -> Rows {
        let one = |&slot: &u32| if slot == BARE { recipe(&[]) } else { recipe(&[(slot, 1.0)]) };
        carrying(&slots.iter().map(one).collect::<Vec<_>>())
    }

    const SHAPE: Shape = Shape { group: 4, prefill_kernel: true, fixed: None };

    #[test]
    fn rows_of_one_adapter_share_tiles_and_bare_rows_come_last() {
        let (block, t) = build(&step(&[3, BARE, 1, 3]), &SHAPE, &|_| 20);
        let words = |at: usize, len: usize| &block.words[at..at + len];
        assert_eq!(words(t.deltas.order, 4), [0, 3, 2, 1]);
        let tiles = [[0, 2, 0, 2, 1], [2, 1, 2, 1, 1], [3, 1, 3, 1, 0]];
        assert_eq!(words(t.deltas.tiles, 15), tiles.as_flattened());
        assert_eq!(words(t.deltas.tile_count, 1), [3]);
        assert_eq!(words(t.deltas.adapted_count, 1), [2]);
        assert_eq!(words(t.deltas.entry_slot, 3), [3, 3, 1]);
        assert_eq!(words(t.deltas.rows, 12), [0, 2, 1, 0, 0, 0, 2, 1, 1, 1, 2, 1]);
        // Two tiles of ranks each.
        assert_eq!(words(t.deltas.work, 12), [0, 2, 0, 0, 2, 16, 2, 1, 0, 2, 1, 16]);
        assert_eq!(words(t.deltas.work_count, 1), [4]);
    }

    #[test]
    fn a_row_of_several_adapters_has_an_entry_of_each_and_a_tile_of_its_own() {
        let both = recipe(&[(5, 0.5), (2, -1.0)]);
        let rows = carrying(&[both.clone(), recipe(&[(5, 1.0)]), both]);
        let (block, t) = build(&rows, &SHAPE, &|slot| if slot == Slot(2) { 3 } else { 0 });
        let words = |at: usize, len: usize| &block.words[at..at + len];
        assert_eq!(words(t.deltas.order, 3), [0, 2, 1]);
        assert_eq!(words(t.deltas.entry_row, 5), [0, 2, 0, 2, 1]);
        assert_eq!(words(t.deltas.entry_slot, 5), [5, 5, 2, 2, 5]);
        let weights = [0.5, 0.5, -1.0, -1.0, 1.0].map(f32::to_bits);
        assert_eq!(words(t.deltas.entry_weight, 5), weights);
        let tiles = [[0, 1, 0, 2, 2], [1, 1, 1, 2, 2], [2, 1, 4, 1, 1]];
        assert_eq!(words(t.deltas.tiles, 15), tiles.as_flattened());
        assert_eq!(words(t.deltas.rows, 9), [0, 2, 2, 4, 1, 1, 1, 2, 2]);
        assert_eq!(
            (words(t.deltas.work_count, 1), words(t.deltas.work, 3)),
            (&[1][..], &[2, 2, 0][..])
        );
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
        let shape = Shape { fixed: Some(Fixed { pages: 9, ranks: 64, parts: 1 }), ..SHAPE };
        let (a, places) = build(&step(&[0, 1, 2, 3]), &shape, &|_| 64);
        let (b, others) = build(&step(&[5, 5, BARE, BARE]), &shape, &|_| 3);
        assert_eq!((places, a.words.len()), (Tables { context: 4, ..others }, b.words.len()));
    }

    #[test]
    fn padding_reads_and_writes_a_page_of_no_sequence() {
        let rows = padded(&step(&[0, 1]), 4, BlockId(99));
        assert_eq!((rows.tokens.len(), rows.logit_rows.len()), (4, 4));
        assert!(rows.spans[2..].iter().all(|span| span.block_table == [BlockId(99)]));
        assert!((2..4).all(|row| rows.recipes()[rows.carried(row)].is_base()));
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
