//! The order of dropped items before KVCrush cuts them into segments: the interface and the registry.

use super::{key_order::KeyOrder, signature_order::SignatureOrder, signatures::Signatures};
use crate::{
    error::KvError,
    policy::{LayerView, Needs, Policy},
};
use std::ops::Range;

/// An order of dropped items.
///
/// [`ORDERS`] has the orders that users can choose. Experiments may implement others.
pub trait Order: std::fmt::Debug + Send + Sync {
    /// The name that users see.
    fn name(&self) -> &'static str;

    /// One line for lists of orders.
    fn about(&self) -> &'static str;

    /// The attention scores that [`Order::sorted`] reads, where `policy` selects the important tokens.
    fn needs(&self, policy: &dyn Policy) -> Needs;

    /// Whether [`Dropped::signatures`] is needed.
    fn needs_signatures(&self) -> bool {
        false
    }

    /// The dropped items in order.
    fn sorted(&self, dropped: &Dropped<'_>) -> Vec<u32>;
}

/// The items that are neither reserved nor important.
#[derive(Debug, Clone, Copy)]
pub struct Dropped<'a> {
    /// The layer.
    pub view: &'a LayerView<'a>,
    /// The kind of item.
    pub items: Items<'a>,
    /// Indices of the dropped items, increasing.
    pub indices: &'a [u32],
    /// The attention of every item, dropped or not (see [`LayerView::weighted_attention`]).
    pub attention: &'a [f32],
    /// Signatures of every item, if [`Order::needs_signatures`].
    pub signatures: Option<&'a Signatures>,
}

/// The items that are kept or dropped as a whole.
#[derive(Debug, Clone, Copy)]
pub enum Items<'a> {
    /// Tokens of one KV head.
    Tokens {
        /// The KV head.
        kv_head: usize,
    },
    /// Runs of tokens that all KV heads hold.
    Pages(&'a [Range<usize>]),
}

impl Dropped<'_> {
    /// A seed for random numbers.
    pub fn seed(&self) -> u64 {
        self.view.seed(match self.items {
            Items::Tokens { kv_head } => kv_head,
            Items::Pages(_) => 0,
        })
    }
}

/// All orders, in the order of the documentation. The first one is the default.
pub static ORDERS: [&dyn Order; 2] = [&KeyOrder, &SignatureOrder];

/// The order with this name.
///
/// # Errors
/// When no order has the name; the message lists all names.
pub fn order(name: &str) -> Result<&'static dyn Order, KvError> {
    ORDERS.into_iter().find(|order| order.name() == name).ok_or_else(|| {
        let known: Vec<_> = ORDERS.iter().map(|order| order.name()).collect();
        KvError::BadInput(format!("there is no KVCrush order `{name}`; there are {}", known.join(", ")))
    })
}
