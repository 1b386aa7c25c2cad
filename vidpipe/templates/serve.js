
// A video is chosen or dropped, goes to /predict, and what comes back is shown. A second one takes the first's place.
const SHOWN_CLASSES = 10;
const form = document.getElementById("try");
const input = document.getElementById("file");
const answer = document.getElementById("answer");
let underway = new AbortController();

function say(status, problem) {
  document.getElementById("status").textContent = status;
  document.getElementById("problem").textContent = problem;
  document.getElementById("status").classList.toggle("said", !answer.hidden);
}

function percent(share) {
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

function rankRow([name, share]) {
  const row = document.createElement("tr");
  const header = document.createElement("th");
  header.scope = "row";
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.style.setProperty("--share", share);
  header.append(name, bar);
  const number = document.createElement("td");
  number.className = "figures";
  number.textContent = percent(share);
  row.append(header, number);
  return row;
}

function show(found, fileName) {
  const ranks = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]);
  const title = `${found.predicted}, ${percent(ranks[0][1])}`;
  document.getElementById("answer-title").textContent = title;
  const body = document.querySelector("#ranks tbody");
  body.replaceChildren(...ranks.slice(0, SHOWN_CLASSES).map(rankRow));
  const all = document.getElementById("all");
  all.hidden = ranks.length <= SHOWN_CLASSES;
  all.textContent = `Show all ${ranks.length}`;
  all.onclick = () => { body.replaceChildren(...ranks.map(rankRow)); all.hidden = true; };

  const clip = answer.querySelector(".clip");
  clip.style.setProperty("--frames", found.frames.num_frames);
  clip.style.aspectRatio = `${found.frames.width} / ${found.frames.height}`;
  const words = `${found.num_frames} ${found.num_frames === 1 ? "frame" : "frames"} of ${fileName}, as the model saw them`;
  answer.querySelector("figcaption").textContent = words;
  for (const image of [clip.querySelector("img"), document.getElementById("strip")]) {
    image.src = `data:image/jpeg;base64,${found.frames.jpeg}`;
    image.alt = words;
  }
  answer.hidden = false;
  say(`${fileName}: ${title}`, "");
}

async function look(file) {
  underway.abort();
  underway = new AbortController();
  const { signal } = underway;
  answer.hidden = true;
  if (file.size > Number(form.dataset.maxBytes)) {
    say("", form.dataset.tooLarge);
    return;
  }
  say(`Looking at ${file.name} …`, "");
  try {
    const response = await fetch("/predict?frames=1", { method: "POST", body: file, signal });
    const found = await response.json();
    if (response.ok) show(found, file.name);
    else say("", found.error);
  } catch (error) {
    if (!signal.aborted) say("", "The server does not answer. Its terminal may say why.");
  }
}

input.addEventListener("change", () => { if (input.files.length) look(input.files[0]); });
form.addEventListener("submit", (event) => event.preventDefault());
// Anywhere: a video that misses the field would take the page's place.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    form.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) look(event.dataTransfer.files[0]);
  });
}
document.querySelector(".origin").textContent = location.origin;
