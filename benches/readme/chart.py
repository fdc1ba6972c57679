#!/usr/bin/env python3
"""Draws README's picture: speed and memory of scrimp against llama.cpp.

usage: benches/readme/chart.py            writes docs/src/results.svg
       benches/readme/chart.py --check    exits with 1 if docs/src/results.svg is out of date

Reads benches/readme/results.json, which repeats figures of benches/RESULTS.md. Needs only Python's
standard library. The same data gives the same bytes. The background is transparent and the colors
are midtones, so that the picture is legible in GitHub's light and dark themes.
"""

import json
import pathlib
import sys
from html import escape

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE / "results.json"
SVG = HERE.parents[1] / "docs" / "src" / "results.svg"

TEXT, LINE = "#737c87", "#8b949e"
PREFILL, DECODE, SCRIMP, PEER = "#3b86d1", "#d9792b", "#2f9e5f", "#8b949e"

WIDTH, TOP, ROW, BAR = 920, 92, 68, 15
SPEED_LEFT, SPEED_RIGHT, SPEED_MAX = 180, 474, 7
MEMORY_LEFT, MEMORY_RIGHT, MEMORY_MAX = 675, 855, 2000


def text(x, y, content, anchor="start", size=13, weight="normal", fill=TEXT):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'font-weight="{weight}" fill="{fill}">{escape(content)}</text>')


def line(x1, y1, x2, y2, color=LINE, width=1.0, more=""):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{color}" stroke-width="{width}"{more}/>')


def circle(x, y, color, hollow=False):
    paint = f'fill="none" stroke="{color}" stroke-width="2.5"' if hollow else f'fill="{color}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5.5 if hollow else 6.5}" {paint}/>'


def square(x, y, color):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="12" height="12" rx="2" fill="{color}"/>'


def rate(value):
    """Tokens per second with at most four digits."""
    return f"{value:,.0f}"


def speed_x(ratio):
    return SPEED_LEFT + (SPEED_RIGHT - SPEED_LEFT) * ratio / SPEED_MAX


def memory_x(mib):
    return MEMORY_LEFT + (MEMORY_RIGHT - MEMORY_LEFT) * mib / MEMORY_MAX


def bar(y, measure, color):
    """One bar with its spread over the rounds and its figures."""
    end = speed_x(measure["ratio"])
    low, high = (speed_x(x) for x in measure["spread"])
    middle = y + BAR / 2
    label = f'{rate(measure["scrimp"])} : {rate(measure["peer"])} tok/s'
    yield (f'<rect x="{SPEED_LEFT}" y="{y:.1f}" width="{end - SPEED_LEFT:.1f}" height="{BAR}" '
           f'rx="2" fill="{color}"/>')
    yield line(low, middle, high, middle, TEXT, 1.5)
    for x in (low, high):
        yield line(x, middle - 3, x, middle + 3, TEXT, 1.5)
    start = max(end, high) + 8
    yield text(start, y + 12, f'{measure["ratio"]:.1f}x', weight="bold")
    yield text(start + 38, y + 12, label)


def model(y, data):
    yield text(SPEED_LEFT - 10, y + 18, data["name"], "end", weight="bold")
    yield text(SPEED_LEFT - 10, y + 34, data["format"], "end")
    yield from bar(y, data["prefill"], PREFILL)
    yield from bar(y + BAR + 5, data["decode"], DECODE)
    ours, theirs = data["memory"]["scrimp"], data["memory"]["peer"]
    middle = y + BAR + 2.5
    yield line(memory_x(ours) + 7, middle, max(memory_x(theirs) - 6, memory_x(ours) + 7), middle,
               LINE, 2)
    yield circle(memory_x(theirs), middle, PEER, hollow=True)
    yield circle(memory_x(ours), middle, SCRIMP)
    yield text(memory_x((ours + theirs) / 2), middle + 24, f"{ours:,} : {theirs:,} MiB", "middle")


def axis(bottom, left, right, maximum, step, unit, x_of):
    yield line(left, bottom, right, bottom)
    value = 0
    while value <= maximum:
        yield line(x_of(value), bottom, x_of(value), bottom + 4)
        yield text(x_of(value), bottom + 18, f"{value:,}{unit}", "middle", 12)
        value += step


def draw(data):
    peer, models = data["peer"], data["models"]
    bottom = TOP + ROW * len(models) - 8
    height = bottom + 70
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
           f'height="{height}" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, '
           f'sans-serif" role="img">',
           f"<title>Speed and memory of scrimp against {escape(peer)}</title>"]
    # Headings and legends.
    out.append(text(SPEED_LEFT, 22, f"Speed relative to {peer}", size=15, weight="bold"))
    out.append(text(SPEED_LEFT, 40, f"longer is better; tokens per second, scrimp : {peer}"))
    out += [square(SPEED_LEFT, 54, PREFILL), text(SPEED_LEFT + 18, 65, "prefill, 512 tokens"),
            square(SPEED_LEFT + 158, 54, DECODE), text(SPEED_LEFT + 176, 65, "decode, 64 tokens")]
    out.append(text(MEMORY_LEFT, 22, "Peak memory", size=15, weight="bold"))
    out.append(text(MEMORY_LEFT, 40, "less is better; 8,192 tokens"))
    out += [circle(MEMORY_LEFT + 6, 60, SCRIMP), text(MEMORY_LEFT + 18, 65, "scrimp"),
            circle(MEMORY_LEFT + 84, 60, PEER, hollow=True), text(MEMORY_LEFT + 96, 65, peer)]
    # The peer's speed is 1.
    out.append(line(speed_x(1), TOP - 10, speed_x(1), bottom, LINE, 1.2, ' stroke-dasharray="4 3"'))
    for index, entry in enumerate(models):
        out += model(TOP + ROW * index, entry)
    out.append(line(speed_x(1), TOP - 10, speed_x(1), bottom, "#ffffff", 1.2,
                    ' stroke-dasharray="4 3" stroke-opacity="0.55"'))
    out += axis(bottom, SPEED_LEFT, SPEED_RIGHT, SPEED_MAX, 1, "x", speed_x)
    out += axis(bottom, MEMORY_LEFT, MEMORY_RIGHT, MEMORY_MAX, 500, "", memory_x)
    out.append(text(MEMORY_RIGHT + 24, bottom + 18, "MiB", "start", 12))
    out.append(text(SPEED_LEFT, bottom + 42, f'{data["machine"]}; {data["date"]}; {data["command"]}',
                    size=12))
    out.append(text(SPEED_LEFT, bottom + 60,
                    "Whiskers show the smallest and the largest ratio within a round.", size=12))
    return "\n".join([*out, "</svg>", ""])


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        raise SystemExit(__doc__)
    svg = draw(json.loads(DATA.read_text()))
    if check:
        if not SVG.exists() or SVG.read_text() != svg:
            raise SystemExit(f"{SVG}: out of date; run benches/readme/chart.py")
        return
    SVG.write_text(svg)
    print(SVG)


if __name__ == "__main__":
    main()
