//! A matrix cut into stretches of columns, one a task.

/// A stretch of columns of every row.
pub(super) struct Columns<'a> {
    pub first: usize,
    pub width: usize,
    pub rows: Vec<&'a mut [f32]>,
}

/// Cuts a row-major matrix into stretches of `width` columns (the last may be narrower).
pub(super) fn columns(data: &mut [f32], cols: usize, width: usize) -> Vec<Columns<'_>> {
    let rows = data.len() / cols;
    let stretch = |i: usize| {
        let first = i * width;
        Columns { first, width: width.min(cols - first), rows: Vec::with_capacity(rows) }
    };
    let mut all: Vec<Columns<'_>> = (0..cols.div_ceil(width)).map(stretch).collect();
    for row in data.chunks_mut(cols) {
        all.iter_mut().zip(row.chunks_mut(width)).for_each(|(c, part)| c.rows.push(part));
    }
    all
}
