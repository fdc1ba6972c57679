#!/usr/bin/env python3
"""Tables and drawings of the measurements of run.py: results.jsonl to results.md and one SVG per model, text and axis.

usage: benches/pruning/report.py OUT      (OUT: the directory that run.py wrote to)
"""

import html
import json
import math
import pathlib
import sys

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 460, 70, 50, 30, 190
COLORS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f", "#76b7b2", "#edc948", "#888888", "#333333"]


def series(row):
    """The name of the line that a row belongs to."""
    if row["engine"] != "scrimp":
        return "llama.cpp"
    if row["method"] in ("mixed", "original"):
        return row["method"]
    method = "sparsegpt" if row["method"] == "none" else row["method"]
    return f"{method} {row['format']}"


def with_speeds(rows):
    """Rows of quality, each with the speed of its format and share of zeros."""
    def key(row):
        return row["model"], row["engine"], row["format"], row["sparsity"]

    speeds = {key(r): r["decode_tok_s"] for r in rows if r["method"] == "speed"}
    rows = [r for r in rows if r["method"] != "speed"]
    for row in rows:
        if key(row) in speeds:
            row.setdefault("decode_tok_s", speeds[key(row)])
    return rows


def texts(rows):
    return sorted({key.removeprefix("kl.") for row in rows for key in row if key.startswith("kl.")})


def table(rows):
    names = texts(rows)
    head = ["engine", "method", "format", "zeros", "MB", "bits"] + [f"{what} {name}" for name in names
                                                                  for what in ("KL", "top-1", "ppl")] + ["tok/s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=lambda r: -r["bytes"]):
        cells = [row["engine"], row["method"], row["format"], f"{100 * row.get('zeros', 0):.0f}%",
                 f"{row['bytes'] / 1e6:.1f}", f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else ""]
        for name in names:
            has = f"kl.{name}" in row
            cells += [f"{row[f'kl.{name}']:.4f}", f"{100 * row[f'top1.{name}']:.1f}%", f"{row[f'ppl.{name}']:.2f}"] if has else [""] * 3
        cells.append(f"{row['decode_tok_s']:.1f}" if "decode_tok_s" in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drawing(rows, text, axis, title):
    """KL (logarithmic) against bytes or speed."""
    shown = [r for r in rows if r.get(f"kl.{text}", 0) > 0 and axis in r]
    if not shown:
        return None
    unit, scale = ("MB", 1e6) if axis == "bytes" else ("tokens per second", 1)
    xs = [r[axis] / scale for r in shown]
    ys = [math.log10(r[f"kl.{text}"]) for r in shown]
    x0, x1 = min(xs) * 0.95, max(xs) * 1.03
    y0, y1 = math.floor(min(ys) * 2) / 2, math.ceil(max(ys) * 2) / 2
    def at(x, y):
        return (LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (y - y0) / max(y1 - y0, 1e-9) * (HEIGHT - BOTTOM - TOP))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="18" font-size="14">{html.escape(title)}</text>']
    for i in range(6):
        x = x0 + (x1 - x0) * i / 5
        px, py = at(x, y0)
        out.append(f'<line x1="{px:.1f}" y1="{py:.1f}" x2="{px:.1f}" y2="{TOP}" stroke="#eee"/>'
                   f'<text x="{px:.1f}" y="{py + 18:.1f}" text-anchor="middle">{x:.0f}</text>')
    y = y0
    while y <= y1 + 1e-9:
        px, py = at(x0, y)
        out.append(f'<line x1="{px:.1f}" y1="{py:.1f}" x2="{WIDTH - RIGHT}" y2="{py:.1f}" stroke="#eee"/>'
                   f'<text x="{px - 6:.1f}" y="{py + 4:.1f}" text-anchor="end">{10 ** y:.3g}</text>')
        y += 0.5
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{unit}</text>'
               f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2})">'
               f'KL divergence on {html.escape(text)}, nats per token</text>')
    names = sorted({series(r) for r in shown})
    for i, name in enumerate(names):
        color = COLORS[i % len(COLORS)]
        line = sorted((at(r[axis] / scale, math.log10(r[f"kl.{text}"])) for r in shown if series(r) == name))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
        dash = ' stroke-dasharray="5 3"' if name == "llama.cpp" else ""
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"{dash}/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in line]
        ly = TOP + 10 + 18 * i
        out.append(f'<rect x="{WIDTH - RIGHT + 15}" y="{ly - 9}" width="12" height="10" fill="{color}"/>'
                   f'<text x="{WIDTH - RIGHT + 33}" y="{ly}">{html.escape(name)}</text>')
    return "\n".join(out) + "\n</svg>\n"


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    out = pathlib.Path(sys.argv[1])
    rows = with_speeds([json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()])
    parts = []
    for model in sorted({r["model"] for r in rows}):
        mine = [r for r in rows if r["model"] == model]
        parts.append(f"## {model}\n\n{table(mine)}\n")
        for text in texts(mine):
            for axis in ("bytes", "decode_tok_s"):
                svg = drawing(mine, text, axis, f"{model}: {'size' if axis == 'bytes' else 'speed'} against KL divergence")
                if svg:
                    name = f"{model}.{text}.{'size' if axis == 'bytes' else 'speed'}.svg"
                    (out / name).write_text(svg)
                    parts.append(f"![{name}]({name})\n")
    (out / "results.md").write_text("\n".join(parts))
    print(out / "results.md")


if __name__ == "__main__":
    main()
