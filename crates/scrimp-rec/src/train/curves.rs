//! Draws learning curves as SVG.

use super::CurvePoint;
use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 56.0;

/// An SVG of training and validation log loss and of validation AUC against training rows.
pub fn svg(curve: &[CurvePoint]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let rows = curve.iter().map(|p| p.rows).max().unwrap_or(1).max(1) as f64;
    let train: Vec<_> = curve.iter().map(|p| (p.rows as f64, p.train_logloss)).collect();
    let valid = |f: fn(&super::Evaluation) -> f64| -> Vec<(f64, f64)> {
        curve.iter().filter_map(|p| p.valid.as_ref().map(|v| (p.rows as f64, f(v)))).collect()
    };
    let (valid_loss, auc) = (valid(|v| v.logloss), valid(|v| v.auc));
    let losses = bounds(train.iter().chain(&valid_loss));
    let series = [
        ("training log loss", "#888888", &train, losses),
        ("validation log loss", "#cc4433", &valid_loss, losses),
        ("validation AUC (right)", "#2266cc", &auc, bounds(auc.iter())),
    ];
    for (i, (name, color, points, (low, high))) in series.into_iter().enumerate() {
        let at = |&(x, y): &(f64, f64)| {
            let x = MARGIN + x / rows * (WIDTH - 2.0 * MARGIN);
            let y = HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - 2.0 * MARGIN);
            format!("{x:.1},{y:.1}")
        };
        let line: Vec<_> = points.iter().map(at).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"20\" fill=\"{color}\">{name}</text>",
            MARGIN + 180.0 * i as f64
        );
        if i != 1 {
            let (x, anchor) = if i == 0 { (MARGIN - 6.0, "end") } else { (WIDTH - MARGIN + 6.0, "start") };
            for (value, y) in [(low, HEIGHT - MARGIN), (high, MARGIN)] {
                let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{value:.4}</text>");
            }
        }
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{rows} rows</text>\n</svg>",
        WIDTH - MARGIN,
        HEIGHT - MARGIN + 20.0
    );
    out
}

/// The range of values, never empty.
fn bounds<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> (f64, f64) {
    let (low, high) = points.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), p| (l.min(p.1), h.max(p.1)));
    if low < high {
        (low, high)
    } else if low.is_finite() {
        (low - 0.01, low + 0.01)
    } else {
        (0.0, 1.0)
    }
}
