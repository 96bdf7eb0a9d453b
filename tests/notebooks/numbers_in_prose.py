"""Find numbers in prose that no cell computes and nobody vouches for.

A number in a markdown cell is fine when it is

* inside code, a fence, math, an HTML comment, a link's address or a heading's numbering;
* part of a name (W4A8, fp16, x0, UNet2D, 2-D) or of a reference (Section 4.2, Eq. 12, §3,
  Figure 1, Table 2, arXiv:2302.04304, [12]);
* a year, or an integer up to 20 that no unit of measurement follows (bits are no such unit);
* the measured run time;
* printed by a cell that nbval compares, in the same spelling: when the result moves, the stored
  output moves, and this lint turns red until the sentence follows;
* listed in ``<!-- numbers: 1000, 32 -->`` in the same cell: settings and facts of arithmetic.

Whole cells of a paper's own figures carry the tag ``quoted``. Better than all of these: let a cell
print the sentence.
"""

from __future__ import annotations

import re

SMALL = 20
NUMBER = re.compile(
    r"(?<![\w./])(?<![A-Za-z]-)[-+−]?\d+(?:,\d{3})*(?:\.\d+)*(?:[eE][-+]?\d+)?"
    r"(?![\w/]|-[A-Za-z])"
)
UNIT = re.compile(r"\s?(dB|%|ms|s|seconds|minutes|[kMG]i?B|images/s|x|×|times|GPUs?)(?!\w)")
DECLARED = re.compile(r"<!--\s*numbers:(.*?)-->", flags=re.S)
YEAR = re.compile(r"(19|20)\d\d")
# Blanked before the search, in this order.
EXCUSED = [
    re.compile(pattern, flags)
    for pattern, flags in (
        (r"^(```|~~~).*?^\1", re.M | re.S),
        (r"`[^`]*`", 0),
        (r"\$\$.*?\$\$", re.S),
        (r"\$[^$\n]+\$", 0),
        (r"<!--.*?-->", re.S),
        (r"<[^>\n]+>", 0),
        (r"\]\([^)]*\)", 0),
        (r"https?://\S+", 0),
        (r"\[\d+\]", 0),
        (r"^#+\s+[\d.]+", re.M),
        (r"^\s*\d+\.\s", re.M),
        (r"arXiv[:\s]\s?\d{4}\.\d{4,5}(v\d+)?", re.I),
        (
            r"(§|\b(Sections?|Secs?\.?|Eqs?\.?|Equations?|Fig(ures?|s?\.)|Tables?|Algorithms?"
            r"|Appendix|Chapters?|Notebooks?|Scenes?|Steps?|Exercises?))\s?\(?[\d.]*\d\)?"
            r"((\s?(-|–|to|and|,)\s?)\(?[\d.]*\d\)?)*",
            re.I,
        ),
    )
]


def bare_numbers(markdown: str, printed: str, run_time: str) -> list[tuple[str, str]]:
    """The numbers of a markdown cell that nothing excuses, each with its line.

    ``printed`` is all text that cells print, ``run_time`` the measured run time in words.
    """
    vouched = set(_spellings(printed))
    for declared in DECLARED.findall(markdown):
        vouched |= set(_spellings(declared))
    text = markdown.replace(run_time, "") if run_time else markdown
    for pattern in EXCUSED:
        text = pattern.sub(lambda match: "\n" * match[0].count("\n") + " ", text)
    return [
        (match[0], line)
        for line in text.split("\n")
        for match in NUMBER.finditer(line)
        if match[0] not in vouched and not _harmless(match[0], line[match.end() :])
    ]


def _spellings(text: str) -> list[str]:
    return [match[0] for match in NUMBER.finditer(text)]


def _harmless(number: str, after: str) -> bool:
    """A year, or a small count."""
    if YEAR.fullmatch(number):
        return True
    return number.isdigit() and int(number) <= SMALL and not UNIT.match(after)
