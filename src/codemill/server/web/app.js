// Puts the page together: which chat is open, what happens when a person does something.
import { listModels } from "./api.js";
import { findArtifacts } from "./artifact.js";
import { ArtifactPane } from "./artifact_pane.js";
import { Chats } from "./chats.js";
import { Composer } from "./composer.js";
import { Dialogue } from "./dialogue.js";
import { announce, byId, copyText, make, toast } from "./dom.js";
import { Generation } from "./generation.js";
import { History, openMenu } from "./history.js";
import { Settings } from "./settings.js";
import { installShortcuts, showHelp } from "./shortcuts.js";
import { apiKey, remember, remembered } from "./store.js";

const NARROW = matchMedia("(max-width: 56rem)");
const CROWDED = matchMedia("(max-width: 90rem)"); // no room for the list of chats beside a preview
const SAVE_EVERY = 2000; // ms, while an answer grows

class App {
  async start() {
    this.running = new Map(); // message id -> Generation
    this.chats = await Chats.load();
    this.dialogue = new Dialogue(byId("messages"), this.messageActions());
    this.composer = new Composer({ send: (text) => this.send(text), stop: () => this.stop(), editLast: () => this.dialogue.lastUserView()?.edit() });
    this.history = new History(this.historyActions());
    this.settings = new Settings((params) => this.saveSettings(params));
    this.pane = new ArtifactPane(() => this.closeArtifact());
    this.wire();
    this.openChat(this.chats.find(location.hash.slice(1)) ?? this.chats.fresh());
    if (!this.chats.lasts) toast("This browser keeps nothing: the chats are gone when the page is closed.");
    await this.loadModels();
    this.composer.focus();
  }

  wire() {
    byId("new-chat").addEventListener("click", () => this.newChat());
    byId("show-sidebar").addEventListener("click", () => this.toggleSidebar());
    byId("hide-sidebar").addEventListener("click", () => this.toggleSidebar());
    byId("backdrop").addEventListener("click", () => this.toggleSidebar());
    byId("show-settings").addEventListener("click", () => this.settings.open(this.thread.params));
    byId("show-keys").addEventListener("click", showHelp);
    byId("show-artifact").addEventListener("click", () => this.toggleArtifact());
    byId("transfer").addEventListener("click", (event) => openMenu(event.currentTarget, [
      ["Export all chats", () => this.chats.exportAll()],
      ["Import chats", () => this.importChats()],
    ]));
    byId("model").addEventListener("change", (event) => this.chooseModel(event.target.value));
    byId("messages").addEventListener("preview", (event) => this.openArtifact(event.detail));
    addEventListener("hashchange", () => this.openChat(this.chats.find(location.hash.slice(1)) ?? this.chats.fresh()));
    addEventListener("pagehide", () => this.chats.save(this.thread));
    this.setSidebar(!NARROW.matches && remembered("sidebar", true));
    setInterval(() => this.tick(), 1000);
    installShortcuts({
      newChat: () => this.newChat(),
      toggleSidebar: () => this.toggleSidebar(),
      toggleArtifact: () => this.toggleArtifact(),
      settings: () => this.settings.open(this.thread.params),
      help: showHelp,
      focusInput: () => this.composer.focus(),
      escape: () => this.escape(),
    });
  }

  // Models

  async loadModels() {
    const picker = byId("model");
    try {
      this.models = await listModels(apiKey.get());
      this.notice(null);
    } catch (error) {
      this.models = [];
      this.notice(error);
    }
    picker.replaceChildren(...this.models.map((name) => make("option", { value: name }, name)));
    picker.disabled = !this.models.length;
    if (!this.models.length) picker.append(make("option", {}, "No model"));
    this.showModel();
  }

  showModel() {
    const wanted = [this.thread.model, remembered("model", null), this.models?.[0]].find((name) => this.models?.includes(name));
    if (!wanted) return;
    byId("model").value = wanted;
    this.thread.model = wanted;
  }

