"use strict";
// The table of problems. Everything a model wrote reaches the page as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const KINDS = { ok: "ok", gained: "ok", failed: "failed", lost: "failed", "harness error": "error", "no sample": "error" };
const SIGNS = { ok: "✓", failed: "✗", gained: "↑", lost: "↓", error: "!", limit: "–" };
const ORDER = ["ok", "failed", "timeout", "memory", "output limit", "blocked", "harness error", "gained", "lost", "same score"];
const BATCH = 500;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Control characters, marks that change the direction of text and halves of surrogate pairs, made visible.
function visible(text) {
  return text
    .replace(/\r\n/g, "\n")
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]|\p{Surrogate}/gu, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

function chip(verdict, count) {
  const kind = KINDS[verdict] || "limit";
  const text = count === undefined ? verdict : `${count} ${verdict}`;
  return make("span", { class: "verdict", "data-kind": kind }, `${SIGNS[verdict] || SIGNS[kind]} ${text}`);
}

function tally(names) {
  const counts = new Map();
  for (const name of [...ORDER, ...names]) counts.set(name, 0);
  for (const name of names) counts.set(name, counts.get(name) + 1);
  return new Map([...counts].filter(([, count]) => count > 0));
}

function block(title, text, cut) {
  const box = make("div", {}, make("h3", {}, title));
  if (cut) box.append(make("p", { class: "meta" }, `Shortened: ${cut.toLocaleString("en")} characters left out. The whole text is in ${data.files}.`));
  box.append(make("pre", { tabindex: "0", "aria-label": title }, visible(text) || "(empty)"));
  return box;
}

function sampleView(sample) {
  const facts = [`sample ${sample.index}`];
  if (sample.seed !== null) facts.push(`seed ${sample.seed}`);
  if (sample.score !== null) facts.push(`score ${sample.score.toFixed(3)}`);
  facts.push(`judged in ${sample.seconds.toFixed(2)} s`);
  const box = make("div", { class: "panel" }, make("p", { class: "meta" }, chip(sample.verdict), ` ${facts.join(", ")}`));
  if (sample.detail) box.append(block("Error", sample.detail, sample.detail_cut));
  if (sample.completion === null) {
    box.append(block("Answer, judged as it is", sample.raw, sample.raw_cut));
  } else {
    box.append(block("Answer, as the model wrote it", sample.raw, sample.raw_cut));
    box.append(block(sample.whole ? "What was judged, a complete program" : "What was judged", sample.completion, sample.completion_cut));
  }
  return box;
}

// Buttons for the samples of a problem, and the one that is chosen.
function chooser(items, label, view) {
  const place = make("div", {});
  if (items.length === 0) return make("p", { class: "meta" }, "No sample of this problem is in the run's files.");
  const show = (item) => place.replaceChildren(view(item));
  show(items[0]);
  if (items.length === 1) return place;
  const buttons = items.map((item, i) => {
    const button = make("button", { type: "button", class: "chip", "aria-pressed": String(i === 0) }, ...label(item));
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      show(item);
    });
    return button;
  });
  return make("div", {}, make("fieldset", {}, make("legend", {}, "Samples"), ...buttons), place);
}

function runPanel(row) {
  const box = make("div", { class: "panel" });
  if (row.prompt !== null) box.append(block("Prompt", row.prompt, row.prompt_cut));
  box.append(chooser(row.samples, (s) => [`${s.index} `, chip(s.verdict)], sampleView));
  return box;
}

function marked(lines, name) {
  const pre = make("pre", { tabindex: "0" });
  for (const [changed, text] of lines) pre.append(make("span", changed ? { class: name } : {}, visible(text)), "\n");
  return pre;
}

function sideView(title, sample, name) {
  if (!sample) return make("div", {}, make("h3", {}, title), make("p", { class: "meta" }, "no such sample"));
  const box = make("div", { class: "panel" }, make("h3", {}, title), chip(sample.verdict));
  if (sample.detail) box.append(make("p", { class: "mono error" }, visible(sample.detail)));
  if (sample.cut) box.append(make("p", { class: "meta" }, `Shortened: ${sample.cut.toLocaleString("en")} characters left out.`));
  box.append(marked(sample.lines, name));
  return box;
}

function diffPanel(row) {
  const box = make("div", { class: "panel" });
  if (row.prompt !== null) box.append(block("Prompt", row.prompt, row.prompt_cut));
  const view = (pair) => make("div", { class: "side" }, sideView(`A: ${data.names[0]}`, pair.a, "gone"), sideView(`B: ${data.names[1]}`, pair.b, "new"));
  box.append(chooser(row.pairs, (pair) => [`${pair.index} `, ...[pair.a, pair.b].filter(Boolean).map((s) => chip(s.verdict))], view));
  if (row.left_out) box.append(make("p", { class: "meta" }, `${row.left_out} more samples changed; see the files of the runs.`));
  return box;
}

const verdictCell = (names) => {
  const counts = tally(names);
  if (counts.size === 0) return [chip("no sample")];
  return [...counts].flatMap(([name, count]) => [chip(name, names.length === 1 ? undefined : count), " "]);
};
const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);
const number = (value, digits) => (value === null ? "–" : value.toFixed(digits));

