//! A mixture of experts: the router, and the gated blocks of the chosen experts.
//!
//! ```text
//! logits = router · x                            x = norm(h), in f32
//! e[0..k] = the experts with the largest logits, w = their weights ([`ExpertWeighting`])
//! h += shared(x), or sigmoid(g · x) * shared(x)   of some models
//! h += w[j] * down[e[j]] · (f(gate[e[j]] x) * up[e[j]] x)      for each chosen j, in the order of the experts
//! h += norm(norm(block(x)) + norm(sum of the experts))          where a block runs beside them
//!
//! rows, sorted by expert:   | e0: t3 t7 | e2: t0 | e5: t1 t3 t4 | ...     one batch of activations for each expert
//! ```
//! The tokens of a pass are grouped by expert, so that a pass reads each chosen expert once. All products of a wave of
//! experts run in one parallel region; a wave bounds the memory of intermediate results.
//!
//! Equality: the number of tokens of an expert depends on all sequences of a pass. All products therefore run at an
//! exact level, and a token adds its experts in one order. So a sequence has the bits that it has alone.

use super::{
    forward::{Gated, Pass, each_row, norm_or_copy, product, sized},
    rope_and_append::take,
    weights::{BesideBlock, ExpertWeights, GatedWeights, LayerNorms, SharedExpert},
};
use crate::config::{ExpertGroups, ExpertWeighting, Experts, SigmoidRouting};
use scrimp_kernels::{
    Exec,
    linear::{ActivationShape, Activations, BatchShapes, LinearGroup, Needs, linear, linear_groups},
    ops,
};
use std::ops::Range;

/// Rows of a wave, unless one expert has more.
pub const WAVE_ROWS: usize = 1024;

/// Intermediate results of experts, kept between calls.
#[derive(Debug, Default)]
pub(super) struct ExpertBuffers {
    /// The normed residual stream, `[n][hidden_size]`.
    x: Vec<f32>,
    /// `[n][experts]`
    logits: Vec<f32>,
    /// The gate of the shared expert, `[n]`.
    pub(super) shared: Vec<f32>,
    /// The sums of the experts, `[n][hidden_size]`, where a norm follows.
    sum: Vec<f32>,
    routes: Routes,
    /// The inputs of the experts of a wave, and then of their down projections.
    batches: Vec<Activations>,
}

/// A chosen expert of a token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Choice {
    expert: usize,
    weight: f32,
    /// The row among those of all experts.
    row: usize,
}

/// The experts of the tokens of a pass.
#[derive(Debug, Default)]
struct Routes {
    /// `[n][per_token]`, the experts of a token in ascending order.
    choices: Vec<Choice>,
    /// The token of each row. Rows are sorted by expert, then by token.
    tokens: Vec<usize>,
    /// The rows of each expert with at least one.
    experts: Vec<(usize, Range<usize>)>,
}

impl Routes {
    /// Sorts the rows of the choices by expert.
    fn sort(&mut self, experts: Experts) {
        let mut next = vec![0; experts.count + 1];
        self.choices.iter().for_each(|choice| next[choice.expert + 1] += 1);
        self.experts.clear();
        for expert in 0..experts.count {
            next[expert + 1] += next[expert];
            let rows = next[expert]..next[expert + 1];
            if !rows.is_empty() {
                self.experts.push((expert, rows));
            }
        }
        self.tokens.resize(self.choices.len(), 0);
        for (i, choice) in self.choices.iter_mut().enumerate() {
            choice.row = next[choice.expert];
            self.tokens[choice.row] = i / experts.per_token;
            next[choice.expert] += 1;
        }
    }

    /// The experts in waves of at most [`WAVE_ROWS`] rows, or of one expert.
    fn waves(&self) -> Vec<Range<usize>> {
        let mut waves: Vec<Range<usize>> = Vec::new();
        let mut rows = usize::MAX;
        for (i, (_, of_expert)) in self.experts.iter().enumerate() {
            match waves.last_mut().filter(|_| rows.saturating_add(of_expert.len()) <= WAVE_ROWS) {
                Some(wave) => (wave.end, rows) = (i + 1, rows + of_expert.len()),
                None => {
                    waves.push(i..i + 1);
                    rows = of_expert.len();
                }
            }
        }
        waves
    }
}

