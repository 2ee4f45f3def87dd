// The inside of a Markdown paragraph: text -> nodes. CommonMark's rules, without raw HTML, reference links and footnotes.
// Nodes: {type: "text"|"code", text}, {type: "break"}, {type: "strong"|"em"|"del", children},
// {type: "link", href, bare, children}, `bare` where an address stood alone, {type: "image", href, children}.

const SPECIAL = /[\\`*_~[\]!<&\n]|https?:\/\//g;
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\p{S}]/u;
const MAX_DELIMITERS = 1000; // of one paragraph; what comes after them is text, so that no input takes long
const MAX_LABELS = 200;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", mdash: "—", ndash: "–", hellip: "…", copy: "©", times: "×", rarr: "→" };

export function parseInline(text) {
  return new InlineParser(text).parse();
}

class InlineParser {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.nodes = []; // finished nodes, and delimiters: {type: "delimiter", char, count, opens, closes}
    this.brackets = []; // what may begin a link: {at, isImage, isActive}, `at` an index into `nodes`
    this.delimiters = 0;
    this.labels = 0;
    this.unclosed = new Set(); // lengths of backtick runs that nothing closes any more
  }

  parse() {
    while (this.at < this.text.length) this.step();
    return emphasised(this.nodes);
  }

  step() {
    SPECIAL.lastIndex = this.at;
    const match = SPECIAL.exec(this.text);
    const end = match ? match.index : this.text.length;
    if (end > this.at) this.push(this.text.slice(this.at, end));
    this.at = end;
    if (match) this.special(match[0]);
  }

  push(text) {
    const last = this.nodes.at(-1);
    if (last?.type === "text" && !last.bracket) last.text += text;
    else this.nodes.push({ type: "text", text });
  }

  special(found) {
    if (found === "\\") this.escape();
    else if (found === "`") this.code();
    else if (found === "*" || found === "_" || found === "~") this.delimiter(found);
    else if (found === "[" || found === "!") this.open(found);
    else if (found === "]") this.close();
    else if (found === "<") this.angle();
    else if (found === "&") this.entity();
    else if (found === "\n") this.newline();
    else this.bareLink();
  }

  escape() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "\n") {
      this.nodes.push({ type: "break" });
      this.at += 2;
    } else {
      const escapes = /[!-/:-@[-`{-~]/.test(next);
      this.push(escapes ? next : "\\");
      this.at += escapes ? 2 : 1;
    }
  }

  code() {
    const run = /`+/y;
    run.lastIndex = this.at;
    const ticks = run.exec(this.text)[0];
    const start = this.at + ticks.length;
    const end = this.unclosed.has(ticks.length) ? -1 : closingRun(this.text, start, ticks.length);
    if (end < 0) {
      this.unclosed.add(ticks.length);
      this.push(ticks);
      this.at = start;
      return;
    }
    const inside = this.text.slice(start, end).replaceAll("\n", " ");
    const padded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim() !== "";
    this.nodes.push({ type: "code", text: padded ? inside.slice(1, -1) : inside });
    this.at = end + ticks.length;
  }

  delimiter(char) {
    let end = this.at;
    while (this.text[end] === char) end += 1;
    const count = end - this.at;
    const before = this.at ? characterBefore(this.text, this.at) : " ";
    const after = end < this.text.length ? String.fromCodePoint(this.text.codePointAt(end)) : " ";
    this.at = end;
    this.delimiters += 1;
    if (this.delimiters > MAX_DELIMITERS || (char === "~" && count !== 2)) {
      this.push(char.repeat(count));
      return;
    }
    this.nodes.push({ type: "delimiter", char, count, original: count, ...flanks(char, before, after) });
  }

  open(found) {
    if (found === "!" && this.text[this.at + 1] !== "[") {
      this.push("!");
      this.at += 1;
      return;
    }
    const marker = found === "!" ? "![" : "[";
    this.brackets.push({ at: this.nodes.length, isImage: found === "!", isActive: true });
    this.nodes.push({ type: "text", text: marker, bracket: true });
    this.at += marker.length;
  }

  close() {
    const start = this.brackets.pop();
    const target = start?.isActive && this.labels < MAX_LABELS ? linkTarget(this.text, this.at + 1) : null;
    if (!target) {
      this.push("]");
      this.at += 1;
      return;
    }
    this.labels += 1;
    const children = emphasised(this.nodes.splice(start.at).slice(1));
    this.nodes.push({ type: start.isImage ? "image" : "link", href: target.href, children });
    if (!start.isImage) for (const outer of this.brackets) outer.isActive &&= outer.isImage; // no link within a link
    this.at = target.end;
  }

  angle() {
    const link = /<([a-z][a-z0-9+.-]{1,31}:[^\s<>]*)>|<([\w.+-]+@[\w-]+(?:\.[\w-]+)+)>|<br\s*\/?>/iy;
    link.lastIndex = this.at;
    const match = link.exec(this.text);
    if (!match) {
      this.push("<");
      this.at += 1;
      return;
    }
    const shown = match[1] ?? match[2];
    const href = match[2] ? `mailto:${shown}` : shown;
    this.nodes.push(shown ? { type: "link", href, children: [{ type: "text", text: shown }] } : { type: "break" });
    this.at += match[0].length;
  }

  entity() {
    const reference = /&(?:([a-z]{2,8})|#(\d{1,7})|#x([0-9a-f]{1,6}));/iy;
    reference.lastIndex = this.at;
    const match = reference.exec(this.text);
    const character = match && entityText(match);
    this.push(character ?? "&");
    this.at += character ? match[0].length : 1;
  }

  newline() {
    const last = this.nodes.at(-1);
    const spaces = last?.type === "text" ? /( *)$/.exec(last.text)[1].length : 0;
    if (spaces) last.text = last.text.slice(0, -spaces);
    if (spaces >= 2) this.nodes.push({ type: "break" });
    else this.push("\n");
    this.at += 1;
    while (this.text[this.at] === " ") this.at += 1;
  }

  bareLink() {
    const address = /https?:\/\/[^\s<>"'`|\\^{}]+/y;
    address.lastIndex = this.at;
    const match = address.exec(this.text);
    const href = match ? match[0].replace(/[.,:;!?*_~)\]]+$/, (tail) => (tail.startsWith(")") && match[0].includes("(") ? ")" : "")) : "";
    if (/^https?:\/\/.+/.test(href)) this.nodes.push({ type: "link", href, bare: true, children: [{ type: "text", text: href }] });
    else this.push(this.text.slice(this.at, this.at + 4));
    this.at += /^https?:\/\/.+/.test(href) ? href.length : 4;
  }
}

function closingRun(text, from, length) {
  const runs = /`+/g;
  runs.lastIndex = from;
  for (let match = runs.exec(text); match; match = runs.exec(text)) {
    if (match[0].length === length) return match.index;
  }
  return -1;
}

function characterBefore(text, at) {
  const low = text.charCodeAt(at - 1);
  return low >= 0xdc00 && low <= 0xdfff && at > 1 ? text.slice(at - 2, at) : text[at - 1];
}

function flanks(char, before, after) {
  const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)];
  const [markBefore, markAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
  const left = !spaceAfter && (!markAfter || spaceBefore || markBefore);
  const right = !spaceBefore && (!markBefore || spaceAfter || markAfter);
  if (char !== "_") return { opens: left, closes: right };
  return { opens: left && (!right || markBefore), closes: right && (!left || markAfter) };
}

/** `(target "title")` at `at`, or null. */
function linkTarget(text, at) {
  const form = /\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?\s*\)/y;
  form.lastIndex = at;
  const match = form.exec(text);
  return match && { href: (match[1] ?? match[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"), end: at + match[0].length };
}

function entityText([, name, decimal, hex]) {
  if (name) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : null;
  const code = decimal ? Number.parseInt(decimal, 10) : Number.parseInt(hex, 16);
  return code === 0 || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff) ? "\ufffd" : String.fromCodePoint(code);
}

/** Delimiters become emphasis: the algorithm of https://spec.commonmark.org/0.31.2/#phase-2-inline-structure. */
function emphasised(nodes) {
  const out = [];
  const openers = []; // indices into `out`
  for (const node of nodes) {
    if (node.type === "delimiter" && node.closes) closeWith(out, openers, node);
    if (node.type !== "delimiter" || node.count) {
      if (node.type === "delimiter" && node.opens) openers.push(out.length);
      out.push(node);
    }
  }
  return merged(out);
}

function closeWith(out, openers, closer) {
  for (let at = openers.length - 1; at >= 0 && closer.count; ) {
    const opener = out[openers[at]];
    if (!matches(opener, closer)) {
      at -= 1;
      continue;
    }
    const used = closer.char === "~" || (opener.count >= 2 && closer.count >= 2) ? 2 : 1;
    const children = merged(out.splice(openers[at] + 1));
    out.push({ type: closer.char === "~" ? "del" : used === 2 ? "strong" : "em", children });
    openers.length = at + 1;
    opener.count -= used;
    closer.count -= used;
    if (!opener.count) {
      out.splice(openers[at], 1);
      openers.pop();
      at -= 1;
    }
  }
}

function matches(opener, closer) {
  if (opener.char !== closer.char) return false;
  const eitherBoth = (opener.opens && opener.closes) || (closer.opens && closer.closes);
  const odd = eitherBoth && (opener.original + closer.original) % 3 === 0 && (opener.original % 3 || closer.original % 3);
  return !odd;
}

/** Neighbouring texts joined; delimiters that nothing matched are text again. */
function merged(nodes) {
  const out = [];
  for (const node of nodes) {
    const text = node.type === "delimiter" ? node.char.repeat(node.count) : node.type === "text" ? node.text : null;
    const last = out.at(-1);
    if (text === null) out.push(node);
    else if (last?.type === "text") last.text += text;
    else out.push({ type: "text", text });
  }
  return out;
}
