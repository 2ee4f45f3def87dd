// The list of chats beside the dialogue: open, closed, or out of the way for a preview.
import { byId } from "./dom.js";
import { remember, remembered } from "./store.js";

export const NARROW = matchMedia("(max-width: 56rem)");
const CROWDED = matchMedia("(max-width: 90rem)"); // no room for the list beside a preview

export class Sidebar {
  constructor() {
    for (const id of ["show-sidebar", "hide-sidebar", "backdrop"]) byId(id).addEventListener("click", () => this.toggle());
    this.set(!NARROW.matches && remembered("sidebar", true));
  }

  set(open) {
    this.isOpen = open;
    this.gaveWay = false;
    document.body.toggleAttribute("data-sidebar", open);
    byId("sidebar").inert = !open;
    byId("backdrop").hidden = !open;
    byId("show-sidebar").setAttribute("aria-expanded", String(open));
  }

  toggle() {
    this.set(!this.isOpen);
    if (!NARROW.matches) remember("sidebar", this.isOpen);
    byId(this.isOpen ? "new-chat" : "show-sidebar").focus();
  }

  /** On a phone the list lies over the dialogue. */
  get covers() {
    return NARROW.matches && this.isOpen;
  }

  giveWay() {
    if (!CROWDED.matches || !this.isOpen) return;
    this.set(false);
    this.gaveWay = true;
  }

  comeBack() {
    if (this.gaveWay && !NARROW.matches) this.set(true);
  }
}
