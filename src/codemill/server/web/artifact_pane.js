// The pane in which pages and drawings of a chat are seen: live in a sandboxed frame, or as code; every version of them.
import { announce, byId, copyButton, count, download, iconButton, make } from "./dom.js";
import { CodeLines } from "./render.js";

const MAX_REPORTS = 50;
const DRAWING_STYLE = "html,body{height:100%;margin:0}body{display:grid;place-items:center;background:#fff}svg{max-width:100%;max-height:100%}";

/** A whole page for the frame. */
function pageOf(artifact, version) {
  if (artifact.kind !== "drawing") return version.source;
  return `<!DOCTYPE html><meta charset="utf-8"><title>Drawing</title><style>${DRAWING_STYLE}</style>${version.source.replace(/^\s*<\?xml[^>]*>/, "")}`;
}

export class ArtifactPane {
  /** `onclose()` is called when the person closes the pane. */
  constructor(onclose) {
    this.root = byId("artifact");
    this.onclose = onclose;
    this.artifacts = [];
    this.artifact = null; // the key of the one shown
    this.at = 0; // its version
    this.tab = "preview";
    addEventListener("message", (event) => this.receive(event));
    this.build();
  }

  build() {
    this.picker = make("select", { "aria-label": "Artifact", change: () => this.select(this.picker.value) });
    this.title = make("h2");
    this.previous = iconButton("previous", "Earlier version", () => this.goTo(this.at - 1));
    this.next = iconButton("next", "Later version", () => this.goTo(this.at + 1));
    this.number = make("span", { class: "meta", role: "status" });
    this.tabs = ["preview", "code"].map((name) => this.tabOf(name));
    const tablist = make("div", { role: "tablist", "aria-label": "View", keydown: (event) => this.tabKey(event) }, ...this.tabs);
    this.preview = make("div", { id: "panel-preview", role: "tabpanel", "aria-labelledby": "tab-preview" });
    this.code = make("pre", { id: "panel-code", role: "tabpanel", "aria-labelledby": "tab-code", tabindex: "0" });
    this.console = make("details", { class: "console", hidden: true }, make("summary"), make("ul"));
    this.root.append(
      make("div", { class: "pane-head" }, this.title, this.picker, make("span", { class: "space" }),
        make("span", { class: "versions" }, this.previous, this.number, this.next),
        iconButton("close", "Close the preview", () => this.onclose())),
      make("div", { class: "pane-bar" }, tablist, make("span", { class: "space" }),
        iconButton("again", "Start the page again", () => this.restart()),
        copyButton(() => this.version.code), iconButton("download", "Download the file", () => this.save())),
      this.preview, this.code, this.console);
  }

