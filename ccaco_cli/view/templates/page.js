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
      table.querySelectorAll("thead th").forEach(heading => heading.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((rowA, rowB) => {
        const a = cellValue(rowA, column), b = cellValue(rowB, column);
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
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const pageSize = matchMedia("(max-width: 40rem)").matches ? 6 : 12;
  let at = 0;
  const picture = item => pictures[item] && make("img", {
    src: `data:image/webp;base64,${pictures[item]}`, alt: labels[0][item], title: ids[item], width: 112, height: 112,
  });
  const matches = () => {
    const direction = directions[$("g-direction").value], outcome = $("g-outcome").value, words = $("g-words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [];
    direction.queries.forEach((item, i) => {
      const rank = direction.rank[i];
      if (outcome === "first" ? rank > 1.5 : outcome === "five" ? rank <= 1.5 || rank > 5.5 : outcome === "missed" ? rank <= 5.5 : false) return;
      const text = `${labels[direction.querySide][item]} ${direction.querySide ? "" : ids[item]}`.toLowerCase();
      if (words.every(word => text.includes(word))) chosen.push(i);
    });
    if ($("g-order").value === "worst") chosen.sort((a, b) => direction.rank[b] - direction.rank[a]);
    return [direction, chosen];
  };
  const draw = () => {
    const [direction, chosen] = matches(), low = Math.min(...direction.score.map(row => row[row.length - 1])), high = Math.max(...direction.score.map(row => row[0]));
    at = Math.max(0, Math.min(at, Math.floor((chosen.length - 1) / pageSize) * pageSize));
    $("g-count").textContent = chosen.length ? `${at + 1} – ${Math.min(at + pageSize, chosen.length)} of ${chosen.length} queries` : "no query matches";
    $("g-back").disabled = at === 0;
    $("g-next").disabled = at + pageSize >= chosen.length;
    $("g-list").replaceChildren(...chosen.slice(at, at + pageSize).map(i => {
      const item = direction.queries[i], resultSide = direction.querySide ? 0 : 1;
      const head = make("h3");
      const queryPicture = direction.querySide ? null : picture(item);
      if (queryPicture) head.append(queryPicture);
      head.append(make("span", written(direction.querySide ? labels[1][item] : ids[item])));
      const hits = make("ol", { className: resultSide ? "hits texts" : "hits" });
      direction.top[i].forEach((result, place) => {
        const correct = direction.correct[i][place], score = direction.score[i][place];
        const bar = make("i");
        bar.style.width = `${Math.max(2, 100 * (score - low) / (high - low || 1)).toFixed(1)}%`;
        const line = make("li", { className: correct ? "right" : "" });
        const scoreLine = make("span", { className: "score" }, ...(correct ? [make("span", { className: "tag", textContent: "correct " })] : []), score.toFixed(2), make("span", { className: "bar" }, bar));
        const thumbnail = resultSide ? null : picture(result);
        line.append(thumbnail || make("span", written(labels[resultSide][result])), scoreLine);
        hits.append(line);
      });
      const rank = direction.rank[i];
      return make("li", {}, head, make("span", { className: "note", textContent: `correct result at rank ${Number.isInteger(rank) ? rank : rank.toFixed(1)}` }), hits);
    }));
  };
  for (const id of ["g-direction", "g-outcome", "g-order", "g-words"]) $(id).addEventListener("input", () => { at = 0; draw(); });
  $("g-back").addEventListener("click", () => { at -= pageSize; draw(); });
  $("g-next").addEventListener("click", () => { at += pageSize; draw(); });
  draw();
})();
