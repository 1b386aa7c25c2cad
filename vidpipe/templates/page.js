"use strict";

// Tables of class sortable: each header becomes a button that sorts. Numbers (class figures) sort as numbers and
// what is none comes last; equal rows keep the order they came in. A form of class filter whose data-table names
// a table keeps the rows that have every word of its search field, and, where a box is ticked, the class that the
// box is named by. Of a table with data-rows only so many rows are shown until all are asked for: laying out
// thousands takes longer than a reader likes to wait.
const collator = new Intl.Collator("en", { numeric: true });

function enliven(table) {
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
    const asked = boxes.filter((box) => box.checked).map((box) => box.name);
    const found = order.filter((place) => words.every((word) => texts[place].includes(word))
      && asked.every((name) => rows[place].classList.contains(name)));
    body.replaceChildren(...found.slice(0, limit).map((place) => rows[place]));
    more.hidden = found.length <= limit;
    more.textContent = `Show all ${found.length}`;
    if (form) form.querySelector("output").textContent = `${found.length} of ${rows.length}`;
  }

  function sort(header) {
    const isNumber = header.classList.contains("figures");
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const keys = rows.map((row) => row.cells[header.cellIndex].textContent.trim());
    const numbers = keys.map(parseFloat);
    const none = numbers.map((number) => isNumber && Number.isNaN(number));
    const compare = isNumber
      ? (a, b) => numbers[a] - numbers[b] || 0
      : (a, b) => collator.compare(keys[a], keys[b]);
    order.sort((a, b) => none[a] - none[b] || sign * compare(a, b) || a - b);
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

for (const table of document.querySelectorAll("table.sortable")) enliven(table);

// Clips play unless the reader asked for less motion; a button of class play stops and starts them all.
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
