// What the highlighter knows of each language: words, comments, strings. Data only.

const words = (text) => new Set(text.split(" "));
const C_COMMENTS = { line: ["//"], block: [["/*", "*/"]] };
const QUOTES = [{ open: '"' }, { open: "'" }];
const JS_STRINGS = [...QUOTES, { open: "`", many: true }];
const C_LITERALS = words("true false null nullptr NULL this");

const javascript = {
  keywords: words("abstract as async await break case catch class const continue debugger declare default delete do else enum export extends finally for from function get if implements import in instanceof interface let new of private protected public readonly return satisfies set static super switch throw try type typeof var void while with yield"),
  literals: words("true false null undefined NaN Infinity this"),
  ...C_COMMENTS,
  strings: JS_STRINGS,
};

const python = {
  keywords: words("and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield"),
  literals: words("True False None self cls"),
  line: ["#"],
  strings: [{ open: '"""', many: true }, { open: "'''", many: true }, ...QUOTES],
  prefix: /[rbfuRBFU]{1,2}(?=["'])/y,
  variable: /@[\w.]+/y,
  directive: /^\s*(?:match|case)(?=\s+[^=\s].*:\s*(?:#.*)?$)/, // words that are keywords only there
};

const c = {
  keywords: words("alignas alignof auto break case catch char class concept const constexpr const_cast continue co_await co_return co_yield decltype default delete do double dynamic_cast else enum explicit export extern final float for friend goto if inline int long mutable namespace new noexcept operator override private protected public register reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template throw try typedef typename union unsigned using virtual void volatile while bool size_t"),
  literals: C_LITERALS,
  ...C_COMMENTS,
  strings: QUOTES,
  directive: /^\s*#\s*\w+/,
};

const java = {
  keywords: words("abstract as assert async await base boolean break by byte case catch char class companion const constructor continue data decimal default delegate do double else enum event extends final finally float for foreach fun get global goto if implements import in init inline int interface internal is lateinit lock long namespace native new object open operator out override package private protected public readonly record ref return sealed set short static string struct super suspend switch synchronized throw throws transient try typeof using val var virtual void volatile when where while yield"),
  literals: C_LITERALS,
  ...C_COMMENTS,
  strings: [{ open: '"""', many: true }, ...QUOTES],
};

const go = {
  keywords: words("break case chan const continue default defer else fallthrough for func go goto if import interface map package range return select struct switch type var any bool byte error float32 float64 int int8 int16 int32 int64 rune string uint uint8 uint16 uint32 uint64"),
  literals: words("true false nil iota"),
  ...C_COMMENTS,
  strings: [...QUOTES, { open: "`", many: true, raw: true }],
};

const rust = {
  keywords: words("as async await break const continue crate dyn else enum extern fn for if impl in let loop match mod move mut pub ref return static struct super trait type union unsafe use where while bool char f32 f64 i8 i16 i32 i64 i128 isize str u8 u16 u32 u64 u128 usize"),
  literals: words("true false self Self None Some Ok Err"),
  ...C_COMMENTS,
  strings: [{ open: '"', many: true }],
  directive: /^\s*#!?\[.*\]/,
};

const swift = {
  keywords: words("actor as async await break case catch class continue default defer deinit do else enum extension fallthrough for func guard if import in init inout internal is let mutating open operator private protocol public repeat rethrows return some static struct subscript super switch throw throws try typealias var where while"),
  literals: words("true false nil self Self"),
  ...C_COMMENTS,
  strings: [{ open: '"""', many: true }, { open: '"' }],
};

const php = {
  keywords: words("abstract and array as break case catch class clone const continue declare default do echo else elseif empty extends final finally fn for foreach function global if implements include instanceof interface isset list match namespace new or print private protected public readonly require require_once return static switch throw trait try unset use var while yield"),
  literals: words("true false null this"),
  line: ["//", "#"],
  block: [["/*", "*/"]],
  strings: QUOTES,
  variable: /\$\w+/y,
};

const ruby = {
  keywords: words("alias and begin break case class def defined? do else elsif end ensure for if in module next not or redo require require_relative rescue retry return super then undef unless until when while yield attr_accessor attr_reader puts"),
  literals: words("true false nil self"),
  line: ["#"],
  strings: QUOTES,
  variable: /@{1,2}\w+|:[a-z_]\w*/y,
};

const lua = {
  keywords: words("and break do else elseif end for function goto if in local not or repeat return then until while"),
  literals: words("true false nil self"),
  line: ["--"],
  block: [["--[[", "]]"]],
  strings: QUOTES,
};

const shell = {
  keywords: words("if then else elif fi for while until do done case esac in function select time return exit break continue export local readonly declare set unset source alias cd echo printf read test trap shift eval exec sudo"),
  literals: words("true false"),
  line: ["#"],
  strings: [{ open: '"', many: true }, { open: "'", many: true, raw: true }],
  variable: /\$(?:\w+|\{[^}]*\}|[@#?$!*-])/y,
  spaced: true,
};

const sql = {
  keywords: words("add all alter and as asc begin between by case cast check column commit constraint create cross cte database default delete desc distinct drop else end except exists foreign from full group having if in index inner insert intersect into is join key left like limit not offset on or order outer over partition primary references returning right rollback select set table then transaction union unique update using values view when where window with integer int bigint text varchar char boolean date timestamp numeric decimal real serial count sum avg min max coalesce"),
  literals: words("true false null"),
  line: ["--"],
  block: [["/*", "*/"]],
  strings: [{ open: "'", raw: true }, { open: '"', raw: true }],
  anyCase: true,
};

const json = { keywords: new Set(), literals: words("true false null"), strings: [{ open: '"' }], ...C_COMMENTS, keys: /"(?:[^"\\]|\\.)*"(?=\s*:)/y };
const yaml = { keywords: new Set(), literals: words("true false null yes no on off"), line: ["#"], strings: QUOTES, keys: /[\w.\-/ ]*\w(?=\s*:(?:\s|$))/y, spaced: true };
const toml = { keywords: new Set(), literals: words("true false"), line: ["#", ";"], strings: [{ open: '"""', many: true }, ...QUOTES], keys: /[\w.\-]+(?=\s*=)/y, directive: /^\s*\[.*\]/ };
const docker = { keywords: words("add arg as cmd copy entrypoint env expose from healthcheck label maintainer onbuild run shell stopsignal user volume workdir"), literals: new Set(), line: ["#"], strings: QUOTES, variable: shell.variable, anyCase: true, spaced: true };
const make = { keywords: words("define else endef endif ifdef ifeq ifndef ifneq include override export"), literals: new Set(), line: ["#"], strings: [], variable: /\$(?:\([^)]*\)|\{[^}]*\}|[@<^*?])/y, keys: /^[\w.\-/%$() ]+(?=:(?!=))/y };
const css = {
  keywords: new Set(),
  literals: words("inherit initial unset none auto"),
  block: [["/*", "*/"]],
  strings: QUOTES,
  keys: /-{0,2}[a-zA-Z][\w-]*(?=\s*:[^{]*(?:;|\}|$))/y,
  variable: /@[\w-]+|#[0-9a-fA-F]{3,8}\b|\.[a-zA-Z][\w-]*(?=[^;]*\{)/y,
};

export const LANGUAGES = { javascript, python, c, java, go, rust, swift, php, ruby, lua, shell, sql, json, yaml, toml, docker, make, css };

const NAMES = {
  js: "javascript", jsx: "javascript", mjs: "javascript", ts: "javascript", tsx: "javascript", typescript: "javascript", node: "javascript",
  py: "python", python3: "python", pycon: "python", "c++": "c", cpp: "c", cc: "c", h: "c", hpp: "c", cuda: "c", objc: "c", glsl: "c",
  cs: "java", csharp: "java", "c#": "java", kotlin: "java", kt: "java", scala: "java", dart: "java", golang: "go", rs: "rust", rb: "ruby",
  sh: "shell", bash: "shell", zsh: "shell", console: "shell", powershell: "shell", ps1: "shell", fish: "shell",
  postgresql: "sql", mysql: "sql", sqlite: "sql", json5: "json", jsonc: "json", jsonl: "json", yml: "yaml", ini: "toml", cfg: "toml",
  dockerfile: "docker", makefile: "make", scss: "css", less: "css", htm: "html", xhtml: "html", xml: "html", svg: "html", vue: "html", svelte: "html",
  patch: "diff",
};

/** The name under which a language is known here: "tsx" is "javascript". */
export function languageOf(name) {
  const lower = name.toLowerCase();
  return Object.hasOwn(NAMES, lower) ? NAMES[lower] : lower;
}
