// Markdown -> HTML through the page's own parser, to compare it with another: a list of texts in, a list of HTML out.
import { readFileSync } from "node:fs";
import { argv, stdout } from "node:process";

const web = argv[2];
const { parseMarkdown } = await import(`${web}/markdown.js`);
const { parseInline } = await import(`${web}/inline.js`);

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
const plain = (nodes) => nodes.map((node) => node.text ?? plain(node.children ?? [])).join("");

function inline(node) {
  const inside = () => node.children.map(inline).join("");
  switch (node.type) {
    case "text": return escaped(node.text);
    case "code": return `<code>${escaped(node.text)}</code>`;
    case "break": return "<br>\n";
    case "link": return node.bare ? inside() : `<a href="${escaped(node.href)}">${inside()}</a>`;
    case "image": return `<img src="${escaped(node.href)}" alt="${escaped(plain(node.children))}">`;
    default: return `<${node.type}>${inside()}</${node.type}>`;
  }
}

const text = (source) => parseInline(source).map(inline).join("");

function block(node) {
  switch (node.type) {
    case "heading": return `<h${node.level}>${text(node.text)}</h${node.level}>\n`;
    case "paragraph": return `<p>${text(node.text)}</p>\n`;
    case "rule": return "<hr>\n";
    case "quote": return `<blockquote>\n${node.blocks.map(block).join("")}</blockquote>\n`;
    case "code": return `<pre><code>${escaped(node.text)}</code></pre>\n`;
    case "table": return table(node);
    default: return list(node);
  }
}

function list({ ordered, start, tight, items }) {
  const tag = ordered ? "ol" : "ul";
  const item = ({ blocks, checked }) => {
    const task = checked === null ? "" : checked ? "[x] " : "[ ] ";
    return `<li>${task}${blocks.map((child) => (tight && child.type === "paragraph" ? `${text(child.text)}\n` : block(child))).join("")}</li>\n`;
  };
  return `<${tag}${ordered && start !== 1 ? ` start="${start}"` : ""}>\n${items.map(item).join("")}</${tag}>\n`;
}

function table({ align, header, rows }) {
  const row = (tag) => (cells) => `<tr>${cells.map((cell, at) => `<${tag}${{ start: "", center: " center", end: " end" }[align[at]]}>${text(cell)}</${tag}>`).join("")}</tr>`;
  return `<table><thead>${row("th")(header)}</thead>${rows.length ? `<tbody>${rows.map(row("td")).join("")}</tbody>` : ""}</table>\n`;
}

const texts = JSON.parse(readFileSync(argv[3], "utf8"));
stdout.write(JSON.stringify(texts.map((source) => parseMarkdown(source).map(block).join(""))));
