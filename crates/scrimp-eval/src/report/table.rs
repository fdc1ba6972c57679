//! The Markdown table.

use super::kv::{Mean, Report, Row};
use std::fmt::Write as _;

pub(super) fn markdown(report: &Report, image: &str) -> String {
    let mut out = format!("# KV cache of {}: quality against size\n\n", report.model);
    let _ = write!(
        out,
        "Divergence (KL, nats per token) of predictions from those with the whole bf16 cache: {} tokens are read, the cache is \
         compressed, and the next {} are scored. Mean ± standard error over {} excerpts (from {}). With KVCrush, \
         {:.0}% of the same total budget goes to representatives; the ratio is taken per excerpt, and below 1 is a gain.\n\n\
         ![KL against cache size]({image})\n\n",
        report.prompt_tokens,
        report.score_tokens,
        report.excerpts,
        report.texts.join(", "),
        100.0 * report.kvcrush,
    );
    out.push_str(
        "| policy | cache | KL alone | KL with KVCrush | ratio | same best token alone | with KVCrush |\n",
    );
    out.push_str("|---|---:|---:|---:|---:|---:|---:|\n");
    for row in &report.rows {
        let percent = |m: Mean| format!("{:.1}%", 100.0 * m.mean);
        let _ = writeln!(
            out,
            "| {} | {:.1}% | {} | {} | {} | {} | {} |",
            row.policy,
            100.0 * row.alone.kv_share,
            with_error(row.alone.kl, 4),
            with_error(row.crushed.kl, 4),
            with_error(row.ratio, 2),
            percent(row.alone.top1_agreement),
            percent(row.crushed.top1_agreement),
        );
    }
    if let Some(best) = best(&report.rows) {
        let _ = writeln!(out, "\n{best}");
    }
    for (task, metric, outcomes) in &report.tasks {
        let _ = write!(
            out,
            "\n## {task} ({metric})\n\n| setting | cache | score | samples |\n|---|---:|---:|---:|\n"
        );
        for o in outcomes {
            let score = with_error(Mean { mean: o.score, error: o.standard_error }, 2);
            let _ = writeln!(out, "| {} | {:.1}% | {score} | {} |", o.setting, 100.0 * o.kv_share, o.samples);
        }
    }
    out
}

fn with_error(m: Mean, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", m.mean, m.error)
}

/// The best setting at each budget, and the best without representatives.
fn best(rows: &[Row]) -> Option<String> {
    let mut budgets: Vec<f64> = rows.iter().map(|r| r.budget).collect();
    budgets.sort_by(|a, b| b.total_cmp(a));
    budgets.dedup();
    let line = |budget: &f64| {
        let at = || rows.iter().filter(|r| r.budget == *budget);
        let alone = at().min_by(|a, b| a.alone.kl.mean.total_cmp(&b.alone.kl.mean))?;
        let crushed = at().min_by(|a, b| a.crushed.kl.mean.total_cmp(&b.crushed.kl.mean))?;
        Some(format!(
            "Budget {:.1}%: the least KL is {} without representatives ({:.4}), {} with them ({:.4}).",
            100.0 * budget,
            alone.policy,
            alone.alone.kl.mean,
            crushed.policy,
            crushed.crushed.kl.mean
        ))
    };
    let lines: Vec<String> = budgets.iter().filter_map(line).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::super::kv::tests::report;

    #[test]
    fn a_row_per_policy_and_budget() {
        let text = report().markdown("kv.svg");
        assert!(text.contains("![KL against cache size](kv.svg)"));
        let row = "| h2o | 25.0% | 0.2500 ± 0.0500 | 0.1250 ± 0.0250 | 0.50 ± 0.00 | 90.0% | 90.0% |";
        assert!(text.contains(row), "{text}");
        assert!(
            text.contains("Budget 25.0%: the least KL is h2o without representatives (0.2500)"),
            "{text}"
        );
    }
}
