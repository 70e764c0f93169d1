
"use strict";
// Filters and sorting of the overview; curves of runs that are filtered out are hidden with them.
const hidden = new Set();
const pressed = new Map();
const draw = (card) => {
  for (const button of card.querySelectorAll(".legend button[data-series]")) {
    const name = button.dataset.series;
    const shown = button.getAttribute("aria-pressed") === "true" && !hidden.has(name);
    button.hidden = hidden.has(name);
    if (pressed.get(button) === shown) continue;
    pressed.set(button, shown);
    for (const curve of card.querySelectorAll(".curve." + name)) curve.style.display = shown ? "" : "none";
  }
};
const overlays = document.querySelectorAll(".overlay");
for (const card of overlays) {
  for (const button of card.querySelectorAll(".legend button[data-series]")) {
    pressed.set(button, true);
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      draw(card);
    });
  }
}
const form = document.getElementById("filters");
if (form) {
  const table = document.getElementById("overview");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const keys = ["method", "model", "dataset", "noise", "seed", "state"];
  const apply = () => {
    const given = new FormData(form);
    const words = String(given.get("text") || "").toLowerCase().split(/\s+/).filter(Boolean);
    hidden.clear();
    let count = 0;
    for (const row of rows) {
      const shown = words.every((word) => row.dataset.words.includes(word))
        && keys.every((key) => !given.get(key) || row.dataset[key] === given.get(key));
      row.hidden = !shown;
      if (shown) count += 1; else hidden.add(row.dataset.series);
    }
    form.querySelector(".found").textContent = count === rows.length ? "All " + count + " runs" : count + " of " + rows.length + " runs";
    overlays.forEach(draw);
  };
  const camel = (key) => key.replace(/-([a-z])/g, (_, letter) => letter.toUpperCase());
  const sort = (key, direction) => {
    const sign = direction === "descending" ? -1 : 1;
    const value = (row) => row.dataset[camel(key)];
    const ordered = key === "name" ? [...rows] : [...rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const order = Number.isNaN(Number(a)) || Number.isNaN(Number(b)) ? a.localeCompare(b) : Number(a) - Number(b);
      return sign * order;
    });
    if (key === "name" && sign < 0) ordered.reverse();
    body.append(...ordered);
    for (const head of table.tHead.rows[0].cells) {
      if (head.dataset.key === key) head.setAttribute("aria-sort", direction); else head.removeAttribute("aria-sort");
    }
    form.elements.sort.value = key === "name" ? "" : key;
  };
  const numeric = (key) => !["name", "dataset", "state"].includes(key);
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const key = head.dataset.key;
      const now = head.getAttribute("aria-sort");
      const first = numeric(key) ? "descending" : "ascending";
      sort(key, now === first ? (first === "ascending" ? "descending" : "ascending") : first);
    });
  }
  form.addEventListener("input", (event) => {
    if (event.target.name === "sort") {
      const key = event.target.value || "name";
      sort(key, numeric(key) ? "descending" : "ascending");
    } else apply();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { apply(); sort("name", "ascending"); }));
  form.hidden = false;
  apply();
}
// Samples by outcome.
for (const choices of document.querySelectorAll(".choices")) {
  const card = choices.closest(".samples");
  choices.hidden = false;
  for (const button of choices.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const sample of card.querySelectorAll(".sample")) {
        if (sample.dataset.outcome === button.dataset.outcome) sample.hidden = !shown;
      }
    });
  }
}
// A link into a closed part opens it.
const open = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", open);
open();