const VIEWS = {
  run: {
    columns: [
      { title: "Problem", value: (row) => row.order },
      { title: "Verdict", value: (row) => row.keys.join(), cell: (row) => verdictCell(row.verdicts) },
      ...(data.several ? [{ title: "Passed", number: true, value: (row) => row.rate, cell: (row) => [percent(row.rate)] }] : []),
      ...(data.scored ? [{ title: "Score", number: true, value: (row) => row.score, cell: (row) => [number(row.score, 3)] }] : []),
      { title: "Seconds", number: true, value: (row) => row.seconds, cell: (row) => [number(row.seconds, 2)] },
      { title: "Error", detail: true, value: (row) => row.error, cell: (row) => [visible(row.error)] },
    ],
    panel: runPanel,
    words: (row) => [row.id, row.prompt || "", ...row.samples.flatMap((s) => [s.raw, s.completion || "", s.detail])],
  },
  diff: {
    columns: [
      { title: "Problem", value: (row) => row.order },
      { title: "Change", value: (row) => row.keys.join(), cell: (row) => row.keys.map((key) => chip(key)) },
      { title: "A", value: (row) => row.a, cell: (row) => verdictCell(row.verdicts_a) },
      { title: "B", value: (row) => row.b, cell: (row) => verdictCell(row.verdicts_b) },
      { title: "Passed A", number: true, value: (row) => row.a, cell: (row) => [percent(row.a)] },
      { title: "Passed B", number: true, value: (row) => row.b, cell: (row) => [percent(row.b)] },
    ],
    panel: diffPanel,
    words: (row) => [row.id, row.prompt || "", ...row.pairs.flatMap((p) => [p.a, p.b]).filter(Boolean).flatMap((s) => [s.detail, ...s.lines.map((line) => line[1])])],
  },
};

const view = VIEWS[data.kind];
const body = document.querySelector("#table tbody");
const search = document.getElementById("search");
const chosen = new Set();
let sorted = [...data.rows];

function toggle(row, open) {
  row.button.setAttribute("aria-expanded", String(open));
  if (open && !row.open) {
    row.open = make("tr", {}, make("td", { colspan: String(view.columns.length) }, view.panel(row)));
    row.line.after(row.open);
  } else if (!open && row.open) {
    row.open.remove();
    row.open = null;
  }
}

function lineOf(row) {
  if (row.line) return row.line;
  row.button = make("button", { type: "button", class: "open", "aria-expanded": "false" }, visible(row.id));
  row.button.addEventListener("click", () => toggle(row, !row.open));
  const cells = view.columns.map((column) => {
    const kind = column.number ? "number" : column.detail ? "detail" : "";
    return make("td", { class: kind }, ...(column.cell ? column.cell(row) : [row.button]));
  });
  row.line = make("tr", { class: "problem" }, ...cells);
  return row.line;
}

function matches(row, words) {
  if (chosen.size > 0 && !row.keys.some((key) => chosen.has(key))) return false;
  if (words.length === 0) return true;
  row.text = row.text || view.words(row).join("\n").toLowerCase();
  return words.every((word) => row.text.includes(word));
}

// Rows appear a batch at a time, so that a suite of thousands of problems answers at once.
let drawing = 0;
function draw() {
  const mine = ++drawing;
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = sorted.filter((row) => matches(row, words));
  document.getElementById("shown").textContent = `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} problems`;
  body.replaceChildren();
  const more = (start) => {
    if (mine !== drawing) return;
    for (const row of rows.slice(start, start + BATCH)) body.append(lineOf(row), ...(row.open ? [row.open] : []));
    if (start + BATCH < rows.length) setTimeout(more, 0, start + BATCH);
  };
  more(0);
}

function compareValues(a, b) {
  if (a === b) return 0;
  if (a === null || b === null) return a === null ? 1 : -1;
  return a < b ? -1 : 1;
}

function sortBy(column, head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  sorted = [...data.rows].sort((x, y) => (down ? -1 : 1) * compareValues(column.value(x), column.value(y)));
  draw();
}

function drawHead() {
  const heads = view.columns.map((column) => {
    const button = make("button", { type: "button" }, column.title);
    const head = make("th", { scope: "col", class: column.number ? "number" : "" }, button);
    button.addEventListener("click", () => sortBy(column, head));
    return head;
  });
  document.querySelector("#table thead").append(make("tr", {}, ...heads));
}

function drawFilters() {
  for (const [key, count] of tally(data.rows.flatMap((row) => row.keys))) {
    const button = make("button", { type: "button", class: "chip", "aria-pressed": "false" }, `${key} ${count}`);
    button.addEventListener("click", () => {
      if (!chosen.delete(key)) chosen.add(key);
      button.setAttribute("aria-pressed", String(chosen.has(key)));
      draw();
    });
    document.getElementById("filters").append(button);
  }
}

function openFromAddress() {
  let id = "";
  try {
    id = decodeURIComponent(location.hash.slice(1));
  } catch {
    return;
  }
  const row = data.rows.find((candidate) => candidate.id === id);
  if (!row || !row.line) return;
  toggle(row, true);
  row.line.scrollIntoView();
  row.button.focus();
}

data.rows.forEach((row, order) => {
  row.order = order;
});
let typing = 0;
search.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(draw, 150);
});
window.addEventListener("hashchange", openFromAddress);
drawHead();
drawFilters();
draw();
openFromAddress();
