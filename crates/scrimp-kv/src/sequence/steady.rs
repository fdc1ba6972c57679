//! Appends that change nothing else in the cache.

use super::Sequence;

impl Sequence {
    /// The largest number of tokens, at most `most`, of which each sees the same pages whether they are appended
    /// together or one by one, with [`Sequence::pack`] after each: until then, no page is dropped from a sliding-window
    /// layer and none is packed. 0 only if `most` is 0.
    pub fn steady_tokens(&self, most: usize) -> usize {
        let page_tokens = self.shared.config.page_tokens;
        let mut steady = most;
        for (layer, (state, window)) in self.layers.iter().zip(&self.shared.config.windows).enumerate() {
            let geometry = self.shared.pages(layer).geometry;
            for table in &state.heads {
                let packed = |n: usize| self.format.old_blocks(geometry, table.len() + n - 1);
                let dropped = |n: usize| {
                    let seen = window.map_or(usize::MAX, |w| w.saturating_add(self.shared.config.rewind));
                    table.index_from((state.next as usize + n).saturating_sub(seen) as u32) / page_tokens
                };
                while steady > 1 && (packed(steady) != packed(1) || dropped(steady) != dropped(1)) {
                    steady -= 1;
                }
            }
        }
        steady
    }
}
