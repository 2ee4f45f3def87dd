// The messages of the chat that is open.
import { byId, make } from "./dom.js";
import { AnswerView, UserView } from "./message_view.js";

const NEAR_END = 80; // pixels from the end at which the page follows a growing answer
const EXAMPLES = [
  ["Write a function", "Write a Python function that parses an ISO 8601 duration such as P3DT4H, with tests."],
  ["Build a page", "Build a web page: a stopwatch with laps, in one HTML file."],
  ["Explain code", "Explain step by step what this does, and where it breaks:\n\n"],
  ["Find a bug", "This test fails now and then. What may be the reason?\n\n"],
];

export class Dialogue {
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.views = new Map();
    this.dirty = new Map(); // message -> generation, to be drawn
    this.drawAt = 0;
    this.follows = true;
    this.endButton = byId("to-end");
    this.endButton.addEventListener("click", () => this.toEnd());
    root.addEventListener("scroll", () => this.scrolled(), { passive: true });
  }

  scrolled() {
    this.follows = this.isAtEnd();
    this.endButton.hidden = this.follows;
  }

  isAtEnd() {
    return this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < NEAR_END;
  }

  /** Show a chat. `generationOf(message)` is what makes an answer just now, or null. */
  show(thread, generationOf) {
    const kept = this.views;
    this.views = new Map();
    this.root.replaceChildren();
    if (thread.isEmpty) this.root.append(this.welcome());
    for (const message of thread.path()) {
      const variants = thread.variants(message);
      const old = kept.get(message.id);
      const view = old?.message === message && old.variantCount === variants.length ? old : this.viewOf(message, variants);
      this.views.set(message.id, view);
      this.root.append(view.element);
      view.update(generationOf(message));
    }
    this.toEnd();
  }

  viewOf(message, variants) {
    const view = new (message.role === "user" ? UserView : AnswerView)(message, variants, this.actions);
    view.variantCount = variants.length;
    return view;
  }

  welcome() {
    const buttons = EXAMPLES.map(([label, text]) => make("button", { type: "button", class: "example", click: () => this.actions.suggest(text) },
      make("strong", {}, label), make("span", {}, text.trim())));
    return make("section", { class: "welcome", "aria-labelledby": "welcome-title" },
      make("h2", { id: "welcome-title" }, "What do you want to build?"),
      make("p", {}, "Answers come from the model on your server. Pages that it writes are shown beside the chat."),
      make("div", { class: "examples" }, ...buttons));
  }

  /** Draw a message again, soon. What takes long to draw is drawn less often, so that the page stays quick. */
  update(message, generation) {
    if (!this.views.has(message.id)) return;
    this.dirty.set(message, generation);
    this.drawing ??= setTimeout(() => requestAnimationFrame(() => this.draw()), Math.max(0, this.drawAt - performance.now()));
  }

  draw() {
    const started = performance.now();
    clearTimeout(this.drawing);
    this.drawing = null;
    const follows = this.follows;
    for (const [message, generation] of this.dirty) this.views.get(message.id)?.update(generation);
    this.dirty.clear();
    if (follows) this.toEnd();
    const taken = performance.now() - started;
    this.drawAt = performance.now() + 3 * taken;
  }

  toEnd() {
    this.root.scrollTop = this.root.scrollHeight;
    this.scrolled();
  }

  lastUserView() {
    return [...this.views.values()].findLast((view) => view instanceof UserView) ?? null;
  }
}
