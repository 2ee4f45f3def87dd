// A chat as a tree: an edited message and an answer made again stand beside the old ones, and none is lost. No DOM here.
import { newId } from "./dom.js";

const TITLE_LENGTH = 60;

/**
 * Messages are {id, parent, role: "user"|"assistant", content, reasoning, state, error, model, stats}; `state` of an answer is
 * "running", "done", "stopped" or "failed". The path from `leaf` to the root is what is shown and sent.
 */
export class Thread {
  constructor(record) {
    Object.assign(this, record);
  }

  static begin(model, params) {
    const now = Date.now();
    return new Thread({ id: newId(), title: "", created: now, updated: now, model, params: { ...params }, messages: {}, leaf: null });
  }

  /** From storage; what was running when the page was closed is not running any more. */
  static restore(record) {
    const thread = new Thread(structuredClone(record));
    for (const message of Object.values(thread.messages)) if (message.state === "running") message.state = "stopped";
    return thread;
  }

  record() {
    return structuredClone({ ...this });
  }

  get isEmpty() {
    return this.leaf === null;
  }

  /** The messages shown, oldest first. */
  path() {
    const path = [];
    for (let id = this.leaf; id !== null; id = this.messages[id].parent) path.push(this.messages[id]);
    return path.reverse();
  }

  add(role, content, parent = this.leaf) {
    const message = { id: newId(), parent, role, content, created: Date.now() };
    if (role === "assistant") Object.assign(message, { reasoning: "", state: "running", error: null, model: this.model, stats: null });
    this.messages[message.id] = message;
    this.leaf = message.id;
    this.updated = Date.now();
    if (!this.title) this.title = titleOf(content);
    return message;
  }

  /** Messages with the same parent, in the order in which they were written. */
  variants(message) {
    return Object.values(this.messages).filter((other) => other.parent === message.parent && other.role === message.role);
  }

  /** Show another variant, and below it what was written last. */
  choose(message) {
    let leaf = message;
    for (let below = this.children(leaf); below.length; below = this.children(leaf)) leaf = below.at(-1);
    this.leaf = leaf.id;
  }

  children(message) {
    return Object.values(this.messages).filter((other) => other.parent === message.id);
  }

  /** Take a message away, and what follows it. */
  remove(message) {
    for (const child of this.children(message)) this.remove(child);
    delete this.messages[message.id];
    if (!Object.hasOwn(this.messages, this.leaf)) this.leaf = message.parent;
  }

  /** What the server is asked: the path up to `answer`, without answers that failed before their first word. */
  prompt(answer) {
    const system = this.params.system?.trim();
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const { id, role, content } of this.path()) {
      if (id === answer.id) break;
      if (content || role === "user") messages.push({ role, content });
    }
    return messages;
  }

  toMarkdown() {
    const parts = this.path().map(({ role, content, model }) => `## ${role === "user" ? "User" : `Assistant (${model})`}\n\n${content}\n`);
    const system = this.params.system?.trim();
    return [`# ${this.title}\n`, ...(system ? [`## System\n\n${system}\n`] : []), ...parts].join("\n");
  }
}

function titleOf(content) {
  const line = content.trim().split("\n")[0];
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : line;
}
