// Puts the page together: which chat is open, what happens when a person does something.
import { findArtifacts } from "./artifact.js";
import { ArtifactPane } from "./artifact_pane.js";
import { Chats } from "./chats.js";
import { Composer } from "./composer.js";
import { Dialogue } from "./dialogue.js";
import { announce, byId, copyText, make, toast } from "./dom.js";
import { Generation } from "./generation.js";
import { History, openMenu } from "./history.js";
import { Settings } from "./settings.js";
import { ModelPicker } from "./model_picker.js";
import { installShortcuts, showHelp } from "./shortcuts.js";
import { NARROW, Sidebar } from "./sidebar.js";
import { apiKey, remember } from "./store.js";

const SAVE_EVERY = 2000; // ms, while an answer grows

class App {
  async start() {
    this.running = new Map(); // message id -> Generation
    this.chats = await Chats.load();
    this.sidebar = new Sidebar();
    this.models = new ModelPicker({ choose: (name) => this.chooseModel(name), askKey: () => this.askKey(), reload: () => this.loadModels() });
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
    byId("show-settings").addEventListener("click", () => this.settings.open(this.thread.params));
    byId("show-keys").addEventListener("click", showHelp);
    byId("show-artifact").addEventListener("click", () => this.toggleArtifact());
    byId("transfer").addEventListener("click", (event) => openMenu(event.currentTarget, [
      ["Export all chats", () => this.chats.exportAll()],
      ["Import chats", () => this.importChats()],
    ]));
    byId("messages").addEventListener("preview", (event) => this.openArtifact(event.detail));
    addEventListener("hashchange", () => this.openChat(this.chats.find(location.hash.slice(1)) ?? this.chats.fresh()));
    addEventListener("pagehide", () => this.chats.save(this.thread));
    setInterval(() => this.tick(), 1000);
    installShortcuts({
      newChat: () => this.newChat(),
      toggleSidebar: () => this.sidebar.toggle(),
      toggleArtifact: () => this.toggleArtifact(),
      settings: () => this.settings.open(this.thread.params),
      help: showHelp,
      focusInput: () => this.composer.focus(),
      escape: () => this.escape(),
    });
  }

  // Models and settings

  async loadModels() {
    await this.models.load();
    this.showModel();
  }

  showModel() {
    this.thread.model = this.models.show(this.thread.model);
  }

  chooseModel(name) {
    this.thread.model = name;
    if (!this.thread.isEmpty) this.chats.save(this.thread);
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
    if (this.sidebar.covers) this.sidebar.set(false);
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
    if (!this.models.isEmpty) return true;
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
    if (!this.pane.root.hidden) this.sidebar.giveWay();
  }

  closeArtifact() {
    const held = this.pane.root.contains(document.activeElement);
    this.pane.close();
    this.sidebar.comeBack();
    if (held) this.composer.focus();
  }

  toggleArtifact() {
    if (this.pane.root.hidden) this.openArtifact();
    else this.closeArtifact();
  }

  /** Escape closes what lies over the chat on a phone, or else stops the answer, or closes the preview. */
  escape() {
    if (this.sidebar.covers) this.sidebar.toggle();
    else if (this.generation()) this.stop();
    else if (!this.pane.root.hidden) this.closeArtifact();
  }
}

new App().start();
