// The field at the foot of the page: what is written next, and the button that sends or stops.
import { byId, icon } from "./dom.js";
import { remember, remembered } from "./store.js";

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
    this.fill(remembered("draft", ""));
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
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
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
