// Markdown blocks -> elements. Nothing that a model wrote is ever parsed as HTML: elements are made one by one, links lead
// only to http, https and mailto, and images are shown as links, so that looking at an answer loads nothing.
import { copyButton, icon, make, plural } from "./dom.js";
import { Highlighter } from "./highlight.js";
import { parseInline } from "./inline.js";
import { guessed, parseLines } from "./markdown.js";
import { artifactKind, isWholePage, titleOf } from "./artifact.js";

const SAFE = /^(?:https?:\/\/|mailto:)/i;

/** Shows Markdown that grows at its end. Blocks that are complete stay as they are; only the last is made anew. */
export class MarkdownView {
  /** `onblock(element)` is called once for each block that is complete. */
  constructor(root, onblock = () => {}) {
    this.root = root;
    this.onblock = onblock;
    this.clear();
  }

  clear() {
    this.root.replaceChildren();
    this.length = 0; // characters seen
    this.open = ""; // the text of the block that may still grow
    this.last = null; // its view
  }

  /** Show `text`, which begins with what was shown before. */
  update(text, done = false) {
    this.open += text.slice(this.length);
    this.length = text.length;
    const lines = this.open.replace(/\r\n?/g, "\n").split("\n");
    const blocks = parseLines(lines, 0);
    if (!blocks.length) return;
    for (const block of blocks.slice(0, -1)) this.settle(block);
    const last = blocks.at(-1);
    this.open = lines.slice(last.line).join("\n");
    if (done) {
      this.settle(last);
      this.open = "";
    } else {
      this.show(last, true);
    }
  }

  show(block, growing = false) {
    if (this.last?.code && block.type === "code" && block.info === this.last.code.block.info) {
      this.last.code.update(block);
      return;
    }
    const view = viewOf(growing ? guessed(block) : block);
    if (this.last) this.last.element.replaceWith(view.element);
    else this.root.append(view.element);
    this.last = view;
  }

  settle(block) {
    this.show(block);
    this.last.code?.finish();
    this.onblock(this.last.element);
    this.last = null;
  }
}

function viewOf(block) {
  if (block.type !== "code") return { element: elementOf(block) };
  const code = new CodeBlock(block);
  return { element: code.element, code };
}

export function elementOf(block) {
  switch (block.type) {
    case "heading": return make(`h${Math.min(6, block.level + 1)}`, {}, ...inline(block.text)); // the page has its own h1
    case "paragraph": return make("p", {}, ...inline(block.text));
    case "rule": return make("hr");
    case "quote": return make("blockquote", {}, ...block.blocks.map(elementOf));
    case "list": return listOf(block);
    case "table": return tableOf(block);
    default: return finishedCode(block);
  }
}

function finishedCode(block) {
  const code = new CodeBlock(block);
  code.finish();
  return code.element;
}

function listOf(list) {
  const start = list.ordered && list.start !== 1 ? { start: list.start } : {};
  return make(list.ordered ? "ol" : "ul", start, ...list.items.map((item) => itemOf(item, list.tight)));
}

function itemOf(item, tight) {
  const children = item.blocks.flatMap((block) => (tight && block.type === "paragraph" ? inline(block.text) : [elementOf(block)]));
  if (item.checked === null) return make("li", {}, ...children);
  return make("li", { class: "task" }, make("input", { type: "checkbox", disabled: true, checked: item.checked, "aria-label": item.checked ? "done" : "to do" }), " ", ...children);
}

function tableOf({ align, header, rows }) {
  const cell = (tag, text, column) => make(tag, align[column] === "start" ? {} : { class: align[column] }, ...inline(text));
  const head = make("tr", {}, ...header.map((text, column) => cell("th", text, column)));
  const body = rows.map((row) => make("tr", {}, ...row.map((text, column) => cell("td", text, column))));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" }, table);
}

export function inline(text) {
  return parseInline(text).map(inlineElement);
}

function inlineElement(node) {
  switch (node.type) {
    case "text": return document.createTextNode(node.text);
    case "code": return make("code", {}, node.text);
    case "break": return make("br");
    case "link": return linkOf(node.href, node.children.map(inlineElement));
    case "image": return linkOf(node.href, ["Image: ", ...node.children.map(inlineElement)]);
    default: return make(node.type, {}, ...node.children.map(inlineElement));
  }
}

function linkOf(href, children) {
  if (!SAFE.test(href)) return make("span", { class: "dead-link", title: href }, ...children);
  return make("a", { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

/** Lines of code with colours, growing at the end. */
export class CodeLines {
  constructor(language) {
    this.language = language;
    this.element = make("code");
    this.tail = make("span");
    this.clear();
  }

  clear() {
    this.highlighter = new Highlighter(this.language);
    this.lines = 0;
    this.element.replaceChildren(this.tail);
  }

  /** `text` begins with what was shown before. */
  update(text) {
    const lines = text.split("\n");
    if (lines.length <= this.lines) this.clear(); // what looked like code was the end of the block
    const fresh = document.createDocumentFragment();
    for (; this.lines < lines.length - 1; this.lines += 1) fresh.append(...spans(this.highlighter.line(lines[this.lines])), "\n");
    this.tail.before(fresh);
    this.tail.replaceChildren(...spans(this.highlighter.unfinishedLine(lines.at(-1))));
  }
}

function spans(tokens) {
  return tokens.map(([kind, text]) => (kind ? make("span", { class: `t-${kind}` }, text) : document.createTextNode(text)));
}

/** A fenced block: its language, a button to copy it, and for a page one to see it. */
export class CodeBlock {
  constructor(block) {
    this.block = block;
    this.language = block.info.split(/[\s:{]/)[0];
    this.lines = new CodeLines(this.language);
    this.count = make("span", { class: "meta" });
    const kind = artifactKind(block);
    const preview = kind && make("button", { type: "button", class: "ghost small", click: () => this.preview() }, icon("preview"), make("span", {}, "Preview"));
    this.title = make("span", { class: "language" }, this.language || "text");
    const bar = make("div", { class: "code-bar" }, this.title, this.count, make("span", { class: "space" }), preview, copyButton(() => this.block.text));
    this.pre = make("pre", { tabindex: "0", role: "group", "aria-label": this.language ? `Code, ${this.language}` : "Code" }, this.lines.element);
    this.element = make("div", { class: "code" }, bar, this.pre);
    this.update(block);
  }

  update(block) {
    this.block = block;
    this.lines.update(block.text);
    if (isWholePage(block)) this.fold();
  }

  /** A whole page is shown beside the dialogue; here it is one line that unfolds. */
  fold() {
    this.count.textContent = plural(this.block.text.split("\n").length, "line");
    this.title.textContent = titleOf(this.block);
    if (this.element.classList.contains("page")) return;
    this.element.classList.add("page");
    this.pre.hidden = true;
    const toggle = make("button", { type: "button", class: "ghost small", "aria-expanded": "false" }, icon("code"), make("span", {}, "Code"));
    toggle.addEventListener("click", () => {
      this.pre.hidden = !this.pre.hidden;
      toggle.setAttribute("aria-expanded", String(!this.pre.hidden));
    });
    this.element.querySelector(".space").after(toggle);
  }

  preview() {
    this.element.dispatchEvent(new CustomEvent("preview", { bubbles: true, detail: this.block.text }));
  }

  finish() {
    this.element.classList.add("finished");
  }
}
