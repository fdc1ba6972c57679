"""Makes jieba_dict.zip, which lies beside this file: the dictionary of the Python package jieba (MIT license), words and
frequencies only. The crate jieba-rs can bring one itself, but at the price of twenty more crates and a C library.

usage: make_jieba_dict.py OUT.zip        needs: pip install jieba==0.42.1
"""
import pathlib, sys, zipfile
import jieba

lines = (pathlib.Path(jieba.__file__).parent / "dict.txt").read_text(encoding="utf-8").splitlines()
words = sorted(line.split(" ")[:2] for line in lines)
text = "".join(f"{word} {frequency}\n" for word, frequency in words)
entry = zipfile.ZipInfo("dict.txt", (1980, 1, 1, 0, 0, 0))
with zipfile.ZipFile(sys.argv[1], "w") as out:
    out.writestr(entry, text, zipfile.ZIP_DEFLATED, 9)
