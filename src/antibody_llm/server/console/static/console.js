// Renews the progress of a job while it runs. Every page works without this.
"use strict";

const SECONDS = 2;

function watch() {
  const first = document.getElementById("live");
  if (first === null || first.dataset.live !== "yes") return;
  const say = document.querySelector("[data-announce]");
  const bar = document.querySelector("[data-pause]");
  const button = bar.querySelector("button");
  let paused = false;
  bar.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
  });

  async function renew() {
    const old = document.getElementById("live");
    if (paused || document.hidden || old.contains(document.activeElement)) return true;
    const answer = await fetch(location.pathname + "/live", { headers: { accept: "text/html" } });
    if (answer.status === 429) return true;
    if (answer.redirected || !answer.ok) return false;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("live");
    if (fresh === null || fresh.dataset.live !== "yes") return false;
    if (fresh.dataset.said !== old.dataset.said) say.textContent = fresh.dataset.said;
    old.replaceWith(fresh);
    return true;
  }

  async function again() {
    let goes = true;
    try {
      goes = await renew();
    } catch {
      goes = true; // the server is away for a moment
    }
    if (goes) setTimeout(again, SECONDS * 1000);
    else location.reload(); // it has ended: the rest of the page has changed too
  }
  setTimeout(again, SECONDS * 1000);
}

watch();
