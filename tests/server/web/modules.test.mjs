// Run by test_markdown.py, which lays this file beside the modules.
import assert from "node:assert/strict";
import { test } from "node:test";
import { findArtifacts, isWholePage } from "./artifact.js";
import { requestBody, Speed } from "./generation.js";
import { Highlighter } from "./highlight.js";
import { LANGUAGES } from "./languages.js";
import { guessed, parseMarkdown } from "./markdown.js";
import { parseInline } from "./inline.js";
import { EventParser } from "./sse.js";
import { Thread } from "./thread.js";

test("events are the same wherever the stream is cut", () => {
  const stream = 'data: {"a":1}\r\n\r\n: comment\n\ndata:two\ndata: lines\n\nevent: x\rdata: cr\r\rdata: [DONE]\n\n';
  const expected = ['{"a":1}', "two\nlines", "cr", "[DONE]"];
  for (let size = 1; size < stream.length; size += 1) {
    const parser = new EventParser();
    const events = [];
    for (let at = 0; at < stream.length; at += size) events.push(...parser.feed(stream.slice(at, at + size)));
    assert.deepEqual(events, expected, `pieces of ${size}`);
  }
});

test("an event without its blank line is not one yet", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.feed("data: half"), []);
  assert.deepEqual(parser.feed("\n"), []);
  assert.deepEqual(parser.feed("\n"), ["half"]);
});

const CODE = {
  python: 'def f(x: int) -> str:\n    """Doc\n    more"""\n    return f"{x}" + \'a\\\'b\'  # note\nmatch = 1\nmatch x:\n',
  javascript: "const a = `one\n${two}` /* three\nfour */ + 0x1F; // five\n",
  html: '<!DOCTYPE html>\n<style>p { color: red }</style>\n<p class="a\nb">x</p><!-- c\nd -->\n<script>\nlet a = "</p>";\n</script>\n',
  css: "/* a */ .x:hover { color: #fff; margin: 1px }\n@media print { }\n",
  diff: "--- a\n+++ b\n@@ -1 +1 @@\n-old\n+new\n",
  "not-a-language": "anything <at> all\n",
};

test("colours change no character, and a line may be looked at before it is complete", () => {
  for (const language of [...Object.keys(LANGUAGES), ...Object.keys(CODE)]) {
    for (const code of Object.values(CODE)) {
      const [whole, growing] = [new Highlighter(language), new Highlighter(language)];
      for (const line of code.split("\n")) {
        for (let end = 0; end <= line.length; end += 1) {
          const text = growing.unfinishedLine(line.slice(0, end)).map(([, part]) => part).join("");
          assert.equal(text, line.slice(0, end));
        }
        const tokens = growing.line(line);
        assert.deepEqual(tokens, whole.line(line), `${language}: ${line}`);
        assert.equal(tokens.map(([, part]) => part).join(""), line);
      }
    }
  }
});

test("colours mean something", () => {
  const kinds = (language, code) => {
    const highlighter = new Highlighter(language);
    return code.split("\n").flatMap((line) => highlighter.line(line)).map(([kind, text]) => `${kind}:${text.trim()}`);
  };
  const python = kinds("py", CODE.python);
  for (const token of ["keyword:def", "call:f", 'string:"""Doc', 'string:more"""', "comment:# note", "keyword:match"]) assert.ok(python.includes(token), token);
  assert.equal(python.filter((token) => token === "keyword:match").length, 1);
  const html = kinds("html", CODE.html);
  for (const token of ["tag:<p", "name:class", "string:b\"", "comment:d -->", "keyword:let", 'string:"</p>"', "tag:</script>"]) assert.ok(html.includes(token), token);
  assert.ok(kinds("tsx", CODE.javascript).includes("comment:four */"));
  assert.ok(kinds("patch", CODE.diff).includes("added:+new"));
});

const PAGE = "<!DOCTYPE html>\n<title>One</title>\n<link rel=stylesheet href=style.css>\n<script src='app.js' defer></script>\n<script src='https://cdn.example/x.js'></script>";

