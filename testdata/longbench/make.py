"""Golden values of LongBench's metrics and configuration: metrics.jsonl and config.json.

usage: python3 testdata/longbench/make.py LONGBENCH_DIR
LONGBENCH_DIR is the folder LongBench of github.com/THUDM/LongBench (commit 2e00731), whose metrics.py and eval.py are
imported and called. needs: pip install rouge==1.0.1 jieba==0.42.1 fuzzywuzzy==0.18.0 numpy   (not python-Levenshtein:
fuzzywuzzy would use it instead of difflib)

A line of metrics.jsonl: [metric, prediction, truth, classes or null, score]. Texts are made up here.
"""
import json, pathlib, random, sys

source, out = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(source))
import eval as longbench  # noqa: E402  (LongBench's eval.py)
import metrics  # noqa: E402

random.seed(0)
EN = """The council met on Tuesday to discuss the new bridge. A majority of its members was in favor of a toll.
The river's ferry, which has run since 1921, would close. Critics say that an increase of 3.5% in taxes isn't fair!
"We were never asked," said Ms. O'Neil (owner of the ferry). Engineers expect the work to take 2 to 3 years.
In Paragraph 12 of the report, the costs are put at $4,200,000. Paragraph 7 disagrees. Other towns have built cheaper bridges.
A boat was found yesterday near the old mill. Nobody knows whose boat it was. The mill is to be a museum of the town.""".split("\n")
ZH = """会议于2016年11月在厦门大学举行，来自全国127个单位的代表参加了会议。会长作了工作报告，并提出了今后的计划。
小明硕士毕业于中国科学院计算所，后在日本京都大学深造。他说："我们中出了一个叛徒！"
乒乓球拍卖完了，请明天再来。结婚的和尚未结婚的人都可以报名参加本次活动。
这家公司成立于1998年，总部位于杭州，主要从事AI芯片和大语言模型（LLM）的研发，年收入约为35.6亿元。
段落7介绍了黄河三角洲的湿地保护情况；段落15则讨论了气候变化对候鸟迁徙的影响。长江大桥上车水马龙。
原告与被告系夫妻关系，双方因感情不和于2019年3月起分居。法院认为，原告的诉讼请求证据不足，不予支持。""".split("\n")
CODE = ["for (int i = 0; i < n; i++) {", "    return self.cache.get(key, None)", "import numpy as np", "x = y + 1  # add",
        "// comment", "```python", "private static final Logger LOG = LoggerFactory.getLogger(Server.class);", "", "}", "if (x) {return a;}"]
CLASSES = ["Food", "Date", "Order, rank", "Lasting time of somethin", "City", "Country", "Other location", "Other number",
           "Location", "Number", "Other", "Time", "Individual", "Group or organization of person", "Person"]
ODD = ["", " ", ".", "...", "\n", "a", "the", "An the a", "。", "！？", "\t\u3000 x", "é É ß İ", "a_b the_c", "x\x1cy\x1dz", "１２ 34 ²", "no.", "No", "1", "Paragraph", "#", "`x`"]


def words(text):
    return text.split(" ") if " " in text else list(text)


def noisy(text):
    """The text with pieces dropped, doubled, swapped, and sometimes cut."""
    parts = words(text)
    for _ in range(random.randrange(0, 8)):
        i = random.randrange(len(parts)) if parts else 0
        what = random.randrange(4)
        if what == 0 and parts:
            del parts[i]
        elif what == 1 and parts:
            parts.insert(i, parts[i])
        elif what == 2 and len(parts) > 1:
            j = random.randrange(len(parts))
            parts[i], parts[j] = parts[j], parts[i]
        elif parts:
            parts[i] = random.choice([parts[i].upper(), parts[i].capitalize(), parts[i] + "\n", parts[i] + "."])
    return (" " if " " in text else "").join(parts[: random.choice([None, None, 5, 12])])


def several(lines):
    return random.choice([" ", "\n", ""]).join(random.choice(lines) for _ in range(random.randrange(1, 4)))


def pairs(lines, n):
    for _ in range(n):
        truth = several(lines)
        yield random.choice([noisy(truth), noisy(truth), noisy(several(lines)), truth, random.choice(ODD)]), random.choice([truth] * 8 + ODD[:6])


rows = []


def add(metric, function, prediction, truth, classes=None):
    rows.append([metric, prediction, truth, classes, float(function(prediction, truth, all_classes=classes))])


odd = [(a, b) for a in ODD for b in random.sample(ODD, 3)]
for metric, function, lines in (("f1", metrics.qa_f1_score, EN), ("f1_zh", metrics.qa_f1_zh_score, ZH), ("rouge_l", metrics.rouge_score, EN),
                                ("rouge_l_zh", metrics.rouge_zh_score, ZH), ("edit_similarity", metrics.code_sim_score, CODE)):
    for prediction, truth in [*odd, *pairs(lines, 120)]:
        add(metric, function, prediction, truth)
for metric, function in (("f1_zh", metrics.qa_f1_zh_score), ("rouge_l_zh", metrics.rouge_zh_score)):
    for prediction, truth in pairs(ZH + EN, 60):
        add(metric, function, prediction, truth)
for _ in range(60):  # long enough for difflib to leave frequent characters out
    truth = " ".join(random.choice(CODE) for _ in range(random.randrange(4, 20)))
    add("edit_similarity", metrics.code_sim_score, noisy(truth).replace("\n", " ").replace("#", "").replace("//", "").replace("`", ""), truth)
for _ in range(120):
    classes = random.sample(CLASSES, random.randrange(2, len(CLASSES)))
    prediction = random.choice([", ", " and ", ""]).join(random.sample(CLASSES, random.randrange(0, 5)))
    add("accuracy", metrics.classification_score, prediction, random.choice(classes), classes)
for _ in range(60):
    n = [str(random.randrange(1, 9)) for _ in range(4)]
    add("retrieval", metrics.retrieval_score, random.choice([f"Paragraph {n[0]}", f"{n[0]} or Paragraph {n[1]}", "none", f"{n[0]}{n[1]}", f"１{n[0]}, {n[2]}"]), f"Paragraph {n[3]}")
    add("retrieval_zh", metrics.retrieval_zh_score, random.choice([f"段落{n[0]}", f"是段落{n[0]}，不是段落{n[1]}", "没有", n[0] * 2]), f"段落{n[3]}")
    add("count", metrics.count_score, random.choice([n[0], f"{n[0]}, {n[1]} and {n[2]}", "many", f"{n[0]}."]), n[3])

with open(out / "metrics.jsonl", "w", encoding="utf-8") as f:
    for row in rows:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")
names = {metrics.qa_f1_score: "f1", metrics.qa_f1_zh_score: "f1_zh", metrics.rouge_score: "rouge_l", metrics.rouge_zh_score: "rouge_l_zh",
         metrics.classification_score: "accuracy", metrics.retrieval_score: "retrieval", metrics.retrieval_zh_score: "retrieval_zh",
         metrics.count_score: "count", metrics.code_sim_score: "edit_similarity"}
prompts, lengths = (json.loads((source / "config" / name).read_text(encoding="utf-8")) for name in ("dataset2prompt.json", "dataset2maxlen.json"))
config = {task: {"prompt": prompts[task], "answer_tokens": lengths[task], "metric": names[longbench.dataset2metric[task]]} for task in prompts}
(out / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
print(len(rows), "pairs")
