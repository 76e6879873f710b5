// The playground: one prompt, two answers side by side.

import { Side } from "./side.js";

const field = (id) => document.querySelector(`#${id}`);

export function startPlayground(here) {
  const sides = [new Side("A", here), new Side("B", here)];
  field("arena").append(...sides.map((side) => side.root));
  let running = null;

  const settings = () => ({
    form: field("form").value,
    order: field("order").value,
    system: field("system").value.trim(),
    prompt: field("prompt").value,
    maxTokens: Number(field("max-tokens").value),
    temperature: Number(field("temperature").value),
    seed: Number(field("seed").value),
  });

  async function run() {
    if (running || !field("composer").reportValidity()) return;
    running = new AbortController();
    field("run").disabled = true;
    field("stop").disabled = false;
    field("verdict").textContent = "Running";
    const { signal } = running;
    const asked = settings();
    const found = [];
    if (asked.order === "apart") {
      for (const side of sides) side.clear();
      for (const side of sides) found.push(signal.aborted ? null : await side.run(asked, signal));
    } else {
      found.push(...(await Promise.all(sides.map((side) => side.run(asked, signal)))));
    }
    const shared = asked.order === "together" && sides[0].server.url === sides[1].server.url;
    field("verdict").textContent = signal.aborted ? "Stopped" : verdict(found, shared);
    running = null;
    field("run").disabled = false;
    field("stop").disabled = true;
  }

  const stop = () => running?.abort();
  field("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  field("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
  });
  const colour = () => {
    field("arena").classList.toggle("coloured", field("colour").checked);
    field("legend").hidden = !field("colour").checked;
  };
  field("colour").addEventListener("change", colour);
  field("form").addEventListener("change", () => {
    document.querySelector(".system").hidden = field("form").value === "text";
  });
  colour();
  // The base model and the last name: a mask, or the dense model beside masks.
  return Promise.all([sides[0].listModels(0), sides[1].listModels(Infinity)]);
}

/** Both answers in a sentence, also for screen readers. */
function verdict([a, b], shared) {
  if (!a || !b) return a || b ? "One of the answers failed" : "Both answers failed";
  if (a.speed === null || b.speed === null) return `A: ${a.tokens} tokens. B: ${b.tokens} tokens.`;
  const [fast, slow, name] = a.speed >= b.speed ? [a, b, "A"] : [b, a, "B"];
  const ratio = fast.speed / slow.speed;
  const speeds = `A ${a.speed.toFixed(1)}, B ${b.speed.toFixed(1)} tokens per second`;
  if (shared) return `${speeds}, sharing the server; run one after the other to compare speeds`;
  return ratio < 1.02 ? `${speeds}: equally fast` : `${speeds}: ${name} is ${ratio.toFixed(2)} times as fast`;
}
