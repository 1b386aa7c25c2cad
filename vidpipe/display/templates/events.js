
// Each section of class video has a player, and buttons with data-start and data-end, in seconds. A button plays its
// event; a vertical line in the timeline shows the time. In a timeline, the arrow keys move between the events.
function connectPlayer(section) {
  const player = section.querySelector("video");
  const line = section.querySelector(".playhead");
  const until = Number(section.querySelector(".timeline").dataset.until);
  const buttons = [...section.querySelectorAll("[data-start]")];
  let current = null;

  function choose(button) {
    for (const other of buttons) other.classList.toggle("playing", other === button);
    current = button;
  }

  function play(button) {
    choose(button);
    player.currentTime = Number(button.dataset.start);
    // The player shows why it cannot play.
    player.play().catch(() => {});
  }

  function follow() {
    const percent = `${Math.min(100, 100 * player.currentTime / until)}%`;
    line.setAttribute("x1", percent);
    line.setAttribute("x2", percent);
    // While the player seeks, the reader may be leaving the event: see below.
    if (current && !player.seeking && player.currentTime >= Number(current.dataset.end)) {
      player.pause();
      choose(null);
    }
    // The event timeupdate comes four times a second, which is too late for the end of an event.
    if (!player.paused) requestAnimationFrame(follow);
  }

  player.addEventListener("play", follow);
  player.addEventListener("timeupdate", follow);
  // Whoever moves to another part of the video does not want to stop at the end of the event.
  player.addEventListener("seeking", () => {
    if (current && (player.currentTime < Number(current.dataset.start) - 0.1
      || player.currentTime >= Number(current.dataset.end))) choose(null);
  });
  for (const button of buttons) button.addEventListener("click", () => play(button));

  const events = [...section.querySelectorAll(".timeline [data-start]")];
  for (const [index, event] of events.entries()) {
    event.addEventListener("keydown", (pressed) => {
      const next = { ArrowLeft: events[index - 1], ArrowRight: events[index + 1] }[pressed.key];
      if (next) {
        event.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      }
      if (pressed.key === "Enter" || pressed.key === " ") play(event);
      if (next || pressed.key === " ") pressed.preventDefault();
    });
  }
}

for (const section of document.querySelectorAll(".video:has(video)")) connectPlayer(section);
