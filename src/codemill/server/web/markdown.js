// Markdown -> blocks. CommonMark's rules with GitHub's tables and task lists; raw HTML is text, and so are reference links.
// Blocks: {type: "heading", level, text}, {type: "paragraph", text}, {type: "code", info, text, closed}, {type: "rule"},
// {type: "quote", blocks}, {type: "list", ordered, start, tight, items: [{blocks, checked}]},
// {type: "table", align, header, rows}. Each has `line`, where it begins.

const BLANK = /^[ \t]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*(.*?)[ \t]*$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^( {0,3})(?:([-+*])|(\d{1,9})([.)]))(?=[ \t]|$)/;
const SETEXT = /^ {0,3}(=+|-+)[ \t]*$/;
const TABLE_LINE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const MAX_DEPTH = 12; // of quotes and lists within one another; deeper ones are text

export function parseMarkdown(text) {
  return parseLines(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

export function parseLines(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (BLANK.test(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = readBlock(lines, at, depth);
    block.line = at;
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  if (indentation(line) >= 4) return readIndented(lines, at);
  const fence = fenceOf(line);
  if (fence) return readFence(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, text: (heading[2] ?? "").trim() }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return readQuote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return readList(lines, at, depth);
  return startsTable(lines, at) ? readTable(lines, at) : readParagraph(lines, at);
}

/** Columns of white space that a line begins with; a tab goes to the next multiple of four. */
function indentation(line) {
  let columns = 0;
  for (const char of line) {
    if (char === " ") columns += 1;
    else if (char === "\t") columns += 4 - (columns % 4);
    else break;
  }
  return columns;
}

/** The line without so many columns of white space. */
function dedent(line, columns) {
  let [at, column] = [0, 0];
  while (column < columns && (line[at] === " " || line[at] === "\t")) {
    column += line[at] === "\t" ? 4 - (column % 4) : 1;
    at += 1;
  }
  return " ".repeat(Math.max(0, column - columns)) + line.slice(at);
}

function fenceOf(line) {
  const match = FENCE.exec(line);
  if (!match || (match[2][0] === "`" && match[3].includes("`"))) return null;
  return { indent: match[1].length, mark: match[2], info: match[3] };
}

function closesFence(line, fence) {
  const match = /^ {0,3}(`{3,}|~{3,})[ \t]*$/.exec(line);
  return match !== null && match[1][0] === fence.mark[0] && match[1].length >= fence.mark.length;
}

function readFence(lines, at, fence) {
  let end = at + 1;
  while (end < lines.length && !closesFence(lines[end], fence)) end += 1;
  const closed = end < lines.length;
  const last = !closed && BLANK.test(lines[end - 1]) && end > at + 1 ? end - 1 : end; // after a line break nothing has begun yet
  const text = lines.slice(at + 1, last).map((line) => dedent(line, fence.indent)).join("\n");
  return [{ type: "code", info: fence.info, text, closed }, closed ? end + 1 : end];
}

function readIndented(lines, at) {
  let end = at;
  while (end < lines.length && (BLANK.test(lines[end]) || indentation(lines[end]) >= 4)) end += 1;
  while (BLANK.test(lines[end - 1])) end -= 1;
  return [{ type: "code", info: "", text: lines.slice(at, end).map((line) => dedent(line, 4)).join("\n"), closed: true }, end];
}

/** Whether a line ends a paragraph above it. */
function interrupts(lines, at) {
  const line = lines[at];
  if (BLANK.test(line)) return true;
  if (indentation(line) >= 4) return false;
  if (HEADING.test(line) || RULE.test(line) || fenceOf(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  if (item) return !BLANK.test(line.slice(item[0].length)) && (item[3] === undefined || Number(item[3]) === 1);
  return startsTable(lines, at);
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !BLANK.test(lines[end])) {
    const underline = SETEXT.exec(lines[end]);
    if (underline) {
      const text = paragraphText(lines.slice(at, end));
      return [{ type: "heading", level: underline[1][0] === "=" ? 1 : 2, text }, end + 1];
    }
    if (interrupts(lines, end)) break;
    end += 1;
  }
  return [{ type: "paragraph", text: paragraphText(lines.slice(at, end)) }, end];
}

function paragraphText(lines) {
  return lines.map((line) => line.replace(/^[ \t]+/, "")).join("\n").trimEnd();
}

/** Whether a line that is not marked as part of a container goes on with the paragraph that the container ends in. */
function continuesLazily(inside, lines, at) {
  const last = inside.at(-1);
  if (last === undefined || BLANK.test(last) || interrupts(lines, at) || ITEM.test(lines[at]) || SETEXT.test(lines[at])) return false;
  return endsInParagraph(parseLines(inside.slice(-1), 0));
}

function endsInParagraph(blocks) {
  const last = blocks.at(-1);
  if (last?.type === "quote") return endsInParagraph(last.blocks);
  if (last?.type === "list") return endsInParagraph(last.items.at(-1).blocks);
  return last?.type === "paragraph";
}

function readQuote(lines, at, depth) {
  const inside = [];
  const fences = new FenceState();
  let end = at;
  while (end < lines.length) {
    const marked = QUOTE.test(lines[end]);
    if (!marked && (fences.open || !continuesLazily(inside, lines, end))) break;
    inside.push(marked ? lines[end].replace(/^ {0,3}> ?/, "") : lines[end]);
    fences.line(inside.at(-1));
    end += 1;
  }
  return [{ type: "quote", blocks: parseLines(inside, depth + 1) }, end];
}

/** Follows whether the lines so far leave a fence open. */
class FenceState {
  open = null;

  line(line) {
    if (this.open) {
      if (closesFence(line, this.open)) this.open = null;
    } else {
      this.open = fenceOf(line);
    }
  }
}

function readList(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = first[3] !== undefined;
  const list = { type: "list", ordered, start: ordered ? Number(first[3]) : 1, tight: true, items: [] };
  let end = at;
  for (;;) {
    const [inside, next, blankAfter] = readItem(lines, end);
    list.items.push(itemOf(inside, depth));
    if (separated(list.items.at(-1).blocks, inside)) list.tight = false;
    end = next;
    const marker = end < lines.length && !RULE.test(lines[end]) && ITEM.exec(lines[end]);
    if (!marker || (marker[2] ?? marker[4]) !== (first[2] ?? first[4])) return [list, end];
    if (blankAfter) list.tight = false;
  }
}

/** Lines of the item that begins at `at`, without its indentation; where it ends; whether blank lines follow it. */
function readItem(lines, at) {
  const marker = ITEM.exec(lines[at])[0].length;
  const rest = lines[at].slice(marker);
  const padding = indentation(rest);
  const offset = marker + (BLANK.test(rest) || padding > 4 ? 1 : padding);
  const inside = [dedent(rest, offset - marker)];
  const fences = new FenceState();
  fences.line(inside[0]);
  let end = at + 1;
  if (BLANK.test(rest) && end < lines.length && BLANK.test(lines[end])) {
    while (end < lines.length && BLANK.test(lines[end])) end += 1;
    return [inside, end, true]; // an item may begin with one blank line, not with two
  }
  for (; end < lines.length; end += 1) {
    if (BLANK.test(lines[end])) {
      inside.push("");
    } else if (indentation(lines[end]) >= offset) inside.push(dedent(lines[end], offset));
    else if (!fences.open && continuesLazily(inside, lines, end)) inside.push(lines[end]);
    else break;
    fences.line(inside.at(-1));
  }
  let blankAfter = false;
  while (inside.length > 1 && BLANK.test(inside.at(-1)) && end < lines.length) {
    inside.pop();
    blankAfter = true;
  }
  return [inside, end, blankAfter];
}

function itemOf(inside, depth) {
  const task = /^\[([ xX])\][ \t]+(?=\S)/.exec(inside[0]);
  const lines = task ? [inside[0].slice(task[0].length), ...inside.slice(1)] : inside;
  return { checked: task ? task[1] !== " " : null, blocks: parseLines(lines, depth + 1) };
}

/** Whether blank lines lie between the blocks of an item, which sets its paragraphs apart. */
function separated(blocks, inside) {
  return blocks.slice(1).some((block) => BLANK.test(inside[block.line - 1]));
}

function startsTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-")) return false;
  return TABLE_LINE.test(lines[at + 1]) && cellsOf(lines[at]).length === cellsOf(lines[at + 1]).length;
}

function cellsOf(line) {
  const cells = line.trim().replace(/^\|/, "").split(/(?<!\\)\|/);
  if (cells.length > 1 && cells.at(-1).trim() === "") cells.pop();
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function readTable(lines, at) {
  const header = cellsOf(lines[at]);
  const align = cellsOf(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : "start"));
  const rows = [];
  let end = at + 2;
  while (end < lines.length && (lines[end].includes("|") || !interrupts(lines, end)) && !BLANK.test(lines[end])) {
    const cells = cellsOf(lines[end]);
    rows.push(header.map((_, column) => cells[column] ?? ""));
    end += 1;
  }
  return [{ type: "table", align, header, rows }, end];
}

/** A block that is still being written, with the emphasis and code closed that its last words are probably in. */
export function guessed(block) {
  if (block.blocks?.length) return { ...block, blocks: [...block.blocks.slice(0, -1), guessed(block.blocks.at(-1))] };
  if (block.items?.length) return { ...block, items: [...block.items.slice(0, -1), guessed(block.items.at(-1))] };
  return typeof block.text === "string" && block.type !== "code" ? { ...block, text: closed(block.text) } : block;
}

function closed(text) {
  const rest = text.replace(/(`+)[^`]+\1(?!`)/g, "");
  const mark = rest.includes("`") ? "`" : rest.split("**").length % 2 === 0 ? "**" : "";
  if (!mark) return text;
  return text.endsWith(mark) ? text.slice(0, -mark.length) : text.trimEnd() + mark;
}
