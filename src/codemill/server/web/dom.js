// Small helpers over the DOM. Text reaches the page only as text nodes and attributes, never as HTML.

/** An element with attributes (`null` and `false` leave one out, functions become listeners) and children. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the symbols that index.html defines; without a meaning of its own for a screen reader. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button with a picture and a name that is read out and shown as a tooltip. */
export function iconButton(name, label, onclick, attributes = {}) {
  return make("button", { type: "button", class: "ghost", "aria-label": label, title: label, click: onclick, ...attributes }, icon(name));
}

export const byId = (id) => document.getElementById(id);

/** A random id. `crypto.randomUUID` would need a secure context, and a server in the house has none. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = make("textarea", { class: "offscreen", readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy"); // without https there is no other way
  area.remove();
}

/** A button that copies what `text()` gives, and says that it did. */
export function copyButton(text, label = "Copy") {
  const button = make("button", { type: "button", class: "ghost small" }, icon("copy"), make("span", {}, label));
  button.addEventListener("click", async () => {
    await copyText(text());
    button.lastChild.textContent = "Copied";
    announce("Copied");
    setTimeout(() => { button.lastChild.textContent = label; }, 1500);
  });
  return button;
}

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function announce(text) {
  const line = make("p", {}, text);
  byId("announcer").append(line);
  setTimeout(() => line.remove(), 20_000);
}

/** A note at the foot of the page that goes away; with an action, such as taking something back. */
export function toast(text, action = null) {
  const note = make("div", { class: "toast" }, make("span", {}, text));
  const timer = setTimeout(() => note.remove(), action ? 10_000 : 5_000);
  if (action) {
    note.append(make("button", {
      type: "button",
      class: "ghost small",
      click: () => { clearTimeout(timer); note.remove(); action.run(); },
    }, action.label));
  }
  byId("toasts").append(note);
}

export const count = (number) => number.toLocaleString("en");

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
