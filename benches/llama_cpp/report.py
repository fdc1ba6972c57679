"""The table of RESULTS.md from the JSON lines of compare.py.   usage: report.py FILE.jsonl"""

import json
import statistics
import sys

# Per model: file, bytes of weights that a decoded token streams, weights that a prefilled token is multiplied with,
# and the wanted multiple of the peer for each measure.
MODELS = {
    "smollm2": dict(file="SmolLM2-135M-Instruct.Q4_1.gguf", label="SmolLM2-135M Q4_1", streamed=96.6e6, weights=106.2e6,
                    prefill=4.5, decode=1.7, deep=1.7),
    "gemma3-270m": dict(file="gemma-3-270m-Q4_K_M.gguf", label="Gemma-3-270M Q4_K_M", streamed=247e6, weights=100.3e6,
                        prefill=2.7, decode=2.0, deep=None),
    "qwen2.5-coder-0.5b": dict(file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", label="Qwen2.5-Coder-0.5B Q4_K_M",
                               streamed=392e6, weights=357.9e6, prefill=2.6, decode=1.9, deep=None),
    "qwen2.5-coder-1.5b": dict(file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", label="Qwen2.5-Coder-1.5B Q4_K_M",
                               streamed=980e6, weights=1310.3e6, prefill=2.2, decode=1.15, deep=None),
}
OPENVINO = dict(prefill=1.0, decode=1.5)
BANDWIDTH_SHARE = 0.9
"""No decode target asks for more than this share of the read bandwidth of the same run."""

HEAD = "| model | measure | scrimp | peer | ratio (spread) | target | reached | of the ceiling |\n|---|---|---|---|---|---|---|---|\n"


def values(rows, model, measure, side, field):
    """round -> figure."""
    return {r["round"]: r[field] for r in rows
            if (r["model"], r["measure"], r["side"]) == (model, measure, side) and r.get(field) is not None}


def compared(rows, model, measure, peer, field):
    """Medians of both sides and the ratios of single rounds, or None where a side is missing."""
    ours, theirs = values(rows, model, measure, "scrimp", field), values(rows, model, measure, peer, field)
    both = sorted(set(ours) & set(theirs))
    if not both:
        return None
    ratios = [ours[r] / theirs[r] for r in both]
    return statistics.median(ours.values()), statistics.median(theirs.values()), min(ratios), max(ratios)


def line(label, what, unit, digits, pair, target, reached, ceiling=""):
    ours, theirs, low, high = pair
    return (f"| {label} | {what} | {ours:.{digits}f} {unit} | {theirs:.{digits}f} {unit} "
            f"| {ours / theirs:.2f} ({low:.2f}-{high:.2f}) | {target} | {reached} | {ceiling} |\n")


def faster(label, what, pair, factor, limit=None, ceiling=""):
    """A speed line. `limit`: tokens/s beyond which the target does not go, with its reason."""
    ours, theirs = pair[:2]
    target, wanted = f">= {factor:g} x", factor * theirs
    if limit and limit < wanted:
        target, wanted = f">= {limit:.1f} tok/s (0.9 x bandwidth)", limit
    return line(label, what, "tok/s", 1, pair, target, "yes" if ours >= wanted else "no", ceiling)


def model_lines(rows, name, bandwidth, tops):
    model, out = MODELS[name], ""
    speed_limit = BANDWIDTH_SHARE * bandwidth * 1e9 / model["streamed"] if bandwidth else None
    for measure, peer, suffix in [("speed", "llama.cpp", ""), ("speed", "ik", " (ik_llama.cpp)")]:
        for field in ["prefill", "decode"]:
            pair = compared(rows, name, measure, peer, field)
            if not pair:
                continue
            if field == "prefill":
                share = f"{100 * pair[0] * 2 * model['weights'] / (tops * 1e12):.0f}% of {tops:g} TOP/s"
                what, limit = "prefill 512", None
            else:
                share = f"{100 * pair[0] * model['streamed'] / (bandwidth * 1e9):.0f}% of {bandwidth:.1f} GB/s" if bandwidth else ""
                what, limit = "decode 64 at depth 8", speed_limit
            factor = model[field] if peer == "llama.cpp" else 1.0
            out += faster(model["label"], what + suffix, pair, factor, limit, share)
    pair = compared(rows, name, "deep", "llama.cpp", "decode")
    if pair:
        out += faster(model["label"], "decode 64 at depth 4096", pair, model["deep"] or 1.0)
    for field in ["prefill", "decode"]:
        pair = compared(rows, name, "openvino", "openvino", field)
        if pair:
            out += faster(model["label"], f"{field}, 3145 tokens (OpenVINO GenAI)", pair, OPENVINO[field])
    pair = compared(rows, name, "memory", "llama.cpp", "mib")
    if pair:
        out += line(model["label"], "peak RSS at 8192 tokens", "MiB", 0, pair, "lower", "yes" if pair[0] < pair[1] else "no")
    pair = compared(rows, name, "first", "llama.cpp", "seconds")
    if pair:
        out += line(model["label"], "start to first token", "s", 3, pair, "lower", "yes" if pair[0] < pair[1] else "no")
    return out


def table(rows):
    """Markdown: what was measured on, and one line per model and measure."""
    machine = next(r for r in rows if r["measure"] == "machine")
    reads = list(values(rows, "machine", "bandwidth", "scrimp", "gb_per_s").values())
    bandwidth = statistics.median(reads) if reads else None
    rounds = 1 + max(r["round"] for r in rows)
    versions = sorted({f"{r['side']} {r['version']}" for r in rows if r.get("version")})
    text = (f"{machine['cpu']} ({machine['isa']}, {machine['cores']} cores, {machine['memory_gib']} GiB), "
            f"{machine['threads']} threads, {machine['date']}, commit {machine['commit']}; {rounds} interleaved rounds; "
            f"peers: {', '.join(versions) or 'none'}; read bandwidth "
            + (f"{bandwidth:.1f} GB/s ({min(reads):.1f}-{max(reads):.1f}).\n\n" if bandwidth else "not measured.\n\n"))
    return text + HEAD + "".join(model_lines(rows, name, bandwidth, machine["int8_tops"]) for name in MODELS)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print(table([json.loads(row) for row in file]))
