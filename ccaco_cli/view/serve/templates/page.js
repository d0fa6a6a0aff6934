"use strict";
(() => {
  const $ = id => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const STEP = 24, DEDUP = 0.97, PAUSE = 350;
  const HIDDEN_FILTERS = ["sha256"];
  const PLURAL = { image: "images", text: "texts", audio: "sounds", video: "videos", array: "arrays", array2: "arrays of the second side" };
  const NAME = { image: "picture", text: "text", audio: "sound", video: "video" };
  const EXAMPLE = { audio: "rain on a window", video: "a dog catches a ball" };
  const PLAYERS = ["audio", "video"];  // modalities that an element of this name plays
  let facts = null, columns = [], query = null, count = STEP, version = "", running = null, explaining = null;
  const files = new Map();  // of this page, by number: an address cannot hold a file

  // ---- requests
  class Refused extends Error {
    constructor(problem) { super(problem.what); this.problem = problem; }
  }
  const request = async (path, options = {}) => {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused({ what: "the server does not answer", next: "check that ccaco retrieve --serve still runs" });
    }
    const body = await response.json().catch(() => ({ what: `the server answered with status ${response.status}` }));
    if (!response.ok) throw new Refused(body);
    return body;
  };
  const address = (path, values) => {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries(values)) if (value !== "" && value !== null && value !== undefined) parameters.set(name, value);
    return `${path}?${parameters}`;
  };
  const showError = problem => {
    const parts = [];
    if (problem) {
      parts.push(make("p", {}, make("strong", { textContent: problem.what }), problem.where ? `: ${problem.where}` : ""));
      if (problem.expected) parts.push(make("p", { textContent: `Expected: ${problem.expected}` }));
      if (problem.next) parts.push(make("p", { textContent: `Next: ${problem.next}` }));
    }
    $("error").replaceChildren(...parts);
  };

  // ---- filters: fields made from the columns; together they are one condition, in SQL or in the language of Milvus
  const quoted = text => `'${String(text).replaceAll("'", "''")}'`;
  const escaped = text => text.replace(/[\\%_]/g, "\\$&");
  const LANGUAGES = {
    sql: {
      column: name => /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`,
      contains: (column, text) => `${column} ilike ${quoted(`%${escaped(text)}%`)}${escaped(text) === text ? "" : " escape '\\'"}`,
      oneOf: (column, values) => `${column} in (${values.map(quoted).join(", ")})`,
      equals: (column, value) => `${column} = ${value}`,
      time: text => `timestamp ${quoted(text)}`,
      example: "year >= 2020 and folder like '%/beach/%'",
    },
    milvus: {  // times are texts there
      column: name => name.replace(/^(?=\d)|\W/g, "_"),
      contains: (column, text) => `${column} like ${JSON.stringify(`%${text}%`)}`,
      oneOf: (column, values) => `${column} in ${JSON.stringify(values)}`,
      equals: (column, value) => `${column} == ${value}`,
      time: JSON.stringify,
      example: 'year >= 2020 and folder like "%/beach/%"',
    },
  };
  const nextDay = day => {
    const date = new Date(`${day}T00:00:00Z`);
    date.setUTCDate(date.getUTCDate() + 1);
    return date.toISOString().slice(0, 10);
  };
  const fieldsOf = number => [...$("filter-fields").querySelectorAll(`[data-column="${number}"]`)];
  const condition = (column, number) => {
    const language = LANGUAGES[facts.filter_language], name = language.column(column.name), fields = fieldsOf(number);
    if (column.values) {
      const chosen = fields.filter(field => field.checked).map(field => column.values[field.dataset.value].value);
      if (!chosen.length) return "";
      return column.type === "boolean" ? chosen.map(value => language.equals(name, value)).join(" or ") : language.oneOf(name, chosen);
    }
    if (column.type === "text") return fields[0].value.trim() ? language.contains(name, fields[0].value.trim()) : "";
    const [low, high] = fields.map(field => field.value), isDate = column.type === "date";
    const limits = [];
    if (low) limits.push(`${name} >= ${isDate ? language.time(low) : Number(low)}`);
    if (high) limits.push(isDate ? `${name} < ${language.time(nextDay(high))}` : `${name} <= ${Number(high)}`);
    return limits.join(" and ");
  };
  const filter = () => {
    const parts = [...columns.map(condition), $("where").value.trim()].filter(Boolean);
    return parts.length > 1 ? parts.map(part => `(${part})`).join(" and ") : parts[0] ?? "";
  };
  const showFilter = () => {
    const parts = [...columns.map(condition), $("where").value.trim(), $("plus").value.trim(), $("minus").value.trim()].filter(Boolean).length;
    $("filter-count").textContent = parts ? ` (${parts} set)` : "";
    $("where-sent").textContent = filter() || "none";
  };
  const title = name => name.replaceAll("_", " ");
  const filterField = (column, number) => {
    const input = (properties, data = {}) => {
      const element = make("input", properties);
      Object.assign(element.dataset, { column: number, ...data });
      return element;
    };
    const field = make("fieldset", {}, make("legend", { textContent: title(column.name) }));
    if (column.values) {
      const choices = make("div", { className: "choices" });
      column.values.forEach(({ value, count: items }, place) => choices.append(make("label", {},
        input({ type: "checkbox" }, { value: place }), make("span", written(String(value) || "(empty)")),
        make("span", { className: "count", textContent: items.toLocaleString("en") }))));
      if (column.values.length > 5) Object.assign(choices, { tabIndex: 0, role: "group", ariaLabel: `Values of ${title(column.name)}` });
      field.append(choices);
    } else if (column.type === "text") {
      field.append(input({ type: "text", ariaLabel: `${title(column.name)} contains`, placeholder: "contains", autocomplete: "off", dir: "auto" }));
    } else {
      const date = column.type === "date";
      const bound = (label, value) => make("label", {}, label, date
        ? input({ type: "date", min: (column.minimum ?? "").slice(0, 10), max: (column.maximum ?? "").slice(0, 10) })
        : input({ type: "number", step: "any", placeholder: value ?? "" }));
      field.append(make("div", { className: "range" }, bound("from", column.minimum), bound("to", column.maximum)));
    }
    return field;
  };
  const divides = ({ values, minimum, maximum, missing, type }) => type === "text" && !values || (values ? values.length > 1 || missing > 0 : minimum !== maximum);
  const loadColumns = async () => {
    const target = searched();
    const answer = await request(address("/api/columns", { target }));
    columns = answer.columns.filter(column => !HIDDEN_FILTERS.includes(column.name) && divides(column));
    $("filter-fields").replaceChildren(...columns.map(filterField));
    showFilter();
  };

  // ---- what is searched
  const searched = () => {
    if (query?.kind === "similar") return query.modality;
    if ($("target").value) return $("target").value;
    if (facts.searches_all) return "";
    const stored = Object.keys(facts.items), asked = query?.modality ?? "text";
    return stored.find(modality => modality !== asked) ?? stored[0];
  };
  const loadIndex = async () => {
    facts = await request("/api/index");
    version = facts.version;
    const stored = Object.entries(facts.items), amounts = stored.map(([modality, items]) => `${items.toLocaleString("en")} ${PLURAL[modality] ?? modality}`);
    $("title").textContent = facts.name;
    document.title = `${facts.name} · ccaco search`;
    $("facts").textContent = `${facts.program} · model ${facts.model ?? "?"} · ${amounts.join(", ")}`;
    const media = facts.file_queries.map(modality => NAME[modality] ?? modality);
    $("text").placeholder = EXAMPLE[stored[0][0]] ?? "an orange cat napping";
    $("where").placeholder = LANGUAGES[facts.filter_language].example;
    for (const id of ["plus", "minus"]) $(`${id}-field`).hidden = !facts.text_queries;
    $("hint").textContent = `${amounts.join(" and ")}. ${facts.text_queries ? "Type what you look for" : "Choose a file"}${media.length ? `, or drop or paste a ${media.join(" or a ")}` : ""}.`;
    $("text").hidden = !facts.text_queries;
    document.querySelector("button[type=submit]").hidden = !facts.text_queries;
    // a browser knows no type of files of arrays
    $("file").accept = facts.file_queries.flatMap(modality => modality === "audio" ? ["audio/*", "video/*"] : NAME[modality] ? [`${modality}/*`] : facts.suffixes[modality]).join(",");
    $("file").disabled = !media.length;
    $("file-label").hidden = !media.length;
    $("file-label").textContent = `Search by ${media.join(" or ")}`;
    const chosen = $("target").value;
    $("target").replaceChildren(make("option", { value: "", textContent: "what fits the query" }), ...stored.map(([modality]) => make("option", { value: modality, textContent: PLURAL[modality] ?? modality })));
    $("target").value = facts.items[chosen] ? chosen : "";
    $("target-field").hidden = stored.length < 2;
    await loadColumns();
  };
  const modalityOf = file => {
    const accepted = facts.file_queries, kind = file.type.split("/")[0];
    if (accepted.includes(kind)) return kind;
    const named = accepted.filter(modality => !facts.suffixes[modality].length || facts.suffixes[modality].some(suffix => file.name.toLowerCase().endsWith(suffix)));
    if (named.length === 1) return named[0];
    if (kind === "video" && accepted.includes("audio")) return "audio";
    return file.type === "" && accepted.length === 1 ? accepted[0] : "";
  };
  const queryByFile = file => {
    const modality = modalityOf(file);
    if (!modality) return showError({ what: "this file cannot be a query here", where: file.name, expected: `a ${facts.file_queries.map(m => NAME[m] ?? m).join(" or a ") || "text"}` });
    if (file.size > facts.limits.file_bytes) return showError({ what: "this file is too large", where: file.name, expected: `at most ${Math.round(facts.limits.file_bytes / 2 ** 20)} MiB` });
    const number = files.size;
    files.set(number, file);
    begin({ kind: "file", modality, file: number, name: file.name || "pasted file" });
  };

  // ---- searches
  const begin = next => {
    query = next;
    count = STEP;
    remember();
    showQuery();
    search();
  };
  const settings = () => ({ where: filter(), plus: $("plus").value.trim(), minus: $("minus").value.trim(), target: $("target").value, dedup: $("dedup").checked ? "1" : "" });
  const remember = () => {
    const values = { ...settings(), ...(query?.kind === "text" ? { q: query.text } : query?.kind === "similar" ? { similar: query.url } : {}) };
    history.pushState(query, "", address(location.pathname, values).replace(/\?$/, ""));
  };
  const showQuery = () => {
    const shown = query && query.kind !== "text";
    $("query").hidden = !shown;
    const picture = $("query-picture").querySelector("img, audio, video");
    if (picture?.src.startsWith("blob:")) URL.revokeObjectURL(picture.src);
    $("query-picture").replaceChildren();
    if (!shown) return;
    $("query-name").replaceChildren(query.kind === "file" ? "Query: " : "More like ", make("bdi", written(query.name)));
    const isPicture = query.kind === "similar" || query.modality === "image";
    const source = query.kind === "similar" ? query.thumbnail : isPicture || PLAYERS.includes(query.modality) ? URL.createObjectURL(files.get(query.file)) : null;
    if (!source) return;
    const shownFile = isPicture ? make("img", { src: source, alt: "" }) : make(query.modality, { src: source, controls: true, ariaLabel: query.name });
    shownFile.addEventListener("error", () => shownFile.remove());
    $("query-picture").append(shownFile);
  };
  const search = async () => {
    if (!query) return;
    running?.abort();
    const control = running = new AbortController();
    const { where, plus, minus, target } = settings();
    const options = { k: count, where, dedup: $("dedup").checked ? DEDUP : "" };
    const mixed = { plus, minus, target, ...options };
    $("status").textContent = "Searching…";
    $("hits").setAttribute("aria-busy", "true");
    showError(null);
    try {
      const answer = query.kind === "text" ? await request(address("/api/search", { text: query.text, ...mixed }), { signal: control.signal })
        : query.kind === "similar" ? await request(address(`${query.url}/similar`, options), { signal: control.signal })
        : await request(address("/api/search", { modality: query.modality, ...mixed }), { method: "POST", body: files.get(query.file), signal: control.signal });
      if (control !== running) return;
      showAnswer(answer);
      if (answer.version !== version) await loadIndex();
    } catch (error) {
      if (error.name === "AbortError" || control !== running) return;
      if (!(error instanceof Refused)) throw error;
      $("status").textContent = "";
      $("results").hidden = true;
      showError(error.problem);
    } finally {
      if (control === running) $("hits").removeAttribute("aria-busy");
    }
  };
  const showAnswer = answer => {
    const { hits, target } = answer, amount = hits.length;
    $("status").textContent = amount ? `${amount} ${amount === 1 ? "result" : "results"} in ${answer.seconds.toFixed(2)} seconds, best first` : "No item matches. Change the filters, or use other words.";
    $("results").hidden = !amount;
    $("hits").className = target === "text" ? "hits texts" : "hits";
    const scores = hits.map(hit => hit.score), low = Math.min(...scores), high = Math.max(...scores);
    $("hits").replaceChildren(...hits.map(hit => card(hit, hit.item.modality, (hit.score - low) / (high - low || 1), answer)));
    $("more").hidden = amount < count || count >= facts.limits.k;
  };
  const shownValue = (name, value) => typeof value === "number" && name === "size" ? `${value.toLocaleString("en")} bytes`
    : typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toFixed(5))) : String(value).replace("T", " ");
  const card = (hit, target, share, answer) => {
    const item = hit.item, captions = Array.isArray(item.text) ? item.text : [];
    const label = typeof item.text === "string" ? item.text : captions[0] ?? item.id;
    const parts = [], plays = item.original && PLAYERS.includes(target);
    if (item.thumbnail && !(plays && target === "video")) {
      const image = make("img", { loading: "lazy", width: 224, height: 224, alt: captions[0] ?? item.id, src: item.thumbnail });
      image.addEventListener("error", () => image.remove());
      parts.push(item.original && !plays ? make("a", { href: item.original, target: "_blank", rel: "noopener" }, image) : image);
    }
    if (plays) {
      const player = make(target, { controls: true, preload: "none", src: item.original, ariaLabel: `Play ${label}` });
      if (target === "video" && item.thumbnail) player.poster = item.thumbnail;
      player.addEventListener("error", () => player.replaceWith(make("a", { href: item.original, target: "_blank", rel: "noopener", textContent: "This browser cannot play the file: open it" })));
      parts.push(player);
    }
    parts.push(make("h3", written(label)));
    const meter = make("i");
    meter.style.width = `${Math.max(2, 100 * share).toFixed(1)}%`;
    const repeats = hit.duplicates ? ` · ${hit.duplicates} near-${hit.duplicates === 1 ? "duplicate" : "duplicates"}` : "";
    parts.push(make("p", { className: "score" }, `${hit.rank}. score ${hit.score.toFixed(3)} · cosine ${hit.cosine.toFixed(3)}${repeats}`, make("span", { className: "meter" }, meter)));
    const rows = Object.entries({ id: item.id, ...item.columns }).filter(([, value]) => value !== null);
    const details = make("details", {}, make("summary", { textContent: "Details" }));
    if (captions.length > 1) details.append(make("ul", { className: "captions" }, ...captions.map(caption => make("li", written(caption)))));
    details.append(make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", { textContent: title(name) }), make("dd", written(shownValue(name, value)))])));
    parts.push(details);
    const actions = make("p", { className: "actions" });
    const action = (name, act) => {
      const button = make("button", { type: "button", textContent: name });
      button.append(make("span", { className: "unseen", textContent: `: ${label}` }));
      button.addEventListener("click", act);
      actions.append(button);
    };
    action("More like this", () => begin({ kind: "similar", url: item.url, modality: target, name: label, thumbnail: item.thumbnail }));
    if (facts.explains && answer.modality !== target && facts.modalities.includes(target) && facts.modalities.includes(answer.modality) && query.kind !== "similar") action("Heat map", () => explain(item, label));
    parts.push(actions);
    return make("li", {}, ...parts);
  };

  // ---- heat maps
  const explain = async (item, label) => {
    explaining?.abort();
    const control = explaining = new AbortController();
    $("why-title").replaceChildren("Why “", make("bdi", written(label)), "” matches");
    $("why-status").textContent = "Drawing the heat map…";
    $("why-maps").replaceChildren();
    $("why").showModal();
    try {
      const path = `${item.url}/explanation`;
      const answer = query.kind === "text" ? await request(address(path, { text: query.text }), { signal: control.signal })
        : await request(address(path, { modality: query.modality }), { method: "POST", body: files.get(query.file), signal: control.signal });
      const map = (picture, word, alt) => make("li", {}, make("img", { src: picture, alt }), make("span", written(word)));
      $("why-maps").replaceChildren(map(answer.input, "what the model sees", "What the model sees, without a heat map"), ...answer.words.map(({ word, picture }) => map(picture, word, `Heat map of the word ${word}`)));
      const unused = answer.weight ? "" : " (not used in this ranking)";
      $("why-status").textContent = `Bright parts match the word. Match score ${answer.match.toFixed(2)}${unused}. Without the bright parts it falls ${Math.abs(answer.deletion_gain).toFixed(2)} ${answer.deletion_gain >= 0 ? "further" : "less"} than without random parts.`;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Refused)) throw error;
      const { what, where, expected } = error.problem;
      $("why-status").textContent = `No heat map: ${what}${where ? `: ${where}` : ""}${expected ? `; expected ${expected}` : ""}`;
    }
  };
  $("why-close").addEventListener("click", () => $("why").close());
  $("why").addEventListener("close", () => explaining?.abort());

  // ---- events
  $("form").addEventListener("submit", event => {
    event.preventDefault();
    const text = $("text").value.trim();
    if (text) begin({ kind: "text", text, modality: "text" });
    else if (query && query.kind !== "text") begin(query);
    else showError({ what: "nothing to search for", expected: "a few words" });
  });
  let waiting = 0;
  const filterChanged = () => {
    showFilter();
    clearTimeout(waiting);
    waiting = setTimeout(() => { if (query) { count = STEP; remember(); search(); } }, PAUSE);
  };
  $("filter-fields").addEventListener("input", filterChanged);
  for (const id of ["where", "plus", "minus", "dedup"]) $(id).addEventListener("input", filterChanged);
  $("target").addEventListener("input", async () => { await loadColumns(); filterChanged(); });
  $("filter-clear").addEventListener("click", () => {
    for (const field of $("filter-fields").querySelectorAll("input")) field.type === "checkbox" ? field.checked = false : field.value = "";
    for (const id of ["where", "plus", "minus"]) $(id).value = "";
    filterChanged();
  });
  $("more").addEventListener("click", () => { count = Math.min(count + STEP, facts.limits.k); search(); });
  $("file").addEventListener("change", () => { if ($("file").files.length) queryByFile($("file").files[0]); $("file").value = ""; });
  $("query-clear").addEventListener("click", () => {
    query = null;
    running?.abort();
    running = null;
    remember();
    showQuery();
    showError(null);
    $("results").hidden = true;
    $("status").textContent = "The query was removed.";
    $("text").focus();
  });
  let inside = 0;
  const carriesFile = event => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragenter", event => { if (carriesFile(event)) { event.preventDefault(); inside += 1; document.body.classList.add("dropping"); } });
  document.addEventListener("dragleave", () => { inside = Math.max(0, inside - 1); if (!inside) document.body.classList.remove("dropping"); });
  document.addEventListener("dragover", event => { if (carriesFile(event)) event.preventDefault(); });
  document.addEventListener("drop", event => {
    inside = 0;
    document.body.classList.remove("dropping");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    queryByFile(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", event => { if (event.clipboardData?.files.length) { event.preventDefault(); queryByFile(event.clipboardData.files[0]); } });

  // ---- the address of the page says what it shows
  const queryByItem = async url => {
    const { modality, id, text, thumbnail } = await request(url);
    return { kind: "similar", url, modality, name: Array.isArray(text) ? text[0] ?? id : text ?? id, thumbnail };
  };
  const showRefusal = error => { if (!(error instanceof Refused)) throw error; showError(error.problem); };
  const restore = async () => {
    const values = new URLSearchParams(location.search);
    for (const id of ["where", "plus", "minus"]) $(id).value = values.get(id) ?? "";
    $("target").value = facts.items[values.get("target")] ? values.get("target") : "";
    $("dedup").checked = values.get("dedup") === "1";
    const similar = (values.get("similar") ?? "").match(/^\/api\/items\/\w+\/(\w+)\/\d+$/);
    const stored = history.state, before = query;
    let restored = null;
    if (values.get("q")) restored = { kind: "text", text: values.get("q"), modality: "text" };
    else if (similar) restored = stored?.kind === "similar" ? stored : await queryByItem(similar[0]);
    else if (stored?.kind === "file" && files.has(stored.file)) restored = stored;
    if (query !== before) return; // the reader has begun another search meanwhile
    query = restored;
    $("text").value = query?.kind === "text" ? query.text : "";
    count = STEP;
    showQuery();
    if (!query) { $("results").hidden = true; $("status").textContent = ""; }
    await loadColumns();
    if (query && query === restored) await search();
  };
  addEventListener("popstate", () => { showError(null); restore().catch(showRefusal); });
  loadIndex().then(restore).catch(showRefusal);
})();
