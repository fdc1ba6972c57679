#!/usr/bin/env python3
"""Checks Markdown files, comments in Rust files and help texts against STYLE.md.

usage: scripts/prose.py [FILE ...]       (default: all of the repository)

Reports, as FILE:LINE: MESSAGE:
- lines of more than 100 columns (tables, code and lines that hold only a link are exempt),
- relative links to files, folders or headings that do not exist,
- links from the guide to files outside it, which the built book does not have,
- README.md: table cells over 60 characters, or a first command after line 20,
- ARCHITECTURE.md: more than 250 lines,
- forbidden forms (FORBIDDEN), each with its reason, also in doc comments of Rust files and in the
  snapshots of help texts,
- pages of the guide that SUMMARY.md does not list.
The exit status is 1 if there is a report. Needs only Python's standard library.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs/src"
COLUMNS, README_CELL, README_COMMAND, ARCHITECTURE_LINES = 100, 60, 20, 250
# Folders whose Markdown files are data or belong to others.
EXEMPT = ("target/", "testdata/", "fuzz/corpus/")
NAME_IT = "a clause in the place of a name: name the thing"
# (pattern, reason). Code, links' targets and text in double quotes are removed before the search.
FORBIDDEN = [
    (r"\bwhat (?:is|are|was|were|has|have|had|it|they|you|each|comes?|remains?|follows?|costs?|"
     r"counts?|works?)\b(?![^.]*\?)", NAME_IT),
    (r"\b(?:of|from|with|in|to|for|by|on|than|and|as|like|about|is|are|says?|shows?) what\b", NAME_IT),
    (r"\b(?:who|what)ever\b", "name the actor or the thing"),
    (r"\b(?:some|any|every|no)body\b", "name the actor (user, client, thread, ...)"),
    (r"\bthat (?:is|are) none\b", "a definition by negation: say 'invalid' or the property"),
    (r"\blet(?:s|ting)? go\b", "say 'release' or 'drop'"),
    (r"\bhand(?:s|ed|ing)? (?:out|over|back)\b", "say 'distribute', 'assign', 'pass' or 'return'"),
    (r"\b(?:stands?|standing|stood) for\b", "say 'represents'"),
    (r"\bstands? (?:in|at|on|below|above|beside|here|there)\b", "say 'is' or 'is listed'"),
    (r"\b(?:give|gives|gave|given|giving) (?:it |them )?back\b", "say 'return' or 'release'"),
    (r"\bvouch", "say 'guarantee'"),
    (r"\b(?:caller's|the) word (?:of|for)\b", "name the condition and who established it"),
    (r"\basks? (?:ahead|for|of|whether)\b|\basked (?:ahead|for|of|whether)\b",
     "say 'prefetch', 'request', 'require' or 'query'"),
    (r"\blook(?:s|ed|ing)? (?:at|around|like)\b", "say 'read', 'examine', 'attend to' or 'resemble'"),
    (r"\blook-ups?\b", "the term is 'lookup'"),
    (r"\bin turn\b", "say 'alternately', 'interleaved' or 'one after another'"),
    (r"\bin the place of\b", "say 'instead of'"),
    (r"\b(?:go|goes|went|going|gone) on\b", "say 'continue', 'resume' or 'follow'"),
    (r"\b(?:make|makes|made|making) up for\b", "say 'compensate'"),
    (r"\btiers?\b", "the term is 'SIMD level' (the variable SCRIMP_TIER stays)"),
    (r"\b(?:as|see|described) above\b", "name or link the place"),
    (r"\bas (?:it is|they are)(?= *(?:[.,;:)]|and\b|or\b|$))", "say 'unchanged'"),
    (r"\b(?:de|re)?quantis|\b(?:behavi|col|neighb|fav)our|\b(?:recogn|normal|optim|organ|initial|"
     r"serial|vector|general|special|token|summar)is(?:e|es|ed|ing|ation)\b"
     r"|\b(?:cent|met)re\b|\blicence", "US spelling"),
    (r"HOUSE\.md|\.\./shared|/work/|example\.invalid", "a name from outside the project"),
]


def files():
    """Files that are or will be in the repository."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.md", "crates/*.rs", "*__help-*.snap"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in sorted(set(listed.split("\n"))) if name and (ROOT / name).exists()
            and not name.startswith(EXEMPT)]


def lines_of(text):
    """(number, line, kind) with kind 'code', 'table', 'link' or 'text'."""
    fence = False
    blank_before = True
    indented = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            fence = not fence
            yield number, line, "code"
            continue
        # Indented code begins after a blank line and is not the continuation of a list.
        indented = bool(line.strip()) and line.startswith("    ") and (blank_before or indented)
        blank_before = not line.strip()
        if fence or indented:
            yield number, line, "code"
        elif line.lstrip().startswith("|"):
            yield number, line, "table"
        elif re.fullmatch(r"\s*[-*]?\s*!?\[?!?\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?[.,]?", line):
            yield number, line, "link"
        else:
            yield number, line, "text"


