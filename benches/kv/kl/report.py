#!/usr/bin/env python3
"""KL of KV cache policies alone and with KVCrush: tables on stdout, the chart as docs/src/kv_policies.svg.

usage: benches/kv/kl/report.py        (pip install matplotlib, or only the tables are made)

Reads the journals of `kv_grid` beside this script; README.md here has the commands that make them.
"""

import json
import pathlib
import statistics as st

HERE = pathlib.Path(__file__).resolve().parent
CHART = HERE.parents[2] / "docs" / "src" / "kv_policies.svg"
MODELS = {"smollm2": "SmolLM2-135M", "gemma3-270m": "Gemma-3-270M", "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B",
          "qwen2.5-coder-1.5b": "Qwen2.5-Coder-1.5B"}
# Policies of the aim, and shares of the budget for representatives.
AIM, SHARES = ["h2o", "snapkv", "tova", "knorm"], ["0.5", "0.75"]
READ_TWICE, SMALL_SHARES = ["kvzip", "kvzip-query"], ["0.25", "0.5"]
OTHERS = ["expected", "adakv:snapkv", "pyramidkv", "streaming", "random"]


def read(model):
    """`{setting: {excerpt: KL}}`"""
    table = {}
    for line in (HERE / f"{model}.jsonl").read_text().splitlines():
        result = json.loads(line)
        table.setdefault(result["setting"], {})[result["text"]] = result["kl"]
    return table


def ratios(table, policy, share, budget):
    """KL with representatives over that without, excerpt by excerpt."""
    alone, crushed = table.get(f"{policy}@{budget}", {}), table.get(f"{policy}+{share}@{budget}", {})
    return [crushed[text] / alone[text] for text in crushed if text in alone]


def number(x):
    return f"{x:.3f}" if x >= 0.02 else f"{x:.4f}"


def cell(table, policy, shares, budget):
    alone = table.get(f"{policy}@{budget}")
    if not alone:
        return ""
    parts = [number(st.mean(alone.values()))]
    for share in shares:
        if of := ratios(table, policy, share, budget):
            error = st.stdev(of) / len(of) ** 0.5
            mean = number(st.mean(table[f"{policy}+{share}@{budget}"].values()))
            parts.append(f"{mean}, {st.mean(of):.2f} ± {error:.2f}")
    return "; ".join(parts)


def mean_ratio(table, share, budget, policies=AIM):
    of = [st.mean(r) for p in policies if (r := ratios(table, p, share, budget))]
    return st.mean(of) if of else None


def tables(results):
    names = [MODELS[m] for m in results]
    row = lambda first, cells: print("| " + " | ".join([first, *cells]) + " |")
    row("policy, cache", names)
    print("|---" * (len(names) + 1) + "|")
    for budget, label in [("0.25", "25%"), ("0.125", "12.5%")]:
        for policy in AIM:
            row(f"`{policy}` {label}", [cell(t, policy, SHARES, budget) for t in results.values()])
        means = [[mean_ratio(t, s, budget) for s in SHARES] for t in results.values()]
        row(f"mean ratio, {label}", ["; ".join("" if m is None else f"{m:.2f}" for m in ms) for ms in means])
        for policy in READ_TWICE:
            row(f"`{policy}` {label} (shares 0.25 and 0.5)", [cell(t, policy, SMALL_SHARES, budget) for t in results.values()])
    print()
    row("policy, 25%", names)
    print("|---" * (len(names) + 1) + "|")
    for policy in OTHERS:
        row(f"`{policy}`", [cell(t, policy, ["0.5"], "0.25") for t in results.values()])
    print()
    for budget in ["0.25", "0.125"]:
        for share in SHARES:
            of = {p: st.mean(r) for p in AIM if (r := [x for t in results.values() if (x := mean_ratio(t, share, budget, [p]))])}
            print(f"budget {budget}, share {share}: mean ratio {st.mean(of.values()):.3f};",
                  ", ".join(f"{p} {r:.2f}" for p, r in of.items()))


def chart(results):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "scrimp", "svg.fonttype": "none"})
    from matplotlib import pyplot
    policies = [(p, "0.75") for p in ["knorm", "tova", "snapkv", "h2o"]] + [(p, "0.5") for p in READ_TWICE]
    figure, axes = pyplot.subplots(1, len(results), figsize=(3.1 * len(results), 2.9), sharey=True, layout="constrained")
    for axis, (model, table) in zip(axes, results.items()):
        for y, (policy, share) in enumerate(policies):
            pair = [table.get(f"{policy}{s}@0.25", {}).values() for s in ("", f"+{share}")]
            alone, crushed = (st.mean(values) for values in pair)
            axis.plot([alone, crushed], [y, y], color="#bbbbbb", zorder=1)
            axis.scatter([alone], [y], color="#999999", zorder=2, label="policy alone" if y == 0 else None)
            axis.scatter([crushed], [y], color="#0b6fb8", zorder=3, label="with KVCrush, same budget" if y == 0 else None)
        axis.set_xscale("log")
        axis.set_xticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
        axis.minorticks_off()
        axis.set_xlim(0.008, 0.3)
        axis.set_title(MODELS[model], fontsize=10)
        axis.grid(axis="x", color="#eeeeee")
        axis.set_yticks(range(len(policies)), [p for p, _ in policies])
    figure.supxlabel("KL to the whole cache, a quarter of the tokens kept (left is better)", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(CHART, metadata={"Date": None})


def main():
    results = {model: read(model) for model in MODELS if (HERE / f"{model}.jsonl").exists()}
    tables(results)
    try:
        chart(results)
    except ImportError:
        print("\nNo chart: pip install matplotlib")


if __name__ == "__main__":
    main()
