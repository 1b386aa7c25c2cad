"use strict";

// Each header of a sortable table becomes a button. Numbers sort as numbers, by data-value where a cell has it;
// cells without one come last either way. Equal rows keep the order they came in.
const collator = new Intl.Collator("en", { numeric: true });

function sortKeys(rows, column, isNumber) {
  return rows.map((row) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return isNumber ? parseFloat(text) : text;
  });
}

function sortTable(table, rows, header) {
  const isNumber = header.classList.contains("figures");
  const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  const sign = direction === "ascending" ? 1 : -1;
  const keys = sortKeys(rows, header.cellIndex, isNumber);
  const compare = isNumber ? (a, b) => a - b : collator.compare;
  const order = [...rows.keys()].sort((a, b) => {
    const missing = Number.isNaN(keys[a]) - Number.isNaN(keys[b]);
    return missing || (Number.isNaN(keys[a]) ? 0 : sign * compare(keys[a], keys[b])) || a - b;
  });
  const sorted = document.createDocumentFragment();
  sorted.append(...order.map((place) => rows[place]));
  table.tBodies[0].append(sorted);
  for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", direction);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortTable(table, rows, header));
    header.append(button);
    header.setAttribute("aria-sort", "none");
  }
}

// A form of class filter, with data-table: rows stay that have every word of its search field, and, where a box
// is ticked, the class that the box is named by.
for (const form of document.querySelectorAll("form.filter")) {
  const rows = [...document.getElementById(form.dataset.table).tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const apply = () => {
    const words = form.querySelector("input[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
    const asked = boxes.filter((box) => box.checked).map((box) => box.name);
    let shown = 0;
    rows.forEach((row, place) => {
      const stays = words.every((word) => texts[place].includes(word))
        && asked.every((name) => row.classList.contains(name));
      row.hidden = !stays;
      shown += stays;
    });
    form.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

// Clips play unless the reader asked for less motion; any button of class play stops and starts them all.
function playClips(playing) {
  document.body.classList.toggle("playing", playing);
  for (const button of document.querySelectorAll("button.play")) {
    button.textContent = playing ? "Pause the clips" : "Play the clips";
  }
}

for (const button of document.querySelectorAll("button.play")) {
  button.addEventListener("click", () => playClips(!document.body.classList.contains("playing")));
}
playClips(!window.matchMedia("(prefers-reduced-motion: reduce)").matches);
