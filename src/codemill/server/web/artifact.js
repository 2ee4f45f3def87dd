// Artifacts: the pages and drawings in a dialogue, each with its versions. No DOM here.
import { parseMarkdown } from "./markdown.js";

/** What a code block can be previewed as: "page", "drawing" or null. */
export function artifactKind(block) {
  const language = /^[\w+-]*/.exec(block.info)[0].toLowerCase();
  if (/^\s*(?:<\?xml[^>]*>\s*)?<svg[\s>]/i.test(block.text) && ["svg", "xml", "html", ""].includes(language)) return "drawing";
  return ["html", "htm", "xhtml"].includes(language) ? "page" : language === "svg" ? "drawing" : null;
}

/** Whether a block is a document of its own, not a few lines that explain something. */
export function isWholePage(block) {
  return artifactKind(block) !== null && /^\s*(?:<!--[^]*?-->\s*|<\?xml[^>]*>\s*)?<(?:!doctype html|html|svg)[\s>]/i.test(block.text);
}

/** A file name in a fence's info: ```html index.html, ```html:index.html or ```html title="index.html". */
function fileName(block) {
  return /(?:^[\w+-]+[\s:]+|(?:title|file|filename|name)=["']?)([\w.-]+\.(?:html?|svg))\b/i.exec(block.info)?.[1] ?? null;
}

export function titleOf(block) {
  const title = /<title[^>]*>([^<]{1,80})/i.exec(block.text)?.[1].trim();
  return title || fileName(block) || (artifactKind(block) === "drawing" ? "Drawing" : "Page");
}

/**
 * The artifacts of a dialogue, in the order in which they first appear: {key, kind, versions}.
 * A version is {answer, title, code, source, isWhole, isClosed}: `answer` is the index of the answer that it stands in, `code`
 * what was written, `source` the same with the files that it names, and `isClosed` says whether it is complete.
 * Blocks with the same file name are versions of one artifact; without a name, all pages are, and all drawings.
 */
export function findArtifacts(answers) {
  const found = new Map();
  for (const [answer, text] of answers.entries()) {
    const blocks = codeBlocks(text);
    for (const block of blocks.filter(artifactKind)) {
      const kind = artifactKind(block);
      const key = fileName(block) ?? kind;
      if (!found.has(key)) found.set(key, { key, kind, versions: [] });
      found.get(key).versions.push({
        answer,
        title: titleOf(block),
        code: block.text,
        source: joined(block.text, blocks),
        isWhole: isWholePage(block),
        isClosed: block.closed,
      });
    }
  }
  return [...found.values()];
}

function codeBlocks(answer) {
  const inside = (block) => {
    if (block.type === "code") return [block];
    return (block.blocks ?? block.items?.flatMap((item) => item.blocks) ?? []).flatMap(inside);
  };
  return parseMarkdown(answer).flatMap(inside);
}

/** The page with the stylesheets and scripts that stand beside it in the same answer, as it asks for them by file name. */
function joined(page, blocks) {
  const styles = blocks.filter((block) => /^css\b/i.test(block.info)).map((block) => block.text);
  const scripts = blocks.filter((block) => /^(?:js|javascript)\b/i.test(block.info)).map((block) => block.text);
  return page
    .replace(/<link\b[^>]*\bhref=["']?(?!\w+:|\/\/)[^"'>\s]+\.css["']?[^>]*>/gi, (link) => (styles.length ? `<style>${styles.shift()}</style>` : link))
    .replace(/<script\b[^>]*\bsrc=["']?(?!\w+:|\/\/)[^"'>\s]+\.m?js["']?[^>]*>\s*<\/script>/gi, (script) => (scripts.length ? scriptOf(script, scripts.shift()) : script));
}

/** A script that was to be read late (`defer`, `type="module"`) runs late as a module. */
function scriptOf(tag, code) {
  return `<script${/\bdefer\b|type=["']?module/i.test(tag) ? ' type="module"' : ""}>${code.replace(/<\/script/gi, "<\\/script")}</script>`;
}
