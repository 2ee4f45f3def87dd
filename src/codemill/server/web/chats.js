// All chats of this browser, in memory and in the store; out to files and in again.
import { download } from "./dom.js";
import { ChatStore, remembered } from "./store.js";
import { Thread } from "./thread.js";

const FORMAT = "codemill-chats";

export class Chats {
  static async load() {
    const store = await ChatStore.open();
    return new Chats(store, (await store.all()).map(Thread.restore));
  }

  constructor(store, threads) {
    this.store = store;
    this.threads = threads;
    this.lasts = store.lasts;
  }

  find(id) {
    return this.threads.find((thread) => thread.id === id) ?? null;
  }

  /** A chat with nothing in it, which is not kept before it has a message. */
  fresh(model = remembered("model", null)) {
    return Thread.begin(model, remembered("params", {}));
  }

  keep(thread) {
    if (!this.threads.includes(thread)) this.threads.push(thread);
    this.save(thread);
  }

  save(thread) {
    if (this.threads.includes(thread)) this.store.put(thread.record());
  }

  remove(thread) {
    this.threads = this.threads.filter((other) => other !== thread);
    this.store.remove(thread.id);
  }

  putBack(thread) {
    this.keep(thread);
  }

  exportOne(thread, form) {
    const name = thread.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 50).toLowerCase() || "chat";
    if (form === "md") download(`${name}.md`, thread.toMarkdown(), "text/markdown");
    else download(`${name}.json`, this.#file([thread]), "application/json");
  }

  exportAll() {
    download("codemill-chats.json", this.#file(this.threads), "application/json");
  }

  #file(threads) {
    return JSON.stringify({ format: FORMAT, version: 1, chats: threads.map((thread) => thread.record()) }, null, 1);
  }

  /** Take in the chats of an exported file; gives their number. Throws Error where it is no such file. */
  async importAll(text) {
    const file = JSON.parse(text);
    if (file.format !== FORMAT || !Array.isArray(file.chats)) throw new Error("it was not exported by this page");
    const threads = file.chats.map(readChat);
    for (const thread of threads) {
      this.threads = this.threads.filter((other) => other.id !== thread.id);
      this.keep(thread);
    }
    return threads.length;
  }
}

/** A chat from a file that may be anybody's: only what is known, and only where it fits together. */
function readChat({ id, title, created, updated, model, params, messages, leaf }) {
  const times = { created: Number(created) || 0, updated: Number(updated) || 0 };
  const thread = new Thread({ id: text(id), title: text(title), ...times, model: model ?? null, params: params ?? {}, messages: {}, leaf });
  for (const message of Object.values(messages)) thread.messages[text(message.id)] = readMessage(message);
  for (const start of [leaf, ...Object.keys(thread.messages)]) reachRoot(thread.messages, start);
  return thread;
}

function reachRoot(messages, start) {
  const seen = new Set();
  for (let at = start; at !== null; at = messages[at].parent) {
    if (seen.has(at) || !Object.hasOwn(messages, at)) throw new Error("a chat in it is damaged");
    seen.add(at);
  }
}

function readMessage({ id, parent, role, content, created, reasoning, state, finish, model, stats, thought }) {
  if (!["user", "assistant"].includes(role)) throw new Error("a message in it is of nobody");
  const message = { id, parent: parent === null ? null : text(parent), role, content: text(content), created: Number(created) || 0 };
  if (role === "user") return message;
  const answer = { reasoning: text(reasoning ?? ""), state: state === "done" ? "done" : "stopped", error: null, model: text(model ?? ""), stats: stats ?? null };
  return { ...message, ...answer, ...(finish ? { finish } : {}), ...(thought ? { thought: Number(thought) } : {}) };
}

function text(value) {
  if (typeof value !== "string") throw new Error("something in it is no text");
  return value;
}