def anchor(heading):
    """GitHub's anchor of a heading."""
    heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


def anchors(path):
    text = path.read_text(encoding="utf-8")
    return {anchor(line.lstrip("#")) for _, line, kind in lines_of(text)
            if kind == "text" and re.match(r"#{1,6} ", line)}


def links(path, number, line):
    """Reports of broken relative links in a line."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            yield number, f"broken link: {target}"
        elif fragment and file.suffix == ".md" and fragment not in anchors(file):
            yield number, f"broken link, no such heading: {target}"
        elif GUIDE in path.parents and GUIDE not in file.parents:
            yield number, f"the built book has no {target}: name the file in text"


def forbidden(numbered):
    """Reports of forbidden forms in a paragraph: (number, line) pairs. A form may span two lines."""
    text, starts = "", []
    for number, line in numbered:
        starts.append((len(text), number))
        text += line.strip() + " "
    # Code and quotes may span lines, too; keep the length, so that positions stay.
    blank = lambda match: re.sub(r".", " ", match.group(0))
    text = re.sub(r'`[^`]*`|"[^"]*"', blank, text)
    text = re.sub(r"\]\([^)]*\)", blank, text)
    for pattern, reason in FORBIDDEN:
        for match in re.finditer(pattern, text, re.IGNORECASE):
            number = max((s, n) for s, n in starts if s <= match.start())[1]
            yield number, f"'{match.group(0)}': {reason}"


def readme(text):
    for number, line, kind in lines_of(text):
        if kind == "table":
            for cell in line.strip().strip("|").split("|"):
                if len(cell.strip()) > README_CELL:
                    yield number, f"a table cell of {len(cell.strip())} characters (at most {README_CELL})"
    first = next((n for n, line, kind in lines_of(text) if kind == "code" and line.strip()), None)
    if first is None or first > README_COMMAND:
        yield first or 1, f"the first command is not within the first {README_COMMAND} lines"


def comments(text):
    """Reports of forbidden forms in the doc comments of a Rust file."""
    block = []
    for number, line in enumerate(text.split("\n"), 1):
        comment = re.match(r"\s*//[/!](.*)", line)
        if comment:
            block.append((number, comment.group(1)))
        else:
            yield from forbidden(block)
            block = []
    yield from forbidden(block)


def check(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".rs":
        yield from comments(text)
        return
    if path.suffix == ".snap":
        yield from forbidden(enumerate(text.split("\n"), 1))
        return
    name = path.relative_to(ROOT).as_posix()
    paragraph = []
    for number, line, kind in lines_of(text):
        if kind == "text" and len(line) > COLUMNS:
            yield number, f"{len(line)} columns (at most {COLUMNS})"
        if kind != "code":
            yield from links(path, number, line)
        new_block = not line.strip() or re.match(r"\s*(?:[-*]|\d+\.|#+) ", line) or kind != "text"
        if new_block:
            yield from forbidden(paragraph)
            paragraph = []
        # STYLE.md shows forbidden forms in its tables.
        if kind in ("text", "link") or kind == "table" and name != "STYLE.md":
            paragraph.append((number, line))
    yield from forbidden(paragraph)
    if name == "README.md":
        yield from readme(text)
    if name == "ARCHITECTURE.md" and text.count("\n") > ARCHITECTURE_LINES:
        yield text.count("\n"), f"more than {ARCHITECTURE_LINES} lines"


def summary():
    """Reports of guide pages that SUMMARY.md does not list."""
    source = ROOT / "docs" / "src"
    index = source / "SUMMARY.md"
    if not index.exists():
        return
    listed = set(re.findall(r"\]\(([^)]+)\)", index.read_text(encoding="utf-8")))
    for page in sorted(source.rglob("*.md")):
        name = page.relative_to(source).as_posix()
        if name != "SUMMARY.md" and name not in listed:
            yield f"docs/src/SUMMARY.md:1: does not list {name}"


def main():
    if any(argument.startswith("-") for argument in sys.argv[1:]):
        raise SystemExit(__doc__)
    named = [pathlib.Path(argument).resolve() for argument in sys.argv[1:]]
    reports = []
    for path in named or files():
        found = sorted(set(check(path)))
        reports += [f"{path.relative_to(ROOT).as_posix()}:{number}: {message}" for number, message in found]
    if not named:
        reports += summary()
    for report in reports:
        print(report)
    return 1 if reports else 0


if __name__ == "__main__":
    sys.exit(main())
