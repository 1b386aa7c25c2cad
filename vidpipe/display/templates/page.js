"use strict";

// Tables of class sortable: a button in each column header sorts the rows. Columns of class figures are sorted as
// numbers, rows without a number come last, and equal rows keep their order. A form of class filter filters the table
// that its data-table names: rows must contain every word of the search field, and have the class that is the name of
// each ticked checkbox. data-rows limits the rows that are shown until the button below the table is pressed: laying
// out thousands of rows takes seconds.
const collator = new Intl.Collator("en", { numeric: true });

function makeInteractive(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const form = table.id ? document.querySelector(`form.filter[data-table="${table.id}"]`) : null;
  const boxes = form ? [...form.querySelectorAll("input[type=checkbox]")] : [];
  const more = document.createElement("button");
  let order = [...rows.keys()];
  let limit = Number(table.dataset.rows ?? rows.length);

  function draw() {
    const typed = form ? form.querySelector("input[type=search]").value : "";
    const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
    const required = boxes.filter((box) => box.checked).map((box) => box.name);
    const found = order.filter((index) => words.every((word) => texts[index].includes(word))
      && required.every((name) => rows[index].classList.contains(name)));
    body.replaceChildren(...found.slice(0, limit).map((index) => rows[index]));
    more.hidden = found.length <= limit;
    more.textContent = `Show all ${found.length} rows`;
    if (form) form.querySelector("output").textContent = `${found.length} of ${rows.length} rows`;
  }

  function sort(header) {
    const isNumber = header.classList.contains("figures");
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const keys = rows.map((row) => row.cells[header.cellIndex].textContent.trim());
    const numbers = keys.map(parseFloat);
    const missing = numbers.map((number) => isNumber && Number.isNaN(number));
    const compare = isNumber
      ? (a, b) => numbers[a] - numbers[b] || 0
      : (a, b) => collator.compare(keys[a], keys[b]);
    order.sort((a, b) => missing[a] - missing[b] || sign * compare(a, b) || a - b);
    for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", direction);
    draw();
  }

  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header));
    header.append(button);
    header.setAttribute("aria-sort", "none");
  }
  if (form) {
    form.addEventListener("input", draw);
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  more.type = "button";
  more.className = "button more";
  more.addEventListener("click", () => { limit = rows.length; draw(); });
  table.after(more);
  draw();
}

for (const table of document.querySelectorAll("table.sortable")) makeInteractive(table);

// Clips play unless the reader prefers reduced motion; a button of class play pauses and plays all of them.
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
