"use strict";
document.documentElement.classList.add("js");

// -- tables: a click on a heading sorts by it, a second one turns the order round; gaps stay at the end.

function sortKey(row, index) {
  const cell = row.cells[index];
  const given = cell.getAttribute("data-sort");
  const text = given === null ? cell.textContent.trim() : given;
  if (text === "") return null;
  const number = Number(text);
  return Number.isNaN(number) ? text : number;
}

function compareKeys(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true, sensitivity: "base" });
}

function sortTable(table, heading) {
  const body = table.tBodies[0];
  const first = heading.classList.contains("number") ? "descending" : "ascending";
  const before = heading.getAttribute("aria-sort");
  const other = first === "ascending" ? "descending" : "ascending";
  const order = before === first ? other : first;
  for (const cell of heading.parentNode.cells) cell.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = Array.from(body.rows, (row) => ({ row, key: sortKey(row, heading.cellIndex) }));
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return sign * compareKeys(a.key, b.key);
  });
  for (const { row } of rows) body.append(row);
  const what = heading.textContent.trim();
  document.getElementById("announce").textContent = `Sorted by ${what}, ${order}.`;
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  for (const heading of table.tHead.rows[0].cells) {
    heading.querySelector("button")?.addEventListener("click", () => sortTable(table, heading));
  }
}

// -- theme: the system's, or the reader's own choice, kept where the browser allows it.

const themes = ["system", "light", "dark"];
const themeButton = document.getElementById("theme");

function storedTheme() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
}

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themeButton.textContent = `Theme: ${theme}`;
}

let theme = themes.includes(storedTheme()) ? storedTheme() : "system";
setTheme(theme);
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  setTheme(theme);
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // Not kept then: a file opened from the disk may have no storage.
  }
});

// -- print: what is folded away is printed, too.

let folded = [];
addEventListener("beforeprint", () => {
  folded = Array.from(document.querySelectorAll("details:not([open])"));
  for (const item of folded) item.open = true;
});
addEventListener("afterprint", () => {
  for (const item of folded) item.open = false;
});
