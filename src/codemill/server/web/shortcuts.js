// Keyboard shortcuts, and the dialog that lists them. All need Ctrl (or ⌘), so that none gets in the way of writing.
import { byId, iconButton, make } from "./dom.js";

const isMac = /Mac|iPhone|iPad/.test(navigator.platform);
const MODIFIER = isMac ? "⌘" : "Ctrl";

// [keys shown, what it does, action, test of the event]
const withModifier = (key, shift) => (event) => (event.ctrlKey || event.metaKey) && !event.altKey && event.shiftKey === shift && event.key.toLowerCase() === key;
const SHORTCUTS = [
  [[MODIFIER, "Shift", "O"], "New chat", "newChat", withModifier("o", true)],
  [[MODIFIER, "Shift", "S"], "Show or hide the list of chats", "toggleSidebar", withModifier("s", true)],
  [[MODIFIER, "Shift", "E"], "Show or hide the preview", "toggleArtifact", withModifier("e", true)],
  [[MODIFIER, "."], "Settings", "settings", withModifier(".", false)],
  [[MODIFIER, "/"], "This list", "help", withModifier("/", false)],
  [["Shift", "Esc"], "To the message field", "focusInput", (event) => event.key === "Escape" && event.shiftKey],
  [["Esc"], "Stop the answer; close what is open", "escape", (event) => event.key === "Escape" && !event.shiftKey],
];
const IN_THE_FIELD = [
  [["Enter"], "Send"],
  [["Shift", "Enter"], "New line"],
  [["↑"], "In an empty field: edit your last message"],
];

/** `actions` has a function for each action named above. */
export function installShortcuts(actions) {
  buildHelp();
  addEventListener("keydown", (event) => {
    const dialogOpen = document.querySelector("dialog[open], [popover]:popover-open");
    const shortcut = SHORTCUTS.find(([, , , test]) => test(event));
    if (!shortcut || dialogOpen || event.isComposing) return;
    event.preventDefault();
    actions[shortcut[2]]();
  });
}

export function showHelp() {
  byId("keys").showModal();
}

function buildHelp() {
  const dialog = byId("keys");
  const rows = [...SHORTCUTS, ...IN_THE_FIELD].map(([keys, text]) => make("div", {},
    make("dt", {}, ...keys.flatMap((key, at) => (at ? [" + ", make("kbd", {}, key)] : [make("kbd", {}, key)]))), make("dd", {}, text)));
  dialog.append(
    make("div", { class: "dialog-head" }, make("h2", { id: "keys-title" }, "Keyboard shortcuts"), iconButton("close", "Close", () => dialog.close())),
    make("dl", { class: "keys" }, ...rows));
}
