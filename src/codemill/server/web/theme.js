"use strict";
// Light, dark, or as the system says. Not a module, so that the page is never painted in the wrong colours first.

(() => {
  const KEY = "codemill.theme";
  const NAMES = ["system", "light", "dark"];

  function stored() {
    const name = localStorage.getItem(KEY);
    return NAMES.includes(name) ? name : "system";
  }

  function apply(name) {
    const root = document.documentElement;
    if (name === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", name);
  }

  function show(button, name) {
    button.querySelector("span").textContent = name[0].toUpperCase() + name.slice(1);
    button.setAttribute("aria-label", `Theme: ${name}. Change it`);
  }

  apply(stored());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    show(button, stored());
    button.addEventListener("click", () => {
      const name = NAMES[(NAMES.indexOf(stored()) + 1) % NAMES.length];
      localStorage.setItem(KEY, name);
      apply(name);
      show(button, name);
    });
  });
})();
