"""Collects from RESULTS.md how far each topic is from what the machine could do at best, the farthest first."""

from __future__ import annotations

import re

import record

LINE = re.compile(r"^- limit: (?P<what>.*): (?P<factor>[\d.]+) times the machine's own floor$")
topic, found = "", []
for line in record.RESULTS.read_text("utf-8").splitlines() if record.RESULTS.exists() else []:
    topic = line[3:] if line.startswith("## ") else topic
    if hit := LINE.match(line):
        found.append((float(hit["factor"]), f"- {float(hit['factor']):.1f}x: {topic}, {hit['what']}"))
lines = [text for _, text in sorted(found, reverse=True)]
head = "Our time over that of the arithmetic (at the rate of one large matrix product) or of the reading (of one large sum) alone."
if lines:
    record.write("Farthest from the limit", "\n".join([head, "", *lines]) + "\n")
print("\n".join(lines))
