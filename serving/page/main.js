// Starts the page: tabs, the key, the health of the server.

import { Refusal, Server, askForKey, withKey } from "./api.js";
import { startPlayground } from "./playground.js";
import { Status } from "./status.js";

const here = new Server();
const status = new Status(here);
const tabs = [...document.querySelectorAll("[role=tab]")];

function select(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    document.querySelector(`#${other.getAttribute("aria-controls")}`).hidden = !chosen;
  }
  status.shown = tab.id === "tab-status";
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
}

for (const tab of tabs) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.focus();
    select(next);
  });
}

async function checkHealth() {
  const pill = document.querySelector("#health");
  const [text, bad] = await here.fetch("/readyz").then(
    () => ["ready", false],
    (error) => [error instanceof Refusal && error.status ? error.message : "no answer", true],
  );
  if (pill.textContent !== text) pill.textContent = text;
  pill.classList.toggle("bad", bad);
  setTimeout(checkHealth, 10_000);
}

async function start() {
  const ready = startPlayground(here);
  const { version, engine } = await withKey(here, () => here.json("/version"));
  document.querySelector("#served").textContent = `${engine.model} · ${engine.kind} · ${version}`;
  await ready;
}

document.querySelector("#change-key").addEventListener("click", async () => {
  if (await askForKey(here)) location.reload();
});
if (location.hash === "#status") select(document.querySelector("#tab-status"));
checkHealth();
start().catch(() => {}); // each side shows by itself why it has no models
