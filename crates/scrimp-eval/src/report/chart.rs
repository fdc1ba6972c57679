//! The chart: a color per policy, a dashed line for the policy alone, a solid line with KVCrush, and error bars.

use super::kv::{Mean, Report};
use plotters::prelude::*;
use scrimp_llm::{Error, Result};

const SIZE: (u32, u32) = (860, 560);
/// Colors that most color-blind people can distinguish (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(140, 140, 140),
];
/// The smallest drawn divergence: a logarithmic scale has no zero.
const LEAST: f64 = 1e-6;

/// One line of the chart.
struct Line<'a> {
    policy: &'a str,
    crushed: bool,
    color: RGBColor,
    /// Size in per cent, divergence.
    points: Vec<(f64, Mean)>,
}

pub(super) fn svg(report: &Report) -> Result<String> {
    let lines = lines(report);
    let points = || lines.iter().flat_map(|l| &l.points);
    let range = |values: &dyn Fn(&(f64, Mean)) -> [f64; 2]| {
        let all = || points().flat_map(values).filter(|v| v.is_finite());
        (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max))
    };
    let (x0, x1) = range(&|&(x, _)| [x, x]);
    let (y0, y1) = range(&|(_, m)| [low(*m), high(*m)]);
    if x0 > x1 {
        return Err(Error::bad_input("there is nothing to draw: no setting was measured"));
    }
    let mut text = String::new();
    draw(report, &lines, (0.8 * x0)..(1.08 * x1), (y0 / 1.5)..(y1 * 1.5), &mut text)
        .map_err(|e| Error::bad_input(format!("the chart cannot be drawn: {e}")))?;
    Ok(text)
}

fn low(m: Mean) -> f64 {
    (m.mean - m.error).max(m.mean / 10.0).max(LEAST)
}

fn high(m: Mean) -> f64 {
    (m.mean + m.error).max(LEAST)
}

fn lines(report: &Report) -> Vec<Line<'_>> {
    let mut policies: Vec<&str> = Vec::new();
    for row in &report.rows {
        if !policies.contains(&row.policy.as_str()) {
            policies.push(&row.policy);
        }
    }
    let line = |(i, policy): (usize, &'_ &'_ str), crushed: bool| {
        let rows = report.rows.iter().filter(|r| r.policy == **policy);
        let cost = rows.map(|r| if crushed { &r.crushed } else { &r.alone });
        let mut points: Vec<(f64, Mean)> =
            cost.filter(|c| c.kl.mean.is_finite()).map(|c| (100.0 * c.kv_share, c.kl)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (i, points, crushed)
    };
    let mut lines = Vec::new();
    for (i, policy) in policies.iter().enumerate() {
        for crushed in [false, true] {
            let (i, points, crushed) = line((i, policy), crushed);
            lines.push(Line { policy, crushed, color: COLOURS[i % COLOURS.len()], points });
        }
    }
    lines
}

fn draw(
    report: &Report,
    lines: &[Line<'_>],
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
    text: &mut String,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let width = x.end - x.start;
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("KV cache of {}: quality against size", report.model), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(x, y.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("cache size, % of the whole")
        .y_desc("KL divergence, nats per token (log scale)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.4}").trim_end_matches('0').to_owned())
        .light_line_style(WHITE.mix(0.0))
        .draw()?;
    // Lines have small offsets, so that error bars do not overlap.
    let middle = lines.len() as f64 / 2.0;
    for (i, line) in lines.iter().enumerate() {
        let shift = (i as f64 - middle) * 0.003 * width;
        let style = line.color.stroke_width(2);
        let at = line.points.iter().map(|&(x, m)| (x + shift, m.mean.max(LEAST)));
        let drawn = if line.crushed {
            chart.draw_series(LineSeries::new(at, style))?
        } else {
            chart.draw_series(DashedLineSeries::new(at, 6, 5, style))?
        };
        let (color, crushed) = (line.color, line.crushed);
        drawn.label(format!("{}{}", line.policy, if crushed { " + KVCrush" } else { "" })).legend(
            move |(x, y)| {
                // A dash and a half, or a line.
                let end = if crushed { x + 24 } else { x + 9 };
                PathElement::new(vec![(x, y), (end, y)], color.stroke_width(2))
            },
        );
        chart.draw_series(line.points.iter().map(|&(x, m)| {
            ErrorBar::new_vertical(x + shift, low(m), m.mean.max(LEAST), high(m), line.color.filled(), 8)
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    drop(chart);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::kv::tests::report;

    #[test]
    fn lines_for_all_policies_with_error_bars() {
        let svg = report().svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for word in ["h2o + KVCrush", "snapkv", "tiny.gguf", "KL divergence"] {
            assert!(svg.contains(word), "{word}");
        }
        // One circle in each error bar: 2 policies x 2 budgets x with and without.
        assert_eq!(svg.matches("<circle").count(), 8);
    }

    #[test]
    fn nothing_is_an_error_and_zero_is_drawn() {
        let mut empty = report();
        empty.rows.clear();
        assert!(empty.svg().is_err());
        let mut exact = report();
        exact.rows.iter_mut().for_each(|r| r.crushed.kl.mean = 0.0);
        assert!(exact.svg().is_ok());
    }
}
