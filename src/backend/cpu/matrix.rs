//! Activations.

/// Row-major f32.
#[derive(Debug, PartialEq)]
pub struct Matrix {
    pub(super) data: Vec<f32>,
    pub(super) cols: usize,
}

impl Matrix {
    /// `data` as rows of `cols` numbers.
    pub fn new(data: Vec<f32>, cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "This is a bug: ragged matrix.");
        Self { data, cols }
    }

    pub(super) fn zeros(rows: usize, cols: usize) -> Self {
        Self::new(vec![0.0; rows * cols], cols)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.cols..][..self.cols]
    }

    /// All rows.
    pub(super) fn row_slices(&self) -> Vec<&[f32]> {
        self.data.chunks(self.cols).collect()
    }
}
