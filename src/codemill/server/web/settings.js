// The dialog with the parameters of a chat and the API key.
import { byId, iconButton, make } from "./dom.js";
import { apiKey } from "./store.js";

// Name, label, attributes of the field, what it does. Empty fields are left out of the request: the model's own value holds.
const FIELDS = [
  ["temperature", "Temperature", { min: 0, max: 5, step: "any" }, "0 always takes the likeliest token; higher is more varied."],
  ["top_p", "Top p", { min: 0.01, max: 1, step: "any" }, "Only the likeliest tokens that together reach this probability."],
  ["top_k", "Top k", { min: -1, step: 1 }, "Only so many of the likeliest tokens; 0 for all."],
  ["min_p", "Min p", { min: 0, max: 1, step: "any" }, "Only tokens this fraction as likely as the likeliest."],
  ["max_tokens", "Max tokens", { min: 1, step: 1 }, "The longest an answer may get."],
  ["seed", "Seed", { step: 1 }, "The same seed gives the same answer."],
  ["repetition_penalty", "Repetition penalty", { min: 0.01, step: "any" }, "Above 1, what was already said is less likely."],
  ["presence_penalty", "Presence penalty", { min: -2, max: 2, step: "any" }, "The same, once for each token of the answer."],
  ["frequency_penalty", "Frequency penalty", { min: -2, max: 2, step: "any" }, "The same, for each time that it was said."],
];

function labelled(label, hint, control) {
  const id = `set-${control.name}`;
  control.id = id;
  control.setAttribute("aria-describedby", `${id}-hint`);
  return make("div", { class: "setting" }, make("label", { for: id }, label), control, make("p", { class: "hint", id: `${id}-hint` }, hint));
}

export class Settings {
  /** `onsave(params)` gets the parameters of the chat; the API key is kept already. */
  constructor(onsave) {
    this.dialog = byId("settings");
    this.onsave = onsave;
    this.build();
  }

  build() {
    const numbers = FIELDS.map(([name, label, attributes, hint]) => labelled(label, hint,
      make("input", { type: "number", inputmode: "decimal", name, placeholder: "model’s own", autocomplete: "off", ...attributes })));
    const thinking = make("select", { name: "thinking" }, make("option", { value: "" }, "model’s own"), make("option", { value: "on" }, "on"), make("option", { value: "off" }, "off"));
    this.form = make("form", { method: "dialog" },
      make("div", { class: "dialog-head" }, make("h2", { id: "settings-title" }, "Settings"), iconButton("close", "Close without saving", () => this.dialog.close())),
      make("fieldset", {}, make("legend", {}, "This chat, and new ones"),
        labelled("System prompt", "What the model is told before the first message.", make("textarea", { name: "system", rows: 4 })),
        make("div", { class: "grid" }, ...numbers, labelled("Thinking", "For models that can think before they answer.", thinking)),
        labelled("Stop at", "Texts that end the answer, one a line.", make("textarea", { name: "stop", rows: 2 }))),
      make("fieldset", {}, make("legend", {}, "Connection"),
        labelled("API key", "If the server wants one. It stays in this browser and goes to this server only.", make("input", { type: "password", name: "key", autocomplete: "off", spellcheck: "false" })),
        make("label", { class: "check" }, make("input", { type: "checkbox", name: "keep" }), " Keep the key after this tab is closed")),
      make("div", { class: "row end" }, make("button", { type: "button", click: () => this.clear() }, "Reset"), make("button", { type: "submit", class: "primary" }, "Save")));
    this.form.addEventListener("submit", () => this.save());
    this.dialog.append(this.form);
  }

  open(params, field = "system") {
    const { elements } = this.form;
    for (const [name] of FIELDS) elements[name].value = params[name] ?? "";
    for (const name of ["system", "stop", "thinking"]) elements[name].value = params[name] ?? "";
    elements.key.value = apiKey.get();
    elements.keep.checked = apiKey.isKept();
    this.dialog.showModal();
    elements[field].focus();
  }

  /** The model's own values; not the API key. */
  clear() {
    for (const name of ["system", "stop", "thinking", ...FIELDS.map(([field]) => field)]) this.form.elements[name].value = "";
  }

  save() {
    const { elements } = this.form;
    const params = {};
    for (const [name] of FIELDS) if (elements[name].value !== "") params[name] = elements[name].valueAsNumber;
    for (const name of ["system", "stop", "thinking"]) if (elements[name].value) params[name] = elements[name].value;
    apiKey.set(elements.key.value.trim(), elements.keep.checked);
    this.onsave(params);
  }
}
