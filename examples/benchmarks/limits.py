"""Collects from RESULTS.md how far each topic is from the limit of the machine, the farthest first."""

from __future__ import annotations

import re

import record

LINE = re.compile(r"^- limit: (?P<what>.*): (?P<factor>[\d.]+) times the machine's own floor$")
topic, limits = "", []
for line in record.RESULTS.read_text("utf-8").splitlines() if record.RESULTS.exists() else []:
    topic = line[3:] if line.startswith("## ") else topic
    if hit := LINE.match(line):
        limits.append((float(hit["factor"]), f"- {float(hit['factor']):.1f}x: {topic}, {hit['what']}"))
lines = [text for _, text in sorted(limits, reverse=True)]
head = (
    "Our time divided by the time of the arithmetic alone (at the rate of one large matrix product) or of the reading "
    "alone (at the rate of one large sum)."
)
if lines:
    record.write("Farthest from the limit", "\n".join([head, "", *lines]) + "\n")
print("\n".join(lines))
