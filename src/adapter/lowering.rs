//! What a method has lowered so far. It speaks of modules, as its file does; each site gets its
//! rows of a module's outputs.

use super::error::AdapterError;
use crate::delta::{Delta, DeltaBuilder, Factor, LowRank, Side, SiteDelta, TooLarge, gcd};
use crate::dtype::{Dtype, Values};
use crate::ids::{ModuleId, SiteId};
use crate::site::{ModuleMap, ModulePart, RowSet, SiteKind};

/// A [`Delta`] in the making.
pub struct Lowering<'a> {
    modules: &'a ModuleMap,
    delta: DeltaBuilder,
}

impl From<TooLarge> for AdapterError {
    fn from(error: TooLarge) -> Self {
        AdapterError::Invalid(error.to_string())
    }
}

impl<'a> Lowering<'a> {
    /// Nothing yet.
    pub fn new(modules: &'a ModuleMap) -> Self {
        Self { modules, delta: DeltaBuilder::default() }
    }

    /// Appends parameters; returns the offset of the first.
    ///
    /// # Errors
    /// When there are more than offsets reach.
    pub fn push(&mut self, side: Side, data: &[f32]) -> Result<u32, AdapterError> {
        Ok(self.delta.push(side, data)?)
    }

    /// Appends a `[rank, width]` matrix.
    ///
    /// # Errors
    /// As [`Lowering::push`].
    pub fn push_dense(
        &mut self,
        side: Side,
        data: &[f32],
        rank: usize,
    ) -> Result<Factor, AdapterError> {
        Ok(self.delta.push_dense(side, data, rank)?)
    }