  chooseModel(name) {
    this.thread.model = name;
    remember("model", name);
    if (!this.thread.isEmpty) this.chats.save(this.thread);
  }

  /** What is wrong with the server as a whole stands above the field, until it is mended. */
  notice(error) {
    const box = byId("notice");
    box.hidden = error === null;
    if (error === null) return;
    const wantsKey = error.status === 401 || error.status === 403;
    const mend = wantsKey
      ? make("button", { type: "button", click: () => this.askKey() }, "Enter the API key")
      : make("button", { type: "button", click: () => this.loadModels() }, "Try again");
    box.replaceChildren(make("span", {}, wantsKey ? "This server wants an API key." : error.message), mend);
  }

  askKey() {
    this.settings.open(this.thread.params, "key");
  }

  saveSettings(params) {
    this.thread.params = params;
    remember("params", params);
    if (!this.thread.isEmpty) this.chats.save(this.thread);
    this.loadModels();
  }

  // Chats

  openChat(thread) {
    this.thread = thread;
    const hash = thread.isEmpty ? "" : `#${thread.id}`;
    if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname);
    this.closeArtifact();
    this.pane.artifact = null;
    this.showModel();
    this.show();
    if (NARROW.matches) this.setSidebar(false);
  }

  /** Draw everything that depends on which chat is open and which messages it shows. */
  show() {
    this.dialogue.show(this.thread, (message) => this.running.get(message.id) ?? null);
    byId("title").textContent = this.thread.title || "New chat";
    document.title = this.thread.title ? `${this.thread.title} · Codemill` : "Codemill";
    this.composer.setRunning(this.generation() !== null);
    this.showArtifacts();
    this.showHistory();
  }

  showHistory() {
    const isRunning = (thread) => [...this.running.values()].some((generation) => generation.thread === thread);
    this.history.show(this.chats.threads, this.thread.id, isRunning);
  }

  newChat() {
    this.openChat(this.chats.fresh(this.thread.model));
    this.composer.focus();
  }

  historyActions() {
    return {
      open: (thread) => { this.openChat(thread); this.composer.focus(); },
      rename: (thread, title) => { thread.title = title; this.chats.save(thread); this.show(); },
      exportAs: (thread, form) => this.chats.exportOne(thread, form),
      remove: (thread) => this.removeChat(thread),
    };
  }

  removeChat(thread) {
    for (const generation of this.running.values()) if (generation.thread === thread) generation.stop();
    this.chats.remove(thread);
    if (thread === this.thread) this.openChat(this.chats.fresh(thread.model));
    else this.showHistory();
    toast("Chat deleted.", { label: "Undo", run: () => { this.chats.putBack(thread); this.showHistory(); } });
  }

  importChats() {
    const field = make("input", { type: "file", accept: ".json,application/json" });
    field.addEventListener("change", async () => {
      try {
        const number = await this.chats.importAll(await field.files[0].text());
        toast(`Imported: ${number}.`);
      } catch (error) {
        toast(`That file cannot be imported: ${error.message}`);
      }
      this.showHistory();
    });
    field.click();
  }

  // Messages

  messageActions() {
    return {
      copy: async (text) => { await copyText(text); toast("Copied."); },
      edit: (message, text) => { if (this.isReady()) { this.thread.add("user", text, message.parent); this.answer(); } },
      choose: (message) => { this.thread.choose(message); this.chats.save(this.thread); this.show(); },
      regenerate: (message) => { if (this.isReady()) this.answer(message.parent); },
      retry: (message) => { if (this.isReady()) { this.thread.remove(message); this.answer(message.parent); } },
      suggest: (text) => { this.composer.fill(text); this.composer.focus(); },
      askKey: () => this.askKey(),
    };
  }

  isReady() {
    if (this.generation()) return false;
    if (this.models?.length) return true;
    this.loadModels();
    return false;
  }

  send(text) {
    if (!this.isReady()) return false;
    this.thread.add("user", text);
    this.answer();
    return true;
  }

  /** Ask the model for what follows a message. */
  async answer(parent = this.thread.leaf) {
    const { thread } = this;
    const message = thread.add("assistant", "", parent);
    const generation = new Generation(thread, message, apiKey.get(), () => this.changed(generation));
    this.running.set(message.id, generation);
    this.chats.keep(thread);
    history.replaceState(null, "", `#${thread.id}`);
    this.show();
    announce("The model is answering");
    await generation.run();
    this.running.delete(message.id);
    this.ended(generation);
  }

  generation() {
    return this.running.get(this.thread.leaf) ?? null;
  }

  changed(generation) {
    const { thread, message } = generation;
    if (thread === this.thread) {
      this.dialogue.update(message, generation);
      this.artifactsSoon();
    }
    if (performance.now() - (this.savedAt ?? 0) > SAVE_EVERY) {
      this.savedAt = performance.now();
      this.chats.save(thread);
    }
  }

  ended(generation) {
    const { thread, message } = generation;
    if (this.chats.threads.includes(thread)) this.chats.save(thread);
    if (thread === this.thread) {
      this.dialogue.update(message, null);
      this.dialogue.draw();
      this.composer.setRunning(this.generation() !== null);
      this.showArtifacts(generation);
    }
    this.showHistory();
    announce({ done: "The answer is complete", stopped: "Stopped" }[message.state] ?? "");
  }

  /** Once a second: the time that something takes is shown while nothing else happens. */
  tick() {
    const generation = this.generation();
    if (generation) this.dialogue.update(generation.message, generation);
  }

  stop() {
    this.generation()?.stop();
  }

  // The preview

  artifactsSoon() {
    this.artifactTimer ??= setTimeout(() => { this.artifactTimer = null; this.showArtifacts(); }, 250);
  }

  showArtifacts(generation = this.generation()) {
    const answers = this.thread.path().filter(({ role }) => role === "assistant");
    const artifacts = findArtifacts(answers.map(({ content }) => content));
    this.pane.setArtifacts(artifacts);
    byId("show-artifact").hidden = !artifacts.length;
    if (!generation || NARROW.matches || this.openedFor === generation) return;
    const fresh = artifacts.flatMap(({ versions }) => versions).find(({ answer, isWhole }) => isWhole && answers[answer] === generation.message);
    if (!fresh) return;
    this.openedFor = generation; // a new page opens by itself once, so that it can be closed
    this.openArtifact(fresh.code);
  }

  openArtifact(code = null) {
    this.pane.open(code);
    if (this.pane.root.hidden || !CROWDED.matches || !this.sidebarOpen) return;
    this.setSidebar(false);
    this.sidebarGaveWay = true;
  }

  closeArtifact() {
    const held = this.pane.root.contains(document.activeElement);
    this.pane.close();
    if (this.sidebarGaveWay && !NARROW.matches) this.setSidebar(true);
    if (held) this.composer.focus();
  }

  toggleArtifact() {
    if (this.pane.root.hidden) this.openArtifact();
    else this.closeArtifact();
  }

  // The sidebar

  setSidebar(open) {
    this.sidebarGaveWay = false;
    this.sidebarOpen = open;
    document.body.toggleAttribute("data-sidebar", open);
    byId("sidebar").inert = !open;
    byId("backdrop").hidden = !open;
    byId("show-sidebar").setAttribute("aria-expanded", String(open));
  }

  toggleSidebar() {
    const open = !this.sidebarOpen;
    this.setSidebar(open);
    if (!NARROW.matches) remember("sidebar", open);
    (open ? byId("new-chat") : byId("show-sidebar")).focus();
  }

  /** Escape closes what lies over the chat on a phone, or else stops the answer, or closes the preview. */
  escape() {
    if (NARROW.matches && this.sidebarOpen) this.toggleSidebar();
    else if (this.generation()) this.stop();
    else if (!this.pane.root.hidden) this.closeArtifact();
  }
}

new App().start();
