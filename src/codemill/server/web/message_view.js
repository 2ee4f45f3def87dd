// One message on the page.
import { announce, copyButton, count, icon, iconButton, make, plural } from "./dom.js";
import { MarkdownView } from "./render.js";

const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : value < 10 ? `${value.toFixed(1)} s` : value < 90 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`);

/** "2 / 3" with buttons to the neighbours; nothing where there is one variant only. */
function variantSwitch(variants, message, choose) {
  if (variants.length < 2) return null;
  const at = variants.indexOf(message);
  const step = (by, name, label) => iconButton(name, label, () => choose(variants[at + by]), { disabled: !variants[at + by] });
  return make("span", { class: "variants", role: "group", "aria-label": "Variants" },
    step(-1, "previous", "Earlier variant"), make("span", { class: "meta" }, `${at + 1} / ${variants.length}`), step(1, "next", "Later variant"));
}

/** What a person wrote, and a field to change it. */
export class UserView {
  constructor(message, variants, actions) {
    this.message = message;
    this.actions = actions;
    this.bubble = make("div", { class: "bubble" }, message.content);
    this.bar = make("div", { class: "actions" },
      variantSwitch(variants, message, actions.choose),
      iconButton("edit", "Edit this message", () => this.edit()),
      iconButton("copy", "Copy this message", () => actions.copy(message.content)));
    this.element = make("article", { class: "message user", "aria-label": "You" }, this.bubble, this.bar);
  }

  update() {}

  edit() {
    const field = make("textarea", { "aria-label": "Edit the message", rows: Math.min(12, this.message.content.split("\n").length + 1) });
    field.value = this.message.content;
    const cancel = () => {
      form.replaceWith(this.bubble);
      this.bar.hidden = false;
      this.bar.querySelector("[aria-label^=Edit]").focus();
    };
    const save = () => (field.value.trim() && field.value !== this.message.content ? this.actions.edit(this.message, field.value) : cancel());
    const form = make("form", { class: "edit", submit: (event) => { event.preventDefault(); save(); } }, field,
      make("div", { class: "row" }, make("button", { type: "submit", class: "primary" }, "Send"), make("button", { type: "button", click: cancel }, "Cancel")));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); cancel(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
    });
    this.bubble.replaceWith(form);
    this.bar.hidden = true;
    field.focus();
  }
}

/** An answer: thinking, text, how it goes or went, and what to do with it. */
export class AnswerView {
  constructor(message, variants, actions) {
    this.message = message;
    this.actions = actions;
    this.variants = variants;
    this.text = make("div", { class: "prose" });
    this.markdown = new MarkdownView(this.text, (block) => this.spoken(block));
    this.status = make("div", { class: "status" });
    this.trouble = make("div");
    this.bar = make("div", { class: "actions" });
    this.element = make("article", { class: "message answer", "aria-label": `Answer of ${message.model}` }, this.text, this.status, this.trouble, this.bar);
    this.isLive = false;
    this.update(null);
  }

  /** `generation` is what makes the answer, or null where nothing does any more. */
  update(generation) {
    const { message } = this;
    this.isLive ||= generation !== null;
    const running = message.state === "running";
    this.element.toggleAttribute("data-running", running);
    if (message.reasoning) this.showReasoning(running);
    this.markdown.update(message.content, !running);
    this.status.replaceChildren(...(running && !message.content ? [waiting(generation, message)] : []));
    if (running) this.bar.replaceChildren(make("span", { class: "meta speed" }, message.content ? rateText(generation) : ""));
    else this.finish();
  }

  /** A screen reader hears an answer block by block, not token by token. */
  spoken(block) {
    if (!this.isLive) return;
    const language = block.querySelector?.(".language")?.textContent;
    announce(block.classList.contains("code") ? `Code, ${language}` : block.textContent);
  }

  showReasoning(running) {
    if (!this.reasoning) {
      this.reasoningText = make("div", { class: "prose" });
      this.reasoningMarkdown = new MarkdownView(this.reasoningText);
      this.reasoning = make("details", { class: "reasoning" }, make("summary"), this.reasoningText);
      this.reasoning.addEventListener("toggle", () => this.fillReasoning());
      this.text.before(this.reasoning);
    }
    const thinking = running && !this.message.content;
    const length = this.message.thought ? ` for ${seconds(this.message.thought)}` : "";
    this.reasoning.firstChild.textContent = thinking ? `Thinking${length}` : `Thought${length}`;
    this.reasoning.classList.toggle("thinking", thinking);
    this.fillReasoning();
  }

  fillReasoning() {
    if (this.reasoning.open) this.reasoningMarkdown.update(this.message.reasoning, this.message.state !== "running");
  }

  finish() {
    const { message } = this;
    this.trouble.replaceChildren(...(message.state === "failed" ? [this.failure(message.error)] : []), ...noteOf(message));
    this.bar.replaceChildren(
      ...[variantSwitch(this.variants, message, this.actions.choose),
        message.content ? iconButton("copy", "Copy the answer", () => this.actions.copy(message.content)) : null,
        message.state === "failed" ? null : iconButton("again", "Answer again", () => this.actions.regenerate(message)),
        make("span", { class: "meta speed" }, message.stats ? statsText(message.stats, message.model) : message.model)].filter(Boolean));
  }

  failure(error) {
    const wait = error.retryAt === null ? 0 : Math.ceil((error.retryAt - Date.now()) / 1000);
    const hint = wait > 0 ? ` The server asks to wait ${plural(wait, "second")}.` : "";
    return make("div", { class: "error", role: "alert" },
      make("p", {}, error.text + hint),
      make("div", { class: "row" },
        make("button", { type: "button", class: "primary", click: () => this.actions.retry(this.message) }, icon("again"), make("span", {}, "Retry")),
        error.status === 401 || error.status === 403 ? make("button", { type: "button", click: () => this.actions.askKey() }, "Enter the API key") : null));
  }
}

function noteOf({ state, finish, content }) {
  if (state === "stopped") return [make("p", { class: "note" }, "Stopped.")];
  if (finish === "length") return [make("p", { class: "note" }, "The answer ends here because it reached the limit of tokens.")];
  return state === "done" && !content ? [make("p", { class: "note" }, "The model ended its answer without a word.")] : [];
}

/** What there is to see before the first word: the place in the queue, how much of the prompt is read, how long it takes. */
function waiting(generation, message) {
  const progress = generation?.progress;
  const elapsed = generation?.speed.elapsed ?? 0;
  if (!progress) return make("p", { class: "meta" }, message.reasoning ? "" : `Waiting for the first word${elapsed >= 2 ? `, ${seconds(elapsed)}` : ""}`);
  const { processed, total, ahead } = progress;
  if (ahead !== null) return make("p", { class: "meta" }, `Waiting: ${ahead ? `${plural(ahead, "request")} ahead` : "next in the queue"}, ${seconds(elapsed)}`);
  const left = processed > 0 && elapsed > 2 ? `, about ${seconds((elapsed / processed) * (total - processed))} left` : "";
  return make("div", { class: "reading" },
    make("progress", { max: total, value: processed, "aria-label": "Prompt read" }),
    make("p", { class: "meta" }, `Reading the prompt: ${count(processed)} of ${plural(total, "token")}${left}`));
}

function rateText(generation) {
  const rate = generation?.speed.rate();
  return rate ? `${rate.toFixed(1)} tokens/s` : "";
}

function statsText({ tokens, prompt, cached, firstToken, rate }, model) {
  return [
    model,
    tokens === null ? null : plural(tokens, "token"),
    rate === null ? null : `${rate.toFixed(1)} tokens/s`,
    firstToken === null ? null : `first after ${seconds(firstToken)}`,
    prompt === null ? null : `prompt ${count(prompt)}${cached ? ` (${count(cached)} cached)` : ""}`,
  ].filter(Boolean).join(" · ");
}
