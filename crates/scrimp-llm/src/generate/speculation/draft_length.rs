//! The length of a draft that is expected to gain the most.
//!
//! A draft of `k` tokens, of which each is accepted with probability `p` if all before it are, yields
//! `1 + p + p^2 + ... + p^k` tokens for the time of a pass over `k + 1` tokens (Leviathan et al., arXiv 2211.17192,
//! theorem 3.8). `p` is estimated per length of the match, and times are measured.

use super::MAX_DRAFT;

/// Lengths of matches that share an estimate: below each bound, and the rest.
const CLASSES: [usize; 4] = [3, 4, 6, 12];
/// Acceptance of the first draft of each class.
const PRIOR: [f64; 5] = [0.5, 0.6, 0.7, 0.8, 0.9];
/// Drafted tokens that the prior counts as.
const PRIOR_WEIGHT: f64 = 2.0;
/// Observations lose this share of their weight with each pass, so that a change of the text is noticed.
const FORGET: f64 = 0.01;
/// The cost of one more token in a pass, in passes over one token, before the first measurement.
const PRIOR_COST: f64 = 0.12;
/// The smallest gain for which a draft is made: measurements are noisy.
const MIN_GAIN: f64 = 1.05;
/// The share of a new measurement of time.
const SMOOTHING: f64 = 0.2;

/// What drafts have gained so far.
#[derive(Debug, Default)]
pub(super) struct DraftLength {
    /// Accepted and rejected tokens of each class, with weights.
    counts: [(f64, f64); 5],
    /// Seconds of a pass over one token; 0: not measured.
    one: f64,
    /// Seconds of each further token; `None`: not measured.
    more: Option<f64>,
}

impl DraftLength {
    /// The length of the next draft after a match of `matched` tokens; 0 if none is expected to gain.
    pub(super) fn best(&self, matched: usize) -> usize {
        let class = class(matched);
        let (accepted, rejected) = self.counts[class];
        let p = (accepted + PRIOR[class] * PRIOR_WEIGHT) / (accepted + rejected + PRIOR_WEIGHT);
        let more = self.more.filter(|_| self.one > 0.0).map_or(PRIOR_COST, |more| more / self.one);
        let (mut best, mut best_gain) = (0, MIN_GAIN);
        let (mut tokens, mut all_accepted) = (1.0, 1.0);
        for k in 1..=MAX_DRAFT {
            all_accepted *= p;
            tokens += all_accepted;
            let gain = tokens / (1.0 + more * k as f64);
            if gain > best_gain {
                (best, best_gain) = (k, gain);
            }
        }
        best
    }

    /// Learns from a pass over one token and a draft of `drafted` tokens that took `seconds`.
    pub(super) fn learn(&mut self, matched: usize, drafted: usize, accepted: usize, seconds: f64) {
        if drafted == 0 {
            smooth(&mut self.one, seconds);
        } else if self.one > 0.0 {
            // A pass over several tokens is not faster than one over one token.
            let more = ((seconds - self.one) / drafted as f64).max(0.0);
            smooth(self.more.get_or_insert(more), more);
        }
        for (good, bad) in &mut self.counts {
            *good *= 1.0 - FORGET;
            *bad *= 1.0 - FORGET;
        }
        if drafted > 0 {
            let (good, bad) = &mut self.counts[class(matched)];
            *good += accepted as f64;
            *bad += f64::from(u8::from(accepted < drafted));
        }
    }
}

fn class(matched: usize) -> usize {
    CLASSES.iter().position(|&bound| matched < bound).unwrap_or(CLASSES.len())
}

fn smooth(value: &mut f64, new: f64) {
    *value = if *value > 0.0 { *value + SMOOTHING * (new - *value) } else { new };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 400 steps of 10 ms, and 1 ms for each token of a draft, of which `accepted` gives the accepted ones. Returns the
    /// lengths of the last 200 drafts.
    fn lengths(accepted: impl Fn(usize) -> usize) -> Vec<usize> {
        let mut length = DraftLength::default();
        let mut all = Vec::new();
        for _ in 0..400 {
            let n = length.best(4);
            let accepted = if n > 0 { accepted(n) } else { 0 };
            length.learn(4, n, accepted, 0.010 + 0.001 * n as f64);
            all.push(n);
        }
        all.split_off(200)
    }

    #[test]
    fn drafts_grow_with_acceptance() {
        assert!(lengths(|n| n).iter().all(|&n| n == MAX_DRAFT));
        let some = lengths(|n| n.min(2));
        assert!(some.iter().all(|&n| (1..MAX_DRAFT).contains(&n)), "{some:?}");
    }

    #[test]
    fn rejected_drafts_become_rare_and_do_not_end() {
        let tokens: usize = lengths(|_| 0).iter().sum();
        assert!((1..40).contains(&tokens), "{tokens} tokens in 200 steps");
    }

    #[test]
    fn expensive_tokens_are_not_drafted() {
        let mut length = DraftLength::default();
        length.learn(0, 0, 0, 0.010);
        length.learn(2, 4, 4, 0.050);
        assert_eq!(length.best(2), 0, "each token of a draft costs a whole pass");
    }
}
