//! The mass of a representative: how much attention it receives for the dropped tokens of its segment.

use crate::{
    error::KvError,
    policy::{Needs, position_weight},
};

/// A kind of mass.
///
/// [`MASSES`] has the kinds that users can choose. Experiments may implement others.
pub trait Mass: std::fmt::Debug + Send + Sync {
    /// The name that users see.
    fn name(&self) -> &'static str;

    /// One line for lists of masses.
    fn about(&self) -> &'static str;

    /// The attention scores that the mass depends on.
    fn needs(&self) -> Needs {
        Needs::NONE
    }

    /// How segments are cut and represented. `true`: segments have about equal sums of `sqrt(attention)`, and the
    /// item with the most attention represents its segment. `false`: segments have equal lengths, and the middle item
    /// represents its segment.
    fn by_attention(&self) -> bool {
        false
    }

    /// The bias that is added to the scores of a representative.
    fn bias(&self, segment: Segment) -> f32;
}

/// A segment of dropped items.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Items in the segment.
    pub len: usize,
    /// The attention of all items of the segment.
    pub attention: f64,
    /// The attention of its representative.
    pub representative: f64,
}

/// The attention of the segment. The bias is `0.75 ln(segment / representative)`.
///
/// The power 0.75 is measured: the estimate of the segment's attention is noisy, and too high where heads attend to
/// single tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttentionMass;

/// The power of a segment's mass that its representative receives.
const POWER: f64 = 0.75;

impl Mass for AttentionMass {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn about(&self) -> &'static str {
        "The attention of its segment"
    }

    fn needs(&self) -> Needs {
        Needs { sum: true, recent: Some(position_weight::WINDOW), ..Needs::NONE }
    }

    fn by_attention(&self) -> bool {
        true
    }

    fn bias(&self, segment: Segment) -> f32 {
        let mass = segment.attention / segment.representative;
        // The ratio is not finite where the representative received no attention.
        if mass.is_finite() && mass >= 1.0 { (POWER * mass.ln()) as f32 } else { 0.0 }
    }
}

/// No mass: a representative counts as itself only, as in the paper.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMass;

impl Mass for NoMass {
    fn name(&self) -> &'static str {
        "none"
    }

    fn about(&self) -> &'static str {
        "Itself, as in the paper"
    }

    fn bias(&self, _segment: Segment) -> f32 {
        0.0
    }
}

/// All masses, in the order of the documentation.
pub static MASSES: [&dyn Mass; 2] = [&NoMass, &AttentionMass];

/// The mass with this name.
///
/// # Errors
/// When no mass has the name; the message lists all names.
pub fn mass(name: &str) -> Result<&'static dyn Mass, KvError> {
    MASSES.into_iter().find(|mass| mass.name() == name).ok_or_else(|| {
        let known: Vec<_> = MASSES.iter().map(|mass| mass.name()).collect();
        KvError::BadInput(format!("there is no KVCrush mass `{name}`; there are {}", known.join(", ")))
    })
}
