//! Token tiles of every width.

/// Evaluates `$body` with the constant `$T`: the number of tokens, `$width`, of a token tile. Widths that level `$S`
/// does not have are not compiled.
macro_rules! with_width {
    ($S:ident, $width:expr, $T:ident => $body:expr) => {
        match $width {
            1 => {
                const $T: usize = 1;
                $body
            }
            2 => {
                const $T: usize = 2;
                $body
            }
            4 => {
                const $T: usize = 4;
                $body
            }
            8 if const { $S::TOKEN_TILE >= 8 } => {
                const $T: usize = 8;
                $body
            }
            12 if const { $S::TOKEN_TILE >= 12 } => {
                const $T: usize = 12;
                $body
            }
            width => unreachable!("no kernel for {width} tokens"),
        }
    };
}
pub(super) use with_width;
