// Requests to a server: its key, errors in words, and streams of events.

const STORE = "twofour.key ";

/** A server by its URL; the empty one is where this page comes from. */
export class Server {
  constructor(url = "") {
    this.url = url.replace(/\/+$/, "").replace(/\/v1$/, "");
  }

  get name() {
    return this.url || "this server";
  }

  get key() {
    return sessionStorage.getItem(STORE + this.url) ?? "";
  }

  set key(value) {
    if (value) sessionStorage.setItem(STORE + this.url, value);
    else sessionStorage.removeItem(STORE + this.url);
  }

  /** The answer to a request; throws a Refusal that says what is wrong. */
  async fetch(path, options = {}) {
    const headers = { ...options.headers };
    if (this.key) headers.authorization = `Bearer ${this.key}`;
    const base = this.url || new URL(".", document.baseURI).href.replace(/\/$/, "");
    let answer;
    try {
      answer = await fetch(base + path, { ...options, headers, credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      const hint = this.url ? `, or does not allow this page: start it with --allowed-origins ${location.origin}` : "";
      throw new Refusal(`${this.name} does not answer${hint}`, 0);
    }
    if (answer.ok) return answer;
    throw new Refusal(await reason(answer), answer.status);
  }

  async json(path) {
    return (await this.fetch(path)).json();
  }

  async text(path) {
    return (await this.fetch(path)).text();
  }

  /** The events of a streamed answer, as objects. */
  async *events(path, body, signal) {
    const answer = await this.fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    for await (const data of eventData(answer.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(event.error.message, 500);
      yield event;
    }
  }
}

/** What a server says instead of an answer. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answers ${answer.status} ${answer.statusText}`;
  }
}

async function* eventData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (event.startsWith("data: ")) yield event.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const dialog = document.querySelector("#key-dialog");
const questions = new Map(); // by URL: requests that need one key share one question
let last = Promise.resolve();

/** Ask for the key of a server; whether one was given. One question at a time. */
export function askForKey(server, why = `For ${server.name}.`) {
  if (!questions.has(server.url)) {
    const question = last.then(() => ask(server, why)).finally(() => questions.delete(server.url));
    questions.set(server.url, question);
    last = question;
  }
  return questions.get(server.url);
}

function ask(server, why) {
  return new Promise((resolve) => {
    const field = dialog.querySelector("#key");
    dialog.querySelector("#key-server").textContent = why;
    field.value = "";
    dialog.returnValue = "cancel";
    const answered = () => {
      const saved = dialog.returnValue === "save";
      if (saved) server.key = field.value.trim();
      field.value = "";
      resolve(saved);
    };
    dialog.addEventListener("close", answered, { once: true });
    dialog.showModal();
  });
}

/** Do something that may need a key, and ask for it until it is right or nobody gives one. */
export async function withKey(server, action) {
  for (;;) {
    const tried = server.key;
    try {
      return await action();
    } catch (error) {
      if (!(error instanceof Refusal) || error.status !== 401) throw error;
      if (server.key !== tried) continue; // another request has asked meanwhile
      const why = tried ? `${server.name} does not take this key.` : `${server.name} needs a key.`;
      if (!(await askForKey(server, why))) throw error;
    }
  }
}
