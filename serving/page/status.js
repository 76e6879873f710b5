// The status view: what the server does now, from its metrics.

import { withKey } from "./api.js";
import { Chart } from "./chart.js";
import { byLabel, parseMetrics, total } from "./metrics.js";

const SECONDS = 2;
const NAME = "twofour:";
const whole = (value) => Math.round(value).toLocaleString("en");
const perSecond = (value) => `${value.toFixed(value < 10 ? 1 : 0)}/s`;
const share = (value) => `${(100 * value).toFixed(1)} %`;

export class Status {
  constructor(server) {
    this.server = server;
    this.timer = null;
    this.before = null;
    this.charts = {
      tokens: new Chart("Tokens per second", ["generated", "prompt"], perSecond),
      requests: new Chart("Requests", ["running", "waiting"], whole),
      cache: new Chart("Key-value cache", ["in use"], share, 1),
    };
    const made = Object.values(this.charts).map((chart) => chart.root);
    document.querySelector("#charts").append(...made);
    document.addEventListener("visibilitychange", () => this.schedule());
  }

  /** Ask while the view is shown. */
  set shown(value) {
    this.visible = value;
    this.schedule();
  }

  schedule() {
    clearTimeout(this.timer);
    if (this.visible && document.visibilityState === "visible") this.refresh();
  }

  async refresh() {
    const problem = document.querySelector("#status-problem");
    try {
      const text = await withKey(this.server, () => this.server.text("/metrics"));
      this.show(parseMetrics(text), performance.now());
      problem.hidden = true;
    } catch (error) {
      this.before = null;
      problem.textContent = error.message;
      problem.hidden = false;
    }
    clearTimeout(this.timer);
    if (this.visible && document.visibilityState === "visible") {
      this.timer = setTimeout(() => this.refresh(), 1000 * SECONDS);
    }
  }

  show(metrics, now) {
    const get = (name) => total(metrics, NAME + name);
    const totals = { generated: get("generation_tokens_total"), prompt: get("prompt_tokens_total") };
    const rate = (name) =>
      this.before === null
        ? null
        : Math.max(0, totals[name] - this.before[name]) / ((now - this.before.now) / 1000);
    this.charts.tokens.push(rate("generated"), rate("prompt"));
    this.charts.requests.push(get("num_requests_running"), get("num_requests_waiting"));
    this.charts.cache.push(get("kv_cache_usage_perc"));
    const speed = rate("generated");
    tiles({
      "Requests running": whole(get("num_requests_running")),
      "Requests waiting": whole(get("num_requests_waiting")),
      "Key-value cache in use": share(get("kv_cache_usage_perc")),
      "Tokens per second": speed === null ? "–" : speed.toFixed(1),
      "Requests finished": whole(get("request_success_total")),
      "Memory of weights": bytes(get("weight_bytes")),
    });
    masks(metrics);
    engine(metrics);
    this.before = { ...totals, now };
  }
}

function tiles(values) {
  const made = Object.entries(values).map(([name, value]) => {
    const tile = document.createElement("div");
    tile.append(cell("dt", name), cell("dd", value));
    return tile;
  });
  document.querySelector("#tiles").replaceChildren(...made);
}

function masks(metrics) {
  const resident = byLabel(metrics, `${NAME}mask_resident_bytes`, "mask");
  const present = byLabel(metrics, `${NAME}mask_resident`, "mask");
  const changed = byLabel(metrics, `${NAME}mask_changed_share`, "mask");
  const pinned = byLabel(metrics, `${NAME}mask_pinned`, "mask");
  const finished = byLabel(metrics, `${NAME}request_success_total`, "model_name");
  const ofMask = (name) =>
    [...finished].reduce((sum, [model, count]) => sum + (model.endsWith(`:${name}`) ? count : 0), 0);
  const rows = (metrics.get(`${NAME}mask_info`) ?? []).map(({ labels: { mask, domain, storage } }) =>
    maskRow([mask, domain, storage], [
      present.get(mask) === 0 ? "left memory" : bytes(resident.get(mask) ?? 0),
      share(changed.get(mask) ?? 0),
      whole(pinned.get(mask) ?? 0),
      whole(ofMask(mask)),
    ]),
  );
  if (metrics.has(`${NAME}dense_weight_bytes`)) {
    const memory = bytes(total(metrics, `${NAME}dense_weight_bytes`));
    rows.push(maskRow(["dense", "", "no mask"], [memory, "–", "–", whole(ofMask("dense"))]));
  }
  document.querySelector("#masks").replaceChildren(...rows);
}

function maskRow([name, ...texts], numbers) {
  const row = document.createElement("tr");
  const heading = cell("th", name);
  heading.scope = "row";
  const figures = numbers.map((text) => cell("td", text));
  for (const figure of figures) figure.className = "number";
  row.append(heading, ...texts.map((text) => cell("td", text)), ...figures);
  return row;
}

function engine(metrics) {
  const about = metrics.get(`${NAME}engine_info`)?.[0]?.labels ?? {};
  const facts = {
    Engine: `${about.kind} ${about.version}`,
    Model: about.model,
    "Instruction set or device": about.isa,
    "Sparse layout": about.layout,
    Values: about.values,
    "Default mask": about.default_mask,
    "Sparse layers": `${total(metrics, `${NAME}sparse_layers`)} of ${total(metrics, `${NAME}eligible_layers`)}`,
  };
  const made = Object.entries(facts).flatMap(([name, value]) => [cell("dt", name), cell("dd", value)]);
  document.querySelector("#engine").replaceChildren(...made);
}

function cell(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const unit = count > 0 ? Math.min(4, Math.floor(Math.log2(count) / 10)) : 0;
  return `${(count / 1024 ** unit).toFixed(unit ? 1 : 0)} ${units[unit]}`;
}
