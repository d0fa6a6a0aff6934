"use strict";
(() => {
  const cellValue = (row, column) => {
    const cell = row.cells[column];
    const raw = cell.dataset.value ?? cell.textContent.trim();
    return raw === "" || isNaN(raw) ? raw : Number(raw);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("thead th").forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" ? 1 : head.getAttribute("aria-sort") === "ascending" ? -1 : head.classList.contains("number") ? -1 : 1;
      table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((one, other) => {
        const a = cellValue(one, column), b = cellValue(other, column);
        if (a === "" || b === "") return (a === "") - (b === "");
        return up * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      });
      table.tBodies[0].append(...rows);
    }));
  }
  for (const input of document.querySelectorAll("input[data-filter]")) {
    const rows = [...document.querySelectorAll(`#${input.dataset.filter} tbody tr`)];
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(words);
      input.parentElement.querySelector("[role=status]").textContent = words ? `${rows.filter(row => !row.hidden).length} of ${rows.length}` : "";
    });
  }

  const source = document.getElementById("g-data");
  if (!source) return;
  const { directions, pictures, labels, ids } = JSON.parse(source.textContent);
  const $ = id => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const found = Object.assign(document.createElement(tag), properties);
    found.append(...children);
    return found;
  };
  const PAGE = 12, small = matchMedia("(max-width: 40rem)").matches ? 6 : PAGE;
  let at = 0;
  const picture = item => pictures[item] && make("img", {
    src: `data:image/webp;base64,${pictures[item]}`, alt: labels[0][item], title: ids[item], width: 112, height: 112,
  });
  const matches = () => {
    const one = directions[$("g-direction").value], outcome = $("g-outcome").value, words = $("g-words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = [];
    one.queries.forEach((item, i) => {
      const rank = one.rank[i];
      if (outcome === "first" ? rank > 1.5 : outcome === "five" ? rank <= 1.5 || rank > 5.5 : outcome === "missed" ? rank <= 5.5 : false) return;
      const said = `${labels[one.querySide][item]} ${one.querySide ? "" : ids[item]}`.toLowerCase();
      if (words.every(word => said.includes(word))) kept.push(i);
    });
    if ($("g-order").value === "worst") kept.sort((a, b) => one.rank[b] - one.rank[a]);
    return [one, kept];
  };
  const draw = () => {
    const [one, kept] = matches(), low = Math.min(...one.score.map(row => row[row.length - 1])), high = Math.max(...one.score.map(row => row[0]));
    at = Math.max(0, Math.min(at, Math.floor((kept.length - 1) / small) * small));
    $("g-count").textContent = kept.length ? `${at + 1} – ${Math.min(at + small, kept.length)} of ${kept.length} queries` : "no query like this";
    $("g-back").disabled = at === 0;
    $("g-next").disabled = at + small >= kept.length;
    $("g-list").replaceChildren(...kept.slice(at, at + small).map(i => {
      const item = one.queries[i], answers = one.querySide ? 0 : 1;
      const head = make("h3");
      const asked = one.querySide ? null : picture(item);
      if (asked) head.append(asked);
      head.append(make("span", { textContent: one.querySide ? labels[1][item] : ids[item] }));
      const hits = make("ol", { className: answers ? "hits texts" : "hits" });
      one.top[i].forEach((found, place) => {
        const right = one.correct[i][place], score = one.score[i][place];
        const bar = make("i");
        bar.style.width = `${Math.max(2, 100 * (score - low) / (high - low || 1)).toFixed(1)}%`;
        const line = make("li", { className: right ? "right" : "" });
        const said = make("span", { className: "score" }, ...(right ? [make("span", { className: "tag", textContent: "right " })] : []), score.toFixed(2), make("span", { className: "bar" }, bar));
        const shown = answers ? null : picture(found);
        line.append(shown || make("span", { textContent: labels[answers][found] }), said);
        hits.append(line);
      });
      const rank = one.rank[i];
      return make("li", {}, head, make("span", { className: "note", textContent: `right answer at rank ${Number.isInteger(rank) ? rank : rank.toFixed(1)}` }), hits);
    }));
  };
  for (const id of ["g-direction", "g-outcome", "g-order", "g-words"]) $(id).addEventListener("input", () => { at = 0; draw(); });
  $("g-back").addEventListener("click", () => { at -= small; draw(); });
  $("g-next").addEventListener("click", () => { at += small; draw(); });
  draw();
})();