  tabOf(name) {
    return make("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, click: () => this.showTab(name) }, name === "code" ? "Code" : "Preview");
  }

  tabKey(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    this.showTab(this.tab === "code" ? "preview" : "code");
    this.tabs[this.tab === "code" ? 1 : 0].focus();
  }

  get shown() {
    return this.artifacts.find(({ key }) => key === this.artifact) ?? null;
  }

  get version() {
    return this.shown.versions[this.at];
  }

  /** What there is to see in the chat now. The version shown stays, unless it was the last and a newer one came. */
  setArtifacts(artifacts) {
    const old = this.shown;
    const wasLast = old === null || this.at >= old.versions.length - 1;
    this.artifacts = artifacts;
    if (this.shown === null) this.artifact = artifacts.at(-1)?.key ?? null;
    if (this.shown !== null && (wasLast || this.at >= this.shown.versions.length)) this.at = this.shown.versions.length - 1;
    if (!this.root.hidden) this.draw();
  }

  /** Show the artifact and version that has this code; the newest one without. */
  open(code = null) {
    for (const artifact of code === null ? [] : this.artifacts) {
      const at = artifact.versions.findLastIndex((version) => version.code === code);
      if (at >= 0) [this.artifact, this.at] = [artifact.key, at];
    }
    if (!this.shown) return;
    this.root.hidden = false;
    this.draw();
  }

  close() {
    this.root.hidden = true;
    this.stop();
  }

  select(key) {
    this.artifact = key;
    this.at = this.shown.versions.length - 1;
    this.draw();
  }

  goTo(at) {
    this.at = at;
    this.draw();
  }

  showTab(name) {
    this.tab = name;
    this.draw();
  }

  draw() {
    const { shown } = this;
    if (!shown) {
      this.onclose();
      return;
    }
    const { version, at } = this;
    const total = shown.versions.length;
    this.title.textContent = version.title;
    this.picker.hidden = this.artifacts.length < 2;
    this.picker.replaceChildren(...this.artifacts.map(({ key, versions }) => make("option", { value: key }, key === "page" || key === "drawing" ? versions.at(-1).title : key)));
    this.picker.value = this.artifact;
    this.title.hidden = !this.picker.hidden;
    this.number.textContent = `${count(at + 1)} of ${count(total)}`;
    this.previous.disabled = at === 0;
    this.next.disabled = at === total - 1;
    this.drawTab(version.isClosed ? this.tab : "code");
    this.drawCode();
  }

  /** A page that is still being written is shown as code; it runs once it is complete. */
  drawTab(name) {
    const [preview, code] = this.tabs;
    for (const tab of this.tabs) {
      const selected = tab === (name === "code" ? code : preview);
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
    }
    preview.disabled = !this.version.isClosed;
    this.preview.hidden = name === "code";
    this.code.hidden = name !== "code";
    if (name === "preview") this.run();
  }

  drawCode() {
    const { version, code } = this;
    if (!this.lines || !version.code.startsWith(this.lines.text)) {
      this.lines = new CodeLines("html");
      this.lines.text = "";
      code.replaceChildren(this.lines.element);
      code.scrollTop = 0;
    }
    const follows = !version.isClosed && code.scrollHeight - code.scrollTop - code.clientHeight < 80;
    this.lines.update(version.code);
    this.lines.text = version.code;
    if (follows) code.scrollTop = code.scrollHeight;
  }

  /** Run the version shown, unless it runs already. */
  run() {
    const page = pageOf(this.shown, this.version);
    if (this.frame?.page === page) return;
    this.stop();
    const element = make("iframe", { sandbox: "allow-scripts", src: "static/frame.html", title: `Preview of ${this.version.title}`, referrerpolicy: "no-referrer" });
    this.frame = { element, page, isFed: false, reports: [] };
    this.preview.append(element);
  }

  stop() {
    this.frame?.element.remove();
    this.frame = null;
    this.console.hidden = true;
  }

  restart() {
    this.stop();
    if (this.version.isClosed) this.showTab("preview");
  }

  /** Messages come from code that a model wrote: they are shown as text, and cause nothing else. */
  receive(event) {
    if (!this.frame || event.source !== this.frame.element.contentWindow) return;
    const { kind, text } = event.data ?? {};
    if (typeof kind !== "string" || typeof text !== "string") return;
    if (kind === "ready" && !this.frame.isFed) {
      this.frame.isFed = true;
      event.source.postMessage({ source: this.frame.page }, "*"); // a sandboxed frame's origin has no name
    } else if (kind !== "ready" && this.frame.reports.length < MAX_REPORTS) {
      this.report(kind, text.slice(0, 500));
    }
  }

  report(kind, text) {
    const line = kind === "blocked" ? `Not loaded, for a preview has no network: ${text}` : text;
    if (this.frame.reports.includes(line)) return;
    this.frame.reports.push(line);
    const [summary, list] = this.console.children;
    if (this.frame.reports.length === 1) list.replaceChildren();
    list.append(make("li", { class: kind === "error" || kind === "blocked" ? "bad" : null }, line));
    const bad = list.querySelectorAll(".bad").length;
    summary.textContent = bad ? `Console: ${count(bad)} of ${count(list.children.length)} are errors` : `Console: ${count(list.children.length)}`;
    if (bad && this.console.hidden) announce("The page reports an error");
    this.console.hidden = false;
  }

  save() {
    const drawing = this.shown.kind === "drawing";
    const name = /\.\w+$/.test(this.artifact) ? this.artifact : drawing ? "drawing.svg" : "page.html";
    download(name, this.version.source, drawing ? "image/svg+xml" : "text/html");
  }
}
