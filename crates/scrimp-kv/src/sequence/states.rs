//! Recurrent states: the layers without keys and values carry numbers of a fixed size from token to token.
//!
//! ```text
//! page:  state of layer 0 | state of layer 1 | ...      f32, each from a multiple of 16 numbers on
//! ```
//! The states of all layers are one page of the block pool, so they count in its bytes and its limit. As all pages, it is
//! copied before it is written while it has another owner: a fork, or a checkpoint.
//!
//! A state cannot return to an earlier token. [`Sequence::truncate`] reaches the length of the checkpoint
//! ([`Sequence::keep_states`]) and 0. [`Sequence::set_states`] returns to states that the caller has kept.

use super::{Sequence, no_layer};
use crate::{
    block::bytes_of_new,
    cache::Shared,
    error::KvError,
    wire::{Input, LoadError, damaged, put_f32s, put_u32},
};
use scrimp_kernels::mem::Page;
use std::{
    io::{self, Read, Write},
    sync::Arc,
};

/// The recurrent states of all layers of a sequence after some tokens. A clone shares their memory.
#[derive(Debug, Clone)]
pub struct States {
    /// `None`: zeros.
    page: Option<Arc<Page>>,
    /// Position of the next token of each layer.
    next: Vec<u32>,
    checkpoint: Option<Checkpoint>,
}

/// The states at an earlier token.
#[derive(Debug, Clone)]
struct Checkpoint {
    page: Arc<Page>,
    len: u32,
}

/// Numbers of the states of all layers, and the first number of layer `layer`.
fn place(shared: &Shared, layer: usize) -> (usize, usize) {
    let padded = |states: &[usize]| states.iter().map(|n| n.next_multiple_of(16)).sum();
    (padded(&shared.config.states), padded(&shared.config.states[..layer]))
}

impl States {
    pub(super) fn new(shared: &Shared) -> Self {
        Self { page: None, next: vec![0; shared.config.states.len()], checkpoint: None }
    }

    fn len(&self) -> u32 {
        self.next.iter().copied().max().unwrap_or(0)
    }

    /// Whether the states can return to `len` tokens.
    fn reaches(&self, len: usize) -> bool {
        len >= self.len() as usize
            || len == 0
            || self.checkpoint.as_ref().is_some_and(|c| c.len as usize == len)
    }

    /// # Errors
    /// There is no state at `len`. Nothing is changed then.
    pub(super) fn truncate(&mut self, len: usize) -> Result<(), KvError> {
        if !self.reaches(len) {
            return Err(KvError::NoState { len });
        }
        if len < self.len() as usize {
            self.checkpoint = self.checkpoint.take().filter(|c| c.len as usize <= len);
            self.page = self.checkpoint.as_ref().map(|c| Arc::clone(&c.page));
            self.next.fill(len as u32);
        }
        Ok(())
    }

    /// Bytes that the next write of a state allocates.
    pub(super) fn growth_bytes(&self, shared: &Shared) -> usize {
        let writable = self.page.as_ref().is_some_and(|page| Arc::strong_count(page) == 1);
        if writable { 0 } else { 4 * place(shared, 0).0 }
    }

    /// Bytes of the states and of the checkpoint.
    pub(super) fn bytes(&self) -> usize {
        let checkpoint = self.checkpoint.as_ref().map(|c| &c.page);
        let other = checkpoint.filter(|page| self.page.as_ref().is_none_or(|own| !Arc::ptr_eq(own, page)));
        self.page.iter().chain(other).map(|page| page.len()).sum()
    }