/// The experts of a token with these logits, and their weights, in ascending order. `bias` counts in the choice of a
/// routing by sigmoids.
fn choose(logits: &[f32], bias: Option<&[f32]>, weighting: ExpertWeighting, out: &mut [Choice]) {
    if let ExpertWeighting::Sigmoid(routing) = weighting {
        return choose_by_sigmoid(logits, bias, routing, out);
    }
    choose_largest(logits, out);
    let largest = out.iter().map(|choice| logits[choice.expert]).fold(f32::NEG_INFINITY, f32::max);
    let exp = |logit: f32| (logit - largest).exp();
    let sum: f32 = match weighting {
        ExpertWeighting::Softmax => logits.iter().map(|&logit| exp(logit)).sum(),
        _ => out.iter().map(|choice| exp(logits[choice.expert])).sum(),
    };
    for choice in out {
        choice.weight = exp(logits[choice.expert]) / sum;
    }
}

/// Chooses the experts with the largest scores, in ascending order; of equal ones, those with the lowest numbers.
fn choose_largest(scores: &[f32], out: &mut [Choice]) {
    for chosen in 0..out.len() {
        let rest = (0..scores.len()).filter(|e| !out[..chosen].iter().any(|choice| choice.expert == *e));
        // `max_by` returns the last of equal ones.
        let best = rest.rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or_default();
        out[chosen] = Choice { expert: best, ..Choice::default() };
    }
    out.sort_unstable_by_key(|choice| choice.expert);
}

/// As [`choose`], for routing by sigmoids.
fn choose_by_sigmoid(logits: &[f32], bias: Option<&[f32]>, routing: SigmoidRouting, out: &mut [Choice]) {
    let sigmoid = |logit: f32| 1.0 / (1.0 + (-logit).exp());
    let mut scores: Vec<f32> = logits.iter().map(|&logit| sigmoid(logit)).collect();
    scores.iter_mut().zip(bias.unwrap_or_default()).for_each(|(score, bias)| *score += bias);
    if let Some(groups) = routing.groups {
        drop_groups(groups, &mut scores);
    }
    choose_largest(&scores, out);
    out.iter_mut().for_each(|choice| choice.weight = sigmoid(logits[choice.expert]));
    let sum: f32 = out.iter().map(|choice| choice.weight).sum();
    let factor = if routing.normalize { routing.scale / (sum + 1e-20) } else { routing.scale };
    out.iter_mut().for_each(|choice| choice.weight *= factor);
}

/// Sets the scores of experts to minus infinity whose groups are not chosen.
fn drop_groups(groups: ExpertGroups, scores: &mut [f32]) {
    let size = scores.len() / groups.count;
    let of_group = |scores: &[f32]| {
        let mut best = vec![Choice::default(); size.min(2)];
        choose_largest(scores, &mut best);
        best.iter().map(|choice| scores[choice.expert]).sum()
    };
    let of_groups: Vec<f32> = scores.chunks_exact(size).map(of_group).collect();
    let mut chosen = vec![Choice::default(); groups.per_token];
    choose_largest(&of_groups, &mut chosen);
    for (group, scores) in scores.chunks_exact_mut(size).enumerate() {
        if !chosen.iter().any(|choice| choice.expert == group) {
            scores.fill(f32::NEG_INFINITY);
        }
    }
}

