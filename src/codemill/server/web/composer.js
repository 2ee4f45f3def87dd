// The field at the foot of the page: what is written next, and the button that sends or stops.
import { byId, icon, make, toast } from "./dom.js";
import { remember, remembered } from "./store.js";

const TOUCH = matchMedia("(hover: none) and (pointer: coarse)"); // whose keyboards have no Shift + Enter
const MAX_FILE = 1_000_000; // bytes

/** A file in a message. The fence is longer than any within. */
function fenced(name, text) {
  const longest = Math.max(2, ...[...text.matchAll(/^`{3,}/gm)].map(([fence]) => fence.length));
  const fence = "`".repeat(longest + 1);
  return `${name}:\n${fence}${/\.(\w+)$/.exec(name)?.[1] ?? ""}\n${text.trimEnd()}\n${fence}`;
}

export class Composer {
  /** `actions`: send(text), stop(), editLast(). */
  constructor(actions) {
    this.actions = actions;
    this.form = byId("composer");
    this.input = byId("input");
    this.button = byId("send");
    this.running = false;
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    this.input.addEventListener("input", () => this.changed());
    this.input.addEventListener("keydown", (event) => this.key(event));
    byId("attach").addEventListener("click", () => this.chooseFiles());
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => this.takeFiles(event, event.dataTransfer.files));
    this.input.addEventListener("paste", (event) => this.takeFiles(event, event.clipboardData.files));
    this.fill(remembered("draft", ""));
  }

  chooseFiles() {
    const field = make("input", { type: "file", multiple: true });
    field.addEventListener("change", (event) => this.takeFiles(event, field.files));
    field.click();
  }

  /** Files become part of the message, as fenced code with their names. */
  async takeFiles(event, files) {
    if (!files.length) return;
    event.preventDefault();
    for (const file of files) {
      const text = file.size <= MAX_FILE ? await file.text() : null;
      if (text === null || text.includes("\0")) toast(`${file.name} is ${text === null ? "too large: 1 MB is the limit" : "no text"}.`);
      else this.fill(`${this.input.value}${this.input.value && "\n\n"}${fenced(file.name, text)}\n\n`);
    }
    this.focus();
  }

  changed() {
    this.grow();
    remember("draft", this.input.value);
  }

  /** As high as its text, up to the limit that the stylesheet sets. */
  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
  }

  key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !TOUCH.matches) {
      event.preventDefault();
      if (!this.running) this.submit();
    } else if (event.key === "ArrowUp" && !this.input.value) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  submit() {
    if (this.running) {
      this.actions.stop();
      return;
    }
    const text = this.input.value.trim();
    if (text && this.actions.send(text)) this.fill("");
  }

  fill(text) {
    this.input.value = text;
    this.changed();
  }

  focus() {
    this.input.focus();
    this.input.setSelectionRange(this.input.value.length, this.input.value.length);
  }

  setRunning(running) {
    if (running === this.running) return;
    this.running = running;
    const label = running ? "Stop" : "Send";
    this.button.setAttribute("aria-label", label);
    this.button.title = label;
    this.button.replaceChildren(icon(running ? "stop" : "send"));
  }
}