    /// Writes the present states and those of the checkpoint; nothing if no layer has a state.
    pub(super) fn save(&self, shared: &Shared, out: &mut dyn Write) -> io::Result<()> {
        if self.next.is_empty() {
            return Ok(());
        }
        let n = place(shared, 0).0;
        put_u32(out, self.len())?;
        match &self.page {
            Some(page) => put_f32s(out, bytemuck::cast_slice(&page[..4 * n]))?,
            None => put_f32s(out, &vec![0.0; n])?,
        }
        put_u32(out, self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.len))?;
        match &self.checkpoint {
            Some(checkpoint) => put_f32s(out, bytemuck::cast_slice(&checkpoint.page[..4 * n])),
            None => Ok(()),
        }
    }

    /// Reads the states of a sequence of `len` tokens.
    pub(super) fn load(shared: &Shared, len: u32, input: &mut Input<impl Read>) -> Result<Self, LoadError> {
        let mut states = Self::new(shared);
        if states.next.is_empty() {
            return Ok(states);
        }
        if input.u32()? != len {
            return Err(damaged("layers of different lengths"));
        }
        states.page = Some(load_page(shared, input)?);
        states.next.fill(len);
        let at = input.u32()?;
        if at > len {
            return Err(damaged("recurrent states behind the end of the text"));
        }
        if at > 0 {
            states.checkpoint = Some(Checkpoint { page: load_page(shared, input)?, len: at });
        }
        Ok(states)
    }
}

/// The page of a sequence, copied first if it has another owner.
fn writable<'a>(page: &'a mut Option<Arc<Page>>, shared: &Shared) -> Result<&'a mut Page, KvError> {
    if page.as_ref().is_none_or(|page| Arc::strong_count(page) > 1) {
        let mut new = shared.pool.alloc(4 * place(shared, 0).0, 1)?;
        let bytes = bytes_of_new(&mut new);
        match page {
            Some(page) => bytes.copy_from_slice(page),
            None => bytes.fill(0),
        }
        *page = Some(new);
    }
    match page.as_mut().and_then(Arc::get_mut) {
        Some(page) => Ok(page),
        None => unreachable!("the page was copied if it had another owner"),
    }
}

/// Reads the states of all layers.
fn load_page(shared: &Shared, input: &mut Input<impl Read>) -> Result<Arc<Page>, LoadError> {
    let numbers = input.f32s()?;
    if numbers.len() != place(shared, 0).0 {
        return Err(damaged("recurrent states of another size"));
    }
    let mut page = shared.pool.alloc(4 * numbers.len(), 1)?;
    bytes_of_new(&mut page)[..4 * numbers.len()].copy_from_slice(bytemuck::cast_slice(&numbers));
    Ok(page)
}

impl Sequence {
    /// The state of recurrent layer `layer`, which the caller brings from this layer's last token to `tokens` tokens
    /// later.
    ///
    /// # Errors
    /// When there is no such layer, the sequence would have 2^32 tokens, or memory for a copy cannot be had.
    pub fn advance_state(&mut self, layer: usize, tokens: usize) -> Result<&mut [f32], KvError> {
        let Some(&position) = self.states.next.get(layer) else { return Err(no_layer(layer)) };
        let Some(next) = u32::try_from(tokens).ok().and_then(|n| position.checked_add(n)) else {
            return Err(KvError::BadInput("a sequence cannot have 2^32 tokens".into()));
        };
        let (_, first) = place(&self.shared, layer);
        let len = self.shared.config.states[layer];
        let States { page, next: positions, .. } = &mut self.states;
        let page = writable(page, &self.shared)?;
        positions[layer] = next;
        Ok(&mut bytemuck::cast_slice_mut(page)[first..first + len])
    }

    /// Keeps the present states, so that [`Sequence::truncate`] can return to this length. They replace those that were
    /// kept before. The next token copies the states.
    pub fn keep_states(&mut self) {
        let len = self.states.len();
        self.states.checkpoint = self.states.page.clone().map(|page| Checkpoint { page, len });
    }

    /// The present states. While they exist, the next token copies them.
    pub fn states(&self) -> States {
        self.states.clone()
    }

    /// Returns to `states`, which [`Sequence::states`] of this sequence returned.
    pub fn set_states(&mut self, states: States) {
        self.states = states;
    }

    /// The largest length, at most `len`, for which there are recurrent states: `len` itself in models without.
    pub fn reachable(&self, len: usize) -> usize {
        if self.states.reaches(len) {
            return len;
        }
        let kept = self.states.checkpoint.as_ref().map(|c| c.len as usize);
        kept.filter(|&kept| kept <= len).unwrap_or(0)
    }

    /// Layers with a recurrent state.
    pub fn n_states(&self) -> usize {
        self.states.next.len()
    }

    /// Bytes of the recurrent states.
    pub fn state_bytes(&self) -> usize {
        self.states.bytes()
    }
}
