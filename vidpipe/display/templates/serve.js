
// A chosen or dropped video is sent to /predict, and the answer is shown. A second video replaces the first.
const SHOWN_CLASSES = 10;
const form = document.getElementById("try");
const input = document.getElementById("file");
const answer = document.getElementById("answer");
let current = new AbortController();

function showMessages(status, problem) {
  document.getElementById("status").textContent = status;
  document.getElementById("problem").textContent = problem;
  document.getElementById("status").classList.toggle("spoken-only", !answer.hidden);
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)}\u00a0%`;
}

function rankRow([name, probability]) {
  const row = document.createElement("tr");
  const header = document.createElement("th");
  header.scope = "row";
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.style.setProperty("--probability", probability);
  header.append(name, bar);
  const number = document.createElement("td");
  number.className = "figures";
  number.textContent = percent(probability);
  row.append(header, number);
  return row;
}

function showAnswer(result, fileName) {
  const ranks = Object.entries(result.probabilities).sort((a, b) => b[1] - a[1]);
  const title = `${result.predicted}, ${percent(ranks[0][1])}`;
  document.getElementById("answer-title").textContent = title;
  const body = document.querySelector("#ranks tbody");
  body.replaceChildren(...ranks.slice(0, SHOWN_CLASSES).map(rankRow));
  const all = document.getElementById("all");
  all.hidden = ranks.length <= SHOWN_CLASSES;
  all.textContent = `Show all ${ranks.length}`;
  all.onclick = () => { body.replaceChildren(...ranks.map(rankRow)); all.hidden = true; };

  const clip = answer.querySelector(".clip");
  clip.style.setProperty("--frames", result.frames.num_frames);
  clip.style.aspectRatio = `${result.frames.width} / ${result.frames.height}`;
  const count = `${result.num_frames} ${result.num_frames === 1 ? "frame" : "frames"}`;
  const caption = `${count} of ${fileName}, as the model saw them`;
  answer.querySelector("figcaption").textContent = caption;
  for (const image of [clip.querySelector("img"), document.getElementById("strip")]) {
    image.src = `data:image/jpeg;base64,${result.frames.jpeg}`;
    image.alt = caption;
  }
  answer.hidden = false;
  showMessages(`${fileName}: ${title}`, "");
}

async function classify(file) {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  answer.hidden = true;
  if (file.size > Number(form.dataset.maxBytes)) {
    showMessages("", form.dataset.tooLarge);
    return;
  }
  showMessages(`Classifying ${file.name} …`, "");
  try {
    const response = await fetch("/predict?frames=1", { method: "POST", body: file, signal });
    const result = await response.json();
    if (response.ok) showAnswer(result, file.name);
    else showMessages("", result.error);
  } catch (error) {
    if (!signal.aborted) showMessages("", "The server does not respond. Its log may show the reason.");
  }
}

input.addEventListener("change", () => { if (input.files.length) classify(input.files[0]); });
form.addEventListener("submit", (event) => event.preventDefault());
// On the whole document: the browser opens a video that is dropped beside the form, and leaves the page.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    form.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
  });
}
document.querySelector(".origin").textContent = location.origin;
