// The list of chats: open, find, rename, export, delete.
import { byId, iconButton, make } from "./dom.js";

const DAY = 86_400_000;

function ageOf(time, now) {
  const today = new Date(now).setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  return time >= today - 7 * DAY ? "Last seven days" : "Earlier";
}

export class History {
  /** `actions`: open(thread), rename(thread, title), remove(thread), exportAs(thread, "md" | "json"). */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("history");
    this.find = byId("find");
    this.find.addEventListener("input", () => this.show(this.threads, this.current, this.isRunning));
  }

  show(threads, current, isRunning) {
    Object.assign(this, { threads, current, isRunning });
    const focused = this.list.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    const found = this.matching([...threads].sort((a, b) => b.updated - a.updated));
    const items = [];
    let age = null;
    for (const thread of found) {
      const next = ageOf(thread.updated, Date.now());
      if (next !== age) items.push(make("li", { class: "age" }, next));
      age = next;
      items.push(this.item(thread));
    }
    if (!found.length) items.push(make("li", { class: "meta" }, threads.length ? "No chat with these words." : "Chats are kept here, in this browser."));
    this.list.replaceChildren(...items);
    if (focused) this.itemOf(focused)?.querySelector("button")?.focus();
  }

  matching(threads) {
    const words = this.find.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return threads;
    return threads.filter((thread) => {
      const text = [thread.title, ...Object.values(thread.messages).map((message) => message.content)].join("\n").toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  itemOf(id) {
    return this.list.querySelector(`li[data-id="${CSS.escape(id)}"]`);
  }

  item(thread) {
    const isCurrent = thread.id === this.current;
    const open = make("button", { type: "button", class: "chat", "aria-current": isCurrent ? "true" : null, title: thread.title, click: () => this.actions.open(thread) }, thread.title);
    const more = iconButton("more", `More about ${thread.title}`, () => this.menu(thread, more), { "aria-haspopup": "menu" });
    return make("li", { "data-id": thread.id, "data-running": this.isRunning(thread) }, open, more);
  }

  menu(thread, button) {
    openMenu(button, [
      ["Rename", () => this.rename(thread)],
      ["Export as Markdown", () => this.actions.exportAs(thread, "md")],
      ["Export as JSON", () => this.actions.exportAs(thread, "json")],
      ["Delete", () => this.actions.remove(thread)],
    ]);
  }

  rename(thread) {
    const item = this.itemOf(thread.id);
    const field = make("input", { type: "text", "aria-label": "Name of the chat", maxlength: "120" });
    field.value = thread.title;
    let closed = false;
    const close = (save) => {
      if (closed) return;
      closed = true;
      if (save && field.value.trim()) this.actions.rename(thread, field.value.trim());
      else this.show(this.threads, this.current, this.isRunning);
      this.itemOf(thread.id)?.querySelector("button")?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "Escape") {
        event.stopPropagation();
        close(event.key === "Enter");
      }
    });
    field.addEventListener("blur", () => close(true));
    item.replaceChildren(field);
    field.select();
  }
}

/** A menu below a button, for the keyboard too: arrows, Home, End, Escape. */
export function openMenu(button, entries) {
  const menu = byId("menu");
  const items = entries.map(([label, run]) => make("button", { type: "button", role: "menuitem", click: () => { menu.hidePopover(); run(); } }, label));
  menu.replaceChildren(...items);
  menu.onkeydown = (event) => {
    const at = items.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    items.at(next % items.length).focus();
  };
  menu.ontoggle = (event) => { if (event.newState === "closed" && menu.contains(document.activeElement)) button.focus(); };
  menu.showPopover();
  const [box, own] = [button.getBoundingClientRect(), menu.getBoundingClientRect()];
  menu.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
  menu.style.top = `${box.bottom + own.height + 8 > innerHeight ? box.top - own.height - 4 : box.bottom + 4}px`;
  items[0].focus();
}
