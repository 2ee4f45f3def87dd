// The models of the server, and what is wrong where there are none.
import { listModels } from "./api.js";
import { byId, make } from "./dom.js";
import { apiKey, remember, remembered } from "./store.js";

export class ModelPicker {
  /** `actions`: choose(name), askKey(), reload(). */
  constructor(actions) {
    this.actions = actions;
    this.names = [];
    this.select = byId("model");
    this.select.addEventListener("change", () => {
      remember("model", this.select.value);
      actions.choose(this.select.value);
    });
  }

  get isEmpty() {
    return !this.names.length;
  }

  async load() {
    let failure = null;
    try {
      this.names = await listModels(apiKey.get());
    } catch (error) {
      this.names = [];
      failure = error;
    }
    this.select.replaceChildren(...this.names.map((name) => make("option", { value: name }, name)));
    this.select.disabled = this.isEmpty;
    if (this.isEmpty) this.select.append(make("option", {}, "No model"));
    this.tell(failure);
  }

  /** Show the model that a chat wants, or else the one chosen last, or the first; gives its name. */
  show(wanted) {
    const name = [wanted, remembered("model", null), this.names[0]].find((candidate) => this.names.includes(candidate));
    if (name) this.select.value = name;
    return name ?? wanted;
  }

  /** What is wrong with the server as a whole stands above the field, until it is mended. */
  tell(failure) {
    const box = byId("notice");
    box.hidden = failure === null;
    if (failure === null) return;
    const wantsKey = failure.status === 401 || failure.status === 403;
    const mend = wantsKey
      ? make("button", { type: "button", click: () => this.actions.askKey() }, "Enter the API key")
      : make("button", { type: "button", click: () => this.actions.reload() }, "Try again");
    box.replaceChildren(make("span", {}, wantsKey ? "This server wants an API key." : failure.message), mend);
  }
}