test("pages are versions of one artifact, files with names are artifacts of their own", () => {
  const answers = [
    `Here:\n\n\`\`\`html\n${PAGE}\n\`\`\`\n\n\`\`\`css\np { color: red }\n\`\`\`\n\n\`\`\`js\nalert("</script>")\n\`\`\``,
    "```html about.html\n<p>About</p>\n```\n\n- in a list:\n  ```svg\n  <svg></svg>\n  ```",
    "```html\n<!DOCTYPE html><title>Two</title>\n```\n\n```html\n<!DOCTYPE html>\n<p>not complete",
  ];
  const artifacts = findArtifacts(answers);
  assert.deepEqual(artifacts.map(({ key, kind, versions }) => [key, kind, versions.length]), [["page", "page", 3], ["about.html", "page", 1], ["drawing", "drawing", 1]]);
  const [first, second, third] = artifacts[0].versions;
  assert.equal(first.title, "One");
  assert.ok(first.source.includes("<style>p { color: red }</style>"));
  assert.ok(first.source.includes('<script type="module">alert("<\\/script>")</script>'));
  assert.ok(first.source.includes("https://cdn.example/x.js"));
  assert.deepEqual([second.title, second.isClosed, second.isWhole, third.isClosed, third.answer], ["Two", true, true, false, 2]);
});

test("a few lines of HTML that explain something are no page", () => {
  assert.ok(!isWholePage({ info: "html", text: "<a href=x>" }));
  assert.ok(isWholePage({ info: "html", text: "<!-- c -->\n<!doctype HTML>" }));
  assert.ok(!isWholePage({ info: "js", text: "<!doctype html>" }));
});

test("what is half written is shown as what it will probably be", () => {
  const shown = (text) => parseInline(guessed(parseMarkdown(text).at(-1)).text ?? "").map(({ type }) => type);
  assert.deepEqual(shown("a **bold"), ["text", "strong"]);
  assert.deepEqual(shown("a **"), ["text"]);
  assert.deepEqual(shown("a `code **x"), ["text", "code"]);
  assert.deepEqual(shown("a `**` b"), ["text", "code", "text"]);
  const item = guessed(parseMarkdown("- a\n- **b").at(-1)).items.at(-1).blocks[0];
  assert.equal(item.text, "**b**");
});

test("an edited message stands beside the old one, and only the path shown is sent", () => {
  const thread = Thread.begin("m", { system: " Be brief. " });
  const first = thread.add("user", "one");
  const answer = thread.add("assistant", "");
  answer.content = "1";
  const second = thread.add("user", "two", first.parent);
  const waiting = thread.add("assistant", "");
  assert.deepEqual(thread.prompt(waiting), [{ role: "system", content: "Be brief." }, { role: "user", content: "two" }]);
  assert.deepEqual(thread.variants(second), [first, second]);
  thread.choose(first);
  assert.equal(thread.leaf, answer.id);
  thread.add("user", "three");
  assert.deepEqual(thread.path().map(({ content }) => content), ["one", "1", "three"]);
  thread.remove(first);
  assert.deepEqual([thread.isEmpty, Object.keys(thread.messages).length], [true, 2]);
});

test("an answer that ran when the page was closed is a stopped one", () => {
  const thread = Thread.begin("m", {});
  thread.add("user", "one");
  thread.add("assistant", "");
  const restored = Thread.restore(JSON.parse(JSON.stringify(thread.record())));
  assert.equal(restored.path()[1].state, "stopped");
});

test("empty parameters are left out of the request", () => {
  const body = requestBody("m", [], { temperature: 0, stop: "a\n\nb", thinking: "off", system: "x" });
  assert.equal(body.temperature, 0);
  assert.deepEqual(body.stop, ["a", "b"]);
  assert.deepEqual(body.chat_template_kwargs, { enable_thinking: false });
  assert.ok(!("top_p" in body) && !("system" in body));
  assert.ok(!("stop" in requestBody("m", [], {})));
});

test("speed counts the tokens after the first", () => {
  let now = 0;
  const speed = new Speed(() => now);
  assert.equal(speed.rate(), null);
  for (now = 1000; now <= 2000; now += 500) speed.token();
  assert.equal(speed.rate(), 2);
  speed.usage = { completion_tokens: 11, prompt_tokens: 7 };
  assert.deepEqual(speed.summary(), { tokens: 11, prompt: 7, cached: null, firstToken: 1, rate: 10 });
});
