//! One step's rows as flat arrays, in the order of the plan.

use std::collections::HashMap;
use std::ops::Range;

use crate::ids::{BlockId, Slot, TokenId};
use crate::recipe::Recipe;

/// The rows of a step, sequence after sequence.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Token of each row.
    pub tokens: Vec<TokenId>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// What each row carries: its index in [`Rows::recipes`].
    carried: Vec<u32>,
    /// What rows carry, each once.
    recipes: Vec<Recipe<Slot>>,
    index: HashMap<Recipe<Slot>, u32>,
    /// Each sequence's stretch of rows, in row order, covering all rows.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// Rows whose hidden state after the last norm is wanted, ascending.
    pub hidden_rows: Vec<u32>,
}

/// The rows of one sequence: `len` consecutive positions from `start`.
#[derive(Clone, Debug)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Pages that hold positions 0, 1, … of the sequence, up to its last row at least.
    pub block_table: Vec<BlockId>,
}

impl Rows {
    /// Appends rows of one sequence: `tokens` at the positions from `position` on. Rows before the
    /// first position that the recipe is for carry nothing. Returns the new rows.
    pub fn push(
        &mut self,
        tokens: &[TokenId],
        position: u32,
        recipe: &Recipe<Slot>,
        block_table: Vec<BlockId>,
    ) -> Range<usize> {
        let (start, len) = (self.tokens.len(), tokens.len());
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(position..position + len as u32);
        let bare = (recipe.from().saturating_sub(position) as usize).min(len);
        if bare > 0 {
            let base = self.intern(Recipe::base());
            self.carried.extend(std::iter::repeat_n(base, bare));
        }
        if bare < len {
            let recipe = self.intern(recipe.clone().active_from(0));
            self.carried.extend(std::iter::repeat_n(recipe, len - bare));
        }
        self.spans.push(Span { start, len, block_table });
        start..start + len
    }

    fn intern(&mut self, recipe: Recipe<Slot>) -> u32 {
        let next = self.recipes.len() as u32;
        let known = self.index.entry(recipe.clone()).or_insert(next);
        if *known == next {
            self.recipes.push(recipe);
        }
        *known
    }

    /// What rows carry, each once.
    pub fn recipes(&self) -> &[Recipe<Slot>] {
        &self.recipes
    }

    /// What a row carries: its index in [`Rows::recipes`].
    pub fn carried(&self, row: usize) -> usize {
        self.carried[row] as usize
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_before_a_recipes_first_position_carry_nothing() {
        let mut rows = Rows::default();
        let recipe = Recipe::one(Slot(3)).active_from(5);
        assert_eq!(rows.push(&[9; 4], 3, &recipe, Vec::new()), 0..4);
        assert_eq!(rows.push(&[9; 2], 5, &recipe, Vec::new()), 4..6);
        let carried: Vec<bool> =
            (0..6).map(|row| rows.recipes()[rows.carried(row)].is_base()).collect();
        assert_eq!(carried, [true, true, false, false, false, false]);
        assert_eq!(rows.recipes().len(), 2, "each once");
        assert_eq!(rows.positions, [3, 4, 5, 6, 5, 6]);
    }
}
