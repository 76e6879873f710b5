// One streamed answer: what to ask for, and its tokens with their log-probs and times.

const TOP = 5;

/** The path and body of a request. */
export function request(settings, model) {
  const shared = {
    model,
    stream: true,
    stream_options: { include_usage: true },
    temperature: settings.temperature,
    seed: settings.seed,
  };
  if (settings.form === "text") {
    const body = { ...shared, prompt: settings.prompt, max_tokens: settings.maxTokens, logprobs: TOP };
    return ["/v1/completions", body];
  }
  const messages = [{ role: "user", content: settings.prompt }];
  if (settings.system) messages.unshift({ role: "system", content: settings.system });
  const body = {
    ...shared,
    messages,
    max_completion_tokens: settings.maxTokens,
    logprobs: true,
    top_logprobs: TOP,
  };
  return ["/v1/chat/completions", body];
}

/** Takes events in and counts; gives the new tokens of each. */
export class Answer {
  constructor(now = performance.now()) {
    this.started = now;
    this.first = null;
    this.last = null;
    this.tokens = 0;
    this.logprobs = [];
    this.finish = null;
    this.decoder = new TextDecoder();
  }

  /** Tokens of an event: `{text, logprob, top, end}`. */
  take(event, now = performance.now()) {
    if (event.usage) this.tokens = event.usage.completion_tokens;
    const choice = event.choices?.[0];
    if (!choice) return [];
    const text = choice.delta?.content ?? choice.text ?? "";
    const entries = choice.delta ? chatEntries(choice, this.decoder) : textEntries(choice);
    if (entries.length || text) {
      this.first ??= now;
      this.last = now;
    }
    this.finish = choice.finish_reason ?? this.finish;
    if (!entries.length) return text ? [{ text, logprob: null, top: [], end: false }] : [];
    this.tokens = Math.max(this.tokens, this.logprobs.length + entries.length);
    this.logprobs.push(...entries.map((entry) => entry.logprob));
    if (!text && choice.finish_reason === "stop") return entries.map((entry) => ({ ...entry, end: true }));
    return entries;
  }

  /** Seconds from the request to the first token. */
  get ttft() {
    return this.first === null ? null : (this.first - this.started) / 1000;
  }

  /** Tokens per second after the first one. */
  get speed() {
    const seconds = (this.last - this.first) / 1000;
    return this.tokens > 1 && seconds > 0 ? (this.tokens - 1) / seconds : null;
  }

  get meanLogprob() {
    const known = this.logprobs.filter(Number.isFinite);
    return known.length ? known.reduce((sum, one) => sum + one, 0) / known.length : null;
  }
}

function chatEntries(choice, decoder) {
  return (choice.logprobs?.content ?? []).map((entry) => ({
    text: entry.bytes ? decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token,
    name: entry.token,
    logprob: entry.logprob,
    top: (entry.top_logprobs ?? []).map((one) => [one.token, one.logprob]),
    end: false,
  }));
}

function textEntries(choice) {
  const given = choice.logprobs;
  return (given?.tokens ?? []).map((token, index) => ({
    text: token,
    name: token,
    logprob: given.token_logprobs[index],
    top: Object.entries(given.top_logprobs?.[index] ?? {}),
    end: false,
  }));
}
