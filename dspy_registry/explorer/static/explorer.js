"use strict";
// Without this file every page can be read; with it, what is marked data-refresh follows the registry.
const REGULARLY = 5000; // ms: usage makes no event
const LEAST = 250; // ms between two loads of a page
const live = document.getElementById("live");
let loading = false, again = false, last = 0, timer = 0;

function say(text) {
  if (live && live.textContent !== text) live.textContent = text;
}

// A part that the reader works in is left alone until the next time.
function isBusy(part) {
  const selection = document.getSelection();
  const selecting = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  return selecting || (part.contains(document.activeElement) && document.activeElement !== document.body);
}

async function load() {
  if (loading) { again = true; return; }
  loading = true;
  last = Date.now();
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.ok) replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch (error) {
    say("Not connected; this page may be old.");
  } finally {
    loading = false;
    if (again) { again = false; soon(); }
  }
}

function replace(page) {
  for (const part of document.querySelectorAll("[data-refresh]")) {
    const next = page.getElementById(part.id);
    if (!next || isBusy(part) || next.outerHTML === part.dataset.seen) continue;
    const seen = next.outerHTML;
    const scrolled = [...part.querySelectorAll(".scroll")].map((area) => area.scrollLeft);
    part.replaceWith(next);
    next.querySelectorAll(".scroll").forEach((area, place) => { area.scrollLeft = scrolled[place] || 0; });
    next.dataset.seen = seen;
    offerCopies(next);
  }
  hintAtMore();
}

// A table or chart that goes on beyond its right edge has a shadow there.
function hintAtMore() {
  for (const area of document.querySelectorAll(".scroll")) {
    area.classList.toggle("more", area.scrollWidth - area.clientWidth - area.scrollLeft > 1);
  }
}

function soon() {
  if (timer) return;
  timer = setTimeout(() => { timer = 0; load(); }, Math.max(0, last + LEAST - Date.now()));
}

function offerCopies(root) {
  for (const code of root.querySelectorAll("[data-copy]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy ${code.textContent}`);
    button.addEventListener("click", async () => {
      if (navigator.clipboard) { // only there on loopback and with TLS
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } else {
        document.getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
    });
    code.after(button);
  }
}

function listen() {
  const events = new EventSource("/api/v1/events");
  events.addEventListener("hello", (event) => {
    const revision = document.getElementById("revision");
    say("Live.");
    if (revision && revision.textContent.replace(/\D/g, "") !== String(JSON.parse(event.data).revision)) soon();
  });
  for (const kind of ["change", "health", "reload"]) events.addEventListener(kind, soon);
  events.addEventListener("error", () => say("Not connected; this page may be old."));
  addEventListener("pagehide", () => events.close());
}

offerCopies(document);
hintAtMore();
addEventListener("resize", hintAtMore);
document.addEventListener("scroll", hintAtMore, { capture: true, passive: true });
if (live && document.querySelector("[data-refresh]")) {
  listen();
  setInterval(() => { if (!document.hidden) soon(); }, REGULARLY);
}
document.addEventListener("keydown", (event) => {
  const search = document.getElementById("search");
  if (event.key === "/" && search && !/^(input|select|textarea)$/i.test(event.target.tagName)) {
    event.preventDefault();
    search.focus();
  }
});
