//! What factors and output are cut into.

/// Rows and columns of a tile; also pairs of inner positions in one.
pub(super) const TILE: usize = 16;
/// Inner positions of a tile.
pub(super) const DEPTH: usize = 2 * TILE;
/// 16 lines of one factor by 32 inner positions, two bf16 in a number. Of the left factor a line of
/// the tile is a row; of the right one it is a pair of inner positions, 16 columns abreast.
pub(super) type Tile = [[u32; TILE]; TILE];

/// Rows and columns of a block.
pub(super) const BLOCK: usize = 2 * TILE;

/// Sums of a block, row by row.
pub(super) type Sums = [[f32; BLOCK]; BLOCK];

/// 16 lines of a factor by 32 inner positions, in the f32 memory that they come from; what lies
/// beyond the factor's edges is 0.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    /// From the first element on.
    pub(super) values: &'a [f32],
    pub(super) lines: usize,
    pub(super) inner: usize,
    pub(super) line_stride: usize,
    pub(super) inner_stride: usize,
}

/// How a tile is laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// A line of the tile is a row of the left factor.
    Rows,
    /// A line of the tile is a pair of inner positions of the right factor.
    Pairs,
}