impl Pass<'_> {
    /// Adds the outputs of the chosen experts to the residual stream of `n` rows.
    pub(super) fn experts(&mut self, norms: &LayerNorms, weights: &ExpertWeights, n: usize) {
        let Some(experts) = self.config.experts else { return };
        let exec = Exec { level: self.exec.level.exact(), ..self.exec };
        self.route(exec, norms, weights, experts, n);
        if let Some(shared) = &weights.shared {
            self.shared_expert(shared, n);
        }
        let routes = std::mem::take(&mut self.buffers.experts.routes);
        // The waves add to the residual stream, or to a sum.
        let rows = n * self.config.hidden_size;
        let mut to = match weights.beside {
            Some(_) => std::mem::take(&mut self.buffers.experts.sum),
            None => std::mem::take(&mut self.buffers.h),
        };
        if weights.beside.is_some() {
            sized(&mut to, rows).fill(0.0);
        }
        for wave in routes.waves() {
            let of_wave = self.run_wave(exec, weights, &routes, &routes.experts[wave]);
            self.add_wave(exec, &routes, experts.per_token, &of_wave, &mut to[..rows]);
        }
        self.buffers.experts.routes = routes;
        match &weights.beside {
            None => self.buffers.h = to,
            Some(beside) => {
                self.buffers.experts.sum = to;
                self.add_beside(norms, beside, n);
            }
        }
    }

    /// Adds `norm(norm(block(x)) + norm(sum of the experts))` to the residual stream of `n` rows.
    fn add_beside(&mut self, norms: &LayerNorms, beside: &BesideBlock, n: usize) {
        let GatedWeights { gate, up, down } = &beside.block;
        self.gate_and_up(norms, [gate, up], n);
        self.fill_gated(down, n);
        self.block_output(down, n);
        let Self { exec, config, buffers, .. } = self;
        let (hidden, level) = (config.hidden_size, exec.level);
        let sum = &buffers.experts.sum;
        each_row(exec.pool, &mut buffers.block[..n * hidden], hidden, |t, block| {
            config.rms_norm(&beside.block_norm).apply_in_place(level, block);
            config.rms_norm(&beside.experts_norm).add_to(level, &sum[t * hidden..(t + 1) * hidden], block);
        });
        let (block, norm) = (&buffers.block, norms.post_ffn_norm.as_deref());
        each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |t, h| {
            let block = &block[t * hidden..(t + 1) * hidden];
            match norm {
                Some(weight) => config.rms_norm(weight).add_to(level, block, h),
                None => ops::add_scaled(h, 1.0, block),
            }
        });
    }

    /// Adds the output of the shared expert to the residual stream of `n` rows. All rows of the pass go through it, as
    /// through a dense block.
    fn shared_expert(&mut self, weights: &SharedExpert, n: usize) {
        let Self { exec, config, buffers, .. } = self;
        let (hidden, GatedWeights { gate, up, down }) = (config.hidden_size, &weights.block);
        let x = &buffers.experts.x;
        let needs = gate.needs().and(up.needs());
        let needs = weights.gate.as_ref().map_or(needs, |gate| needs.and(gate.needs()));
        buffers.x.fill(*exec, ActivationShape { n_tokens: n, cols: hidden, needs }, |t, row| {
            row.copy_from_slice(&x[t * hidden..(t + 1) * hidden]);
        });
        self.gate_and_up_products([gate, up], weights.gate.as_ref(), n);
        self.fill_gated(down, n);
        self.block_output(down, n);
        let Self { exec, config, buffers, .. } = self;
        let block = &buffers.block;
        let shared = weights.gate.as_ref().map(|_| &buffers.experts.shared);
        each_row(exec.pool, &mut buffers.h[..n * hidden], hidden, |t, h| {
            let gate = shared.map_or(1.0, |logits| 1.0 / (1.0 + (-logits[t]).exp()));
            let weight = config.residual_scale * gate;
            ops::add_scaled(h, weight, &block[t * hidden..(t + 1) * hidden]);
        });
    }

    /// Chooses the experts of `n` rows.
    fn route(
        &mut self,
        exec: Exec<'_>,
        norms: &LayerNorms,
        weights: &ExpertWeights,
        experts: Experts,
        n: usize,
    ) {
        let Self { config, buffers, .. } = self;
        let hidden = config.hidden_size;
        let beside = weights.beside.as_deref();
        let norm = beside.map(|beside| &beside.input_norm[..]).or(norms.ffn_norm.as_deref());
        let norm = norm.map(|weight| config.rms_norm(weight));
        let (h, x) = (&buffers.h[..n * hidden], sized(&mut buffers.experts.x, n * hidden));
        each_row(exec.pool, x, hidden, |t, x| {
            norm_or_copy(exec.level, norm.as_ref(), &h[t * hidden..(t + 1) * hidden], x);
        });
        let shape = ActivationShape { n_tokens: n, cols: hidden, needs: weights.router.needs() };
        // The router has the input of the experts, or a norm of its own.
        let (from, norm) = match beside {
            Some(beside) => (h, Some(config.rms_norm(&beside.router_norm))),
            None => (&*x, None),
        };
        buffers.x.fill(exec, shape, |t, row| {
            norm_or_copy(exec.level, norm.as_ref(), &from[t * hidden..(t + 1) * hidden], row);
        });
        let logits = sized(&mut buffers.experts.logits, n * experts.count);
        linear(exec, &mut buffers.linear, &buffers.x, &mut [product(&weights.router, logits, false)]);
        let (logits, routes) = (&buffers.experts.logits, &mut buffers.experts.routes);
        routes.choices.resize(n * experts.per_token, Choice::default());
        exec.pool.chunks(&mut routes.choices, experts.per_token, |t, choices| {
            let logits = &logits[t * experts.count..(t + 1) * experts.count];
            choose(logits, weights.bias.as_deref(), experts.weighting, choices);
            if let Some(beside) = beside {
                choices.iter_mut().for_each(|choice| choice.weight *= beside.scales[choice.expert]);
            }
        });
        routes.sort(experts);
    }

    /// Runs the experts of a wave. `block` has their outputs, `[rows][hidden_size]`; returns the rows.
    fn run_wave(
        &mut self,
        exec: Exec<'_>,
        weights: &ExpertWeights,
        routes: &Routes,
        wave: &[(usize, Range<usize>)],
    ) -> Range<usize> {
        let Self { config, buffers, .. } = self;
        let (hidden, width) = (config.hidden_size, weights.experts[0].gate.weight.rows());
        let rows = wave[0].1.start..wave[wave.len() - 1].1.end;
        let n_tokens: Vec<usize> = wave.iter().map(|(_, rows)| rows.len()).collect();
        let blocks: Vec<&GatedWeights> = wave.iter().map(|&(expert, _)| &weights.experts[expert]).collect();
        let needs = |of: fn(&GatedWeights) -> Needs| {
            blocks.iter().fold(Needs::default(), |needs, block| needs.and(of(block)))
        };
        if buffers.experts.batches.len() < wave.len() {
            buffers.experts.batches.resize_with(wave.len(), Activations::default);
        }
        let (x, batches) = (&buffers.experts.x, &mut buffers.experts.batches);
        let inputs = needs(|block| block.gate.needs().and(block.up.needs()));
        let shapes = BatchShapes { n_tokens: &n_tokens, cols: hidden, needs: inputs };
        Activations::fill_each(exec, batches, shapes, |i, t, row| {
            let token = routes.tokens[wave[i].1.start + t];
            row.copy_from_slice(&x[token * hidden..(token + 1) * hidden]);
        });
        let (mut gate, mut up) =
            (sized(&mut buffers.gate, rows.len() * width), sized(&mut buffers.up, rows.len() * width));
        let mut products: Vec<_> = blocks
            .iter()
            .zip(&n_tokens)
            .map(|(block, n)| {
                let outputs = (take(&mut gate, *n, width), take(&mut up, *n, width));
                [product(&block.gate, outputs.0, false), product(&block.up, outputs.1, false)]
            })
            .collect();
        let groups = products.iter_mut().zip(&*batches).map(|(products, x)| LinearGroup { x, products });
        linear_groups(exec, &mut buffers.linear, &mut groups.collect::<Vec<_>>());

        let gated = Gated::new(exec.level, config, width, [&buffers.gate, &buffers.up]);
        let shapes = BatchShapes { cols: width, needs: needs(|block| block.down.needs()), ..shapes };
        Activations::fill_each(exec, batches, shapes, |i, t, row| {
            gated.row(wave[i].1.start - rows.start + t, row);
        });
        let mut out = sized(&mut buffers.block, rows.len() * hidden);
        let mut products: Vec<_> = blocks
            .iter()
            .zip(&n_tokens)
            .map(|(block, n)| [product(&block.down, take(&mut out, *n, hidden), false)])
            .collect();
        let groups = products.iter_mut().zip(&*batches).map(|(products, x)| LinearGroup { x, products });
        linear_groups(exec, &mut buffers.linear, &mut groups.collect::<Vec<_>>());
        rows
    }

    /// Adds the weighted outputs of a wave to the rows `to`, `[n][hidden_size]`.
    fn add_wave(
        &self,
        exec: Exec<'_>,
        routes: &Routes,
        per_token: usize,
        rows: &Range<usize>,
        to: &mut [f32],
    ) {
        let Self { config, buffers, .. } = self;
        let (hidden, block) = (config.hidden_size, &buffers.block);
        each_row(exec.pool, to, hidden, |t, h| {
            for choice in &routes.choices[t * per_token..(t + 1) * per_token] {
                if rows.contains(&choice.row) {
                    let from = (choice.row - rows.start) * hidden;
                    let weight = config.residual_scale * choice.weight;
                    ops::add_scaled(h, weight, &block[from..from + hidden]);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(logits: &[f32], k: usize, weighting: ExpertWeighting) -> Vec<(usize, f32)> {
        let mut out = vec![Choice::default(); k];
        choose(logits, None, weighting, &mut out);
        out.iter().map(|choice| (choice.expert, choice.weight)).collect()
    }

    #[test]
    fn the_largest_logits_are_chosen_and_of_equal_ones_the_first() {
        let experts = |logits: &[f32], k| -> Vec<usize> {
            chosen(logits, k, ExpertWeighting::Softmax).iter().map(|&(expert, _)| expert).collect()
        };
        assert_eq!(experts(&[0.0, 3.0, 1.0, 2.0], 2), [1, 3]);
        assert_eq!(experts(&[1.0; 5], 3), [0, 1, 2]);
        assert_eq!(experts(&[-1.0, 2.0, -3.0], 3), [0, 1, 2]);
        // No choice is made twice, whatever the logits are.
        assert_eq!(experts(&[f32::NAN; 4], 4), [0, 1, 2, 3]);
        assert_eq!(experts(&[f32::NEG_INFINITY, f32::NAN, f32::INFINITY], 2), [1, 2]);
    }

    #[test]
    fn weights_are_probabilities_of_all_or_of_the_chosen() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let sum: f32 = logits.iter().map(|x: &f32| x.exp()).sum();
        for (expert, weight) in chosen(&logits, 2, ExpertWeighting::Softmax) {
            assert!((weight - logits[expert].exp() / sum).abs() < 1e-6);
        }
        let total: f32 = chosen(&logits, 2, ExpertWeighting::SoftmaxOfChosen).iter().map(|c| c.1).sum();
        assert!((total - 1.0).abs() < 1e-6);
    }

    #[test]
    fn biases_and_groups_count_in_the_choice_and_not_in_the_weight() {
        let logits = [0.0, 2.0, 1.0, -1.0, 1.5, 0.5];
        let mut routing = SigmoidRouting { normalize: false, scale: 1.0, groups: None };
        let choose = |bias: Option<&[f32]>, routing| {
            let mut out = [Choice::default(); 2];
            choose(&logits, bias, ExpertWeighting::Sigmoid(routing), &mut out);
            out.map(|choice| (choice.expert, choice.weight))
        };
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        assert_eq!(choose(None, routing), [(1, sigmoid(2.0)), (4, sigmoid(1.5))]);
        let bias = [0.0, 0.0, 0.0, 2.0, 0.0, 0.0];
        assert_eq!(choose(Some(&bias), routing), [(1, sigmoid(2.0)), (3, sigmoid(-1.0))]);
        // Of three groups, the last has the largest sum.
        routing.groups = Some(ExpertGroups { count: 3, per_token: 1 });
        assert_eq!(choose(None, routing), [(4, sigmoid(1.5)), (5, sigmoid(0.5))]);
        (routing.normalize, routing.scale) = (true, 3.0);
        let sum: f32 = choose(None, routing).iter().map(|(_, weight)| weight).sum();
        assert!((sum - 3.0).abs() < 1e-6);
    }

    #[test]
    fn rows_are_sorted_by_expert_and_waves_have_all_of_them() {
        let experts = Experts::plain(6, 2, 8, ExpertWeighting::Softmax);
        let mut routes = Routes::default();
        let choice = |expert| Choice { expert, ..Choice::default() };
        let tokens = 900;
        routes.choices = (0..tokens).flat_map(|t| [choice(t % 3), choice(4 + t % 2)]).collect();
        routes.sort(experts);
        assert_eq!(routes.experts.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(), [0, 1, 2, 4, 5]);
        for (i, choice) in routes.choices.iter().enumerate() {
            let (_, rows) = routes.experts.iter().find(|(expert, _)| *expert == choice.expert).unwrap();
            assert!(rows.contains(&choice.row) && routes.tokens[choice.row] == i / 2);
        }
        let waves = routes.waves();
        assert_eq!(waves, [0..3, 3..5]);
    }
}
