// Colours for code, line by line, so that a growing answer costs no more than its new lines.
// Tokens are [kind, text]; the kinds are comment, string, number, keyword, literal, call, name, tag, meta, added, removed and "".
import { LANGUAGES, languageOf } from "./languages.js";

const MAX_LINE = 2000; // longer lines are data, not code to read
const NUMBER = /(?:0[xX][\da-fA-F_]+|0[bB][01_]+|(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[a-zA-Z%]*/y;
const WORD = /[\p{L}_$][\p{L}\p{N}_$?!]*/uy;

/** Reads the lines of one piece of code in order; remembers open strings and comments from one to the next. */
export class Highlighter {
  constructor(language) {
    const name = languageOf(language);
    if (name === "html") this.reader = new MarkupReader();
    else if (name === "diff") this.reader = { line: diffLine, copy: () => this.reader };
    else if (Object.hasOwn(LANGUAGES, name)) this.reader = new CodeReader(LANGUAGES[name]);
    else this.reader = { line: (text) => [["", text]], copy: () => this.reader };
  }

  /** The tokens of the next line. */
  line(text) {
    return text.length > MAX_LINE ? [["", text]] : this.reader.line(text);
  }

  /** The tokens of a line that is still being written: the next call sees nothing of it. */
  unfinishedLine(text) {
    return text.length > MAX_LINE ? [["", text]] : this.reader.copy().line(text);
  }
}

function diffLine(text) {
  if (/^(?:@@|diff |index |--- |\+\+\+ )/.test(text)) return [["meta", text]];
  if (text.startsWith("+")) return [["added", text]];
  return [[text.startsWith("-") ? "removed" : "", text]];
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text)?.[0] ?? null;
}

/** A language with words, strings and comments. `open` is what the last line left open: {kind, close, raw}. */
class CodeReader {
  constructor(language, open = null) {
    this.language = language;
    this.open = open;
  }

  copy() {
    return new CodeReader(this.language, this.open);
  }

  line(text) {
    const tokens = [];
    let at = 0;
    const directive = this.open ? null : this.language.directive?.exec(text);
    if (directive) {
      tokens.push([this.language === LANGUAGES.python ? "keyword" : "meta", directive[0]]);
      at = directive[0].length;
    }
    while (at < text.length) {
      const [kind, end] = this.open ? this.inside(text, at) : this.token(text, at);
      push(tokens, kind, text.slice(at, end));
      at = end;
    }
    if (this.open && !this.open.many) this.open = null;
    return tokens;
  }

  /** From within a string or comment to its end, or the line's. */
  inside(text, at) {
    const { kind, close, raw } = this.open;
    let end = at;
    while (end < text.length && !text.startsWith(close, end)) end += !raw && text[end] === "\\" ? 2 : 1;
    if (end < text.length) this.open = null;
    return [kind, Math.min(text.length, this.open ? end : end + close.length)];
  }

  token(text, at) {
    const language = this.language;
    const comment = this.comment(text, at);
    if (comment) return comment;
    const key = language.keys && (at === 0 || /[\s{,;(-]/.test(text[at - 1])) ? matchAt(language.keys, text, at) : null;
    if (key) return ["name", at + key.length];
    const variable = language.variable && matchAt(language.variable, text, at);
    if (variable) return ["name", at + variable.length];
    const prefix = language.prefix ? (matchAt(language.prefix, text, at) ?? "") : "";
    const string = language.strings.find(({ open }) => text.startsWith(open, at + prefix.length));
    if (string) {
      this.open = { kind: "string", close: string.open, raw: string.raw, many: string.many };
      return this.inside(text, at + prefix.length + string.open.length);
    }
    return this.word(text, at);
  }

  comment(text, at) {
    const block = this.language.block?.find(([open]) => text.startsWith(open, at));
    if (block) {
      this.open = { kind: "comment", close: block[1], raw: true, many: true };
      return this.inside(text, at + block[0].length);
    }
    const begins = !this.language.spaced || at === 0 || /\s/.test(text[at - 1]);
    return begins && this.language.line?.some((mark) => text.startsWith(mark, at)) ? ["comment", text.length] : null;
  }

  word(text, at) {
    const number = matchAt(NUMBER, text, at);
    if (number) return ["number", at + number.length];
    const word = matchAt(WORD, text, at);
    if (!word) return ["", at + 1];
    const known = this.language.anyCase ? word.toLowerCase() : word;
    const end = at + word.length;
    if (this.language.keywords.has(known)) return ["keyword", end];
    if (this.language.literals.has(known)) return ["literal", end];
    return [text[end] === "(" ? "call" : "", end];
  }
}

const EMBEDDED = { script: "javascript", style: "css" };

/** HTML and XML, with the scripts and styles inside. `state` is text, tag, comment, or the name of an embedded element. */
class MarkupReader {
  constructor(state = "text", element = "", code = null, quote = null) {
    Object.assign(this, { state, element, code, quote });
  }

  copy() {
    return new MarkupReader(this.state, this.element, this.code?.copy() ?? null, this.quote);
  }

  line(text) {
    const tokens = [];
    let at = 0;
    while (at < text.length) {
      const end = this[this.state](text, at, tokens);
      at = end;
    }
    if (this.state === "embedded" && text === "") this.code.line("");
    return tokens;
  }

  text(text, at, tokens) {
    const next = text.indexOf("<", at);
    if (next !== at) {
      const end = next < 0 ? text.length : next;
      push(tokens, "", text.slice(at, end));
      return end;
    }
    if (text.startsWith("<!--", at)) {
      this.state = "comment";
      return at;
    }
    const tag = /<[/!?]?[\w:-]*/y;
    const found = matchAt(tag, text, at);
    push(tokens, "tag", found);
    this.element = found.slice(1).toLowerCase();
    this.state = found.length > 1 ? "tag" : "text";
    return at + found.length;
  }

  comment(text, at, tokens) {
    const close = text.indexOf("-->", at);
    const end = close < 0 ? text.length : close + 3;
    push(tokens, "comment", text.slice(at, end));
    if (close >= 0) this.state = "text";
    return end;
  }

  tag(text, at, tokens) {
    if (this.quote) return this.value(text, at, tokens, at);
    const end = matchAt(/\/?>/y, text, at);
    if (end) {
      push(tokens, "tag", end);
      const language = end === ">" && Object.hasOwn(EMBEDDED, this.element) ? EMBEDDED[this.element] : null;
      this.code = language && new CodeReader(LANGUAGES[language]);
      this.state = language ? "embedded" : "text";
      return at + end.length;
    }
    if (text[at] === '"' || text[at] === "'") {
      this.quote = text[at];
      return this.value(text, at, tokens, at + 1);
    }
    const name = matchAt(/[^\s"'>/=]+/y, text, at);
    push(tokens, name ? "name" : "", name ?? text[at]);
    return at + (name ?? text[at]).length;
  }

  value(text, at, tokens, from) {
    const close = text.indexOf(this.quote, from);
    const end = close < 0 ? text.length : close + 1;
    push(tokens, "string", text.slice(at, end));
    if (close >= 0) this.quote = null;
    return end;
  }

  embedded(text, at, tokens) {
    const close = text.toLowerCase().indexOf(`</${this.element}`, at);
    const end = close < 0 ? text.length : close;
    for (const [kind, part] of this.code.line(text.slice(at, end))) push(tokens, kind, part);
    if (close >= 0) this.state = "text";
    return end;
  }
}

function push(tokens, kind, text) {
  const last = tokens.at(-1);
  if (last && last[0] === kind) last[1] += text;
  else if (text) tokens.push([kind, text]);
}