    fn parts(&self, id: ModuleId) -> &'a [ModulePart] {
        &self.modules.get(id).parts
    }

    /// Sets a module's low-rank change. A is the same for all its sites, B each has its rows of.
    pub fn low_rank(&mut self, id: ModuleId, change: &LowRank) {
        for ModulePart { site, rows } in self.parts(id) {
            let LowRank { rank, down, middle, up, end } = change.clone();
            let whole = *rows == RowSet::all(up.width());
            let up = if whole { up } else { self.rows_of(&up, rank, rows) };
            let end = end.map(|end| rows.pick(&end, 1));
            self.delta.site(*site).low_rank = Some(LowRank { rank, down, middle, up, end });
        }
    }

    /// Bᵀ at some of a module's outputs: the same numbers, gathered anew.
    fn rows_of(&self, up: &Factor, rank: usize, rows: &RowSet) -> Factor {
        let stretches: Vec<Factor> =
            rows.stretches().map(|rows| up.columns(rows.start, rows.len())).collect();
        // One length of shards for all stretches.
        let len = stretches.iter().map(|part| part.shard_len).fold(0, gcd);
        let split = |part: &Factor, r: usize| {
            let starts = part.row_offsets(r).to_vec();
            let pieces = (0..part.shard_len as u32).step_by(len);
            starts.into_iter().flat_map(move |o| pieces.clone().map(move |i| o + i))
        };
        let row = |r: usize| stretches.iter().flat_map(move |part| split(part, r));
        let offsets = (0..rank).flat_map(row).collect();
        Factor { pool: up.pool, shard_len: len, shards: rows.rows() / len, offsets }
    }

    /// Multiplies a module's output.
    pub fn scale(&mut self, id: ModuleId, scale: &[f32]) {
        for ModulePart { site, rows } in self.parts(id) {
            self.scale_site(*site, &rows.pick(scale, 1));
        }
    }

    /// Multiplies one site's output.
    pub fn scale_site(&mut self, site: SiteId, scale: &[f32]) {
        let old = &mut self.delta.site(site).scale;
        *old = Some(match old.take() {
            None => scale.to_vec(),
            Some(old) => old.iter().zip(scale).map(|(a, b)| a * b).collect(),
        });
    }

    /// Adds to a module's output, after any scale.
    pub fn shift(&mut self, id: ModuleId, shift: &[f32]) {
        for ModulePart { site, rows } in self.parts(id) {
            let more = rows.pick(shift, 1);
            let old = &mut self.delta.site(*site).shift;
            *old = Some(match old.take() {
                None => more,
                Some(old) => old.iter().zip(more).map(|(a, b)| a + b).collect(),
            });
        }
    }

    /// Puts a whole weight in the place of a module's own.
    pub fn weight(&mut self, id: ModuleId, weight: Values) {
        let module = self.modules.get(id);
        if let [ModulePart { site, .. }] = module.parts[..] {
            self.delta.site(site).weight = Some(weight);
            return;
        }
        let width = match module.kind {
            SiteKind::Linear => module.in_features,
            SiteKind::Norm => 1,
            SiteKind::Embedding => unreachable!("This is a bug: a table of several sites."),
        };
        for ModulePart { site, rows } in &module.parts {
            self.delta.site(*site).weight = Some(rows.pick_values(&weight, width));
        }
    }

    /// Whether any part of a module is so.
    pub fn any(&self, id: ModuleId, is_so: impl Fn(&SiteDelta) -> bool) -> bool {
        self.parts(id).iter().filter_map(|part| self.delta.get(part.site)).any(is_so)
    }

    /// What a module's output is multiplied by so far, if by anything.
    pub fn scale_of(&self, id: ModuleId) -> Option<Vec<f32>> {
        let mut all = None;
        for ModulePart { site, rows } in self.parts(id) {
            let Some(scale) = self.delta.get(*site).and_then(|s| s.scale.as_ref()) else {
                continue;
            };
            let outputs = self.modules.get(id).out_features;
            let all = all.get_or_insert_with(|| vec![1.0; outputs]);
            for (row, scale) in rows.stretches().flatten().zip(scale) {
                all[row] = *scale;
            }
        }
        all
    }

    /// Rounds and checks everything.
    pub fn finish(self, dtype: Dtype) -> Delta {
        self.delta.finish(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::{Module, Site, SiteMap};

    /// Two sites that one module of 12 outputs is made of: groups of 2 of every 4 rows, and the
    /// others.
    fn fused() -> (SiteMap, ModuleMap) {
        let mut sites = SiteMap::default();
        let site = |name: &str| Site {
            name: name.into(),
            kind: SiteKind::Linear,
            in_features: 3,
            out_features: 6,
            has_bias: false,
        };
        let ids = ["a", "b"].map(|name| sites.add(site(name)));
        let part =
            |site, first| ModulePart { site, rows: RowSet { first, len: 2, stride: 4, groups: 3 } };
        let mut modules = ModuleMap::default();
        modules.add(Module {
            name: "ab".into(),
            kind: SiteKind::Linear,
            in_features: 3,
            out_features: 12,
            has_bias: false,
            parts: vec![part(ids[0], 0), part(ids[1], 2)],
        });
        (sites, modules)
    }

    const ROWS: [[usize; 6]; 2] = [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]];

    #[test]
    fn each_site_of_a_fused_module_gets_its_rows_of_every_part() {
        let (_, modules) = fused();
        let id = ModuleId(0);
        // Dense, and gathers whose shards the cuts fall into.
        for shards in [1, 2, 3, 4] {
            let mut lowering = Lowering::new(&modules);
            let a: Vec<f32> = (0..6).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..48).map(|i| 100.0 + i as f32).collect();
            let down = lowering.push_dense(Side::Down, &a, 2).unwrap();
            lowering.push(Side::Up, &b).unwrap();
            let len = 12 / shards;
            let offsets = (0..2 * shards as u32).map(|i| i * 5 % 30).collect();
            let up = DeltaBuilder::gather(Side::Up, len, shards, offsets);
            let vector =
                |from: usize| -> Vec<f32> { (from..from + 12).map(|i| i as f32).collect() };
            let end = Some(vector(7));
            let whole = LowRank { rank: 2, down, middle: Some(vec![2.0, 3.0]), up, end };
            lowering.low_rank(id, &whole);
            lowering.scale(id, &vector(20));
            lowering.shift(id, &vector(40));
            lowering.shift(id, &vector(40));
            lowering.weight(id, Values::F32((0..36).map(|i| i as f32).collect()));
            assert_eq!(lowering.scale_of(id), Some(vector(20)));
            let delta = lowering.finish(Dtype::F32);
            for (site, rows) in ROWS.iter().enumerate() {
                let SiteDelta { low_rank, scale, shift, weight } =
                    delta.site(SiteId(site as u32)).unwrap();
                let LowRank { rank, down, middle, up, end } = low_rank.as_ref().unwrap();
                assert_eq!((*rank, down, middle), (2, &whole.down, &whole.middle));
                for r in 0..2 {
                    let all = delta.row(&whole.up, r);
                    let expected: Vec<f32> = rows.iter().map(|&row| all[row]).collect();
                    assert_eq!(delta.row(up, r), expected, "{shards} shards");
                }
                let picked = |all: Vec<f32>| Some(rows.iter().map(|&r| all[r]).collect::<Vec<_>>());
                assert_eq!(*end, picked(vector(7)));
                assert_eq!(*scale, picked(vector(20)));
                assert_eq!(*shift, picked(vector(40).iter().map(|x| 2.0 * x).collect()));
                let expected = rows.iter().flat_map(|r| (3 * r..3 * r + 3).map(|i| i as f32));
                assert_eq!(*weight, Some(Values::F32(expected.collect())));
            }
        }
    }
}
