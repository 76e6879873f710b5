// One side of the playground: which server and model, the answer, its tokens and figures.

import { Server, withKey } from "./api.js";
import { Answer, request } from "./answer.js";

const DOUBTFUL = 0.1;

export class Side {
  constructor(letter, here) {
    const root = document.querySelector("#side").content.cloneNode(true).firstElementChild;
    this.root = root;
    this.letter = letter;
    this.here = here;
    this.server = here;
    this.model = root.querySelector(".model");
    this.where = root.querySelector(".where");
    this.url = root.querySelector(".url");
    this.text = root.querySelector(".answer");
    this.detail = root.querySelector(".token");
    this.problem = root.querySelector(".problem");
    root.querySelector("h2").textContent = letter;
    root.setAttribute("aria-label", `Side ${letter}`);
    this.model.setAttribute("aria-label", `Model of side ${letter}`);
    this.where.setAttribute("aria-label", `Server of side ${letter}`);
    this.text.setAttribute("aria-label", `Answer ${letter}; arrow keys go through its tokens`);
    this.where.addEventListener("change", () => this.changeServer());
    this.url.querySelector("input").addEventListener("change", () => this.changeServer());
    this.text.addEventListener("click", (event) => this.choose(event.target.closest(".piece")));
    this.text.addEventListener("keydown", (event) => this.walk(event));
  }

  /** Offer the names of the server; `preferred` is the place of the one to begin with. */
  async listModels(preferred = 0) {
    const chosen = this.model.value;
    const server = this.server;
    try {
      const { data } = await withKey(server, () => server.json("/v1/models"));
      if (server !== this.server) return;
      this.model.replaceChildren(...data.map(({ id }) => new Option(id, id)));
      const names = data.map(({ id }) => id);
      this.model.selectedIndex = names.includes(chosen)
        ? names.indexOf(chosen)
        : Math.min(preferred, names.length - 1);
      this.tell("");
    } catch (error) {
      if (server !== this.server) return;
      this.model.replaceChildren();
      this.tell(error.message);
    }
  }

  async changeServer() {
    const there = this.where.value === "there";
    this.url.hidden = !there;
    const typed = this.url.querySelector("input").value.trim();
    if (there && !typed) {
      this.model.replaceChildren();
      this.url.querySelector("input").focus();
      return;
    }
    this.server = there ? new Server(typed) : this.here;
    await this.listModels();
  }

  /** Stream an answer; null if it failed or was stopped. */
  async run(settings, signal) {
    this.clear();
    this.text.classList.add("busy");
    this.text.setAttribute("aria-busy", "true");
    const [path, body] = request(settings, this.model.value);
    let answer = null;
    try {
      await withKey(this.server, async () => {
        answer = new Answer();
        for await (const event of this.server.events(path, body, signal)) {
          this.append(answer.take(event));
          this.show(answer);
        }
      });
      return answer;
    } catch (error) {
      if (error.name !== "AbortError") this.tell(error.message);
      return null;
    } finally {
      this.text.classList.remove("busy");
      this.text.removeAttribute("aria-busy");
    }
  }

  clear() {
    this.text.replaceChildren();
    this.detail.hidden = true;
    this.tell("");
    for (const field of this.root.querySelectorAll("[data-figure]")) field.textContent = "–";
  }

  append(tokens) {
    const follow = this.text.scrollTop + this.text.clientHeight >= this.text.scrollHeight - 8;
    for (const token of tokens) this.text.append(piece(token));
    if (follow) this.text.scrollTop = this.text.scrollHeight;
  }

  show(answer) {
    const figures = {
      ttft: answer.ttft === null ? "–" : milliseconds(answer.ttft),
      speed: answer.speed === null ? "–" : answer.speed.toFixed(1),
      tokens: answer.finish ? `${answer.tokens} (${answer.finish})` : String(answer.tokens),
      logprob: answer.meanLogprob === null ? "–" : answer.meanLogprob.toFixed(2),
    };
    for (const [name, value] of Object.entries(figures)) {
      this.root.querySelector(`[data-figure="${name}"]`).textContent = value;
    }
  }

  tell(message) {
    this.problem.textContent = message;
    this.problem.hidden = !message;
  }

  walk(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (!(event.key in steps) || !this.text.firstElementChild) return;
    event.preventDefault();
    const chosen = this.text.querySelector(".chosen");
    const next =
      chosen === null
        ? this.text.firstElementChild
        : steps[event.key] > 0
          ? chosen.nextElementSibling
          : chosen.previousElementSibling;
    this.choose(next);
  }

  /** Show what the model thought at one token. */
  choose(found) {
    if (!found?.token) return;
    this.text.querySelector(".chosen")?.classList.remove("chosen");
    found.classList.add("chosen");
    found.scrollIntoView({ block: "nearest" });
    const { name, logprob, top } = found.token;
    const rows = top.some(([other]) => other === name) ? top : [[name, logprob], ...top];
    this.detail.replaceChildren(...rows.map(([other, value]) => alternative(other, value, other === name)));
    this.detail.hidden = false;
    this.detail.setAttribute("aria-live", "polite");
  }
}

function piece(token) {
  const span = document.createElement("span");
  span.className = token.end ? "piece end" : "piece";
  span.textContent = token.end ? ` ⏎ ${token.name}` : token.text;
  if (token.logprob === null || token.logprob === undefined) return span;
  const p = Math.exp(token.logprob);
  span.token = token;
  span.style.setProperty("--p", p.toFixed(3));
  span.classList.toggle("doubtful", p < DOUBTFUL);
  span.title = `${percent(p)} (log-prob ${token.logprob.toFixed(3)})`;
  return span;
}

function alternative(name, logprob, taken) {
  const row = document.createElement("div");
  const p = Math.exp(logprob);
  row.className = taken ? "taken" : "";
  const term = document.createElement("dt");
  term.textContent = JSON.stringify(name);
  const value = document.createElement("dd");
  value.textContent = percent(p);
  const share = document.createElement("dd");
  share.className = "share";
  share.setAttribute("aria-hidden", "true");
  share.style.setProperty("--p", p.toFixed(4));
  row.append(term, value, share);
  return row;
}

const percent = (p) => `${(100 * p).toFixed(p < 0.1 ? 2 : 1)} %`;
const milliseconds = (seconds) =>
  seconds < 1 ? `${(1000 * seconds).toFixed(0)} ms` : `${seconds.toFixed(2)} s`;
