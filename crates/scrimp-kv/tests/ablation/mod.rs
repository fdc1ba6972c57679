//! Orders and masses of KVCrush that are not in the registries because they measure worse. The experiment that
//! compares them (the example `kv_grid` of scrimp-eval) and the tests of the selection use them.

use scrimp_base::{SplitMix64, random::mix};
use scrimp_kv::{
    compress::{self, Dropped, KeyOrder, Mass, Order, Segment, SignatureOrder},
    policy::{Needs, Policy},
};

/// The order with this name: one of the registry or of this file.
pub(crate) fn order(name: &str) -> Option<&'static dyn Order> {
    let ours = ORDERS.into_iter().find(|order| order.name() == name);
    ours.or_else(|| compress::order(name).ok())
}

/// The mass with this name: one of the registry or [`CountMass`].
pub(crate) fn mass(name: &str) -> Option<&'static dyn Mass> {
    if name == "count" { Some(&CountMass) } else { compress::mass(name).ok() }
}

static ORDERS: [&dyn Order; 7] = [
    &ScoreOrder,
    &RandomOrder,
    &PositionOrder,
    &AnchorOrder { name: "signature-random", bit: |seed, bit| mix(seed ^ bit as u64) & 1 == 1 },
    &AnchorOrder { name: "signature-zeros", bit: |_, _| false },
    &AnchorOrder { name: "signature-ones", bit: |_, _| true },
    &AnchorOrder { name: "signature-alternate", bit: |_, bit| bit % 2 == 1 },
];

/// By attention, highest first.
#[derive(Debug)]
struct ScoreOrder;

impl Order for ScoreOrder {
    fn name(&self) -> &'static str {
        "score"
    }
    fn about(&self) -> &'static str {
        "By attention"
    }
    fn needs(&self, policy: &dyn Policy) -> Needs {
        KeyOrder.needs(policy)
    }
    fn sorted(&self, dropped: &Dropped<'_>) -> Vec<u32> {
        let a = |i: u32| dropped.attention[i as usize];
        let mut order = dropped.indices.to_vec();
        order.sort_by(|&x, &y| a(y).total_cmp(&a(x)).then(x.cmp(&y)));
        order
    }
}

/// A random order.
#[derive(Debug)]
struct RandomOrder;

impl Order for RandomOrder {
    fn name(&self) -> &'static str {
        "random"
    }
    fn about(&self) -> &'static str {
        "Random"
    }
    fn needs(&self, _policy: &dyn Policy) -> Needs {
        Needs::NONE
    }
    fn sorted(&self, dropped: &Dropped<'_>) -> Vec<u32> {
        let mut order = dropped.indices.to_vec();
        SplitMix64::new(dropped.seed()).shuffle(&mut order);
        order
    }
}

/// By position. Without mass, every so many tokens are kept.
#[derive(Debug)]
struct PositionOrder;

impl Order for PositionOrder {
    fn name(&self) -> &'static str {
        "position"
    }
    fn about(&self) -> &'static str {
        "By position"
    }
    fn needs(&self, _policy: &dyn Policy) -> Needs {
        Needs::NONE
    }
    fn sorted(&self, dropped: &Dropped<'_>) -> Vec<u32> {
        dropped.indices.to_vec()
    }
}

/// By the distance of signatures to an anchor of the paper's ablation.
#[derive(Debug)]
struct AnchorOrder {
    name: &'static str,
    /// The anchor's bit, by seed and index.
    bit: fn(u64, usize) -> bool,
}

impl Order for AnchorOrder {
    fn name(&self) -> &'static str {
        self.name
    }
    fn about(&self) -> &'static str {
        "By the distance of signatures to an anchor"
    }
    fn needs(&self, policy: &dyn Policy) -> Needs {
        SignatureOrder.needs(policy)
    }
    fn needs_signatures(&self) -> bool {
        true
    }
    fn sorted(&self, dropped: &Dropped<'_>) -> Vec<u32> {
        let Some(signatures) = dropped.signatures else { return dropped.indices.to_vec() };
        let anchor: Vec<bool> = (0..signatures.n_bits()).map(|bit| (self.bit)(dropped.seed(), bit)).collect();
        signatures.sorted_by_distance(&anchor, dropped.indices)
    }
}

/// The number of tokens in the segment.
#[derive(Debug)]
struct CountMass;

impl Mass for CountMass {
    fn name(&self) -> &'static str {
        "count"
    }
    fn about(&self) -> &'static str {
        "The tokens of its segment"
    }
    fn bias(&self, segment: Segment) -> f32 {
        (segment.len as f32).ln()
    }
}
